"""Runs of an output folder with their embeddings under one model and one normalisation, and with their labels.

N  runs      C  features
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.bids.writer import output_path
from bids_app.errors import BadDataError, NoInputError, NoMatchError, UsageError
from bids_app.group.identity import find_copies
from bids_app.group.reading import Card, ParticipantRecord, RunRecord, Vector, read_participants
from bids_app.outputs.ratings import failed_runs
from bids_app.outputs.schema import OK, EmbeddingsSidecar
from bids_app.terminal import count_of, first_of
from bids_app.training.data.duplicates import warn_of_copies
from bids_app.training.data.labels import Target

MAX_NAMED = 5
"""Maximum number of runs to name in a message."""
Kind = tuple[str, str]
"""Model and normalisation of an embedding."""


@dataclass(frozen=True)
class EmbeddedRun:
    """A run with its embedding; readers of labels and makers of splits take it for a scan."""

    record: RunRecord
    vector: Vector
    """Mean embedding over the clips of the run."""
    sidecar: EmbeddingsSidecar

    @property
    def name(self) -> str:
        """Name of the run, without suffix."""
        return self.record.stem

    @property
    def participant(self) -> str:
        """Participant label, without ``sub-``."""
        return self.record.entities["sub"]

    @property
    def session(self) -> str:
        """Session label, without ``ses-``; empty without sessions."""
        return self.record.entities.get("ses", "")

    @property
    def labels(self) -> dict[str, str]:
        """Entities that are labels of a scan, as in a clip store."""
        return {key: self.record.entities[key] for key in ("task", "run") if key in self.record.entities}


@dataclass(frozen=True)
class EmbeddedRuns:
    """Runs of one model and one normalisation.

    Attributes
    ----------
    model, normalisation : str
        Label of the model in file names, and normalisation.
    runs : tuple of EmbeddedRun
        In natural order of their names.
    configurations : dict
        Version and options by configuration, as far as they are known.
    demonstration : bool
        The model is for demonstrations only.
    """

    model: str
    normalisation: str
    runs: tuple[EmbeddedRun, ...]
    configurations: dict[str, dict[str, str]]
    demonstration: bool

    @property
    def title(self) -> str:
        """Name of the model as it was given, such as ``neurostorm-5ds``; `model` is its label in file names."""
        return self.runs[0].sidecar.model or self.model

    @property
    def values(self) -> np.ndarray:
        """Embeddings, (N, C) float32."""
        return np.stack([run.vector.values for run in self.runs])

    @property
    def untrained(self) -> bool:
        """True if the weights of the model are random."""
        return any(run.sidecar.untrained for run in self.runs)

    @property
    def weights_sha256(self) -> str:
        """Checksum of the weights; empty if it is unknown."""
        return self.runs[0].sidecar.weights_sha256 or ""


def read_runs(
    out_dir: Path,
    model: str | None = None,
    normalisation: str | None = None,
    exclude_failed: bool = False,
    n_procs: int = 1,
    report: Callable[[str], None] = print,
) -> EmbeddedRuns:
    """Read the embeddings of all participants of an output folder.

    Parameters
    ----------
    out_dir : Path
        Output folder of the participant level.
    model, normalisation : str, optional
        Needed if there are embeddings of several; the name of the model or its label in file names.
    exclude_failed : bool
        Leave out the runs that people rated as failed.
    n_procs : int
        Number of reading processes.
    report : callable
        Receives messages about runs that are left out.

    Raises
    ------
    NoInputError
        The folder does not exist.
    NoMatchError
        There are no such embeddings, or all runs were rated as failed.
    UsageError
        There are embeddings of several models or normalisations.
    BadDataError
        Embeddings of one name are of different weights or encoders, or differ in their number of features.
    """
    if not out_dir.is_dir():
        raise NoInputError(f"{out_dir}: no such folder.", "Give the output folder of neurostorm.")
    folders = sorted((path for path in out_dir.glob("sub-*") if path.is_dir()), key=lambda path: natural_key(path.name))
    participants = list(read_participants(folders, n_procs))
    cards: dict[str, Card] = {}
    for participant in participants:
        cards = participant.cards | cards
    records = sorted((run for each in participants for run in each.runs), key=lambda run: natural_key(run.stem))
    kind = _choose_kind(out_dir, records, cards, model, normalisation)
    _report_left_out(participants, records, kind, report)
    chosen = [run for run in records if run.status == OK and kind in run.vectors]
    if exclude_failed:
        failed = failed_runs(out_dir, [run.stem for run in chosen])
        n_before, chosen = len(chosen), [run for run in chosen if run.stem not in failed]
        report(f"Left out as rated as failed: {n_before - len(chosen)} of {count_of(n_before, 'run')}")
    if not chosen:
        raise NoMatchError(f"{out_dir}: no run is left.", "Process other runs, or omit --exclude-failed.")
    runs = tuple(EmbeddedRun(run, run.vectors[kind], _read_sidecar(out_dir, run, kind[0])) for run in chosen)
    configurations = {name: options for each in participants for name, options in each.configurations.items()}
    found = EmbeddedRuns(*kind, runs, configurations, cards[kind[0]].demonstration)
    _check_alike(out_dir, found)
    if n_others := len({frozenset(run.configurations) for run in chosen}) - 1:
        report(
            f"Warning: the runs were processed with {n_others + 1} configurations or versions, and may not be "
            "comparable; see the column configuration, and group.html for what differs."
        )
    people, owners = np.unique([run.participant for run in runs], return_inverse=True)
    if copies := find_copies(found.values, owners):
        report(warn_of_copies([tuple(str(people[i]) for i in group) for group in copies]))
    return found


def read_values(target: str, runs: Sequence[EmbeddedRun], out_dir: Path, raw: Path | None = None) -> list[str | None]:
    """Read the value of a target for each run as text; None if it is missing.

    Raises
    ------
    UsageError
        The target is malformed, its table is missing, or its labels are of clips.
    NoInputError, BadDataError, NoMatchError
        The table cannot be read, lacks the column or has two values for a participant, or no run has a value.
    """
    found = Target.parse(target, out_dir, raw)
    if found.kind == "events":
        raise UsageError(
            f"--target {target} labels clips; the embeddings of runs are exported.",
            "Use a table of participants or sessions, or scan:task.",
        )
    return found.read_values(runs)  # type: ignore[arg-type]


def _choose_kind(
    out_dir: Path, records: Sequence[RunRecord], cards: dict[str, Card], model: str | None, normalisation: str | None
) -> Kind:
    """Return the model and normalisation to export, of those that the runs have."""
    counts = Counter(
        kind for run in records if run.status == OK for kind in run.vectors if not cards.get(kind[0], Card()).task
    )
    if not counts:
        raise NoMatchError(
            f"{out_dir}: no embeddings of {count_of(len(records), 'run')}.",
            "Give the output folder of neurostorm's participant level, and look for failed runs in its log.",
        )
    having = "; ".join(f"{name}, {norm}: {count_of(n, 'run')}" for (name, norm), n in sorted(counts.items()))
    names = (model, re.sub("[^A-Za-z0-9]", "", model or ""))
    fitting = [kind for kind in counts if (model is None or kind[0] in names) and normalisation in (None, kind[1])]
    if not fitting:
        raise NoMatchError(
            f"{out_dir}: no embeddings of {model or 'any model'}, {normalisation or 'any normalisation'}.",
            f"It has {having}.",
        )
    if len(fitting) > 1:
        raise UsageError(
            f"{out_dir}: embeddings of several models or normalisations ({having}).",
            "Choose with --model and --normalisation.",
        )
    return fitting[0]


def _report_left_out(
    participants: Sequence[ParticipantRecord],
    records: Sequence[RunRecord],
    kind: Kind,
    report: Callable[[str], None],
) -> None:
    """Name the runs that cannot be exported, with the reason."""
    for text in (fault for participant in participants for fault in participant.faults):
        report(f"Warning: {text}")
    unusable = [run for run in records if run.status != OK]
    for run in unusable[:MAX_NAMED]:
        report(f"Left out: {run.stem} ({run.status}: {run.reason})")
    if len(unusable) > MAX_NAMED:
        report(f"Left out: {count_of(len(unusable) - MAX_NAMED, 'more run')}; the group level lists all with reasons")
    without = [run.stem for run in records if run.status == OK and kind not in run.vectors]
    if without:
        report(f"Left out, without embeddings of {', '.join(kind)}: {first_of(without, MAX_NAMED)}")


def source_of(sidecar: EmbeddingsSidecar) -> str:
    """Return where the encoder is from, with its options; empty if it is unknown."""
    return str((sidecar.model_card or {}).get("Source") or "")


def _read_sidecar(out_dir: Path, run: RunRecord, model: str) -> EmbeddingsSidecar:
    return EmbeddingsSidecar.read(output_path(out_dir, run.entities, "embeddings", ".json", desc=model))


def _check_alike(out_dir: Path, found: EmbeddedRuns) -> None:
    """Check that all embeddings are of the same encoder and weights and have the same number of features."""
    weights: dict[str, str] = {}
    encoders: dict[str, str] = {}
    widths: dict[int, str] = {}
    for run in found.runs:
        weights.setdefault((run.sidecar.weights_sha256 or "unknown")[:12], run.name)
        if not run.sidecar.weights_sha256:  # an encoder of Brainmarks without weights: its options count
            encoders.setdefault(source_of(run.sidecar), run.name)
        widths.setdefault(len(run.vector.values), run.name)
    for what, names in (("weights", weights), ("options", encoders), ("numbers of features", widths)):
        if len(names) > 1:
            which = "; ".join(f"{name}: {value}" for value, name in names.items())
            raise BadDataError(
                f"{out_dir}: embeddings of {found.model} have different {what} ({which}).",
                "Run the participant level again with one version of the model.",
            )
