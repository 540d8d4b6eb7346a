"""Ages of the participants from ``participants.tsv``, as needed for the verdict."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from bids_app.bids.sidecars import read_json
from bids_app.errors import NeurostormError
from bids_app.files import read_rows

LOGGER = logging.getLogger(__name__)

YEARS = ("", "year", "years", "yr", "yrs", "y", "a")
"""Units of ``age`` that mean years, which is also the BIDS default."""


def read_ages(datasets: Iterable[Path]) -> dict[str, float]:
    """Read ages in years by participant (without ``sub-``), from the first dataset that has them.

    A table that cannot be read is ignored with a warning: no run should fail because of it.
    """
    found: dict[str, float] = {}
    for root in datasets:
        for participant, age in _ages_of(root).items():
            found.setdefault(participant, age)
    return found


def _ages_of(root: Path) -> dict[str, float]:
    table = root / "participants.tsv"
    try:
        if not os.path.lexists(table) or not _in_years(root / "participants.json"):
            return {}
        rows = read_rows(table)
    except NeurostormError as error:
        LOGGER.warning("The ages are unknown: %s", error.message)
        return {}
    found = {}
    for row in rows:
        age = as_age(row.get("age"))
        if age is not None and row.get("participant_id"):
            found[row["participant_id"].removeprefix("sub-")] = age
    return found


def as_age(text: str | None) -> float | None:
    """Parse an age; ``89+``, the BIDS form for the oldest participants, is 89, a range such as ``26-30`` is None."""
    try:
        age = float((text or "").strip().removesuffix("+"))
    except ValueError:
        return None
    return age if 0 <= age < 150 else None


def _in_years(sidecar: Path) -> bool:
    if not os.path.lexists(sidecar):
        return True
    about = read_json(sidecar).get("age")
    units = about.get("Units", "") if isinstance(about, dict) else ""
    return str(units).strip().lower() in YEARS
