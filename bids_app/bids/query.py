"""Query of a BIDS dataset, raw or preprocessed, for the runs to process.

pybids indexes the files of the requested participants only. Sidecars are merged here, so that an error can name the
file at fault. Errors of the request as a whole are raised; errors of a single run are stored as its
`BoldRun.problem`, so that the other runs continue.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from bids_app.bids.datasets import DerivedDataset, find_derived_run, main_dataset, participants_of, read_dataset
from bids_app.bids.derivatives import MINIMAL, SPACES, DerivedRun, pipeline_of
from bids_app.bids.entities import check_name, join_name, natural_key, split_name
from bids_app.bids.fieldmaps import Fieldmap, choose_fieldmap
from bids_app.bids.layout import list_participants, query_images
from bids_app.bids.selection import (
    EchoChoice,
    choose_echoes,
    choose_t1w,
    find_lesion,
    find_sbref,
    one_of_each_echo,
    repeats_of_t1w,
    t1w_of_other_sessions,
)
from bids_app.bids.sidecars import REPETITION_TIME, SCANNER, Inheritance, missing_content, read_json
from bids_app.bids.writer import RAW_DATASET
from bids_app.errors import (
    BadDataError,
    InvalidBIDSError,
    NeurostormError,
    NoInputError,
    NoMatchError,
    UsageError,
)
from bids_app.settings import AVERAGE, QuerySettings
from bids_app.terminal import first_of

LOGGER = logging.getLogger(__name__)

DERIVED_ENTITIES = {"space", "desc", "res", "den", "label"}
"""Entities that raw images do not have."""

MERGED_ENTITIES = ("echo", "part")
"""Entities that distinguish the files of one run; the name of the run omits them."""


@dataclass(frozen=True)
class BoldRun:
    """A BOLD run and its associated files."""

    bold: Path
    """The 4D image; for multi-echo runs, the selected echo, or the first if they are combined."""
    entities: dict[str, str]
    """BIDS entities in standard order, without echo and part: ``{"sub": "01", "task": "rest"}``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Its sidecars, merged by inheritance."""
    t1w: Path | None = None
    t1w_repeats: tuple[Path, ...] = ()
    """Repeats of the T1w, to be averaged with it."""
    lesion: Path | None = None
    """Lesion mask on the T1w."""
    echoes: tuple[Path, ...] = ()
    """All echoes in order of echo time, if they are combined."""
    echo_times: tuple[float, ...] = ()
    """Their echo times, s."""
    sbref: Path | None = None
    """Single-band reference of the run; None if echoes are combined."""
    events: Path | None = None
    fieldmap: Fieldmap | None = None
    notes: tuple[str, ...] = ()
    """Selections, as sentences for the report."""
    problem: NeurostormError | None = None
    """Reason why this run cannot be processed (content not fetched, broken sidecar)."""
    derived: DerivedRun | None = None
    """Derivatives of the run, which ``bold`` and ``metadata`` then belong to. None: ``bold`` is raw."""
    sidecars: tuple[Path, ...] = ()
    """Files of ``metadata``, and those of the other echoes and the fieldmap."""

    @property
    def stem(self) -> str:
        """Name without suffix: ``sub-01_ses-a_task-rest_run-1``."""
        return join_name(self.entities, "").removesuffix("_")

    @property
    def participant(self) -> str:
        """Participant label, without ``sub-``."""
        return self.entities["sub"]

    @property
    def folder(self) -> str:
        """Folder of its outputs, relative to the output folder: ``sub-01/ses-a/func``."""
        session = f"ses-{self.entities['ses']}/" if "ses" in self.entities else ""
        return f"sub-{self.participant}/{session}func"


def check_dataset(bids_dir: Path, skip_validation: bool = False) -> dict[str, Any]:
    """Read the ``dataset_description.json`` of a dataset.

    Parameters
    ----------
    bids_dir : pathlib.Path
    skip_validation : bool
        Only warn if the description is missing or cannot be read, and return an empty one.

    Raises
    ------
    NoInputError
        The folder does not exist, or is a file.
    InvalidBIDSError
        It is not a BIDS dataset.
    """
    if not bids_dir.is_dir():
        what = "is a file, not a folder" if bids_dir.exists() else "no such folder"
        raise NoInputError(
            f"{bids_dir}: {what}.",
            "Give the root of a BIDS dataset; in a container, check that the folder is mounted.",
        )
    try:
        return _read_description(bids_dir)
    except InvalidBIDSError as error:
        if not skip_validation:
            raise
        LOGGER.warning("%s Continuing because of --skip-bids-validation.", error.message)
        return {}


def _read_description(bids_dir: Path) -> dict[str, Any]:
    path = bids_dir / "dataset_description.json"
    if not os.path.lexists(path):
        hint = 'Give the root of the dataset, or create this file: {"Name": "...", "BIDSVersion": "1.10.0"}.'
        nearby = [bids_dir.parent, *(child for child in sorted(bids_dir.iterdir()) if child.is_dir())]
        root = next((folder for folder in nearby if (folder / path.name).exists()), None)
        if root:
            hint = f"There is one in {root}; check whether that is the dataset."
        raise InvalidBIDSError(f"{bids_dir}: not a BIDS dataset (no dataset_description.json).", hint)
    try:
        return read_json(path)
    except BadDataError as error:
        raise InvalidBIDSError(error.message, error.hint) from error


def find_runs(bids_dir: Path, settings: QuerySettings) -> list[BoldRun]:
    """Find the requested runs in natural order.

    Parameters
    ----------
    bids_dir : pathlib.Path
        Root of a raw BIDS dataset, or of a derivatives dataset to ingest.
    settings : QuerySettings
        Participants, sessions, tasks and filters; derivatives to ingest runs from.

    Returns
    -------
    list of BoldRun
        In natural order; unusable runs have a `BoldRun.problem`.

    Raises
    ------
    InvalidBIDSError
        The folder is not a BIDS dataset, or has no participants.
    NoMatchError
        A label or filter matches nothing; every requested participant, session and task must match.
    UsageError
        A filter is not valid in pybids.
    """
    bids_dir = bids_dir.absolute()
    if main_dataset(bids_dir) != RAW_DATASET:
        return _find_derived_runs(bids_dir, settings)
    check_dataset(bids_dir, settings.skip_bids_validation)
    participants = _check_participants(bids_dir, settings.participants, list_participants(bids_dir))
    images = query_images(bids_dir, settings, participants)
    bolds = [path for path in images["bold"] if not DERIVED_ENTITIES & split_name(path.name)[0].keys()]
    groups = _group_runs(bolds)
    entities = {run: _entities_of(run, bids_dir) for run in groups}
    if not entities:
        _raise_no_bold(settings, participants, bids_dir)
    chosen = _select(entities, settings, participants, bids_dir)
    inheritance = Inheritance(bids_dir)
    others = {name: _by_participant(images[name], bids_dir) for name in ("t1w", "fmap", "sbref", "roi")}
    datasets = [read_dataset(root, name, participants) for name, root in settings.derivatives.items()]
    runs = [_make_run(groups[run], others, inheritance, settings) for run in chosen]
    return [_use_derivatives(run, datasets) for run in runs] if datasets else runs


def _by_participant(paths: Iterable[Path], bids_dir: Path) -> dict[str, list[Path]]:
    """Group paths by their first folder, ``sub-01``."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.relative_to(bids_dir).parts[0], []).append(path)
    return found


