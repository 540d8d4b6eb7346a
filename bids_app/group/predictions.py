"""Predictions of all runs as numbers, and their agreement with ``participants.tsv``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.group.cohort import Cohort
from bids_app.group.reading import Card, RunRecord
from bids_app.group.statistics import Estimate, mean_by, proportion, rank_correlation

MIN_PARTICIPANTS = 5
"""Minimum participants for the agreement with ``participants.tsv``."""


@dataclass(frozen=True)
class PredictedVariable:
    """Numeric prediction of an adapter for all runs: a value, or the probability of a class."""

    adapter: str
    title: str
    """``age (years)``, or ``sex: F`` for the probability of a class."""
    axis: str
    values: np.ndarray
    """(N,) one value per run of the cohort; NaN if missing or withheld."""


def collect_predictions(cohort: Cohort) -> list[PredictedVariable]:
    """Collect the numeric predictions of all adapters; for two classes only the second probability."""
    found = []
    for adapter in sorted({name for run in cohort.runs for name in run.predictions}):
        columns = dict.fromkeys(name for run in cohort.runs for name in run.predictions.get(adapter, {}))
        chosen = [name for name in columns if name == "value" or name.startswith("p_")]
        if len(chosen) == 2 and "value" not in chosen:
            chosen = chosen[1:]
        card = cohort.cards.get(adapter, Card())
        target = card.target or adapter
        unit = f" ({card.unit})" if card.unit else ""
        for name in chosen:
            values = np.array([number(run.predictions.get(adapter, {}).get(name)) for run in cohort.runs])
            title = f"{adapter}: {target}{unit}" if name == "value" else f"{adapter}: {target} {name[2:]}"
            axis = f"{target}{unit}" if name == "value" else f"probability of {name[2:]}"
            found.append(PredictedVariable(adapter, title, axis, values))
    return found


def number(value: object) -> float:
    """Convert a cell to a float; NaN for ``n/a`` and non-numeric text."""
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class Comparison:
    """Agreement of predictions with a column of ``participants.tsv``, over participants."""

    adapter: str
    column: str
    measure: str
    """Type of ``estimate``: accuracy or rank correlation."""
    estimate: Estimate
    error: float = float("nan")
    """Mean absolute error, for numeric predictions."""


def compare_with_phenotypes(cohort: Cohort) -> list[Comparison]:
    """Compare predictions with the column of ``participants.tsv`` that is named like the adapter's target."""
    columns = {name.lower(): name for row in cohort.phenotypes.values() for name in row}
    found = []
    for adapter in sorted({name for run in cohort.runs for name in run.predictions}):
        target = cohort.cards.get(adapter, Card()).target.lower()
        if target in columns:
            runs = [run for run in cohort.runs if adapter in run.predictions and cohort.phenotype(run, columns[target])]
            compare = _compare_numbers if any("value" in run.predictions[adapter] for run in runs) else _compare_classes
            found.append(compare(cohort, adapter, columns[target], runs))
    return [comparison for comparison in found if comparison.estimate.n >= MIN_PARTICIPANTS]


def _compare_numbers(cohort: Cohort, adapter: str, column: str, runs: Sequence[RunRecord]) -> Comparison:
    people = [run.participant for run in runs]
    predicted = np.array([number(run.predictions[adapter].get("value")) for run in runs])
    truth = np.array([number(cohort.phenotype(run, column)) for run in runs])
    known = np.isfinite(predicted) & np.isfinite(truth)
    _, mean_predicted = mean_by(np.where(known, predicted, np.nan), people)
    _, mean_true = mean_by(np.where(known, truth, np.nan), people)
    r = rank_correlation(mean_predicted, mean_true)
    error = float(np.nanmean(np.abs(mean_predicted - mean_true))) if known.any() else float("nan")
    return Comparison(adapter, column, "rank correlation", r, error)


def _compare_classes(cohort: Cohort, adapter: str, column: str, runs: Sequence[RunRecord]) -> Comparison:
    """Compare classes; a participant's prediction is the most frequent class over runs."""
    predicted: dict[str, list[str]] = {}
    truth: dict[str, str] = {}
    for run in runs:
        label = str(run.predictions[adapter].get("label", "n/a"))
        if label != "n/a":
            predicted.setdefault(run.participant, []).append(label.casefold())
            truth[run.participant] = cohort.phenotype(run, column).casefold()
    hits = sum(Counter(labels).most_common(1)[0][0] == truth[person] for person, labels in predicted.items())
    return Comparison(adapter, column, "accuracy", proportion(hits, len(predicted)))
