"""BOLD runs that somebody preprocessed, in a BIDS derivatives dataset such as fMRIPrep's or XCP-D's.

Only names, sidecars and which files stand beside each other are looked at here; HCP's own layout is read in `hcp.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from bids_app.bids.entities import check_name, join_name, natural_key, split_name
from bids_app.bids.layout import query_images
from bids_app.bids.sidecars import Inheritance, missing_content, read_json
from bids_app.errors import NeurostormError
from bids_app.settings import QuerySettings

SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
"""Spaces whose images can be taken over, the model's own first."""

RESOLUTIONS = {"2": 0, "02": 0, "": 1, "1": 2, "01": 2}
"""Labels of ``res-`` in the order in which they are wanted; others come last."""

DESCRIPTIONS = ("preproc", "denoised", "residual")
"""Labels of ``desc-`` that can be taken over; all but the first have lost the mean image."""

TABLES = (("confounds", "timeseries"), ("confounds", "regressors"), ("", "motion"))
"""``desc-`` and suffix of the table beside a run: fMRIPrep's from 20.2 and before, XCP-D's."""

NOT_RAW = ("space", "cohort", "res", "den", "desc", "label", "echo", "part")
"""Entities that tell a run's images apart, not runs."""

KEPT_METADATA = ("RepetitionTime", "StartTime", "SliceTimingCorrected", "SkullStripped", "TaskName")
"""What still holds of an image that was preprocessed; slices, for instance, do not lie where they were measured."""

KNOWN_FMRIPREP = ((20, 2), (25, 99))
"""First and last version of fMRIPrep whose names are known."""

COMPANIONS: tuple[Literal["mask", "boldref", "t1w", "confounds", "confounds_meta"], ...] = (
    "mask", "boldref", "t1w", "confounds", "confounds_meta",
)  # fmt: skip

IMAGE_EXTENSIONS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class DerivedRun:
    """One BOLD run in a standard space, and what stands beside it."""

    bold: Path
    entities: dict[str, str]
    """Of the run: without space, resolution and description."""
    space: str
    pipeline: str
    """Name and version of what made it: ``fMRIPrep 23.2.1``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    boldref: Path | None = None
    t1w: Path | None = None
    """The participant's own anatomy in the same space."""
    confounds: Path | None = None
    confounds_meta: Path | None = None
    denoised: bool = False
    """Confounds were regressed out, and the mean image with them."""
    notes: tuple[str, ...] = ()
    problem: NeurostormError | None = None

    @property
    def companions(self) -> tuple[Path, ...]:
        """Files beside the image that are read."""
        paths: list[Path | None] = [getattr(self, name) for name in COMPANIONS]
        return tuple(path for path in paths if path is not None)

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """What a raw run of the same name has, too."""
        return run_key(self.entities)


class Companions(TypedDict):
    """What stands beside a run, as `DerivedRun` names it."""

    mask: Path | None
    boldref: Path | None
    t1w: Path | None
    confounds: Path | None
    confounds_meta: Path | None


def companion_files(found: Companions) -> list[Path]:
    """Those files that are there."""
    return [path for path in (found[key] for key in COMPANIONS) if path is not None]


