"""Answers as numbers, over all runs, and beside what ``participants.tsv`` says of the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.group.cohort import Cohort
from bids_app.group.reading import Card, RunRecord
from bids_app.group.statistics import Estimate, mean_by, proportion, rank_correlation

FEWEST = 5
"""Participants from whom agreement with ``participants.tsv`` is told."""


@dataclass(frozen=True)
class Answer:
    """One number that an adapter gives for each run."""

    adapter: str
    title: str
    """``age (years)``, or ``sex: F`` for the probability of a class."""
    axis: str
    values: np.ndarray
    """(N,), of the cohort's runs; NaN where there is no answer, or it is withheld."""


def answers_of(cohort: Cohort) -> list[Answer]:
    """Every adapter's numbers; of two classes only the second's probability, which says both."""
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
            found.append(Answer(adapter, title, axis, values))
    return found


def number(value: object) -> float:
    """A cell as a number; NaN for ``n/a`` and for what is none."""
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class Comparison:
    """How answers agree with a column of ``participants.tsv``, participants counted once."""

    adapter: str
    column: str
    measure: str
    """What ``estimate`` is: a share of right classes, or a rank correlation."""
    estimate: Estimate
    error: float = float("nan")
    """Mean absolute difference, of numbers."""


def beside_traits(cohort: Cohort) -> list[Comparison]:
    """Answers beside the column that has the name of an adapter's target, where there is one."""
    columns = {name.lower(): name for row in cohort.traits.values() for name in row}
    found = []
    for adapter in sorted({name for run in cohort.runs for name in run.predictions}):
        target = cohort.cards.get(adapter, Card()).target.lower()
        if target in columns:
            runs = [run for run in cohort.runs if adapter in run.predictions and cohort.trait(run, columns[target])]
            compare = _compare_numbers if any("value" in run.predictions[adapter] for run in runs) else _compare_classes
            found.append(compare(cohort, adapter, columns[target], runs))
    return [comparison for comparison in found if comparison.estimate.n >= FEWEST]


def _compare_numbers(cohort: Cohort, adapter: str, column: str, runs: Sequence[RunRecord]) -> Comparison:
    people = [run.participant for run in runs]
    answers = np.array([number(run.predictions[adapter].get("value")) for run in runs])
    truth = np.array([number(cohort.trait(run, column)) for run in runs])
    known = np.isfinite(answers) & np.isfinite(truth)
    _, answer = mean_by(np.where(known, answers, np.nan), people)
    _, true = mean_by(np.where(known, truth, np.nan), people)
    r = rank_correlation(answer, true)
    error = float(np.nanmean(np.abs(answer - true))) if known.any() else float("nan")
    return Comparison(adapter, column, "rank correlation", r, error)


def _compare_classes(cohort: Cohort, adapter: str, column: str, runs: Sequence[RunRecord]) -> Comparison:
    """A participant's answer is that of most runs."""
    said: dict[str, list[str]] = {}
    truth: dict[str, str] = {}
    for run in runs:
        label = str(run.predictions[adapter].get("label", "n/a"))
        if label != "n/a":
            said.setdefault(run.participant, []).append(label.casefold())
            truth[run.participant] = cohort.trait(run, column).casefold()
    hits = sum(Counter(labels).most_common(1)[0][0] == truth[person] for person, labels in said.items())
    return Comparison(adapter, column, "share that is right", proportion(hits, len(said)))
