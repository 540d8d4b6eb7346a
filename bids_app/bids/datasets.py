"""Which runs are taken over from derivatives, and which datasets an invocation reads, under the names of its links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.derivatives import DerivedRun, pipeline_of, read_derivatives, run_key
from bids_app.bids.entities import as_label
from bids_app.bids.hcp import is_hcp, list_hcp_participants, read_hcp
from bids_app.bids.layout import list_participants
from bids_app.bids.sidecars import read_json
from bids_app.bids.writer import RAW_DATASET
from bids_app.errors import InvalidBIDSError, NeurostormError, NoInputError

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DerivedDataset:
    """A derivatives dataset: its runs, and by run what is there that cannot be taken over."""

    name: str
    runs: tuple[DerivedRun, ...]
    others: Mapping[Key, str]


def is_derivative(description: Mapping[str, Any]) -> bool:
    """Whether a ``dataset_description.json`` is that of derivatives, in its present form or fMRIPrep's old one."""
    return description.get("DatasetType") == "derivative" or "PipelineDescription" in description


def participants_of(root: Path) -> list[str]:
    """Labels of the participants of a derivatives dataset, in BIDS' layout or HCP's."""
    return list_hcp_participants(root) if is_hcp(root) else list_participants(root)


def read_dataset(
    root: Path,
    name: str,
    participants: Sequence[str],
    filters: Mapping[str, Mapping[str, object]] | None = None,
) -> DerivedDataset:
    """Read what a derivatives dataset holds of some participants; those that it does not have are left out.

    Raises
    ------
    NoInputError, InvalidBIDSError
        The folder is missing, or holds no participants in a layout that is known.
    """
    root = root.absolute()
    if not root.is_dir():
        raise NoInputError(
            f"{root}: no such folder.", f"Correct --derivatives {name}=...; in a container: is it there?"
        )
    there = participants_of(root)
    if not there:
        raise InvalidBIDSError(
            f"{root}: no derivatives that can be taken over: neither folders sub-... nor HCP's "
            "<participant>/MNINonLinear/Results are in it.",
            f"Give the folder that holds the participants' folders as --derivatives {name}=...",
        )
    wanted = [label for label in there if label in participants]
    if is_hcp(root):
        return DerivedDataset(name, tuple(read_hcp(root, wanted)), {})
    runs, others = read_derivatives(root, wanted, filters or {})
    return DerivedDataset(name, tuple(runs), others)


def input_datasets(bids_dir: Path, derivatives: Mapping[str, Path]) -> dict[str, Path]:
    """The datasets that are read, by the names that BIDS URIs call them; ``bids_dir`` comes first."""
    return {main_dataset(bids_dir): bids_dir.absolute()} | {name: path.absolute() for name, path in derivatives.items()}


def main_dataset(bids_dir: Path) -> str:
    """What ``bids_dir`` is called: ``raw``, or the pipeline that made it."""
    path = bids_dir / "dataset_description.json"
    try:
        description = read_json(path) if path.exists() else {}
    except NeurostormError:
        return RAW_DATASET  # the query tells the user
    if is_derivative(description):
        return as_label(pipeline_of(description).split()[0])
    return "hcp" if not description and bids_dir.is_dir() and is_hcp(bids_dir) else RAW_DATASET


def choose_derived(
    entities: Mapping[str, str], datasets: Sequence[DerivedDataset], notes: list[str]
) -> DerivedRun | None:
    """What is taken over for a raw run: from the first dataset that has it; None when it is to be preprocessed.

    Parameters
    ----------
    entities : mapping
        Of the raw run.
    datasets : sequence of DerivedDataset
        In the order in which they were given.
    notes : list of str
        Receives why nothing is taken over from a dataset.
    """
    key = run_key(entities)
    for dataset in datasets:
        for run in dataset.runs:
            if run.key == key:
                return run
    for dataset in datasets:
        there = dataset.others.get(key)
        reason = f"hold this run only as {there}" if there else "do not hold this run"
        notes.append(f"The derivatives '{dataset.name}' {reason}: it was preprocessed from the raw data.")
    return None
