"""Comparison of methods: units of analysis, metrics and 95 % bootstrap intervals over participants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.training.adapt import LabelledScans
from bids_app.training.evaluation import metrics
from bids_app.training.evaluation.folds import Fold
from bids_app.training.tasks import Task

ENCODER = "encoder"
"""Key of the encoder, with which the baselines are compared."""


@dataclass
class Method:
    """Results of one method.

    Attributes
    ----------
    title : str
    metrics : dict of str to float
    intervals : dict of str to tuple
        95 % bootstrap intervals over participants.
    difference : tuple of float, optional
        For a baseline: encoder minus baseline in the main metric, with its interval; positive: the encoder is better.
    """

    title: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    difference: tuple[float, float, float] | None = None


class Units:
    """Units of analysis: participants if each has one value of the target, examples otherwise.

    Parameters
    ----------
    task : Task
    data : LabelledScans
    folds : list of Fold
    images : mapping, optional
        Image vectors, for tasks about images.
    pool : int
        Number of images to choose from.
    """

    def __init__(
        self,
        task: Task,
        data: LabelledScans,
        folds: list[Fold],
        images: Mapping[str, np.ndarray] | None,
        pool: int,
    ) -> None:
        self.task, self.data, self.folds, self.images, self.pool = task, data, folds, images, pool
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
        sizes = [len(set(values[test])) for _, test in folds] if images is not None else []
        self.pool_size = min(pool, max(sizes)) if sizes else 0

    def aggregate(self, predictions: np.ndarray) -> np.ndarray:
        """Average predictions (N, K) within units; for embeddings, return the retrieval result of each unit."""
        if self.task.kind != EMBEDDING:
            return np.stack([predictions[m].mean(axis=0) for m in self.members])
        results = np.full((len(self.data.scans), 2), np.nan)
        for train, test in self.folds:
            values = [self.data.values[i] for i in test]
            if self.images is None:
                results[test] = metrics.retrieval_results(predictions[test], values)
            elif len(test):
                training_values = [self.data.values[i] for i in train]
                fold_task = Task.from_values(self.task.target, training_values, EMBEDDING, images=self.images)
                similarity, truth = fold_task.image_similarity(predictions[test], values, self.images)
                results[test, 0] = metrics.top1_probabilities(similarity, truth, self.pool)
        return np.stack([results[m[0]] for m in self.members])

    def compute_metrics(self, units: np.ndarray, sample: np.ndarray) -> dict[str, float]:
        """Compute the metrics of a sample (indices) of aggregated units."""
        if self.task.kind == EMBEDDING:
            if self.images is not None:
                return {"top1": float(np.nanmean(units[sample, 0]))}
            return metrics.retrieval_metrics(units[sample])
        return self.task.compute_metrics(units[sample], [self.values[i] for i in sample])

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


def compare_methods(
    aggregated: Mapping[str, np.ndarray], titles: Mapping[str, str], units: Units, n_samples: int, seed: int
) -> dict[str, Method]:
    """Compute metrics, intervals and differences from the encoder, with the same bootstrap samples for all methods.

    Parameters
    ----------
    aggregated : mapping of str to numpy.ndarray
        Predictions of each method after `Units.aggregate`; the encoder has the key `ENCODER`.
    titles : mapping of str to str
        Title of each method.
    units : Units
    n_samples : int
        Bootstrap samples of participants.
    seed : int
    """
    samples = metrics.bootstrap_samples(units.participants, n_samples, seed)
    main = units.task.main_metric
    sign = -1 if main in metrics.LOWER_IS_BETTER else 1
    methods = {}
    distributions = {}
    for name, rows in aggregated.items():
        sampled = [units.compute_metrics(rows, sample) for sample in samples]
        distributions[name] = np.array([each[main] for each in sampled])
        bounds = {
            key: tuple(np.nanquantile([each[key] for each in sampled], [0.025, 0.975]).tolist()) for key in sampled[0]
        }
        methods[name] = Method(titles[name], units.compute_metrics(rows, units.indices), bounds)  # type: ignore[arg-type]
    for name, method in methods.items():
        if name != ENCODER:
            low, high = np.nanquantile(sign * (distributions[ENCODER] - distributions[name]), [0.025, 0.975])
            difference = sign * (methods[ENCODER].metrics[main] - method.metrics[main])
            method.difference = (float(difference), float(low), float(high))
    return methods
