"""``neurostorm-train evaluate --adapter``: metrics of an existing adapter on scans of new participants.

Nothing is trained. Intervals are percentiles of bootstrap samples of the participants.

    N  scans      K  columns of a prediction
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, AdapterCard, load_adapter, save_adapter
from bids_app.bids.writer import write_text, write_tsv
from bids_app.catalog.models import find_adapter, weights_path
from bids_app.errors import BadDataError, UsageError
from bids_app.terminal import count_of
from bids_app.training.adapt import LabelledScans
from bids_app.training.calibrate import adapted_model, predict_scans, read_unseen
from bids_app.training.evaluation import metrics
from bids_app.training.evaluation.comparison import chance_level, percentile_interval, resample_participants
from bids_app.training.evaluation.report import HOW_TO_READ_EXTERNAL, NAMES, markdown_table
from bids_app.training.tasks import Task

SAMPLES = 2000
"""Bootstrap samples."""
MIN_PARTICIPANTS = 3


@dataclass(frozen=True)
class ExternalEvaluation:
    """Metrics of an adapter on scans of other participants.

    Attributes
    ----------
    values : dict of str to float
        By metric, see `bids_app.training.evaluation.metrics`.
    intervals : dict of str to tuple
        Ends of the 95 % intervals.
    scans, participants : int
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    scans: int
    participants: int


def evaluate_adapter(arguments: argparse.Namespace) -> None:
    """Evaluate an adapter, and write a report, the predictions, and the adapter with these metrics in its card."""
    if arguments.images:
        raise UsageError("--adapter cannot be evaluated with --images.", "Leave out --images, or --adapter.")
    entry = find_adapter(arguments.adapter)
    adapter = load_adapter(weights_path(entry))
    card = adapter.card
    model, adapted = adapted_model(adapter, arguments.model or entry.model, arguments.device)
    output = arguments.output or Path(f"{card.name}_evaluation")
    store = arguments.store or (output / "report.md").with_suffix(".clips")
    examples, _, source = read_unseen(arguments, adapter, model, store)
    predictions = predict_scans(model, adapted, examples.scans, arguments.batch_size or 8)
    task = task_of(card)
    unknown = sorted(set(examples.values) - set(card.labels)) if card.task == CLASSIFICATION else []
    if unknown and len(unknown) == len(set(examples.values)):
        raise BadDataError(
            f"None of the labels in {arguments.target} is one of {card.name}: {', '.join(unknown[:5])} instead of "
            f"{', '.join(card.labels)}.",
            "Give the column that the adapter predicts, or rename the labels.",
        )
    found = measure(task, predictions, examples, arguments.seed)
    updated = replace(card, metrics={**card.metrics, f"evaluation on {source}": as_metrics(found)})
    facts = [("Adapter", card.name), ("Scans", source), *(("Label that it does not know", label) for label in unknown)]
    paths = [
        write_text(output / "report.md", report(task, found, facts)),
        write_tsv(output / "scores.tsv", _scores(found)),
        write_tsv(output / "answers.tsv", _answers(card, predictions, examples)),
        save_adapter(output / f"{card.name}.safetensors", replace(adapter, card=updated)),
    ]
    for path in paths:
        print(f"Wrote {path}")
    print("\n".join(summary(task, found)))


def task_of(card: AdapterCard) -> Task:
    """Return the task of an adapter, for its metrics."""
    return Task(card.target, card.task, card.labels, card.value_mean, card.value_std, dimensions=card.dimensions)


