"""Cross-validated evaluation of an encoder in comparison with simple baselines.

All methods use the same folds (`folds`), units of analysis and, for a frozen encoder, the same linear model with the
same choice of its penalty (`linear`). Folds are repeated with other partitions, and intervals count the variance of
training (`comparison`, `halves`). Predictions are averaged over the clips of an example, and over the scans of a
participant if the target is constant per participant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bids_app.adapters.file import EMBEDDING
from bids_app.model.api import Model
from bids_app.training.data.examples import Examples
from bids_app.training.evaluation.baselines import BASELINES, CONNECTIVITY, NUISANCES
from bids_app.training.evaluation.comparison import (
    ALPHA,
    ENCODER,
    Method,
    average_repeats,
    compare_methods,
    compare_on_test_set,
    holm,
)
from bids_app.training.evaluation.folds import describe_limits
from bids_app.training.evaluation.halves import evaluate_halves
from bids_app.training.evaluation.run import EvaluateSettings, FeatureCache, Run
from bids_app.training.tasks import Task

CUBES = "cubes of 24 mm"


@dataclass(frozen=True)
class Share:
    """Results with a share of the training participants.

    Attributes
    ----------
    share : float
    participants : float
        Mean number of training participants (or families).
    methods : dict of str to Method
    """

    share: float
    participants: float
    methods: dict[str, Method]


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
    conditional : Method, optional
        The encoder after removal of the nuisances (`NUISANCES`) that predict the target; None if none does.
    shares : tuple of Share
        All methods with shares of the training participants.
    has_one_split : bool
        Metrics are of the test set of a given split, not of folds.
    """

    task: Task
    methods: dict[str, Method]
    p_value: float | None
    facts: dict[str, Any]
    table: dict[str, list[Any]]
    notes: list[str] = field(default_factory=list)
    conditional: Method | None = None
    shares: tuple[Share, ...] = ()
    has_one_split: bool = False

    @property
    def main_metric(self) -> str:
        """Metric that is tested and compared."""
        return self.task.main_metric

    @property
    def exceeds_chance(self) -> bool:
        """True if the interval of the encoder is above chance; by permutations if chance is not known otherwise."""
        if self.methods[ENCODER].p_value is None:
            return self.p_value is not None and self.p_value < ALPHA
        return self.methods[ENCODER].is_above_chance

    @property
    def flags(self) -> dict[str, Method]:
        """Nuisances that predict the target, with p values corrected for their number."""
        found = {name: self.methods[name] for name in NUISANCES if name in self.methods}
        adjusted = holm([1.0 if m.p_value is None else m.p_value for m in found.values()])
        return {name: method for (name, method), p in zip(found.items(), adjusted, strict=True) if p < ALPHA}

    def relation(self, name: str) -> str:
        """Compare the encoder with a baseline in words.

        A method is better only if it exceeds chance, and if the difference remains after correction for the number of
        baselines.
        """
        method, unclear = self.methods[name], "does not clearly differ from"
        if method.difference is None or method.p_difference is None or method.p_difference >= ALPHA:
            return unclear
        if method.difference[0] > 0:
            return "is better than" if self.exceeds_chance else unclear
        return "is worse than" if method.p_value is None or method.is_above_chance else unclear

    def summary(self) -> str:
        """Return the main results: red flags, the encoder's metric, p values, and its difference from each baseline."""
        own = self.methods[ENCODER]
        lines = [self._flag(method) for method in self.flags.values()]
        if self.conditional is not None:
            removed = " and ".join(method.title for method in self.flags.values())
            lines.append(f"Encoder after removal of {removed}: {self._score(self.conditional)}.")
        verb = "exceeds" if self.exceeds_chance else "does not clearly exceed"
        lines.append(f"{own.title}: {self.main_metric} {self._score(own)}; it {verb} chance.")
        if self.p_value is not None:
            lines.append(f"Permutation test: p = {self.p_value:.4f}.")
        for name, method in self.methods.items():
            if name != ENCODER and method.difference is not None:
                difference, low, high = method.difference
                lines.append(
                    f"The encoder {self.relation(name)} {method.title} ({method.metrics[self.main_metric]:.3f}): "
                    f"difference {difference:+.3f} ({low:+.3f} to {high:+.3f})."
                )
        return "\n".join(lines)

    def _score(self, method: Method) -> str:
        return "{:.3f} ({:.3f} to {:.3f})".format(method.metrics[self.main_metric], *method.intervals[self.main_metric])

    def _flag(self, method: Method) -> str:
        return (
            f"RED FLAG: {method.title} predicts {self.task.target} ({self.main_metric} {self._score(method)}). "
            "The encoder's score may reflect this instead of brain activity."
        )


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
    cache: FeatureCache | None = None,
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
    cache : dict, optional
        Features of baselines that are shared by evaluations of the same scans and parcels.
    """
    run = Run(model, task, examples, settings, normalisation, images, report)
    limits: list[str] = []
    if settings.split is None and not examples.sites:
        limits = describe_limits(task, examples, settings.folds, len(run.repeats[0]))
        for warning in limits:
            report(warning)
    features, notes = run.compute_baselines(labels, {} if cache is None else cache)
    notes = limits + notes
    trained = "zero-shot" if settings.retrieval.zero_shot else settings.adaptation.strategy
    titles = {ENCODER: f"Encoder ({trained})", **BASELINES}
    titles[CONNECTIVITY] += f" ({parcels})"
    samples = [(share, run.limit(share)) for share in sorted(settings.train_shares)]  # checked before hours of work
    predictions = run.predict_all(features)
    scores = {name: run.fold_metrics(rows) for name, rows in predictions.items()}
    methods = _compare(run, predictions, scores, titles, features)
    p_value = run.permutation_test(predictions[ENCODER][0], scores[ENCODER]) if settings.permutations else None
    units = run.units[0]
    facts = {
        "Target": task.target,
        "Task": task.kind,
        "Encoder": f"{model.name} (sha256 {model.weights_sha256[:12]}…)",
        "Strategy": settings.adaptation.strategy,
        "Normalisation": normalisation,
        "Harmonisation": "ComBat on embeddings, fitted to training sets" if settings.harmonise else "",
        "Participants": len({e.participant for e in examples.data.scans}),
        "Examples": len(examples.data.scans),
        "Unit of analysis": units.kind,
        "Folds": run.describe_folds(),
        "Families kept together": len(set(examples.families.values())),
        "Images per pool": units.pool_size,
        **settings.retrieval.describe(),
    }
    mean = {name: rows[0] if task.kind == EMBEDDING else rows.mean(axis=0) for name, rows in predictions.items()}
    found = Evaluation(
        task, methods, p_value, facts, units.to_table(mean), notes, has_one_split=settings.split is not None
    )
    if found.flags and run.embeddings is not None:
        nuisance = np.hstack([features[name] for name in found.flags])
        without = {ENCODER: run.cross_validate_encoder(nuisance)}
        own = {ENCODER: run.fold_metrics(without[ENCODER])}
        found.conditional = _compare(run, without, own, titles, {}, nuisance)[ENCODER]
    elif found.flags:
        notes.append("The encoder after removal of these variables is computed for the strategy linear only.")
    found.shares = tuple(_evaluate_share(run, limited, share, features, methods, titles) for share, limited in samples)
    return found


def _compare(
    run: Run,
    predictions: Mapping[str, np.ndarray],
    scores: Mapping[str, list[dict[str, float]]],
    titles: Mapping[str, str],
    features: Mapping[str, np.ndarray],
    nuisance: np.ndarray | None = None,
) -> dict[str, Method]:
    """Compare methods over folds, or over the participants of the test set of a given split."""
    if run.settings.split is not None:
        first = {name: rows[0] for name, rows in predictions.items()}
        return compare_on_test_set(first, titles, run.task, run.units[0], run.settings.seed)
    return compare_methods(scores, titles, run.task, run.test_share, evaluate_halves(run, features, nuisance))


def _evaluate_share(
    run: Run,
    limited: Run,
    share: float,
    features: Mapping[str, np.ndarray],
    methods: dict[str, Method],
    titles: Mapping[str, str],
) -> Share:
    """Evaluate all methods with a share of the training participants.

    The intervals count the overlap of the whole training sets: that of samples is smaller. For folds by site, metrics
    are averaged over samples first, so that sites are counted once.
    """
    if share == 1:
        return Share(share, run.n_trained, methods)
    run.report(f"{share:g} of the training participants")
    if limited.embeddings is None:
        limited.embeddings = run.embeddings
    scores = {name: limited.fold_metrics(rows) for name, rows in limited.predict_all(features).items()}
    if run.examples.sites:
        n = len(limited.repeats)
        scores = {name: average_repeats(rows, len(rows) // n) for name, rows in scores.items()}
    return Share(share, limited.n_trained, compare_methods(scores, titles, run.task, run.test_share))
