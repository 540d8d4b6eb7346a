"""Cross-validated evaluation of an encoder in comparison with simple baselines.

All methods use the same folds (`folds`), units of analysis and bootstrap samples (`comparison`). Predictions are
averaged over the clips of an example, and over the scans of a participant if the target is constant per participant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from bids_app.adapters.file import CLASSIFICATION, REGRESSION, AdaptedModel
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model
from bids_app.training.adapt import AdaptSettings, LabelledScans, adapt, predict
from bids_app.training.data.examples import Examples
from bids_app.training.data.splits import participant_groups
from bids_app.training.evaluation.baselines import BASELINES, compute_features, fit_predict
from bids_app.training.evaluation.comparison import ENCODER, Method, Units, compare_methods
from bids_app.training.evaluation.folds import Fold, make_folds
from bids_app.training.head import compute_embeddings, solve_head
from bids_app.training.tasks import Task

CUBES = "cubes of 24 mm"


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation settings.

    Attributes
    ----------
    adaptation : AdaptSettings
    folds : int
        Number of folds; reduced to the number of participants if there are fewer.
    baselines : tuple of str
        Entries of `BASELINES`.
    permutations : int
        Permutations of the labels for the test; 0: no test.
    bootstrap_samples : int
        Bootstrap samples of participants for the intervals.
    pool : int
        Number of images to choose from.
    seed : int
    """

    adaptation: AdaptSettings
    folds: int = 5
    baselines: tuple[str, ...] = tuple(BASELINES)
    permutations: int = 200
    bootstrap_samples: int = 1000
    pool: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.permutations < 0 or self.bootstrap_samples < 1 or self.pool < 2:
            raise UsageError(
                f"Invalid evaluation settings: {self.folds} folds, {self.permutations} permutations, "
                f"{self.bootstrap_samples} bootstrap samples, a pool of {self.pool} images.",
                "At least 2 folds, 1 bootstrap sample and a pool of 2 images are required.",
            )


