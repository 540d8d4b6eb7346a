"""Comparison of methods: units of analysis, metrics, 95 % intervals and p values over folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.training.adapt import LabelledScans
from bids_app.training.evaluation import metrics
from bids_app.training.evaluation.folds import Fold
from bids_app.training.evaluation.retrieval import Retrieval, take
from bids_app.training.tasks import Task

ENCODER = "encoder"
"""Key of the encoder, with which the baselines are compared."""


LEVEL = 0.95
"""Coverage of the intervals."""
MIN_DIVISIONS = 10
"""Minimum number of divisions into halves for a variance."""
RESAMPLES = 1000
"""Resamples of the participants of one test set."""
ALPHA = 0.05
"""Error rate of the declarations of one evaluation."""


@dataclass(frozen=True)
class Halves:
    """Metrics in disjoint halves of the participants, see `bids_app.training.evaluation.halves`.

    Attributes
    ----------
    scores : dict of str to list of tuple
        Metrics of each method in both halves of each division, once for each repeat of a half's folds. Empty: there are
        none.
    degrees : float
        Degrees of freedom of a variance between halves: half the number of participants or families. The variances of
        simulated sets of 16 and 40 participants themselves vary as with 14 and 20 degrees (`benchmarks/evaluation.py`).
    repeats : int
        Repeats of the folds of all participants.
    """

    scores: dict[str, list[tuple[Sequence[metrics.Metrics], Sequence[metrics.Metrics]]]] = field(default_factory=dict)
    degrees: float = 0.0
    repeats: int = 1

    def values(self, method: str, key: str) -> np.ndarray:
        """Return a metric of a method in both halves of K divisions with R repeats, (K, 2, R)."""
        pairs = self.scores.get(method)
        if not pairs:
            return np.empty((0, 2, 1))
        return np.array([[[row[key] for row in half] for half in pair] for pair in pairs], dtype=float)


@dataclass
class Method:
    """Results of one method.

    Attributes
    ----------
    title : str
    metrics : dict of str to float
        Means over folds and repeats.
    intervals : dict of str to tuple
        95 % intervals that count the variance of training, see `estimate`; within the range of the metric.
    p_value : float, optional
        One-sided p value of the main metric against chance; None if chance is unknown.
    difference : tuple of float, optional
        For a baseline: encoder minus baseline in the main metric, with its interval; positive: the encoder is better.
    p_difference : float, optional
        Two-sided p value of the difference, corrected for the number of baselines (Holm 1979).
    """

    title: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    p_value: float | None = None
    difference: tuple[float, float, float] | None = None
    p_difference: float | None = None

    @property
    def is_above_chance(self) -> bool:
        """True if the 95 % interval of the main metric is above chance."""
        return self.p_value is not None and self.p_value < ALPHA / 2


class Units:
    """Units of analysis: participants if each has one value of the target, examples otherwise.

    Parameters
    ----------
    task : Task
    data : LabelledScans
    folds : list of Fold
    images : mapping, optional
        Image vectors, for tasks about images.
    retrieval : Retrieval
        What a scan is compared with, for embeddings.
    """

    def __init__(
        self,
        task: Task,
        data: LabelledScans,
        folds: list[Fold],
        images: Mapping[str, np.ndarray] | None,
        retrieval: Retrieval,
    ) -> None:
        self.task, self.data, self.folds, self.images, self.retrieval = task, data, folds, images, retrieval
        tested = np.unique(np.concatenate([test for _, test in folds]))
        owners = np.array([e.participant for e in data.scans])
        values = np.array(data.values)
        has_one_value = all(len(set(values[owners == p])) == 1 for p in set(owners[tested]))
        per_participant = task.kind != EMBEDDING and has_one_value
        self.members = (
            [tested[owners[tested] == p] for p in sorted(set(owners[tested]))]
            if per_participant
            else [[i] for i in tested]
        )
        self.kind = "participant" if per_participant else "example"
        self.participants = [str(owners[m[0]]) for m in self.members]
        self.values = [str(values[m[0]]) for m in self.members]
        self.indices = np.arange(len(self.members))
        self.fold_indices = [np.flatnonzero(np.isin([m[0] for m in self.members], test)) for _, test in folds]
        sizes = [len(set(values[test])) for _, test in folds] if images is not None else []
        self.pool_size = min(retrieval.pool, max(sizes)) if sizes else 0

    def aggregate(self, predictions: np.ndarray) -> np.ndarray:
        """Average predictions (N, K) within units; for embeddings, return the retrieval result of each unit."""
        if self.task.kind != EMBEDDING:
            return np.stack([predictions[m].mean(axis=0) for m in self.members])
        results = np.full((len(self.data.scans), 2), np.nan)
        rule, sessions = self.retrieval, self.retrieval.sessions_of(self.data)
        for train, test in self.folds:
            values = [self.data.values[i] for i in test]
            if self.images is None:
                results[test] = metrics.retrieval_results(
                    predictions[test], values, take(sessions, test), rule.gallery, rule.seed
                )
            elif len(test):
                training_values = [self.data.values[i] for i in train]
                fold_task = Task.from_values(self.task.target, training_values, EMBEDDING, images=self.images)
                similarity, truth = fold_task.image_similarity(predictions[test], values, self.images)
                results[test, 0] = metrics.top1_probabilities(similarity, truth, rule.pool)
        return np.stack([results[m[0]] for m in self.members])

    def compute_metrics(self, units: np.ndarray, sample: np.ndarray) -> dict[str, float]:
        """Compute the metrics of a sample (indices) of aggregated units."""
        if self.task.kind == EMBEDDING:
            if self.images is not None:
                return {"top1": float(np.nanmean(units[sample, 0]))}
            return metrics.retrieval_metrics(units[sample])
        return self.task.compute_metrics(units[sample], [self.values[i] for i in sample])

    def fold_metrics(self, predictions: np.ndarray) -> list[dict[str, float]]:
        """Compute the metrics of predictions (N, K) in each fold that tests a unit."""
        units = self.aggregate(predictions)
        return [self.compute_metrics(units, own) for own in self.fold_indices if len(own)]

    def permute_values(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Permute values among participants, or within participants if units are examples."""
        values = list(self.data.values)
        if self.kind == "participant":
            for members, k in zip(self.members, rng.permutation(len(self.members)), strict=True):
                for i in members:
                    values[i] = self.values[k]
            return tuple(values)
        blocks = [test for _, test in self.folds] if self.task.kind == EMBEDDING else self._indices_by_participant()
        for block in blocks:
            own = [values[i] for i in block]
            for i, k in zip(block, rng.permutation(len(own)), strict=True):
                values[i] = own[k]
        return tuple(values)

    def _indices_by_participant(self) -> list[np.ndarray]:
        owners = np.array([e.participant for e in self.data.scans])
        return [np.flatnonzero(owners == p) for p in dict.fromkeys(owners)]

    def to_table(self, predictions: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        """Return the columns of a table of true values and each method's predictions, one row per unit."""
        table: dict[str, list[Any]] = {"participant_id": [f"sub-{p}" for p in self.participants]}
        if self.kind == "example":
            table["example"] = [self.data.scans[m[0]].name for m in self.members]  # type: ignore[attr-defined]
        table["truth"] = list(self.values)
        for name, rows in predictions.items():
            units = self.aggregate(rows)
            if self.task.kind == CLASSIFICATION:
                for k, label in enumerate(self.task.labels):
                    table[f"{name}_p_{label}"] = np.round(units[:, k], 4).tolist()
            elif self.task.kind == REGRESSION:
                table[name] = np.round(units[:, 0], 4).tolist()
            else:
                table[f"{name}_right"] = np.round(units[:, 0], 4).tolist()
        return table


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over folds, its standard error, and the degrees of freedom of the latter."""

    mean: float
    error: float
    degrees: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval."""
        from scipy.stats import t

        away = float(t.ppf(0.5 + LEVEL / 2, self.degrees)) * self.error
        return self.mean - away, self.mean + away

    def p_above(self, level: float) -> float:
        """Return the one-sided p value for exceeding a level."""
        from scipy.stats import t

        if np.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean > level else 1.0
        return float(t.sf((self.mean - level) / self.error, self.degrees))

    def p_below(self, level: float) -> float:
        """Return the one-sided p value for being below a level."""
        return replace(self, mean=-self.mean).p_above(-level)


def average_repeats(rows: Sequence[Mapping[str, float]], n_folds: int) -> list[dict[str, float]]:
    """Average the metrics of each of the folds over repeats; undefined values are left out.

    Parameters
    ----------
    rows : sequence of mapping
        Metrics of the folds of the first repeat, then of the second, ...
    n_folds : int
        Folds of a repeat.
    """
    found = []
    for k in range(n_folds):
        columns = {key: np.array([row[key] for row in rows[k::n_folds]]) for key in rows[k]}
        known = {key: column[~np.isnan(column)] for key, column in columns.items()}
        found.append({key: float(values.mean()) if len(values) else float("nan") for key, values in known.items()})
    return found


def compare_on_test_set(
    predictions: Mapping[str, np.ndarray], titles: Mapping[str, str], task: Task, units: Units, seed: int
) -> dict[str, Method]:
    """Compare methods on one test set, with intervals over its participants (percentile bootstrap).

    The intervals do not count the variance of training.

    Parameters
    ----------
    predictions : mapping of str to np.ndarray, (N, K)
        By method; the encoder has the key `ENCODER`.
    titles, task : see `compare_methods`
    units : Units
        With one fold.
    seed : int
    """
    aggregated = {name: units.aggregate(rows) for name, rows in predictions.items()}
    samples = list(resample_participants(units.participants, RESAMPLES, seed))
    main, chance = task.main_metric, chance_level(task)
    sign = -1 if main in metrics.LOWER_IS_BETTER else 1
    methods, values = {}, {}
    for name, rows in aggregated.items():
        resampled = [units.compute_metrics(rows, sample) for sample in samples]
        columns = {key: np.array([found[key] for found in resampled]) for key in resampled[0]}
        values[name] = columns[main]
        methods[name] = Method(
            titles[name],
            units.compute_metrics(rows, units.indices),
            {key: percentile_interval(column) for key, column in columns.items()},
            None if chance is None else share_below(columns[main], chance),
        )
    others = [name for name in methods if name != ENCODER]
    differences = {name: sign * (values[ENCODER] - values[name]) for name in others}
    two_sided = [min(1.0, 2 * min(share_below(d, 0.0), share_below(-d, 0.0))) for d in differences.values()]
    for name, p in zip(others, holm(two_sided), strict=True):
        observed = sign * (methods[ENCODER].metrics[main] - methods[name].metrics[main])
        methods[name].difference = (observed, *percentile_interval(differences[name]))
        methods[name].p_difference = p
    return methods


def resample_participants(owners: Sequence[str], n_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw participants with replacement, and yield the indices of their units or scans.

    Parameters
    ----------
    owners : sequence of str, (N,)
        Participant of each unit or scan.
    n_samples, seed : int
    """
    names = np.array(owners)
    people = [np.flatnonzero(names == name) for name in dict.fromkeys(owners)]
    rng = np.random.default_rng(seed)
    for _ in range(n_samples):
        yield np.concatenate([people[k] for k in rng.integers(len(people), size=len(people))])


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of resampled values; NaN if all are undefined."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def share_below(values: np.ndarray, level: float) -> float:
    """Return the share of resampled values up to a level, as a p value; undefined values count as below it."""
    return float((1 + (~(values > level)).sum()) / (1 + len(values)))


def estimate_from_folds(values: np.ndarray, test_share: float) -> Estimate:
    """Estimate a metric from the folds of repeated cross-validation.

    The training sets of folds overlap, so folds are not independent: the variance of the mean of J folds is
    (1 / J + n_test / n_train) times that of the folds, with J - 1 degrees of freedom (Nadeau and Bengio 2003; Bouckaert
    and Frank 2004).

    Parameters
    ----------
    values : np.ndarray, (J,)
        NaN for folds in which the metric is undefined.
    test_share : float
        Number of test participants divided by that of training participants.
    """
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return Estimate(float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan"))
    error = float(np.sqrt((1 / len(known) + test_share) * known.var(ddof=1)))
    return Estimate(float(known.mean()), error, len(known) - 1)


def estimate(values: np.ndarray, scores: np.ndarray, halves: Halves, test_share: float) -> Estimate:
    """Estimate a metric from folds, and its variance from halves of the participants if there are enough.

    The difference of two halves also has the variance of their divisions into folds, which the repeats of a half tell.
    The repeats of all participants average it; it is therefore subtracted, and added as a mean over these repeats.

    Parameters
    ----------
    values : np.ndarray, (J,)
        In folds.
    scores : np.ndarray, (K, 2, R)
        In both halves of K divisions, in R repeats of their folds.
    halves : Halves
        For its degrees of freedom and repeats.
    test_share : float
        As for `estimate_from_folds`.
    """
    of_folds = estimate_from_folds(values, test_share)
    known = scores[~np.isnan(scores).any(axis=(1, 2))]
    if len(known) < MIN_DIVISIONS:
        return of_folds
    n_repeats = known.shape[2]
    of_division = float(known.var(axis=2, ddof=1).mean()) if n_repeats > 1 else 0.0
    means = known.mean(axis=2)
    of_half = float(np.mean((means[:, 0] - means[:, 1]) ** 2)) / 2
    variance = max(of_half - of_division / n_repeats, 0.0) / 2 + of_division / 2 / halves.repeats
    return Estimate(of_folds.mean, float(np.sqrt(variance)), halves.degrees)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate([(len(order) - k) * p_values[i] for k, i in enumerate(order)])
    found = np.empty(len(order))
    found[order] = np.minimum(adjusted, 1.0)
    return found.tolist()


def chance_level(task: Task) -> float | None:
    """Return the main metric at chance; None if it depends on the data (retrieval)."""
    if task.kind == CLASSIFICATION:
        return 1 / len(task.labels)
    return 0.0 if task.kind == REGRESSION else None


def compare_methods(
    folds: Mapping[str, list[dict[str, float]]],
    titles: Mapping[str, str],
    task: Task,
    test_share: float,
    halves: Halves = Halves(),
) -> dict[str, Method]:
    """Compute means, intervals, p values, and differences from the encoder in the same folds.

    Parameters
    ----------
    folds : mapping of str to list of dict
        Metrics of each method in each fold, in the same order; the encoder has the key `ENCODER`.
    titles : mapping of str to str
        Title of each method; baselines are compared with the encoder.
    test_share : float
        See `estimate_from_folds`.
    halves : Halves
    """
    main, chance = task.main_metric, chance_level(task)
    sign = -1 if main in metrics.LOWER_IS_BETTER else 1
    values = {name: {key: np.array([row[key] for row in rows]) for key in rows[0]} for name, rows in folds.items()}
    methods = {}
    for name, found in values.items():
        described = {
            key: estimate(column, halves.values(name, key), halves, test_share) for key, column in found.items()
        }
        methods[name] = Method(
            titles[name],
            {key: one.mean for key, one in described.items()},
            {key: metrics.clip_interval(key, one.interval) for key, one in described.items()},
            None if chance is None else described[main].p_above(chance),
        )
    others = [name for name in methods if name != ENCODER]
    differences = {
        name: estimate(
            sign * (values[ENCODER][main] - values[name][main]),
            sign * (halves.values(ENCODER, main) - halves.values(name, main)),
            halves,
            test_share,
        )
        for name in others
    }
    two_sided = [2 * min(found.p_above(0.0), found.p_below(0.0)) for found in differences.values()]
    for name, p in zip(others, holm(two_sided), strict=True):
        difference = differences[name]
        methods[name].difference = (difference.mean, *difference.interval)
        methods[name].p_difference = p
    return methods
