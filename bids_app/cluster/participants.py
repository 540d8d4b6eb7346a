"""Participants of a cohort: those of the dataset, or of a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bids_app.bids.datasets import main_dataset, participants_of
from bids_app.bids.layout import list_participants
from bids_app.bids.participants import read_labels
from bids_app.bids.writer import RAW_DATASET
from bids_app.errors import InvalidBIDSError, NoInputError, NoMatchError
from bids_app.terminal import first_of

MAX_SHOWN = 12


def read_list(path: Path) -> list[str]:
    """Read the labels of participants without ``sub-`` from a list or table, in order, each once; see `read_labels`.

    Raises
    ------
    NoInputError
        It has no participants.
    """
    labels = list(dict.fromkeys(label.removeprefix("sub-") for label in read_labels(path)))
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
