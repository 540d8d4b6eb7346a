"""Runs of UK Biobank's image processing pipeline, in the layout of its bulk downloads (fields 20227 and 20249).

    <folder>/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz    resting state, cleaned by FIX
    <folder>/fMRI/tfMRI.feat/filtered_func_data.nii.gz         faces and shapes task, smoothed
    ... /reg/example_func2standard_warp.nii.gz                 FSL's displacement field from MNI152 to the series
    ... /reg/example_func2standard.nii.gz                      reference volume in MNI152
    ... /mask.nii.gz                                           brain mask
    ... /mc/prefiltered_func_data_mcf.par                      head motion, by MCFLIRT
    <folder>/T1/T1_brain_to_MNI.nii.gz                         T1w image in MNI152 (field 20252)

Folders are named ``<eid>_20227_2_0`` as the archives (participant, field, visit, array), ``<eid>_2_0`` or ``<eid>``.
They may be within a folder of the participant, ``<eid>/<eid>_20227_2_0``.
The folders of several fields of a visit belong together, and ``fMRI`` may be missing in the path. The series are in the
space of the scan.
Source: UK Biobank Brain Imaging Documentation; Alfaro-Almagro et al. (2018), NeuroImage 166, 400-424.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bids_app.bids.derivatives import Companions, DerivedRun, companion_files, run_key
from bids_app.bids.entities import as_label, natural_key
from bids_app.bids.hcp import repetition_time
from bids_app.bids.sidecars import first_missing
from bids_app.errors import NoInputError

PIPELINE = "UK Biobank image processing (version unknown)"
SPACE = "MNI152NLin6Asym"
FOLDER = re.compile(r"(\w+?)(?:_\d{2,5})?(?:_(\d)_\d)?")
"""Participant, field and visit of a folder name."""
WARP = Path("reg", "example_func2standard_warp.nii.gz")
UNUSABLE = "unusable"
"""Folder of runs that UK Biobank's quality control excluded."""

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kind:
    """One kind of run: its folder, its series (first choice first), its task label, and a note on its processing."""

    folder: str
    series: tuple[str, ...]
    task: str
    note: str


KINDS = (
    Kind(
        "rfMRI.ica",
        ("filtered_func_data_clean.nii.gz", "filtered_func_data_clean.nii"),
        "rest",
        "Artefacts were removed by UK Biobank (ICA-FIX).",
    ),
    Kind(
        "tfMRI.feat",
        ("filtered_func_data.nii.gz", "filtered_func_data.nii"),
        "faces",
        "The series was spatially smoothed by UK Biobank.",
    ),
)


def is_ukb(root: Path) -> bool:
    """Return True if a folder contains participants in UK Biobank's layout."""
    return next(_participant_folders(root), None) is not None


def _participant_folders(root: Path) -> Iterator[Path]:
    """Yield the folders that contain runs: in ``root``, or in the folder of a participant, ``<eid>``."""
    with os.scandir(root) as entries:
        for entry in entries:
            folder = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if any(_run_folders(folder, kind) for kind in KINDS):
                yield folder
            elif entry.name.isdecimal() and entry.is_dir():
                within = folder.glob(f"{entry.name}_*")
                yield from (path for path in within if any(_run_folders(path, kind) for kind in KINDS))


def _run_folders(folder: Path, kind: Kind) -> list[Path]:
    """Return the folders of a kind of run in a participant's folder, that of an excluded run last."""
    within = (folder / "fMRI", folder, folder / "fMRI" / UNUSABLE)
    return [path / kind.folder for path in within if (path / kind.folder).is_dir()]


def folder_entities(name: str) -> dict[str, str]:
    """Return the BIDS entities of a participant's folder.

    Examples
    --------
    >>> folder_entities("1234567_20227_2_0")
    {'sub': '1234567', 'ses': '2'}
    """
    match = FOLDER.fullmatch(name)
    if match is None:
        return {"sub": as_label(name)}
    return {"sub": as_label(match[1]), **({"ses": match[2]} if match[2] else {})}


def list_ukb_participants(root: Path) -> list[str]:
    """List the participant labels in natural order."""
    return sorted({folder_entities(path.name)["sub"] for path in _participant_folders(root)}, key=natural_key)


def read_ukb(root: Path, participants: list[str]) -> tuple[list[DerivedRun], dict[Key, str]]:
    """Read the runs of some participants in natural order.

    Parameters
    ----------
    root : pathlib.Path
        Folder that contains the participants' folders, absolute.
    participants : list of str
        Labels without ``sub-``.

    Returns
    -------
    tuple
        The runs; and, by run key, what there is of runs without a series. A run without its displacement field has a
        `DerivedRun.problem`.
    """
    runs: dict[Key, DerivedRun] = {}
    unusable: dict[Key, str] = {}
    for folder in sorted(_participant_folders(root), key=lambda path: natural_key(path.name)):
        participant = folder_entities(folder.name)
        for kind in KINDS if participant["sub"] in participants else ():
            entities = {**participant, "task": kind.task}
            for run_folder in _run_folders(folder, kind)[:1]:
                bold = next((run_folder / name for name in kind.series if os.path.lexists(run_folder / name)), None)
                if run_folder.parent.name == UNUSABLE:
                    unusable[run_key(entities)] = f"{UNUSABLE}/{kind.folder}, excluded by UK Biobank"
                elif bold is None:
                    unusable[run_key(entities)] = f"{kind.folder} without {kind.series[0]}"
                else:
                    runs.setdefault(run_key(entities), _make_run(folder, bold, entities, kind))
    return list(runs.values()), {key: what for key, what in unusable.items() if key not in runs}


def _make_run(own: Path, bold: Path, entities: dict[str, str], kind: Kind) -> DerivedRun:
    folder = bold.parent
    found: Companions = {
        "mask": _existing(folder / "mask.nii.gz"),
        "boldref": _existing(folder / "reg" / "example_func2standard.nii.gz"),
        "t1w": _find_t1w(own, entities),
        "confounds": _existing(folder / "mc" / "prefiltered_func_data_mcf.par"),
        "confounds_meta": None,
    }
    warp = _existing(folder / WARP)
    notes = [kind.note, f"The series was resampled from the space of the scan by {WARP.name}, in one interpolation."]
    if warp is None:
        problem: NoInputError | None = NoInputError(
            f"{bold.name}: in the space of the scan, without its transform to the template ({WARP.as_posix()}).",
            "Unpack the whole archive of the run; it contains this file.",
        )
    else:
        problem = first_missing((bold, *companion_files(found), warp))
    metadata = repetition_time(bold, notes) if problem is None else {}
    return DerivedRun(
        bold=bold,
        entities=entities,
        space=SPACE,
        pipeline=PIPELINE,
        metadata=metadata,
        warp=warp,
        notes=tuple(notes),
        problem=problem,
        **found,
    )


def _find_t1w(own: Path, entities: dict[str, str]) -> Path | None:
    """Find the T1w image in the folder of the run, or beside it in that of field 20252 of the same visit."""
    visit = f"_{entities['ses']}_0" if "ses" in entities else ""
    folders = (own, own.with_name(f"{entities['sub']}_20252{visit}"))
    return next(filter(None, (_existing(folder / "T1" / "T1_brain_to_MNI.nii.gz") for folder in folders)), None)


def _existing(path: Path) -> Path | None:
    """Return a path that exists; a broken link counts as existing."""
    return path if os.path.lexists(path) else None
