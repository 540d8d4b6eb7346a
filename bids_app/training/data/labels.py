"""What is asked of each scan, or of stretches of it: columns of tables, the scans' own labels, or events."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.clips import CLIP_VOLUMES, MODEL_TR
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.data.sources import events_of, raw_dataset_of
from bids_app.training.data.store import Scan

EVENTS = "events.tsv"


@dataclass(frozen=True)
class Stretch:
    """Some consecutive volumes of a scan; stands in for it where clips are read.

    Attributes
    ----------
    scan : Scan
    first, n_vols : int
        Volumes at 0.8 s.
    """

    scan: Scan
    first: int
    n_vols: int

    @property
    def participant(self) -> str:
        """As the scan's."""
        return self.scan.participant

    @property
    def session(self) -> str:
        """As the scan's."""
        return self.scan.session

    @property
    def name(self) -> str:
        """The scan's, and where the stretch begins."""
        return f"{self.scan.name}@{self.first}"

    @property
    def labels(self) -> Mapping[str, Any]:
        """As the scan's."""
        return self.scan.labels

    @property
    def confounds(self) -> Mapping[str, float]:
        """As the scan's."""
        return self.scan.confounds

    @property
    def n_clips(self) -> int:
        """Clips that do not overlap."""
        return self.n_vols // CLIP_VOLUMES

    def clip(self, start: int) -> torch.Tensor:
        """Volumes from ``start`` of the stretch on, (1, 96, 96, 96, 20) float32."""
        if not 0 <= start <= self.n_vols - CLIP_VOLUMES:
            raise IndexError(f"volumes {start} to {start + CLIP_VOLUMES} of {self.n_vols} in {self.name}")
        return self.scan.clip(self.first + start)


@dataclass(frozen=True)
class EventRule:
    """How events name clips.

    Attributes
    ----------
    delay : float
        Time by which the BOLD response lags behind an event, s.
    overlap : float
        Share of a clip that events of one kind must fill to name it.
    at_onset : bool
        One clip from the onset of each event instead, for events that are shorter than clips: images shown.
    """

    delay: float = 4.0
    overlap: float = 0.5
    at_onset: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise UsageError(f"An overlap of {self.overlap} was asked for.", "Give a share above 0, up to 1.")


@dataclass(frozen=True)
class Target:
    """Where labels come from.

    Attributes
    ----------
    table : Path or None
        A TSV with a ``participant_id`` column (and ``session_id``, where sessions differ); None: see ``kind``.
    column : str
    kind : str
        ``table``, ``scan`` (what the store says), ``sessions`` (each participant's ``*_sessions.tsv``), or ``events``.
    roots : tuple of Path
        Datasets that sessions and events are looked for in.
    rule : EventRule
    """

    table: Path | None
    column: str
    kind: str = "table"
    roots: tuple[Path, ...] = ()
    rule: EventRule = EventRule()

    @classmethod
    def parse(cls, text: str, dataset: Path, raw: Path | None = None, rule: EventRule | None = None) -> Target:
        """Find what a target names.

        Parameters
        ----------
        text : str
            ``participants.tsv:sex``, ``sessions.tsv:mood``, ``phenotype/anxiety.tsv:score`` (paths, or names in the
            derivatives or the raw dataset), ``events.tsv:trial_type``, or ``scan:task`` for what the store says.
        dataset : Path
        raw : Path, optional
            The raw dataset; None looks where the derivatives say that it is.
        rule : EventRule, optional
        """
        table, separator, column = text.rpartition(":")
        if not separator or not column or not table:
            raise UsageError(f"--target is {text!r}.", "Write TABLE.tsv:COLUMN, or scan:LABEL.")
        rule = rule or EventRule()
        if table == "scan":
            return cls(None, column, "scan")
        raw = raw or raw_dataset_of(dataset)
        roots = tuple(root for root in (dataset, raw) if root is not None)
        if table == EVENTS:
            return cls(None, column, "events", roots, rule)
        for path in (Path(table), *(root / table for root in roots)):
            if path.is_file():
                return cls(path, column, "table", roots)
        if table == "sessions.tsv" and any(next(root.glob("sub-*/*_sessions.tsv"), None) for root in roots):
            return cls(None, column, "sessions", roots)
        raise UsageError(
            f"--target names {table}, which is not here.",
            f"Looked in {', '.join(map(str, (Path.cwd(), *roots)))}; name the raw dataset with --raw.",
        )

    def of(self, scans: Sequence[Scan]) -> list[str | None]:
        """The label of each scan as text; None where there is none (``n/a``)."""
        if self.kind == "scan":
            own = self.column == "participant"
            values: list[Any] = [scan.participant if own else scan.labels.get(self.column) for scan in scans]
        else:
            rows = self._session_rows(scans) if self.kind == "sessions" else self._rows()
            values = [rows.get((scan.participant, scan.session), rows.get((scan.participant, ""))) for scan in scans]
        return self._checked(values)

    def examples(self, scans: Sequence[Scan]) -> list[tuple[Scan | Stretch, str]]:
        """Scans, or stretches of them, that have a label, with it."""
        if self.kind != "events":
            return [(s, v) for s, v in zip(scans, self.of(scans), strict=True) if v is not None]
        found: list[tuple[Scan | Stretch, str]] = []
        for scan in scans:
            path = events_of(scan, self.roots)
            if path is not None:
                events = read_events(path, self.column)
                named = clips_at_onsets if self.rule.at_onset else stretches
                found += [(Stretch(scan, a, n), label) for a, n, label in named(events, scan, self.rule)]
        if not found:
            raise NoMatchError(
                f"No clip has a {self.column} by events.tsv.",
                f"Looked in {', '.join(map(str, self.roots))} for the events of {len(scans)} scans; name the raw "
                "dataset with --raw, or ask for less overlap.",
            )
        return found

    def _checked(self, values: Sequence[Any]) -> list[str | None]:
        if all(is_missing(v) for v in values):
            raise NoMatchError(
                f"No scan has a value of {self.column}.", "Check the participants' labels and the column."
            )
        return [None if is_missing(v) else str(v) for v in values]

    def _rows(self) -> dict[tuple[str, str], str]:
        assert self.table is not None
        return {key: row[self.column] for key, row in read_table(self.table, self.column).items()}

    def _session_rows(self, scans: Sequence[Scan]) -> dict[tuple[str, str], str]:
        found = {}
        for person in {scan.participant for scan in scans}:
            paths = [root / f"sub-{person}" / f"sub-{person}_sessions.tsv" for root in self.roots]
            path = next((p for p in paths if p.is_file()), None)
            for (_, session), row in (read_table(path, self.column, person) if path else {}).items():
                found[person, session] = row[self.column]
        return found


