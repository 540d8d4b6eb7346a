"""Preprocessed BOLD runs in a BIDS derivatives dataset such as fMRIPrep's or XCP-D's.

Only file names and sidecars are read here; the layouts of HCP and UK Biobank are read in `hcp.py` and `ukb.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from bids_app.bids.entities import check_name, join_name, natural_key, split_name
from bids_app.bids.layout import query_images
from bids_app.bids.sidecars import SCANNER, Inheritance, first_missing, read_json
from bids_app.errors import NeurostormError
from bids_app.settings import QuerySettings

SPACES = ("MNI152NLin6Asym", "MNI152NLin2009aSym", "MNI152NLin2009cAsym")
"""Supported template spaces in order of preference: those of the catalog of templates, the model's own first."""

RESOLUTIONS = {"2": 0, "02": 0, "": 1, "1": 2, "01": 2}
"""Rank of each ``res-`` label; other labels rank last."""

DESCRIPTIONS = ("preproc", "denoised", "residual")
"""Supported ``desc-`` labels; all but the first lack the mean image."""

TABLES = (("confounds", "timeseries"), ("confounds", "regressors"), ("", "motion"))
"""``desc-`` and suffix of the confounds table: fMRIPrep from 20.2, fMRIPrep before 20.2, XCP-D."""

VARIANT_ENTITIES = ("space", "cohort", "res", "den", "desc", "label", "echo", "part")
"""Entities that distinguish the images of one run, not runs."""

VALID_METADATA = ("RepetitionTime", "StartTime", "SliceTimingCorrected", "SkullStripped", "TaskName", SCANNER)
"""Sidecar keys that stay valid after preprocessing; ``SliceTiming``, for instance, does not."""

SUPPORTED_FMRIPREP = ((20, 2), (25, 99))
"""First and last fMRIPrep version with supported file names."""

COMPANIONS: tuple[Literal["mask", "boldref", "t1w", "confounds", "confounds_meta"], ...] = (
    "mask", "boldref", "t1w", "confounds", "confounds_meta",
)  # fmt: skip

IMAGE_EXTENSIONS = (".nii.gz", ".nii")

MINIMAL = "a boldref with transforms (fMRIPrep's --level minimal), without a preprocessed series"
"""What derivatives contain of a run without an image of the series."""


@dataclass(frozen=True)
class DerivedRun:
    """A preprocessed BOLD run in template space, with its companion files."""

    bold: Path
    entities: dict[str, str]
    """Entities of the run, without space, resolution and description."""
    space: str
    pipeline: str
    """Name and version of the pipeline: ``fMRIPrep 23.2.1``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    boldref: Path | None = None
    t1w: Path | None = None
    """The participant's T1w image in the same space."""
    confounds: Path | None = None
    confounds_meta: Path | None = None
    warp: Path | None = None
    """FSL's displacement field from ``space`` to the space of ``bold`` and ``mask``; None: they are in ``space``."""
    denoised: bool = False
    """Confounds were regressed out, and the mean image was removed with them."""
    notes: tuple[str, ...] = ()
    problem: NeurostormError | None = None
    sidecars: tuple[Path, ...] = ()
    """Files of ``metadata``."""

    @property
    def companions(self) -> tuple[Path, ...]:
        """Companion files that exist."""
        paths: list[Path | None] = [*(getattr(self, name) for name in COMPANIONS), self.warp]
        return tuple(path for path in paths if path is not None)

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """Key that matches the raw run of the same name."""
        return run_key(self.entities)


class Companions(TypedDict):
    """Companion files of a run, under their names in `DerivedRun`."""

    mask: Path | None
    boldref: Path | None
    t1w: Path | None
    confounds: Path | None
    confounds_meta: Path | None


def companion_files(found: Companions) -> list[Path]:
    """List the companion files that exist."""
    return [path for path in (found[key] for key in COMPANIONS) if path is not None]