def measure(task: Task, predictions: np.ndarray, examples: LabelledScans, seed: int = 0) -> ExternalEvaluation:
    """Compute metrics and their intervals.

    Parameters
    ----------
    task : Task
    predictions : np.ndarray, (N, K)
    examples : LabelledScans
        The N scans and their true values.
    seed : int
        Of the bootstrap.

    Raises
    ------
    BadDataError
        There are fewer than `MIN_PARTICIPANTS` participants, or the values do not fit the task.
    """
    participants = [scan.participant for scan in examples.scans]
    if len(set(participants)) < MIN_PARTICIPANTS:
        raise BadDataError(
            f"Only {count_of(len(set(participants)), 'participant')} to evaluate.",
            f"At least {MIN_PARTICIPANTS} are required.",
        )
    try:
        compute = _metrics_of(task, predictions, examples.values)
        values = compute(np.arange(len(participants)))
    except ValueError as error:
        raise BadDataError(f'Column "{task.target}" has non-numeric values ({error}).', "Correct the table.") from error
    drawn = [compute(chosen) for chosen in resample_participants(participants, SAMPLES, seed)]
    intervals = {key: percentile_interval(np.array([found[key] for found in drawn])) for key in values}
    return ExternalEvaluation(values, intervals, len(participants), len(set(participants)))


def _metrics_of(task: Task, predictions: np.ndarray, values: Sequence[str]) -> Callable[[np.ndarray], dict[str, float]]:
    """Return a function that computes the metrics of a selection of scans, by their indices."""
    if task.kind == EMBEDDING:  # a scan that is drawn twice would find itself
        results = metrics.retrieval_results(predictions, values)
        return lambda chosen: metrics.retrieval_metrics(results[chosen])
    return lambda chosen: task.compute_metrics(predictions[chosen], [values[i] for i in chosen])


def as_metrics(found: ExternalEvaluation) -> dict[str, float | int]:
    """Return metrics for the card of an adapter."""
    rounded = {key: round(value, 4) for key, value in found.values.items() if np.isfinite(value)}
    return {**rounded, "scans": found.scans, "participants": found.participants}


def summary(task: Task, found: ExternalEvaluation) -> list[str]:
    """Describe the metrics in a few lines."""
    people = count_of(found.participants, "participant")
    lines = [f"{count_of(found.scans, 'scan')} of {people}, who are not in the training set:"]
    lines += [
        f"{NAMES[key]}: {value:.3f} (95 % interval {found.intervals[key][0]:.3f} to {found.intervals[key][1]:.3f})"
        for key, value in found.values.items()
    ]
    chance = chance_level(task)
    if chance is not None:
        low = found.intervals[task.main_metric][0]
        how = "above" if low > chance else "not above"
        lines.append(f"{NAMES[task.main_metric]} is {how} chance ({chance:.3f}).")
    return lines


def report(task: Task, found: ExternalEvaluation, facts: Sequence[tuple[str, str]]) -> str:
    """Return the report as Markdown."""
    cells = [
        [NAMES[key], f"{value:.3f} ({found.intervals[key][0]:.3f} to {found.intervals[key][1]:.3f})"]
        for key, value in found.values.items()
    ]
    lines = [f"# Evaluation of an adapter for {task.target}", "", *(f"- {line}" for line in summary(task, found)), ""]
    lines += [*markdown_table(["metric", "value (95 % interval)"], cells), "", HOW_TO_READ_EXTERNAL, ""]
    lines += ["## Evaluation setup", "", *markdown_table(["", ""], list(facts))]
    return "\n".join(lines) + "\n"


def _scores(found: ExternalEvaluation) -> dict[str, list[object]]:
    return {
        "score": list(found.values),
        "value": list(found.values.values()),
        "low": [found.intervals[key][0] for key in found.values],
        "high": [found.intervals[key][1] for key in found.values],
    }


def _answers(card: AdapterCard, predictions: np.ndarray, examples: LabelledScans) -> dict[str, list[object]]:
    """Return the table of predictions: participant, true value, and the columns of the prediction."""
    names = card.labels or (("prediction",) if predictions.shape[1] == 1 else ())
    columns = names or tuple(f"v{k}" for k in range(predictions.shape[1]))
    table: dict[str, list[object]] = {
        "participant_id": [f"sub-{scan.participant}" for scan in examples.scans],
        "true": list(examples.values),
    }
    return table | {f"p_{name}" if card.labels else name: list(predictions[:, k]) for k, name in enumerate(columns)}
