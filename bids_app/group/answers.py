"""Answers as numbers: a column a regression, or a class's probability, over all runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.group.cohort import Cohort


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
        card = cohort.cards.get(adapter, {})
        target = str(card.get("Target") or adapter)
        unit = f" ({card['Unit']})" if card.get("Unit") else ""
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
