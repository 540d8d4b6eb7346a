"""Baselines: linear models of functional connectivity, the mean image, or motion and confounds.

N  examples      U  volumes at 0.8 s      V  voxels of the brain      R  parcels      F  features
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.errors import BadDataError
from bids_app.training.data.labels import Segment
from bids_app.training.data.store import BACKGROUND, Scan
from bids_app.training.evaluation.metrics import to_unit_length
from bids_app.training.tasks import Task

CUBE_VOXELS, BLOCK_VOXELS = 12, 6
"""Edges of the cubes for functional connectivity without an atlas (24 mm) and for the mean image (12 mm)."""
MIN_PARCEL_VOXELS = 8
"""Minimum number of brain voxels in a usable parcel."""
CHUNK_VOLUMES = 64
"""Volumes read at a time."""
Examples = Sequence[Scan | Segment]


def cube_labels(edge: int) -> np.ndarray:
    """Return a label image (96, 96, 96) of cubes with an edge in voxels; labels start at 1."""
    at = [np.arange(n) // edge for n in MODEL_GRID_SHAPE]
    counts = [int(a.max()) + 1 for a in at]
    x, y, z = np.meshgrid(*at, indexing="ij")
    return ((x * counts[1] + y) * counts[2] + z + 1).astype(np.int32)


def parcel_series(example: Scan | Segment, labels: np.ndarray, n_parcels: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean time series of each parcel.

    Parameters
    ----------
    labels : np.ndarray of int, (96, 96, 96)
        Parcels from 1 to ``n_parcels``; 0 is none.

    Returns
    -------
    series : np.ndarray, (U, R)
        0 for parcels with fewer than `MIN_PARCEL_VOXELS` voxels.
    voxels : np.ndarray of int, (R,)
        Brain voxels in each parcel.
    """
    scan, first = (example.scan, example.first) if isinstance(example, Segment) else (example, 0)
    indices = scan.voxel_indices
    parcel = labels.reshape(-1)[indices]
    voxels = np.bincount(parcel, minlength=n_parcels + 1)[1:]
    order = np.argsort(parcel, kind="stable")
    sorted_parcels = parcel[order]
    starts = np.flatnonzero(np.diff(sorted_parcels, prepend=-1))
    found = sorted_parcels[starts]
    codes = scan.codes(indices)
    series = np.zeros((example.n_vols, n_parcels + 1), np.float32)
    for a in range(0, example.n_vols, CHUNK_VOLUMES):
        chunk = np.asarray(codes[first + a : first + min(a + CHUNK_VOLUMES, example.n_vols)])
        values = chunk.astype(np.float32) * np.float32(scan.scale)
        values[chunk == BACKGROUND] = 0
        series[a : a + len(chunk), found] = np.add.reduceat(values[:, order], starts, axis=1)
    series[:, 1:] /= np.maximum(voxels, 1)
    series[:, 1:][:, voxels < MIN_PARCEL_VOXELS] = 0
    return series[:, 1:], voxels


def connectivity_features(examples: Examples, labels: np.ndarray | None = None) -> np.ndarray:
    """Compute correlations between parcels, with shrinkage (nilearn); (N, F).

    Parameters
    ----------
    labels : np.ndarray of int, optional, (96, 96, 96)
        None: cubes of 24 mm.
    """
    from nilearn.connectome import ConnectivityMeasure

    labels = cube_labels(CUBE_VOXELS) if labels is None else _relabel(labels)
    pairs = [parcel_series(example, labels, int(labels.max())) for example in examples]
    enough = np.mean([voxels >= MIN_PARCEL_VOXELS for _, voxels in pairs], axis=0) >= 0.9
    if enough.sum() < 2:
        raise BadDataError(
            "Fewer than two parcels of the atlas overlap with the scans.", "Use an atlas in MNI152NLin6Asym space."
        )
    noise = np.random.default_rng(0)
    series = []
    for values, _ in pairs:
        kept = values[:, enough].astype(np.float64)
        flat = kept.std(axis=0) == 0
        kept[:, flat] = noise.normal(size=(len(kept), int(flat.sum())))  # uncorrelated
        series.append(kept)
    measure = ConnectivityMeasure(kind="correlation", vectorize=True, discard_diagonal=True, standardize=True)
    return np.asarray(measure.fit_transform(series))


def _relabel(labels: np.ndarray) -> np.ndarray:
    """Renumber labels consecutively from 1."""
    found = np.unique(labels)
    return np.searchsorted(found[found != 0], labels).astype(np.int32) * (labels != 0) + (labels != 0)