def _find_derived_runs(root: Path, settings: QuerySettings) -> list[BoldRun]:
    """Find the runs of a derivatives dataset given as ``bids_dir``."""
    if settings.derivatives:
        raise UsageError(
            f"{root}: is a derivatives dataset, so --derivatives cannot be used with it.",
            "Give the raw dataset as bids_dir, or omit --derivatives.",
        )
    participants = _check_participants(root, settings.participants, participants_of(root))
    dataset = read_dataset(root, main_dataset(root), participants, settings.filters)
    minimal = list(dataset.unusable.values()).count(MINIMAL)
    if not dataset.runs and minimal:
        raise InvalidBIDSError(
            f"{root}: {minimal} runs of {pipeline_of(_read_description(root))}, each only as {MINIMAL}.",
            f"Run fMRIPrep with --level full --output-spaces {SPACES[0]}:res-2, or give the raw dataset as bids_dir.",
        )
    if not dataset.runs:
        unusable = next(iter(dataset.unusable.values()), "")
        raise InvalidBIDSError(
            f"{root}: derivatives dataset without a usable BOLD image" + (f"; found {unusable}." if unusable else "."),
            f"Required: *_space-{SPACES[0]}[_res-2]_desc-preproc_bold.nii.gz, or {SPACES[-1]}. Otherwise give the raw "
            "dataset as bids_dir, and this one with --derivatives NAME=PATH.",
        )
    runs = {run.bold: run for run in dataset.runs}
    chosen = _select({path: run.entities for path, run in runs.items()}, settings, participants, root)
    return [run_of_derivatives(runs[path]) for path in chosen]


