"""Runs of the Human Connectome Project's minimal preprocessing pipelines, in HCP's folder layout.

    <participant>/MNINonLinear/Results/<run>/<run>.nii.gz

Runs have names such as ``rfMRI_REST1_LR`` or ``tfMRI_MOTOR_RL``. There are no sidecars; the repetition time is in the
header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bids_app.bids.derivatives import Companions, DerivedRun, companion_files
from bids_app.bids.entities import as_label, natural_key
from bids_app.bids.sidecars import first_missing

PIPELINE = "HCP minimal preprocessing (version unknown)"
SPACE = "MNI152NLin6Asym"
RESULTS = Path("MNINonLinear", "Results")
RUN = re.compile(r"([rt])fMRI_(\w+)")
DIRECTIONS = {"LR", "RL", "AP", "PA"}
MASKS = ("brainmask_fs*.nii.gz", "*_finalmask.nii.gz")
ANATOMIES = ("T1w_restore.2.nii.gz", "T1w_restore.nii.gz", "T1w_restore_brain.nii.gz")
MOVEMENT = "Movement_Regressors.txt"
VISIT_FOLDER = re.compile(r"(.+)_(V\d+)_MR")
"""Folder name with a visit, as in HCP's lifespan studies: ``HCA6002236_V1_MR``."""


def is_hcp(root: Path) -> bool:
    """Return True if a folder contains participants in HCP's layout."""
    return next(_participant_folders(root), None) is not None


def _participant_folders(root: Path) -> Iterator[Path]:
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and (Path(entry.path) / RESULTS).is_dir():
                yield Path(entry.path)


def folder_entities(name: str) -> dict[str, str]:
    """Return the BIDS entities of a participant's folder: ``100307`` or, with a session, ``HCA6002236_V1_MR``."""
    visit = VISIT_FOLDER.fullmatch(name)
    return {"sub": as_label(visit[1]), "ses": visit[2]} if visit else {"sub": as_label(name)}


def run_entities(name: str) -> dict[str, str]:
    """Return the BIDS entities of a run's name, without the participant.

    Examples
    --------
    >>> run_entities("rfMRI_REST1_7T_PA")
    {'task': 'REST', 'acq': '7T', 'dir': 'PA', 'run': '1'}
    """
    match = RUN.fullmatch(name)
    assert match is not None
    task, *others = match[2].split("_")
    direction = others.pop() if others and others[-1] in DIRECTIONS else ""
    numbered = re.fullmatch(r"(.*\D)(\d+)", task)
    found = {"task": as_label(numbered[1] if numbered else task)}
    if others:
        found["acq"] = as_label("".join(others))
    if direction:
        found["dir"] = direction
    if numbered:
        found["run"] = numbered[2]
    return found


def list_hcp_participants(root: Path) -> list[str]:
    """List the participant labels in natural order."""
    return sorted({folder_entities(path.name)["sub"] for path in _participant_folders(root)}, key=natural_key)


def read_hcp(root: Path, participants: list[str]) -> list[DerivedRun]:
    """Read the runs of some participants in natural order.

    Parameters
    ----------
    root : pathlib.Path
        Folder that contains the participants' folders, absolute.
    participants : list of str
        Labels without ``sub-``.
    """
    runs: dict[tuple[tuple[str, str], ...], DerivedRun] = {}
    for folder in sorted(_participant_folders(root), key=lambda path: natural_key(path.name)):
        participant = folder_entities(folder.name)
        if participant["sub"] not in participants:
            continue
        for run_folder in sorted((folder / RESULTS).iterdir(), key=lambda path: natural_key(path.name)):
            bold = run_folder / f"{run_folder.name}.nii.gz"
            if RUN.fullmatch(run_folder.name) and os.path.lexists(bold):
                run = _make_run(folder, bold, {**participant, **run_entities(run_folder.name)})
                if run.key in runs:  # names with the same BIDS entities
                    run = _make_run(folder, bold, {**participant, "task": as_label(run_folder.name)})
                runs[run.key] = run
    return list(runs.values())


def _make_run(folder: Path, bold: Path, entities: dict[str, str]) -> DerivedRun:
    anatomy = folder / "MNINonLinear"
    movement = bold.parent / MOVEMENT
    reference = bold.with_name(bold.name.replace(".nii.gz", "_SBRef.nii.gz"))
    found: Companions = {
        "mask": next((path for pattern in MASKS for path in sorted(bold.parent.glob(pattern))), None),
        "boldref": reference if os.path.lexists(reference) else None,
        "t1w": next((anatomy / name for name in ANATOMIES if os.path.lexists(anatomy / name)), None),
        "confounds": movement if os.path.lexists(movement) else None,
        "confounds_meta": None,
    }
    problem = first_missing((bold, *companion_files(found)))
    metadata: dict[str, Any] = {}
    notes: list[str] = []
    if problem is None:
        metadata = repetition_time(bold, notes)
    return DerivedRun(
        bold=bold,
        entities=entities,
        space=SPACE,
        pipeline=PIPELINE,
        metadata=metadata,
        notes=tuple(notes),
        problem=problem,
        **found,
    )


def repetition_time(bold: Path, notes: list[str]) -> dict[str, float]:
    """Return the header's repetition time, s, if its unit is missing; empty if the header can be used as it is."""
    import nibabel as nib

    try:
        header: Any = nib.load(bold).header
        if header.get_xyzt_units()[1] != "unknown":
            return {}
        tr = float(header.get_zooms()[3])
    except Exception:  # nibabel raises various errors for broken files; the step that reads the volumes reports them
        return {}
    if not 0.1 <= tr <= 20:
        return {}
    notes.append(f"The repetition time in the header has no unit; {tr:g} was interpreted as seconds.")
    return {"RepetitionTime": round(tr, 6)}