def read_table(path: Path, column: str, participant: str | None = None) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of a table by participant and session (empty where the table has none), both without prefix.

    Parameters
    ----------
    column : str
        That must be there.
    participant : str, optional
        Whose table it is, where it does not say so.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = list(rows[0]) if rows else []
    if column not in columns or (participant is None and "participant_id" not in columns):
        raise BadDataError(f"{path}: has no column {column!r} beside participant_id.", f"It has {', '.join(columns)}.")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        person = participant or row["participant_id"].removeprefix("sub-")
        session = (row.get("session_id") or "").removeprefix("ses-")
        key = (person, "" if is_missing(session) else session)
        if key in found and found[key][column] != row[column]:
            raise BadDataError(
                f"{path}: says of sub-{person} both {found[key][column]} and {row[column]}.",
                "Keep one row a participant, or tell sessions apart by a session_id column.",
            )
        found[key] = row
    return found


def is_missing(value: Any) -> bool:
    """Whether a table's cell says nothing."""
    return value is None or str(value).strip().lower() in ("", "n/a", "nan")


def read_events(path: Path, column: str) -> list[tuple[float, float, str]]:
    """Onset and duration, s, and label of each event that has one."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    missing = [name for name in ("onset", "duration", column) if rows and name not in rows[0]]
    if missing:
        raise BadDataError(f"{path}: has no column {', '.join(missing)}.", f"It has {', '.join(rows[0])}.")
    try:
        return [
            (float(row["onset"]), 0.0 if is_missing(row["duration"]) else float(row["duration"]), row[column])
            for row in rows
            if not is_missing(row[column]) and not is_missing(row["onset"])
        ]
    except ValueError as error:
        raise BadDataError(f"{path}: an onset or duration is no number ({error}).", "Mend the table.") from error


def stretches(events: Sequence[tuple[float, float, str]], scan: Scan, rule: EventRule) -> list[tuple[int, int, str]]:
    """Stretches whose every clip is filled by events of one kind more than by others, and as far as the rule asks.

    Returns
    -------
    list of (first volume, volumes, label)
    """
    kinds = sorted({label for _, _, label in events})
    if not kinds or scan.n_vols < CLIP_VOLUMES:
        return []
    begins = scan.start - rule.delay + MODEL_TR * np.arange(scan.n_vols)
    filled = np.zeros((len(kinds), scan.n_vols))
    for onset, duration, label in events:
        shared = np.minimum(begins + MODEL_TR, onset + duration) - np.maximum(begins, onset)
        filled[kinds.index(label)] += np.clip(shared, 0, None) / MODEL_TR
    total = np.cumsum(np.pad(np.minimum(filled, 1), ((0, 0), (1, 0))), axis=1)
    share = (total[:, CLIP_VOLUMES:] - total[:, :-CLIP_VOLUMES]) / CLIP_VOLUMES  # (kinds, possible starts)
    owner = np.where(share.max(axis=0) >= rule.overlap - 1e-9, share.argmax(axis=0), -1)
    edges = np.flatnonzero(np.diff(owner, prepend=-2, append=-2))
    return [(int(a), int(b - a - 1 + CLIP_VOLUMES), kinds[owner[a]]) for a, b in pairwise(edges) if owner[a] >= 0]


def clips_at_onsets(
    events: Sequence[tuple[float, float, str]], scan: Scan, rule: EventRule
) -> list[tuple[int, int, str]]:
    """One clip from the onset of each event on, later by the rule's delay, where the scan is long enough."""
    first = [(round((onset + rule.delay - scan.start) / MODEL_TR), label) for onset, _, label in events]
    return [(k, CLIP_VOLUMES, label) for k, label in first if 0 <= k <= scan.n_vols - CLIP_VOLUMES]