def run_of_derivatives(derived: DerivedRun, raw: BoldRun | None = None) -> BoldRun:
    """Build a run from derivatives; name and events come from the raw run, if there is one."""
    inherited = {key: raw.metadata[key] for key in (REPETITION_TIME, SCANNER) if key in raw.metadata} if raw else {}
    of_raw = [path for path in raw.sidecars if path.name.endswith("bold.json")] if raw and inherited else []
    return BoldRun(
        bold=derived.bold,
        entities=raw.entities if raw else derived.entities,
        metadata=inherited | derived.metadata,
        sidecars=(*of_raw, *derived.sidecars),
        events=raw.events if raw else None,
        notes=(f"Imported from {derived.pipeline}: {derived.bold.name}.", *derived.notes),
        problem=derived.problem,
        derived=derived,
    )


def _use_derivatives(raw: BoldRun, datasets: Sequence[DerivedDataset]) -> BoldRun:
    """Replace a raw run by its derivatives; without derivatives, add a note to the raw run."""
    reasons: list[str] = []
    derived = find_derived_run(raw.entities, datasets, reasons)
    return run_of_derivatives(derived, raw) if derived else replace(raw, notes=(*raw.notes, *reasons))


def _check_participants(bids_dir: Path, wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    if not known:
        raise InvalidBIDSError(
            f"{bids_dir}: no participants found (no folder sub-<label> with a label of letters and digits).",
            "Check the path and the participants' folders.",
        )
    missing = [label for label in wanted if label not in known]
    if missing:
        raise NoMatchError(
            f"{bids_dir}: no folder for {_labels('sub', missing)}.",
            f"Available: {_labels('sub', known)}. Correct --participant-label, or omit it for all participants.",
        )
    chosen = [label for label in known if not wanted or label in wanted]
    for label in chosen:
        folder = bids_dir / f"sub-{label}"
        if os.path.lexists(folder):  # folders of HCP and UK Biobank have other names
            _check_listable(folder)
    return chosen


def _check_listable(folder: Path) -> None:
    """Raise if a participant's folder or a subfolder cannot be listed; an index would skip it silently."""
    try:
        with os.scandir(folder) as entries:
            inner = [e.path for e in entries if e.name.startswith("ses-") or e.name in ("func", "anat", "fmap")]
    except NotADirectoryError:
        return
    except OSError as error:
        raise NoInputError(f"{folder}: {error.strerror}.", "Check the permissions of this folder.") from error
    for path in inner:
        if not os.path.islink(path):  # links may lead back up
            _check_listable(Path(path))


def _group_runs(bolds: Iterable[Path]) -> dict[Path, list[Path]]:
    """Group files (echoes, or duplicates as ``.nii`` and ``.nii.gz``) by the folder and name of their run."""
    groups: dict[Path, list[Path]] = {}
    for path in sorted(bolds, key=lambda path: natural_key(str(path))):
        entities, suffix, _ = split_name(path.name)
        name = join_name(_without(entities, *MERGED_ENTITIES), suffix)
        groups.setdefault(path.parent / name, []).append(path)
    return groups


def _entities_of(run: Path, bids_dir: Path) -> dict[str, str]:
    """Return the entities of a raw run; the participant is that of its folder."""
    return {**split_name(run.name)[0], "sub": run.relative_to(bids_dir).parts[0].removeprefix("sub-")}


def _raise_no_bold(settings: QuerySettings, participants: list[str], bids_dir: Path) -> NoReturn:
    filtered = "bold" in settings.filters
    raise NoMatchError(
        f"{bids_dir}: no BOLD image of {_labels('sub', participants)}"
        + (" matches the filters." if filtered else " (sub-*[/ses-*]/func/*_bold.nii.gz)."),
        "Correct --bids-filter-file." if filtered else "This app processes functional MRI (BOLD) only.",
    )


def _select(
    entities: dict[Path, dict[str, str]], settings: QuerySettings, participants: list[str], bids_dir: Path
) -> list[Path]:
    """Select the runs of the requested sessions and tasks; raise if a request has no match."""
    for key, wanted, option in (("ses", settings.sessions, "--session-label"), ("task", settings.tasks, "--task-id")):
        available = sorted({labels[key] for labels in entities.values() if key in labels}, key=natural_key)
        missing = [label for label in wanted if label not in available]
        if missing:
            hint = f"Available: {_labels(key, available)}." if available else f"No BOLD run has the entity {key}."
            raise NoMatchError(f"{bids_dir}: no BOLD run with {_labels(key, missing)}.", f"{hint} Correct {option}.")
        if wanted:
            entities = {run: labels for run, labels in entities.items() if labels.get(key) in wanted}
    matched = {labels["sub"] for labels in entities.values()}
    without = [label for label in participants if label not in matched]
    if without and (settings.participants or len(without) == len(participants)):
        raise NoMatchError(
            f"{bids_dir}: no BOLD run of {_labels('sub', without)} matches the request.",
            "Omit these participants, or widen sessions, tasks and filters.",
        )
    if without:
        LOGGER.warning("%s: skipped, no BOLD run found.", _labels("sub", without))
    return list(entities)


def _make_run(
    files: list[Path],
    others: dict[str, dict[str, list[Path]]],
    inheritance: Inheritance,
    settings: QuerySettings,
) -> BoldRun:
    """Build a run from its files; an error becomes the problem of the run.

    ``others`` are T1w images, fieldmaps, SBRefs and ROIs by their query and participant.
    """
    notes: list[str] = []
    problem: NeurostormError | None = None
    metadata: dict[str, Any] = {}
    sidecars: tuple[Path, ...] = ()
    fieldmap: Fieldmap | None = None
    echoes, t1w, events = EchoChoice(files[0]), None, None
    repeats: tuple[Path, ...] = ()
    lesion: Path | None = None
    folder = files[0].relative_to(inheritance.root).parts[0]
    own_t1ws, fmaps, sbrefs, rois = (others[name].get(folder, []) for name in ("t1w", "fmap", "sbref", "roi"))
    try:
        echoes = choose_echoes(one_of_each_echo(files, notes), inheritance, notes, settings.echo)
        bold = echoes.bold
        t1w = choose_t1w(bold, own_t1ws, inheritance.root, notes, settings.anatomical_reference)
        repeats = repeats_of_t1w(t1w, own_t1ws, notes) if t1w else ()
        if t1w and settings.anatomical_reference == AVERAGE:
            repeats += t1w_of_other_sessions(t1w, own_t1ws, inheritance.root, notes)
        lesion = find_lesion(t1w, rois, notes) if t1w else None
        events = inheritance.table(bold, "events")
        for path in filter(None, (*(echoes.echoes or (bold,)), t1w)):
            check_name(path, inheritance.root)
        for path in filter(None, (*(echoes.echoes or (bold,)), t1w, lesion, events)):
            error = missing_content(path)
            if error:
                raise error
        metadata = inheritance.metadata(bold)
        fieldmap = choose_fieldmap(bold, metadata, fmaps, inheritance, notes)
        described = (*(echoes.echoes or (bold,)), *(fieldmap.files if fieldmap else ()))
        sidecars = tuple(dict.fromkeys(path for image in described for path in inheritance.sidecars(image)))
    except NeurostormError as error:
        problem = error
    bold = echoes.bold
    return BoldRun(
        bold=bold,
        echoes=echoes.echoes,
        echo_times=echoes.times,
        entities={"sub": folder.removeprefix("sub-"), **_without(split_name(bold.name)[0], "sub", *MERGED_ENTITIES)},
        metadata=metadata,
        sidecars=sidecars,
        t1w=t1w,
        t1w_repeats=repeats,
        lesion=lesion,
        sbref=None if echoes.echoes else find_sbref(bold, sbrefs),
        events=events,
        fieldmap=fieldmap,
        notes=tuple(notes),
        problem=problem,
    )


def _without(entities: dict[str, str], *keys: str) -> dict[str, str]:
    return {key: label for key, label in entities.items() if key not in keys}


def _labels(key: str, labels: Sequence[str], max_shown: int = 12) -> str:
    """Join labels to a text: ``sub-01, sub-02 and 40 more``."""
    return first_of([f"{key}-{label}" for label in labels], max_shown)
