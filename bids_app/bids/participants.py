"""Ages and sites of the participants from ``participants.tsv``, for verdict and calibration; lists of participants."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_app.bids.sidecars import read_json
from bids_app.errors import NeurostormError
from bids_app.files import MAX_TABLE_BYTES, read_rows, read_text

LOGGER = logging.getLogger(__name__)

YEARS = ("", "year", "years", "yr", "yrs", "y", "a")
"""Units of ``age`` that mean years, which is also the BIDS default."""


SITE_COLUMNS = ("site", "site_id", "site_name")
"""Columns with the site of a participant, the first of them that has a value."""
NO_SITE = ("", "n/a", "nan", "none")
PARTICIPANT_ID = "participant_id"
"""Column with the labels of the participants."""


def read_labels(path: Path, separators: str = r"[\s,;]+") -> list[str]:
    """Read a list of participants: a table with the column ``participant_id`` and others, or labels.

    Parameters
    ----------
    path : pathlib.Path
        In a list, what follows ``#`` in a line is skipped.
    separators : str
        Regular expression of what is between the labels of a line.

    Returns
    -------
    list of str
        Labels as they are written, with or without ``sub-``, in order; not checked.
    """
    text = read_text(path, MAX_TABLE_BYTES).lstrip("\ufeff")
    first, *others = text.split("\n", 1)[0].split("\t")
    if first.strip() == PARTICIPANT_ID and others:
        words = [row[PARTICIPANT_ID] for row in read_rows(path)]
    else:
        lines = (line.partition("#")[0] for line in text.splitlines())
        words = [word for line in lines for word in re.split(separators, line) if word != PARTICIPANT_ID]
    return [word.strip() for word in words if word.strip()]


def read_ages(datasets: Iterable[Path]) -> dict[str, float]:
    """Read ages in years by participant (without ``sub-``), from the first dataset that has them.

    A table that cannot be read is ignored with a warning: no run should fail because of it.
    """
    found: dict[str, float] = {}
    for root in datasets:
        ages = {participant: as_age(row.get("age")) for participant, row in _rows_of(root, "ages").items()}
        known = {participant: age for participant, age in ages.items() if age is not None}
        if known and _in_years(root / "participants.json"):
            found = known | found
    return found


def read_sites(datasets: Iterable[Path]) -> dict[str, str]:
    """Read sites by participant (without ``sub-``), from the first dataset that has them; see `site_of`."""
    found: dict[str, str] = {}
    for root in datasets:
        for participant, row in _rows_of(root, "sites").items():
            if site := site_of(row):
                found.setdefault(participant, site)
    return found


def site_of(row: Mapping[str, str]) -> str:
    """Return the site in a row of ``participants.tsv``; empty if unknown."""
    cells = ((row.get(column) or "").strip() for column in SITE_COLUMNS)
    return next((cell for cell in cells if cell.lower() not in NO_SITE), "")


def _rows_of(root: Path, what: str) -> dict[str, dict[str, str]]:
    """Read the rows of ``participants.tsv`` by participant; empty, with a warning, if it cannot be read."""
    table = root / "participants.tsv"
    try:
        rows = read_rows(table) if os.path.lexists(table) else []
    except NeurostormError as error:
        LOGGER.warning("The %s are unknown: %s", what, error.message)
        return {}
    return {row["participant_id"].removeprefix("sub-"): row for row in rows if row.get("participant_id")}


def as_age(text: str | None) -> float | None:
    """Parse an age; ``89+``, the BIDS form for the oldest participants, is 89, a range such as ``26-30`` is None."""
    try:
        age = float((text or "").strip().removesuffix("+"))
    except ValueError:
        return None
    return age if 0 <= age < 150 else None


def _in_years(sidecar: Path) -> bool:
    """Tell whether ages are in years; False, with a warning, if the sidecar cannot be read."""
    if not os.path.lexists(sidecar):
        return True
    try:
        about = read_json(sidecar).get("age")
    except NeurostormError as error:
        LOGGER.warning("The ages are unknown: %s", error.message)
        return False
    units = about.get("Units", "") if isinstance(about, dict) else ""
    return str(units).strip().lower() in YEARS