def run_key(entities: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A run's entities as a key; ``run-01`` is ``run-1``, since pipelines write it either way."""
    kept = {key: label for key, label in entities.items() if key not in NOT_RAW}
    if kept.get("run", "").isdigit():
        kept["run"] = str(int(kept["run"]))
    return tuple(sorted(kept.items()))


def pipeline_of(description: Mapping[str, Any]) -> str:
    """Name and version of what made a dataset, from its ``dataset_description.json``; fMRIPrep's old form, too."""
    entries = description.get("GeneratedBy") or description.get("PipelineDescription")
    entry = entries[0] if isinstance(entries, list) and entries else entries
    if not isinstance(entry, dict) or not entry.get("Name"):
        return "a pipeline that its dataset does not name"
    return f"{entry['Name']} {entry.get('Version') or '(version unknown)'}"


def odd_version(pipeline: str) -> str:
    """A note when fMRIPrep's version is not one whose names are known; empty otherwise."""
    match = re.match(r"fmriprep (\d+)\.(\d+)", pipeline, re.IGNORECASE)
    if not match or KNOWN_FMRIPREP[0] <= (int(match[1]), int(match[2])) <= KNOWN_FMRIPREP[1]:
        return ""
    return f"{pipeline} is none of the versions that this app knows (20.2 to 25): look closely at the report."


def read_derivatives(
    root: Path, participants: list[str], filters: Mapping[str, Mapping[str, object]]
) -> tuple[list[DerivedRun], dict[tuple[tuple[str, str], ...], str]]:
    """The runs of a BIDS derivatives dataset.

    Parameters
    ----------
    root : pathlib.Path
        Absolute.
    participants : list of str
        Whose runs are wanted; all of them have a folder.
    filters : mapping
        Of ``--bids-filter-file``.

    Returns
    -------
    tuple
        The runs in natural order; and, for those that are there in no form that can be taken over, by their keys, what
        there is.
    """
    wanted = QuerySettings(participants=tuple(participants), filters={k: dict(v) for k, v in filters.items()})
    images = query_images(root, wanted, participants)["bold"] if participants else []
    groups: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for path in sorted(images, key=lambda path: natural_key(str(path))):
        groups.setdefault(run_key(split_name(path.name)[0]), []).append(path)
    description_file = root / "dataset_description.json"
    pipeline = pipeline_of(read_json(description_file) if description_file.exists() else {})
    inheritance = Inheritance(root)
    runs, others = [], {}
    for key, paths in groups.items():
        usable = sorted((path for path in paths if _rank(path) is not None), key=lambda path: _rank(path) or ())
        if usable:
            runs.append(_make_derived(usable, pipeline, inheritance))
        else:
            others[key] = ", ".join(path.name for path in paths)
    return runs, others


def _rank(path: Path) -> tuple[int, int, int] | None:
    """How much an image is wanted, least first; None when it cannot be taken over."""
    entities = split_name(path.name)[0]
    desc, space = entities.get("desc"), entities.get("space")
    if desc not in DESCRIPTIONS or space not in SPACES or "cohort" in entities:
        return None
    resolution = RESOLUTIONS.get(entities.get("res", ""), len(RESOLUTIONS))
    return DESCRIPTIONS.index(desc), SPACES.index(space), resolution


def _make_derived(images: Sequence[Path], pipeline: str, inheritance: Inheritance) -> DerivedRun:
    bold = images[0]
    notes: list[str] = []
    entities = split_name(bold.name)[0]
    own = {key: label for key, label in entities.items() if key not in NOT_RAW}
    if len(images) > 1:
        notes.append(
            f"Of {len(images)} preprocessed images of the run, {bold.name} was taken (desc-preproc first, then "
            f"{SPACES[0]}, then 2 mm)."
        )
    notes += filter(None, [odd_version(pipeline)])
    problem: NeurostormError | None = None
    metadata: dict[str, Any] = {}
    found = _companions(bold, entities, own, notes)
    try:
        check_name(bold, inheritance.root)
        for path in (bold, *companion_files(found)):
            error = missing_content(path)
            if error:
                raise error
        everything = inheritance.metadata(bold)
        metadata = {key: everything[key] for key in KEPT_METADATA if key in everything}
    except NeurostormError as error:
        problem = error
    return DerivedRun(
        bold=bold,
        entities=own,
        space=entities["space"],
        pipeline=pipeline,
        metadata=metadata,
        denoised=entities["desc"] != "preproc",
        notes=tuple(notes),
        problem=problem,
        **found,
    )


def _companions(bold: Path, entities: Mapping[str, str], own: Mapping[str, str], notes: list[str]) -> Companions:
    """Mask, reference, anatomy and table of a run; a link whose target is missing counts as found."""
    placed = {key: label for key, label in entities.items() if key not in ("desc", "echo", "part")}
    coarse = {key: label for key, label in placed.items() if key != "res"}
    same_grid = (placed, coarse) if "res" in placed else (placed,)

    def beside(suffix: str, desc: str = "") -> Path | None:
        extra = {"desc": desc} if desc else {}
        names = (join_name({**base, **extra}, suffix, ext) for base in same_grid for ext in IMAGE_EXTENSIONS)
        return next((bold.parent / name for name in names if os.path.lexists(bold.parent / name)), None)

    tables = (
        bold.parent / join_name({**own, **({"desc": desc} if desc else {})}, suffix, ".tsv") for desc, suffix in TABLES
    )
    table = next((path for path in tables if os.path.lexists(path)), None)
    table_meta = table.with_suffix(".json") if table else None
    mask = beside("mask", "brain")
    if mask is None:
        mask = _anatomical(bold, placed, "brain", "mask")
        if mask:
            notes.append(f"The run has no brain mask of its own; that of the T1w image, {mask.name}, was taken.")
    return {
        "mask": mask,
        "boldref": beside("boldref"),
        "t1w": _anatomical(bold, placed, "preproc", "T1w"),
        "confounds": table,
        "confounds_meta": table_meta if table_meta and os.path.lexists(table_meta) else None,
    }


def _anatomical(bold: Path, placed: Mapping[str, str], desc: str, suffix: str) -> Path | None:
    """An anatomical image of the participant in the run's space; of its session first, at its resolution first."""
    folders = [bold.parent.parent / "anat"]
    if "ses" in placed:
        folders.append(bold.parents[2] / "anat")
    found = []
    for rank, folder in enumerate(folders):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            theirs, its_suffix, extension = split_name(name)
            fits = (theirs.get("desc"), theirs.get("space"), its_suffix) == (desc, placed["space"], suffix)
            if fits and extension in IMAGE_EXTENSIONS and "cohort" not in theirs:
                found.append((rank, theirs.get("res") != placed.get("res"), natural_key(name), folder / name))
    return min(found)[-1] if found else None
