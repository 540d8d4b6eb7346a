"""From a BIDS dataset, raw or preprocessed, to the list of runs to work on.

pybids indexes the files, and only those of the participants asked for; sidecars are merged here, so that an error can
name the file it comes from. What concerns the request as a whole is raised; what concerns one run only is kept as its
`BoldRun.problem`, so that the other runs go on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from bids_app.bids.datasets import DerivedDataset, choose_derived, main_dataset, participants_of, read_dataset
from bids_app.bids.derivatives import SPACES, DerivedRun
from bids_app.bids.entities import check_name, join_name, natural_key, split_name
from bids_app.bids.fieldmaps import Fieldmap, choose_fieldmap
from bids_app.bids.layout import list_participants, query_images
from bids_app.bids.selection import choose_echo, choose_t1w, one_of_each_echo, repeats_of_t1w
from bids_app.bids.sidecars import Inheritance, missing_content, read_json
from bids_app.bids.writer import RAW_DATASET
from bids_app.errors import (
    BadDataError,
    InvalidBIDSError,
    NeurostormError,
    NoInputError,
    NoMatchError,
    UsageError,
)
from bids_app.settings import QuerySettings

LOGGER = logging.getLogger(__name__)

DERIVED_ENTITIES = {"space", "desc", "res", "den", "label"}
"""Entities that raw images do not have."""

MERGED_ENTITIES = ("echo", "part")
"""Entities that distinguish files of one run; the run's own name does not have them."""


@dataclass(frozen=True)
class BoldRun:
    """One BOLD run, and what belongs to it."""

    bold: Path
    """The 4D image; of several echoes, the one that was chosen."""
    entities: dict[str, str]
    """BIDS keys and labels in the order of the standard, without echo and part: ``{"sub": "01", "task": "rest"}``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Its sidecars, merged by inheritance."""
    t1w: Path | None = None
    t1w_repeats: tuple[Path, ...] = ()
    """Further images of the T1w's session that are averaged with it."""
    events: Path | None = None
    fieldmap: Fieldmap | None = None
    notes: tuple[str, ...] = ()
    """Choices that were made, as sentences for the report."""
    problem: NeurostormError | None = None
    """Why this run cannot be worked on (content not fetched, broken sidecar); the other runs can."""
    derived: DerivedRun | None = None
    """What is taken over from derivatives; ``bold`` and ``metadata`` are then its own. None: ``bold`` is raw."""

    @property
    def stem(self) -> str:
        """Its name without suffix: ``sub-01_ses-a_task-rest_run-1``."""
        return join_name(self.entities, "").removesuffix("_")

    @property
    def participant(self) -> str:
        """Its participant's label, without ``sub-``."""
        return self.entities["sub"]

    @property
    def folder(self) -> str:
        """Where its outputs go, from the output folder: ``sub-01/ses-a/func``."""
        session = f"ses-{self.entities['ses']}/" if "ses" in self.entities else ""
        return f"sub-{self.participant}/{session}func"


def check_dataset(bids_dir: Path, skip_validation: bool = False) -> dict[str, Any]:
    """Read ``dataset_description.json`` of a dataset.

    Parameters
    ----------
    bids_dir : pathlib.Path
    skip_validation : bool
        Only warn of what the run does not need: a description that is missing or cannot be read is then empty.

    Raises
    ------
    NoInputError
        The folder does not exist.
    InvalidBIDSError
        It is not a BIDS dataset.
    """
    if not bids_dir.is_dir():
        what = "is a file, not a folder" if bids_dir.exists() else "no such folder"
        raise NoInputError(f"{bids_dir}: {what}.", "Give the root of a BIDS dataset (in a container: is it mounted?).")
    try:
        return _read_description(bids_dir)
    except InvalidBIDSError as error:
        if not skip_validation:
            raise
        LOGGER.warning("%s Going on without it, as asked for by --skip-bids-validation.", error.message)
        return {}


def _read_description(bids_dir: Path) -> dict[str, Any]:
    path = bids_dir / "dataset_description.json"
    if not os.path.lexists(path):
        hint = 'Give the root of the dataset, or write this file: {"Name": "...", "BIDSVersion": "1.10.0"}.'
        nearby = [bids_dir.parent, *(child for child in sorted(bids_dir.iterdir()) if child.is_dir())]
        root = next((place for place in nearby if (place / path.name).exists()), None)
        if root:
            hint = f"There is one in {root}: is that the dataset?"
        raise InvalidBIDSError(f"{bids_dir}: not a BIDS dataset, since it has no dataset_description.json.", hint)
    try:
        return read_json(path)
    except BadDataError as error:
        raise InvalidBIDSError(error.message, error.hint) from error