@dataclass
class Evaluation:
    """Results of an evaluation.

    Attributes
    ----------
    task : Task
    methods : dict of str to Method
        The encoder comes first.
    p_value : float, optional
        Permutation p value of the encoder's main metric.
    facts : dict
        Data and settings, as listed in the report.
    table : dict of str to list
        Columns of the table of predictions: one row per participant or example.
    notes : list of str
        Baselines that could not be computed, with the reason.
    """

    task: Task
    methods: dict[str, Method]
    p_value: float | None
    facts: dict[str, Any]
    table: dict[str, list[Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def main_metric(self) -> str:
        """Metric that is tested and compared."""
        return self.task.main_metric

    def summary(self) -> str:
        """Return the main results: the encoder's metric, its p value and its difference from each baseline."""
        own = self.methods[ENCODER]
        low, high = own.intervals[self.main_metric]
        lines = [f"{own.title}: {self.main_metric} {own.metrics[self.main_metric]:.3f} ({low:.3f} to {high:.3f})."]
        if self.p_value is not None:
            lines.append(f"Permutation test: p = {self.p_value:.4f}.")
        for name, method in self.methods.items():
            if name != ENCODER and method.difference is not None:
                difference, low, high = method.difference
                relation = (
                    "is better than" if low > 0 else "is worse than" if high < 0 else "does not clearly differ from"
                )
                lines.append(
                    f"The encoder {relation} {method.title} ({method.metrics[self.main_metric]:.3f}): "
                    f"difference {difference:+.3f} ({low:+.3f} to {high:+.3f})."
                )
        return "\n".join(lines)


def evaluate(
    model: Model,
    task: Task,
    examples: Examples,
    settings: EvaluateSettings,
    normalisation: str,
    images: Mapping[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    parcels: str = CUBES,
    report: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Cross-validate an encoder and baselines.

    Parameters
    ----------
    model : Model
    task : Task
        Defined on all examples; each fold redefines it on its training set.
    examples : Examples
    settings : EvaluateSettings
    normalisation : str
        Normalisation of the clips.
    images : mapping, optional
        Image vectors, for tasks about images.
    labels : np.ndarray of int, optional, (96, 96, 96)
        Parcels for functional connectivity.
    parcels : str
        Name of the parcels in the report.
    report : callable
        Receives progress messages.
    """
    data = examples.data
    folds = make_folds(task, examples, settings.folds, settings.seed, images is not None)
    run = _Run(model, task, data, settings, normalisation, images, folds)
    groups = participant_groups(data.scans, examples.families)
    predictions = {ENCODER: run.predict_with_encoder(report)}
    notes = []
    for name in settings.baselines:
        try:
            features = compute_features(name, data.scans, labels)  # type: ignore[arg-type]
        except BadDataError as error:
            notes.append(f"Baseline omitted: {BASELINES[name]}. {error}")
            continue
        report(f"{BASELINES[name]}: {features.shape[1]} features")
        predictions[name] = run.cross_validate(partial(_baseline, features, data.values, groups))
    titles = {ENCODER: f"Encoder ({settings.adaptation.strategy})", **BASELINES}
    titles["connectivity"] += f" ({parcels})"
    units = Units(task, data, folds, images, settings.pool)
    methods = compare_methods(
        {name: units.aggregate(rows) for name, rows in predictions.items()},
        titles,
        units,
        settings.bootstrap_samples,
        settings.seed,
    )
    p_value = run.permutation_test(units, predictions[ENCODER], report) if settings.permutations else None
    facts = {
        "Target": task.target,
        "Task": task.kind,
        "Encoder": f"{model.name} (sha256 {model.weights_sha256[:12]}…)",
        "Strategy": settings.adaptation.strategy,
        "Normalisation": normalisation,
        "Participants": len({e.participant for e in data.scans}),
        "Examples": len(data.scans),
        "Unit of analysis": units.kind,
        "Folds": f"{len(folds)}, leave one site out" if examples.sites else f"{len(folds)}, by participant",
        "Families kept together": len(set(examples.families.values())),
        "Images per pool": units.pool_size,
    }
    return Evaluation(task, methods, p_value, facts, units.to_table(predictions), notes)


def _baseline(
    features: np.ndarray,
    values: Sequence[str],
    groups: Sequence[str],
    task: Task,
    train: np.ndarray,
    test: np.ndarray,
) -> np.ndarray:
    return fit_predict(task, features, values, groups, train, test)


class _Run:
    """Fitting and prediction in the folds of one evaluation."""

    def __init__(
        self,
        model: Model,
        task: Task,
        data: LabelledScans,
        settings: EvaluateSettings,
        normalisation: str,
        images: Mapping[str, np.ndarray] | None,
        folds: list[Fold],
    ) -> None:
        self.model, self.task, self.data, self.settings = model, task, data, settings
        self.normalisation, self.images, self.folds = normalisation, images, folds
        self.embeddings: tuple[torch.Tensor, np.ndarray] | None = None

    def fold_task(self, values: Sequence[str], train: np.ndarray) -> Task:
        """Define the task on the training set of a fold."""
        training_values = [values[i] for i in train]
        return Task.from_values(self.task.target, training_values, self.task.kind, self.task.dimensions, self.images)

    def cross_validate(
        self, fit_and_predict: Callable[[Task, np.ndarray, np.ndarray], np.ndarray], values: Sequence[str] | None = None
    ) -> np.ndarray:
        """Collect the predictions of all folds, (N, K); NaN for examples outside all test sets."""
        values = self.data.values if values is None else values
        rows: np.ndarray | None = None
        for train, test in self.folds:
            task = self.fold_task(values, train)
            found = fit_and_predict(task, train, test)
            if task.kind == CLASSIFICATION:
                columns = [self.task.labels.index(label) for label in task.labels]
                whole = np.zeros((len(found), len(self.task.labels)))
                whole[:, columns] = found
                found = whole
            if rows is None:
                rows = np.full((len(values), found.shape[1]), np.nan)
            width = min(rows.shape[1], found.shape[1])
            rows[test, :width], rows[test, width:] = found[:, :width], 0
        assert rows is not None
        return rows

    def predict_with_encoder(self, report: Callable[[str], None]) -> np.ndarray:
        """Cross-validate the encoder; return its predictions (N, K)."""
        settings = self.settings.adaptation
        if settings.strategy == "linear":
            values, owners = compute_embeddings(self.model, self.data.scans, settings.batch_size)
            self.embeddings = (values, owners.cpu().numpy())
            return self.cross_validate(partial(self.predict_linear, values=self.data.values))
        count = [0]

        def adapt_and_predict(task: Task, train: np.ndarray, test: np.ndarray) -> np.ndarray:
            count[0] += 1
            report(f"fold {count[0]} of {len(self.folds)}")
            data = self.data.pick(train.tolist())
            adapter, _ = adapt(
                self.model,
                task,
                data,
                None,
                settings,
                self.normalisation,
                "evaluated",
                report=report,
                images=self.images,
            )
            scans = tuple(self.data.scans[i] for i in test)
            return predict(AdaptedModel(self.model, adapter), task, scans, settings.batch_size)

        return self.cross_validate(adapt_and_predict)

    def predict_linear(self, task: Task, train: np.ndarray, test: np.ndarray, values: Sequence[str]) -> np.ndarray:
        """Fit a linear head to the training set; return predictions of the test set, averaged over clips."""
        assert self.embeddings is not None
        settings, (embeddings, owners) = self.settings.adaptation, self.embeddings
        is_training = np.isin(owners, train)
        targets = task.targets([values[i] for i in owners[is_training]]).to(embeddings.device)
        weights = task.class_weights(targets) if settings.balance else None
        head = solve_head(task, embeddings[is_training], targets, settings.ridge, weights, self.settings.seed)
        is_test = np.isin(owners, test)
        with torch.no_grad():
            clips = task.to_predictions(head.from_embedding(embeddings[is_test])).cpu().numpy()
        positions = np.searchsorted(np.sort(test), owners[is_test])
        sums = np.zeros((len(test), clips.shape[1]))
        np.add.at(sums, positions, clips)
        means = sums / np.maximum(np.bincount(positions, minlength=len(test)), 1)[:, None]
        return means[np.searchsorted(np.sort(test), test)]

    def permutation_test(self, units: Units, predictions: np.ndarray, report: Callable[[str], None]) -> float:
        """Return the permutation p value of the main metric; a linear head is refitted for each permutation."""
        rng = np.random.default_rng(self.settings.seed + 1)
        refit = self.embeddings is not None and self.task.kind in (CLASSIFICATION, REGRESSION)
        n_reached = 0
        observed = units.compute_metrics(units.aggregate(predictions), units.indices)[self.task.main_metric]
        for k in range(self.settings.permutations):
            if k and k % 50 == 0:
                report(f"{k} of {self.settings.permutations} permutations")
            values = units.permute_values(rng)
            if refit:
                refitted = self._refit(values)
                if refitted is None:
                    continue
            else:
                refitted = predictions
            permuted = Units(self.task, LabelledScans(self.data.scans, values), self.folds, self.images, units.pool)
            found = permuted.compute_metrics(permuted.aggregate(refitted), permuted.indices)[self.task.main_metric]
            n_reached += found >= observed
        return (1 + n_reached) / (1 + self.settings.permutations)

    def _refit(self, values: tuple[str, ...]) -> np.ndarray | None:
        try:
            return self.cross_validate(partial(self.predict_linear, values=values), values)
        except BadDataError:  # the permutation left one class in a training set
            return None
