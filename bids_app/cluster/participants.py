"""Participants of a cohort: those of the dataset, or of a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bids_app.bids.datasets import main_dataset, participants_of
from bids_app.bids.layout import list_participants
from bids_app.bids.writer import RAW_DATASET
from bids_app.errors import InvalidBIDSError, NoInputError, NoMatchError
from bids_app.files import MAX_TABLE_BYTES, read_rows, read_text
from bids_app.terminal import first_of

COLUMN = "participant_id"
MAX_SHOWN = 12


def read_labels(path: Path) -> list[str]:
    """Read a list of participants: a table with a column ``participant_id``, or labels between spaces, commas or lines.

    Parameters
    ----------
    path : pathlib.Path
        Labels are with or without ``sub-``; lines that begin with ``#`` are skipped.

    Returns
    -------
    list of str
        Labels without ``sub-`` in order, each once.
    """
    text = read_text(path, MAX_TABLE_BYTES)
    if text.lstrip("\ufeff").split("\n", 1)[0].split("\t")[0].strip() == COLUMN:
        found = [row[COLUMN] for row in read_rows(path)]
    else:
        lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
        found = [word for line in lines for word in re.split(r"[\s,;]+", line.strip("\ufeff"))]
    labels = list(dict.fromkeys(label.strip().removeprefix("sub-") for label in found if label.strip()))
    if not labels:
        raise NoInputError(f"{path}: no participants.", "Write a label in each line.")
    return labels


def find_participants(bids_dir: Path, wanted: Sequence[str] | None = None) -> list[str]:
    """Return the participants of a dataset, or those of a list, each of which must be in the dataset.

    Raises
    ------
    NoInputError, InvalidBIDSError
        No such folder; a dataset without participants.
    NoMatchError
        The dataset lacks participants of the list.
    """
    if not bids_dir.is_dir():
        raise NoInputError(f"{bids_dir}: no such folder.", "Correct the path of the dataset.")
    derived = main_dataset(bids_dir) != RAW_DATASET
    known = participants_of(bids_dir) if derived else list_participants(bids_dir)
    if not known:
        raise InvalidBIDSError(
            f"{bids_dir}: no participants found (no folder sub-<label> with a label of letters and digits).",
            "Check the path and the participants' folders.",
        )
    if wanted is None:
        return known
    available = set(known)
    missing = [label for label in wanted if label not in available]
    if missing:
        raise NoMatchError(
            f"{bids_dir}: no folder for {len(missing)} of {len(wanted)} participants of the list: "
            f"{first_of([f'sub-{label}' for label in missing], MAX_SHOWN)}.",
            "Correct the list.",
        )
    return list(wanted)