def find_runs(bids_dir: Path, settings: QuerySettings) -> list[BoldRun]:
    """The runs that were asked for, in natural order.

    Parameters
    ----------
    bids_dir : pathlib.Path
        Root of a raw BIDS dataset, or of a derivatives dataset that is taken over.
    settings : QuerySettings
        Participants, sessions, tasks and filters; derivatives to take runs over from.

    Returns
    -------
    list of BoldRun
        In the order of their names; those that cannot be used say so in `BoldRun.problem`.

    Raises
    ------
    InvalidBIDSError
        It is not a BIDS dataset, or has no participants.
    NoMatchError
        Labels or filters that match nothing; every participant, session and task asked for must match.
    UsageError
        A filter that pybids does not know.
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
        _refuse_no_bold(settings, participants, bids_dir)
    chosen = _select(entities, settings, participants, bids_dir)
    inheritance = Inheritance(bids_dir)
    t1ws, fmaps = (_by_participant(images[name], bids_dir) for name in ("t1w", "fmap"))
    datasets = [read_dataset(root, name, participants) for name, root in settings.derivatives.items()]
    runs = [_make_run(groups[run], t1ws, fmaps, inheritance) for run in chosen]
    return [_take_over(run, datasets) for run in runs] if datasets else runs


def _by_participant(paths: Iterable[Path], bids_dir: Path) -> dict[str, list[Path]]:
    """Paths by their first folder, ``sub-01``."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.relative_to(bids_dir).parts[0], []).append(path)
    return found


def _find_derived_runs(root: Path, settings: QuerySettings) -> list[BoldRun]:
    """The runs of a derivatives dataset that was given in place of a raw one."""
    if settings.derivatives:
        raise UsageError(
            f"{root}: holds derivatives itself, so --derivatives has no raw runs to belong to.",
            "Give the raw dataset as bids_dir, or leave --derivatives out.",
        )
    participants = _check_participants(root, settings.participants, participants_of(root))
    dataset = read_dataset(root, main_dataset(root), participants, settings.filters)
    if not dataset.runs:
        there = next(iter(dataset.others.values()), "")
        raise InvalidBIDSError(
            f"{root}: a derivative dataset without a BOLD image that can be taken over"
            + (f"; it has {there}." if there else "."),
            f"Needed is *_space-{SPACES[0]}[_res-2]_desc-preproc_bold.nii.gz, or {SPACES[1]}; otherwise give the raw "
            "dataset as bids_dir, and this one with --derivatives NAME=PATH.",
        )
    runs = {run.bold: run for run in dataset.runs}
    chosen = _select({path: run.entities for path, run in runs.items()}, settings, participants, root)
    return [_derived_run(runs[path]) for path in chosen]


def _derived_run(derived: DerivedRun, raw: BoldRun | None = None) -> BoldRun:
    """A run that is taken over; of the raw one, if there is one, name and events are kept."""
    tr = raw.metadata.get("RepetitionTime") if raw else None
    return BoldRun(
        bold=derived.bold,
        entities=raw.entities if raw else derived.entities,
        metadata=({} if tr is None else {"RepetitionTime": tr}) | derived.metadata,
        events=raw.events if raw else None,
        notes=(f"Taken over from {derived.pipeline}: {derived.bold.name}.", *derived.notes),
        problem=derived.problem,
        derived=derived,
    )


def _take_over(raw: BoldRun, datasets: Sequence[DerivedDataset]) -> BoldRun:
    """The run as derivatives have it, or the raw one with a note."""
    reasons: list[str] = []
    derived = choose_derived(raw.entities, datasets, reasons)
    return _derived_run(derived, raw) if derived else replace(raw, notes=(*raw.notes, *reasons))


