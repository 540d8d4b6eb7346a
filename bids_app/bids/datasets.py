"""Input datasets: raw BIDS datasets and derivatives, matched run by run and named as in ``DatasetLinks``."""

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
from bids_app.bids.ukb import is_ukb, list_ukb_participants, read_ukb
from bids_app.bids.writer import RAW_DATASET
from bids_app.errors import InvalidBIDSError, NeurostormError, NoInputError

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DerivedDataset:
    """A derivatives dataset.

    Attributes
    ----------
    name : str
        Its name in ``DatasetLinks``.
    runs : tuple of DerivedRun
        Runs that can be used.
    unusable : mapping
        Run key to what there is of runs without a usable image: file names, or a description.
    """

    name: str
    runs: tuple[DerivedRun, ...]
    unusable: Mapping[Key, str]


def is_derivative(description: Mapping[str, Any]) -> bool:
    """Return True if a ``dataset_description.json`` describes derivatives, in the current or fMRIPrep's old form."""
    return description.get("DatasetType") == "derivative" or "PipelineDescription" in description


def participants_of(root: Path) -> list[str]:
    """List the participant labels of a derivatives dataset in the layout of BIDS, HCP or UK Biobank."""
    if is_hcp(root):
        return list_hcp_participants(root)
    return list_ukb_participants(root) if is_ukb(root) else list_participants(root)


def read_dataset(
    root: Path,
    name: str,
    participants: Sequence[str],
    filters: Mapping[str, Mapping[str, object]] | None = None,
) -> DerivedDataset:
    """Read the runs of some participants from a derivatives dataset; participants that it lacks are skipped.

    Raises
    ------
    NoInputError, InvalidBIDSError
        The folder does not exist, or has no participants in a supported layout.
    """
    root = root.absolute()
    if not root.is_dir():
        raise NoInputError(
            f"{root}: no such folder.",
            f"Correct --derivatives {name}=...; in a container, check that the folder is mounted.",
        )
    available = participants_of(root)
    if not available:
        raise InvalidBIDSError(
            f"{root}: no usable derivatives: neither sub-* folders nor HCP's "
            "<participant>/MNINonLinear/Results nor UK Biobank's <participant>/fMRI were found.",
            f"Give the folder that contains the participants' folders as --derivatives {name}=...",
        )
    wanted = [label for label in available if label in participants]
    if is_hcp(root):
        return DerivedDataset(name, tuple(read_hcp(root, wanted)), {})
    runs, unusable = read_ukb(root, wanted) if is_ukb(root) else read_derivatives(root, wanted, filters or {})
    return DerivedDataset(name, tuple(runs), unusable)


def input_datasets(bids_dir: Path, derivatives: Mapping[str, Path]) -> dict[str, Path]:
    """Return the input datasets by their names in BIDS URIs; ``bids_dir`` comes first."""
    return {main_dataset(bids_dir): bids_dir.absolute()} | {name: path.absolute() for name, path in derivatives.items()}


def main_dataset(bids_dir: Path) -> str:
    """Return the name of ``bids_dir`` in BIDS URIs: ``raw``, or the pipeline that generated it."""
    path = bids_dir / "dataset_description.json"
    try:
        description = read_json(path) if path.exists() else {}
    except NeurostormError:
        return RAW_DATASET  # the query reports the error
    if is_derivative(description):
        return as_label(pipeline_of(description).split()[0])
    if description or not bids_dir.is_dir():
        return RAW_DATASET
    return "hcp" if is_hcp(bids_dir) else "ukb" if is_ukb(bids_dir) else RAW_DATASET


def find_derived_run(
    entities: Mapping[str, str], datasets: Sequence[DerivedDataset], notes: list[str]
) -> DerivedRun | None:
    """Find the derivatives of a raw run in the first dataset that has them; None if the run must be preprocessed.

    Parameters
    ----------
    entities : mapping
        Entities of the raw run.
    datasets : sequence of DerivedDataset
        Derivatives in the order given.
    notes : list of str
        Receives the reason for each dataset that is not used.
    """
    key = run_key(entities)
    for dataset in datasets:
        for run in dataset.runs:
            if run.key == key:
                return run
    for dataset in datasets:
        files = dataset.unusable.get(key)
        reason = f"contain this run only as {files}" if files else "do not contain this run"
        notes.append(f"The derivatives '{dataset.name}' {reason}; it was preprocessed from the raw data.")
    return None