def mean_image_features(examples: Examples) -> np.ndarray:
    """Compute temporal means in cubes of 12 mm, (N, F); means of segments are relative to their scan."""
    labels = cube_labels(BLOCK_VOXELS)
    n_cubes = int(labels.max())
    rows, seen = [], []
    for example in examples:
        if isinstance(example, Segment):
            series, voxels = parcel_series(example, labels, n_cubes)
            rows.append(series.mean(axis=0))
        else:
            parcel = labels.reshape(-1)[example.voxel_indices]
            voxels = np.bincount(parcel, minlength=n_cubes + 1)[1:]
            sums = np.bincount(parcel, example.mean_image(), minlength=n_cubes + 1)[1:]
            rows.append(np.where(voxels >= MIN_PARCEL_VOXELS, sums / np.maximum(voxels, 1), 0))
        seen.append(voxels >= MIN_PARCEL_VOXELS)
    return np.stack(rows)[:, np.mean(seen, axis=0) >= 0.5]


def confound_features(examples: Examples) -> np.ndarray:
    """Return summaries of motion and confounds, and the scan length; (N, F), NaN for missing values."""
    names = sorted({name for example in examples for name in example.confounds})
    if not names:
        raise BadDataError(
            "No scan has confounds.", "Add *_desc-confounds_timeseries.tsv files and prepare the store again."
        )
    return np.array([[*(e.confounds.get(n, np.nan) for n in names), e.n_vols] for e in examples], dtype=float)


def fit_predict(
    task: Task,
    features: np.ndarray,
    values: Sequence[str],
    groups: Sequence[str],
    train: np.ndarray,
    test: np.ndarray,
) -> np.ndarray:
    """Fit a linear model to the training set and predict the test set.

    Features are standardised and rotated to principal components, which does not change linear models with an L2
    penalty. Logistic and ridge regression select their penalty by grouped cross-validation within the training set. For
    embeddings without image vectors, the predictions are the standardised features.

    Parameters
    ----------
    task : Task
        Defined on the training set.
    features : np.ndarray, (N, F)
        NaN is replaced by the median of the training set.
    values : sequence of str, (N,)
        True values.
    groups : sequence of str, (N,)
        Groups that stay together, see `participant_groups`.
    train, test : np.ndarray of int
        Indices of the training and test sets.

    Returns
    -------
    np.ndarray
        Predictions of the test set, as from `Task.to_predictions`.
    """
    from sklearn.decomposition import PCA
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    standard = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    x, x_test = standard.fit_transform(features[train]), standard.transform(features[test])
    if task.kind == EMBEDDING and task.images is None:
        return to_unit_length(x_test)
    components = PCA(svd_solver="full").fit(x)
    x, x_test = components.transform(x), components.transform(x_test)
    train_values, train_groups = [values[i] for i in train], np.array([groups[i] for i in train])
    if task.kind == CLASSIFICATION:
        return _logistic(task, x, train_values, train_groups, x_test)
    if task.kind == REGRESSION:
        return _ridge(x, np.array([float(v) for v in train_values])[:, None], train_groups, x_test)
    assert task.images is not None  # embeddings without images returned above
    return to_unit_length(_ridge(x, task.images[task.targets(train_values)].numpy(), train_groups, x_test))


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


def _logistic(task: Task, x: np.ndarray, values: list[str], groups: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

    scale, truth = x.std() or 1.0, np.array(values)
    model: Any = LogisticRegression(C=1e-2, class_weight="balanced", max_iter=2000)
    n_folds = min(3, len(set(groups)), *(values.count(label) for label in task.labels))
    splits = list(StratifiedGroupKFold(n_folds).split(x, truth, groups)) if n_folds > 1 else []
    if splits and all(set(truth[a]) == set(truth[b]) == set(values) for a, b in splits):
        model = GridSearchCV(model, {"C": np.logspace(-4, 1, 6)}, cv=splits, scoring="neg_log_loss")
    model.fit(x / scale, truth)
    order = [list(model.classes_).index(label) for label in task.labels]
    return model.predict_proba(x_test / scale)[:, order]


BASELINES = {
    "connectivity": "functional connectivity",
    "mean": "mean image",
    "confounds": "motion and confounds",
}


def compute_features(name: str, examples: Examples, labels: np.ndarray | None) -> np.ndarray:
    """Compute the features (N, F) of a baseline in `BASELINES`."""
    if name == "connectivity":
        return connectivity_features(examples, labels)
    return mean_image_features(examples) if name == "mean" else confound_features(examples)
