"""What an encoder has to beat: functional connectivity, the mean image, motion and confounds; with plain linear models.

N  examples      U  volumes at 0.8 s      V  voxels of the brain      R  parcels      F  features
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.errors import BadDataError
from bids_app.training.data.labels import Stretch
from bids_app.training.data.store import BACKGROUND, Scan
from bids_app.training.evaluation.metrics import of_length_one
from bids_app.training.tasks import Question

CUBE_VOXELS, BLOCK_VOXELS = 12, 6
"""Edges of the cubes (24 mm) whose connectivity is taken where no atlas is named, and of the mean image's (12 mm)."""
FEWEST_VOXELS = 8
"""Voxels of a scan that a parcel needs to be used."""
AT_A_TIME = 64
"""Volumes that are read at a time."""
Examples = Sequence[Scan | Stretch]


def cubes(edge: int) -> np.ndarray:
    """Cubes of so many voxels as a label image, (96, 96, 96), from 1 on."""
    at = [np.arange(n) // edge for n in MODEL_GRID_SHAPE]
    counts = [int(a.max()) + 1 for a in at]
    x, y, z = np.meshgrid(*at, indexing="ij")
    return ((x * counts[1] + y) * counts[2] + z + 1).astype(np.int32)


def parcel_series(example: Scan | Stretch, labels: np.ndarray, n_parcels: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of parcels over time.

    Parameters
    ----------
    labels : np.ndarray of int, (96, 96, 96)
        Parcels from 1 to ``n_parcels``; 0 is none.

    Returns
    -------
    series : np.ndarray, (U, R)
        0 for parcels that the scan has too few voxels of.
    voxels : np.ndarray of int, (R,)
    """
    scan, first = (example.scan, example.first) if isinstance(example, Stretch) else (example, 0)
    parcel = labels.reshape(-1)[scan.places]
    voxels = np.bincount(parcel, minlength=n_parcels + 1)[1:]
    order = np.argsort(parcel, kind="stable")
    sorted_parcels = parcel[order]
    starts = np.flatnonzero(np.diff(sorted_parcels, prepend=-1))
    found = sorted_parcels[starts]
    codes = np.load(scan.folder / "values.npy", mmap_mode="r")
    series = np.zeros((example.n_vols, n_parcels + 1), np.float32)
    for a in range(0, example.n_vols, AT_A_TIME):
        chunk = np.asarray(codes[first + a : first + min(a + AT_A_TIME, example.n_vols)])
        values = chunk.astype(np.float32) * np.float32(scan.scale)
        values[chunk == BACKGROUND] = 0
        series[a : a + len(chunk), found] = np.add.reduceat(values[:, order], starts, axis=1)
    series[:, 1:] /= np.maximum(voxels, 1)
    series[:, 1:][:, voxels < FEWEST_VOXELS] = 0
    return series[:, 1:], voxels


def connectivity(examples: Examples, labels: np.ndarray | None = None) -> np.ndarray:
    """Correlations between parcels of each example, with shrinkage (nilearn); (N, F).

    Parameters
    ----------
    labels : np.ndarray of int, optional, (96, 96, 96)
        None: cubes of 24 mm.
    """
    from nilearn.connectome import ConnectivityMeasure

    labels = cubes(CUBE_VOXELS) if labels is None else _numbered(labels)
    pairs = [parcel_series(example, labels, int(labels.max())) for example in examples]
    enough = np.mean([voxels >= FEWEST_VOXELS for _, voxels in pairs], axis=0) >= 0.9
    if enough.sum() < 2:
        raise BadDataError("Fewer than two parcels lie in the scans.", "Name an atlas in MNI152NLin6Asym space.")
    noise = np.random.default_rng(0)
    series = []
    for values, _ in pairs:
        kept = values[:, enough].astype(np.float64)
        flat = kept.std(axis=0) == 0
        kept[:, flat] = noise.normal(size=(len(kept), int(flat.sum())))  # correlated with nothing
        series.append(kept)
    measure = ConnectivityMeasure(kind="correlation", vectorize=True, discard_diagonal=True, standardize=True)
    return np.asarray(measure.fit_transform(series))


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers from 1 on."""
    found = np.unique(labels)
    return np.searchsorted(found[found != 0], labels).astype(np.int32) * (labels != 0) + (labels != 0)


def mean_images(examples: Examples) -> np.ndarray:
    """Means over time in cubes of 12 mm, (N, F): of a scan as it was, of a stretch against the rest of its scan."""
    labels = cubes(BLOCK_VOXELS)
    n_cubes = int(labels.max())
    rows, seen = [], []
    for example in examples:
        if isinstance(example, Stretch):
            series, voxels = parcel_series(example, labels, n_cubes)
            rows.append(series.mean(axis=0))
        else:
            parcel = labels.reshape(-1)[example.places]
            voxels = np.bincount(parcel, minlength=n_cubes + 1)[1:]
            sums = np.bincount(parcel, example.mean_image(), minlength=n_cubes + 1)[1:]
            rows.append(np.where(voxels >= FEWEST_VOXELS, sums / np.maximum(voxels, 1), 0))
        seen.append(voxels >= FEWEST_VOXELS)
    return np.stack(rows)[:, np.mean(seen, axis=0) >= 0.5]


def confounds(examples: Examples) -> np.ndarray:
    """What is known of motion and signals, and the length of the scan; (N, F), NaN where it is not known."""
    names = sorted({name for example in examples for name in example.confounds})
    if not names:
        raise BadDataError("No scan has confounds.", "They are read from *_desc-confounds_timeseries.tsv.")
    return np.array([[*(e.confounds.get(n, np.nan) for n in names), e.n_vols] for e in examples], dtype=float)


def fit_predict(
    question: Question,
    features: np.ndarray,
    values: Sequence[str],
    groups: Sequence[str],
    train: np.ndarray,
    test: np.ndarray,
) -> np.ndarray:
    """Answers of a linear model to a question, from features.

    Features are standardised and turned into principal components, which changes no linear model with an L2 penalty.
    Logistic and ridge regressions choose their penalty within the training examples, group by group. Vectors that are
    compared among themselves are the standardised features.

    Parameters
    ----------
    question : Question
        About the training examples.
    features : np.ndarray, (N, F)
        NaN is replaced by the training median.
    values, groups : sequence of str, (N,)
        Answers, and what must stay together.
    train, test : np.ndarray of int

    Returns
    -------
    np.ndarray
        As `Question.answers`, for the test examples.
    """
    from sklearn.decomposition import PCA
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    standard = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    x, x_test = standard.fit_transform(features[train]), standard.transform(features[test])
    if question.task == EMBEDDING and question.images is None:
        return of_length_one(x_test)
    components = PCA(svd_solver="full").fit(x)
    x, x_test = components.transform(x), components.transform(x_test)
    own, own_groups = [values[i] for i in train], np.array([groups[i] for i in train])
    if question.task == CLASSIFICATION:
        return _logistic(question, x, own, own_groups, x_test)
    if question.task == REGRESSION:
        return _ridge(x, np.array([float(v) for v in own])[:, None], own_groups, x_test)
    assert question.images is not None  # all other embeddings are answered above
    return of_length_one(_ridge(x, question.images[question.targets(own)].numpy(), own_groups, x_test))


def _ridge(x: np.ndarray, targets: np.ndarray, groups: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold

    n_folds = min(5, len(set(groups)))
    if n_folds < 2:
        return Ridge(1e3).fit(x, targets).predict(x_test).reshape(len(x_test), -1)
    splits = list(GroupKFold(n_folds).split(x, targets, groups))
    grid = {"alpha": np.logspace(-1, 6, 15)}
    found: Any = GridSearchCV(Ridge(), grid, cv=splits, scoring="neg_mean_squared_error").fit(x, targets)
    return found.predict(x_test).reshape(len(x_test), -1)


def _logistic(
    question: Question, x: np.ndarray, values: list[str], groups: np.ndarray, x_test: np.ndarray
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

    scale, truth = x.std() or 1.0, np.array(values)
    model: Any = LogisticRegression(C=1e-2, class_weight="balanced", max_iter=2000)
    n_folds = min(3, len(set(groups)), *(values.count(label) for label in question.labels))
    splits = list(StratifiedGroupKFold(n_folds).split(x, truth, groups)) if n_folds > 1 else []
    if splits and all(set(truth[a]) == set(truth[b]) == set(values) for a, b in splits):
        model = GridSearchCV(model, {"C": np.logspace(-4, 1, 6)}, cv=splits, scoring="neg_log_loss")
    model.fit(x / scale, truth)
    order = [list(model.classes_).index(label) for label in question.labels]
    return model.predict_proba(x_test / scale)[:, order]


BASELINES = {
    "connectivity": "functional connectivity",
    "mean": "mean image",
    "confounds": "motion and confounds",
}


def features_of(name: str, examples: Examples, labels: np.ndarray | None) -> np.ndarray:
    """Features of an entry of `BASELINES`, (N, F)."""
    if name == "connectivity":
        return connectivity(examples, labels)
    return mean_images(examples) if name == "mean" else confounds(examples)