def _check_participants(bids_dir: Path, wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    if not known:
        raise InvalidBIDSError(
            f"{bids_dir}: has no participants (no folder whose name is sub- with letters and digits).",
            "Check the path, and that the dataset's folders are there.",
        )
    missing = [label for label in wanted if label not in known]
    if missing:
        raise NoMatchError(
            f"{bids_dir}: has no {_labels('sub', missing)}.",
            f"It has {_labels('sub', known)}. Correct --participant-label, or leave it out for all.",
        )
    chosen = [label for label in known if not wanted or label in wanted]
    for label in chosen:
        folder = bids_dir / f"sub-{label}"
        if os.path.lexists(folder):  # HCP's folders are called otherwise
            _check_listable(folder)
    return chosen


def _check_listable(folder: Path) -> None:
    """Refuse folders that cannot be listed, from a participant's down; an index would leave them out silently."""
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
    """Files of each run (its echoes, or twice the same as ``.nii`` and ``.nii.gz``) by the run's folder and name."""
    groups: dict[Path, list[Path]] = {}
    for path in sorted(bolds, key=lambda path: natural_key(str(path))):
        entities, suffix, _ = split_name(path.name)
        name = join_name(_without(entities, *MERGED_ENTITIES), suffix)
        groups.setdefault(path.parent / name, []).append(path)
    return groups


def _entities_of(run: Path, bids_dir: Path) -> dict[str, str]:
    """Entities of a raw run; the participant is that of its folder."""
    return {**split_name(run.name)[0], "sub": run.relative_to(bids_dir).parts[0].removeprefix("sub-")}


def _refuse_no_bold(settings: QuerySettings, participants: list[str], bids_dir: Path) -> NoReturn:
    filtered = "bold" in settings.filters
    raise NoMatchError(
        f"{bids_dir}: no BOLD image of {_labels('sub', participants)}"
        + (" fits the filters." if filtered else " (sub-*[/ses-*]/func/*_bold.nii.gz)."),
        "Correct --bids-filter-file." if filtered else "This app works on functional MRI (BOLD) only.",
    )


def _select(
    entities: dict[Path, dict[str, str]], settings: QuerySettings, participants: list[str], bids_dir: Path
) -> list[Path]:
    """Runs of the sessions and tasks asked for, after a check that everything asked for is there."""
    for key, wanted, option in (("ses", settings.sessions, "--session-label"), ("task", settings.tasks, "--task-id")):
        there = sorted({labels[key] for labels in entities.values() if key in labels}, key=natural_key)
        missing = [label for label in wanted if label not in there]
        if missing:
            hint = f"There is {_labels(key, there)}." if there else f"No BOLD run has {key}- in its name."
            raise NoMatchError(f"{bids_dir}: no BOLD run has {_labels(key, missing)}.", f"{hint} Correct {option}.")
        if wanted:
            entities = {run: labels for run, labels in entities.items() if labels.get(key) in wanted}
    matched = {labels["sub"] for labels in entities.values()}
    without = [label for label in participants if label not in matched]
    if without and (settings.participants or len(without) == len(participants)):
        raise NoMatchError(
            f"{bids_dir}: no BOLD run of {_labels('sub', without)} is among what was asked for.",
            "Leave these participants out, or widen sessions, tasks and filters.",
        )
    if without:
        LOGGER.warning("%s: no BOLD run to work on; left out.", _labels("sub", without))
    return list(entities)


def _make_run(
    files: list[Path], t1ws: dict[str, list[Path]], fmaps: dict[str, list[Path]], inheritance: Inheritance
) -> BoldRun:
    """A run from its files, with all that belongs to it; what goes wrong becomes its problem."""
    notes: list[str] = []
    problem: NeurostormError | None = None
    metadata: dict[str, Any] = {}
    fieldmap: Fieldmap | None = None
    bold, t1w = files[0], None
    repeats: tuple[Path, ...] = ()
    folder = bold.relative_to(inheritance.root).parts[0]
    try:
        bold = choose_echo(one_of_each_echo(files, notes), inheritance, notes)
        t1w = choose_t1w(bold, t1ws.get(folder, []), inheritance.root, notes)
        repeats = repeats_of_t1w(t1w, t1ws.get(folder, []), notes) if t1w else ()
        for path in filter(None, (bold, t1w)):
            check_name(path, inheritance.root)
            error = missing_content(path)
            if error:
                raise error
        metadata = inheritance.metadata(bold)
        fieldmap = choose_fieldmap(bold, metadata, fmaps.get(folder, []), inheritance, notes)
    except NeurostormError as error:
        problem = error
    return BoldRun(
        bold=bold,
        entities={"sub": folder.removeprefix("sub-"), **_without(split_name(bold.name)[0], "sub", *MERGED_ENTITIES)},
        metadata=metadata,
        t1w=t1w,
        t1w_repeats=repeats,
        events=inheritance.table(bold, "events"),
        fieldmap=fieldmap,
        notes=tuple(notes),
        problem=problem,
    )


def _without(entities: dict[str, str], *keys: str) -> dict[str, str]:
    return {key: label for key, label in entities.items() if key not in keys}


def _labels(key: str, labels: Sequence[str], most: int = 12) -> str:
    """``sub-01, sub-02 and 40 more``."""
    shown = ", ".join(f"{key}-{label}" for label in labels[:most])
    return shown + (f" and {len(labels) - most} more" if len(labels) > most else "")