def run_key(entities: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return a run's entities as a key; ``run-01`` equals ``run-1``, since pipelines write either."""
    kept = {key: label for key, label in entities.items() if key not in VARIANT_ENTITIES}
    if kept.get("run", "").isdigit():
        kept["run"] = str(int(kept["run"]))
    return tuple(sorted(kept.items()))


def pipeline_of(description: Mapping[str, Any]) -> str:
    """Return name and version of the pipeline from a ``dataset_description.json``, in the current or old form."""
    entries = description.get("GeneratedBy") or description.get("PipelineDescription")
    entry = entries[0] if isinstance(entries, list) and entries else entries
    if not isinstance(entry, dict) or not entry.get("Name"):
        return "an unnamed pipeline"
    return f"{entry['Name']} {entry.get('Version') or '(version unknown)'}"


def check_pipeline_version(pipeline: str) -> str:
    """Return a note if the fMRIPrep version is not supported; empty otherwise."""
    match = re.match(r"fmriprep (\d+)\.(\d+)", pipeline, re.IGNORECASE)
    if not match or SUPPORTED_FMRIPREP[0] <= (int(match[1]), int(match[2])) <= SUPPORTED_FMRIPREP[1]:
        return ""
    return f"{pipeline} is not a tested version (20.2 to 25); check the report carefully."


def read_derivatives(
    root: Path, participants: list[str], filters: Mapping[str, Mapping[str, object]]
) -> tuple[list[DerivedRun], dict[tuple[tuple[str, str], ...], str]]:
    """Read the runs of a BIDS derivatives dataset.

    Parameters
    ----------
    root : pathlib.Path
        Root of the dataset, absolute.
    participants : list of str
        Labels of the participants; each has a folder.
    filters : mapping
        Content of ``--bids-filter-file``.

    Returns
    -------
    tuple
        Usable runs in natural order; and, by run key, the file names of runs without a usable image, or `MINIMAL`.
    """
    wanted = QuerySettings(participants=tuple(participants), filters={k: dict(v) for k, v in filters.items()})
    images = query_images(root, wanted, participants)["bold"] if participants else []
    groups: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for path in sorted(images, key=lambda path: natural_key(str(path))):
        groups.setdefault(run_key(split_name(path.name)[0]), []).append(path)
    description_file = root / "dataset_description.json"
    pipeline = pipeline_of(read_json(description_file) if description_file.exists() else {})
    inheritance = Inheritance(root)
    runs, unusable = [], {}
    for key, paths in groups.items():
        usable = sorted((path for path in paths if _rank(path) is not None), key=lambda path: _rank(path) or ())
        if usable:
            runs.append(_make_derived(usable, pipeline, inheritance))
        else:
            unusable[key] = ", ".join(path.name for path in paths)
    return runs, {key: MINIMAL for key in _keys_of_boldrefs(root, participants) if key not in groups} | unusable


def _keys_of_boldrefs(root: Path, participants: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield the keys of runs with a boldref, in natural order; also if only its sidecar was fetched."""
    for label in participants:
        folders = (root / f"sub-{label}").glob("ses-*/func"), (root / f"sub-{label}").glob("func")
        names = {path.name for paths in folders for folder in paths for path in folder.glob("*_boldref.*")}
        for name in sorted(names, key=natural_key):
            yield run_key(split_name(name)[0])


def _rank(path: Path) -> tuple[int, int, int] | None:
    """Return the sorting key of an image, best first; None if the image is not supported."""
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
    own = {key: label for key, label in entities.items() if key not in VARIANT_ENTITIES}
    if len(images) > 1:
        notes.append(
            f"{len(images)} preprocessed images of the run exist; {bold.name} was used (desc-preproc first, then "
            f"{SPACES[0]}, then 2 mm)."
        )
    notes += filter(None, [check_pipeline_version(pipeline)])
    problem: NeurostormError | None = None
    metadata: dict[str, Any] = {}
    sidecars: tuple[Path, ...] = ()
    found = _companions(bold, entities, own, notes)
    try:
        check_name(bold, inheritance.root)
        if missing := first_missing((bold, *companion_files(found))):
            raise missing
        everything = inheritance.metadata(bold)
        sidecars = tuple(inheritance.sidecars(bold))
        metadata = {key: everything[key] for key in VALID_METADATA if key in everything}
    except NeurostormError as error:
        problem = error
    return DerivedRun(
        bold=bold,
        entities=own,
        space=entities["space"],
        pipeline=pipeline,
        metadata=metadata,
        sidecars=sidecars,
        denoised=entities["desc"] != "preproc",
        notes=tuple(notes),
        problem=problem,
        **found,
    )


def _companions(bold: Path, entities: Mapping[str, str], own: Mapping[str, str], notes: list[str]) -> Companions:
    """Find brain mask, boldref, T1w and confounds of a run; a broken link counts as found."""
    in_space = {key: label for key, label in entities.items() if key not in ("desc", "echo", "part")}
    any_resolution = {key: label for key, label in in_space.items() if key != "res"}
    same_grid = (in_space, any_resolution) if "res" in in_space else (in_space,)

    def find_image(suffix: str, desc: str = "") -> Path | None:
        extra = {"desc": desc} if desc else {}
        names = (join_name({**base, **extra}, suffix, ext) for base in same_grid for ext in IMAGE_EXTENSIONS)
        return next((bold.parent / name for name in names if os.path.lexists(bold.parent / name)), None)

    tables = (
        bold.parent / join_name({**own, **({"desc": desc} if desc else {})}, suffix, ".tsv") for desc, suffix in TABLES
    )
    table = next((path for path in tables if os.path.lexists(path)), None)
    table_sidecar = table.with_suffix(".json") if table else None
    mask = find_image("mask", "brain")
    if mask is None:
        mask = _anatomical(bold, in_space, "brain", "mask")
        if mask:
            notes.append(f"The run has no brain mask; the mask of the T1w image, {mask.name}, was used.")
    return {
        "mask": mask,
        "boldref": find_image("boldref"),
        "t1w": _anatomical(bold, in_space, "preproc", "T1w"),
        "confounds": table,
        "confounds_meta": table_sidecar if table_sidecar and os.path.lexists(table_sidecar) else None,
    }


def _anatomical(bold: Path, in_space: Mapping[str, str], desc: str, suffix: str) -> Path | None:
    """Find an anatomical image in the run's space; same session first, then same resolution."""
    folders = [bold.parent.parent / "anat"]
    if "ses" in in_space:
        folders.append(bold.parents[2] / "anat")
    found = []
    for rank, folder in enumerate(folders):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            theirs, its_suffix, extension = split_name(name)
            fits = (theirs.get("desc"), theirs.get("space"), its_suffix) == (desc, in_space["space"], suffix)
            if fits and extension in IMAGE_EXTENSIONS and "cohort" not in theirs:
                found.append((rank, theirs.get("res") != in_space.get("res"), natural_key(name), folder / name))
    return min(found)[-1] if found else None
