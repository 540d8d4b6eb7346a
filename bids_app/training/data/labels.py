"""Labels of scans and segments, from tables, scan entities or events."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.adapters.file import EMBEDDING, REGRESSION
from bids_app.clips import MODEL_TR
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.files import check_regular, read_rows
from bids_app.terminal import first_of
from bids_app.training.data.quantise import QuantisedClip
from bids_app.training.data.raw import find_events, find_raw_dataset
from bids_app.training.data.scan import Scan
from bids_app.training.tasks import MAX_CLASSES, is_number

EVENTS = "events.tsv"
MAX_NAMED = 5
"""Maximum number of rows to name in a message."""


@dataclass(frozen=True)
class Segment:
    """Consecutive volumes of a scan; clips are read from it as from a scan.

    Attributes
    ----------
    scan : Scan
    first, n_vols : int
        First volume and number of volumes at 0.8 s.
    """

    scan: Scan
    first: int
    n_vols: int

    @property
    def participant(self) -> str:
        """Participant of the scan."""
        return self.scan.participant

    @property
    def session(self) -> str:
        """Session of the scan."""
        return self.scan.session

    @property
    def name(self) -> str:
        """Name of the scan and first volume."""
        return f"{self.scan.name}@{self.first}"

    @property
    def stamp(self) -> str:
        """What the scan was made from."""
        return self.scan.stamp

    @property
    def labels(self) -> Mapping[str, Any]:
        """Labels of the scan."""
        return self.scan.labels

    @property
    def confounds(self) -> Mapping[str, float]:
        """Confound summaries of the scan."""
        return self.scan.confounds

    @property
    def n_clips(self) -> int:
        """Number of non-overlapping clips."""
        return self.n_vols // self.clip_volumes

    @property
    def clip_volumes(self) -> int:
        """Volumes of a clip."""
        return self.scan.clip_volumes

    def clip(self, start: int) -> torch.Tensor:
        """Read the clip that starts at volume ``start`` of the segment, (1, 96, 96, 96, n) float32."""
        self._check(start)
        return self.scan.clip(self.first + start)

    def quantised_clip(self, start: int) -> QuantisedClip:
        """Read the clip that starts at volume ``start`` of the segment as it is stored."""
        self._check(start)
        return self.scan.quantised_clip(self.first + start)

    def without_facts(self) -> Segment:
        """Return a copy that can only read clips, see `Scan.without_facts`."""
        return replace(self, scan=self.scan.without_facts())

    def _check(self, start: int) -> None:
        if not 0 <= start <= self.n_vols - self.clip_volumes:
            raise IndexError(f"volumes {start} to {start + self.clip_volumes} of {self.n_vols} in {self.name}")


@dataclass(frozen=True)
class EventRule:
    """Rule that assigns events to clips.

    Attributes
    ----------
    delay : float
        Delay of the BOLD response after an event, s.
    overlap : float
        Minimum fraction of a clip that events of one label must cover.
    at_onset : bool
        Use one clip from the onset of each event instead; for events shorter than clips, such as images.
    """

    delay: float = 4.0
    overlap: float = 0.5
    at_onset: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise UsageError(f"Invalid value for --event-overlap: {self.overlap}.", "Use a value above 0, up to 1.")


@dataclass(frozen=True)
class Target:
    """Source of labels.

    Attributes
    ----------
    table : Path or None
        TSV with the column ``participant_id`` (and ``session_id`` if values differ by session); None: see ``kind``.
    column : str
    kind : str
        ``table``, ``scan`` (labels in the store), ``sessions`` (each participant's ``*_sessions.tsv``) or ``events``.
    roots : tuple of Path
        Datasets to search for sessions and events.
    rule : EventRule
    """

    table: Path | None
    column: str
    kind: str = "table"
    roots: tuple[Path, ...] = ()
    rule: EventRule = EventRule()

    @classmethod
    def parse(cls, text: str, dataset: Path, raw: Path | None = None, rule: EventRule | None = None) -> Target:
        """Parse a target and find its table.

        Parameters
        ----------
        text : str
            ``participants.tsv:sex``, ``sessions.tsv:mood``, ``phenotype/anxiety.tsv:score`` (paths, or names in the
            derivatives or the raw dataset), ``events.tsv:trial_type``, or ``scan:task`` for labels in the store.
        dataset : Path
            Derivatives.
        raw : Path, optional
            Raw dataset; None uses the link in the derivatives.
        rule : EventRule, optional

        Raises
        ------
        UsageError
            The target is malformed, or its table does not exist.
        NoInputError
            The table is not a regular file.
        """
        table, separator, column = text.rpartition(":")
        if not separator or not column or not table:
            raise UsageError(f"Invalid value for --target: {text!r}.", "Use TABLE.tsv:COLUMN or scan:LABEL.")
        rule = rule or EventRule()
        if table == "scan":
            return cls(None, column, "scan")
        raw = raw or find_raw_dataset(dataset)
        roots = tuple(root for root in (dataset, raw) if root is not None)
        if table == EVENTS:
            return cls(None, column, "events", roots, rule)
        for path in (Path(table), *(root / table for root in roots)):
            if os.path.lexists(path):
                check_regular(path)
                return cls(path, column, "table", roots)
        if table == "sessions.tsv" and any(next(root.glob("sub-*/*_sessions.tsv"), None) for root in roots):
            return cls(None, column, "sessions", roots)
        raise UsageError(
            f"--target: {table} was not found in {', '.join(map(str, (Path.cwd(), *roots)))}.",
            "Give the raw dataset with --raw.",
        )

    def check(self) -> None:
        """Check that the table, if there is a single one, can be read and has the column."""
        if self.table is not None:
            self._rows()

    def read_values(self, scans: Sequence[Scan]) -> list[str | None]:
        """Read the label of each scan as text; None for missing values (``n/a``)."""
        if self.kind == "scan":
            is_participant = self.column == "participant"
            values: list[Any] = [scan.participant if is_participant else scan.labels.get(self.column) for scan in scans]
        else:
            rows = self._session_rows(scans) if self.kind == "sessions" else self._rows()
            values = [rows.get((scan.participant, scan.session), rows.get((scan.participant, ""))) for scan in scans]
        return self._to_text(values)

    def read_examples(self, scans: Sequence[Scan]) -> list[tuple[Scan | Segment, str]]:
        """Return the scans or segments that have a label, with the label."""
        if self.kind != "events":
            return [(s, v) for s, v in zip(scans, self.read_values(scans), strict=True) if v is not None]
        found: list[tuple[Scan | Segment, str]] = []
        for scan in scans:
            path = find_events(scan, self.roots)
            if path is not None:
                events = read_events(path, self.column)
                assign = clips_at_onsets if self.rule.at_onset else find_segments
                found += [(Segment(scan, a, n), label) for a, n, label in assign(events, scan, self.rule)]
        if not found:
            raise NoMatchError(
                f"events.tsv: no clip of {len(scans)} scans has a value of {self.column}; searched "
                f"{', '.join(map(str, self.roots))}.",
                "Give the raw dataset with --raw, or lower --event-overlap.",
            )
        return found

    def _to_text(self, values: Sequence[Any]) -> list[str | None]:
        if all(is_missing(v) for v in values):
            raise NoMatchError(f"No scan has a value of {self.column}.", "Check the participant labels and the column.")
        return [None if is_missing(v) else str(v) for v in values]

    def _rows(self) -> dict[tuple[str, str], str]:
        assert self.table is not None
        return {key: row[self.column] for key, row in read_table(self.table, self.column).items()}

    def _session_rows(self, scans: Sequence[Scan]) -> dict[tuple[str, str], str]:
        found = {}
        for participant in {scan.participant for scan in scans}:
            paths = [root / f"sub-{participant}" / f"sub-{participant}_sessions.tsv" for root in self.roots]
            path = next(filter(os.path.lexists, paths), None)
            for (_, session), row in (read_table(path, self.column, participant) if path else {}).items():
                found[participant, session] = row[self.column]
        return found


def read_table(path: Path, column: str, participant: str | None = None) -> dict[tuple[str, str], dict[str, str]]:
    """Read the rows of a table by participant and session label (empty without sessions), both without prefix.

    Parameters
    ----------
    path : Path
    column : str
        Required column.
    participant : str, optional
        Participant of a table without the column ``participant_id``.

    Raises
    ------
    BadDataError
        A column is missing, or rows contradict each other.
    """
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    if column not in columns or (participant is None and "participant_id" not in columns):
        raise BadDataError(
            f"{path}: column participant_id or {column!r} is missing.", f"Its columns are {', '.join(columns)}."
        )
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        label = participant or (row["participant_id"] or "").removeprefix("sub-")
        session = (row.get("session_id") or "").removeprefix("ses-")
        key = (label, "" if is_missing(session) else session)
        if key in found and found[key][column] != row[column]:
            raise BadDataError(
                f"{path}: sub-{label} has two values of {column}: {found[key][column]} and {row[column]}.",
                "Keep one row per participant, or add a session_id column.",
            )
        found[key] = row
    return found


def is_missing(value: Any) -> bool:
    """Return True for an empty cell, ``n/a`` or NaN."""
    return value is None or str(value).strip().lower() in ("", "n/a", "nan")


def check_values(
    column: str, values: Sequence[str], participants: Sequence[str], task: str | None = None
) -> tuple[str, ...]:
    """Check the values of a target, and return warnings about labels that may be the same class.

    Parameters
    ----------
    column : str
        Name of the column, for messages.
    values, participants : sequence of str, (N,)
    task : str, optional
        ``regression``, ``classification`` or ``embedding``; None: by the values, see `Task.from_values`.

    Raises
    ------
    BadDataError
        A value of a regression is not a finite number; without a task, of a column that has enough other numbers for a
        regression.
    """
    wrong = dict.fromkeys((p, v) for p, v in zip(participants, values, strict=True) if not is_number(v))
    n_numbers = len(set(values) - {value for _, value in wrong})
    if wrong and (task == REGRESSION or (task is None and n_numbers > MAX_CLASSES)):
        rows = first_of([f'"{value}" in the row of sub-{label}' for label, value in wrong], MAX_NAMED)
        classes = "" if task else ", or use --task classification if the values are classes"
        raise BadDataError(
            f'Column "{column}" has values that are not finite numbers: {rows}.',
            f"Correct the table, with n/a for missing values{classes}.",
        )
    if task in (REGRESSION, EMBEDDING):
        return ()
    spellings: dict[str, list[str]] = {}
    for value in sorted(set(values)):
        spellings.setdefault(value.strip().casefold(), []).append(value)
    return tuple(
        f'Warning: column "{column}" has classes that differ only by case or spaces: {", ".join(map(repr, same))}. If '
        "they are the same, correct the table."
        for same in spellings.values()
        if len(same) > 1
    )


def read_events(path: Path, column: str) -> list[tuple[float, float, str]]:
    """Read onset and duration, s, and label of each labelled event."""
    rows = read_rows(path)
    missing = [name for name in ("onset", "duration", column) if rows and name not in rows[0]]
    if missing:
        raise BadDataError(f"{path}: column {', '.join(missing)} is missing.", f"Its columns are {', '.join(rows[0])}.")
    try:
        return [
            (float(row["onset"]), 0.0 if is_missing(row["duration"]) else float(row["duration"]), row[column])
            for row in rows
            if not is_missing(row[column]) and not is_missing(row["onset"])
        ]
    except ValueError as error:
        raise BadDataError(f"{path}: non-numeric onset or duration ({error}).", "Correct the table.") from error


def find_segments(
    events: Sequence[tuple[float, float, str]], scan: Scan, rule: EventRule
) -> list[tuple[int, int, str]]:
    """Find segments in which one event label covers most of every clip, and at least ``rule.overlap`` of it.

    Returns
    -------
    list of (first volume, number of volumes, label)
    """
    labels = sorted({label for _, _, label in events})
    length = scan.clip_volumes
    if not labels or scan.n_vols < length:
        return []
    onsets = scan.start - rule.delay + MODEL_TR * np.arange(scan.n_vols)
    coverage = np.zeros((len(labels), scan.n_vols))
    for onset, duration, label in events:
        covered = np.minimum(onsets + MODEL_TR, onset + duration) - np.maximum(onsets, onset)
        coverage[labels.index(label)] += np.clip(covered, 0, None) / MODEL_TR
    total = np.cumsum(np.pad(np.minimum(coverage, 1), ((0, 0), (1, 0))), axis=1)
    fractions = (total[:, length:] - total[:, :-length]) / length  # (labels, possible starts)
    owner = np.where(fractions.max(axis=0) >= rule.overlap - 1e-9, fractions.argmax(axis=0), -1)
    edges = np.flatnonzero(np.diff(owner, prepend=-2, append=-2))
    return [(int(a), int(b - a - 1 + length), labels[owner[a]]) for a, b in pairwise(edges) if owner[a] >= 0]


def clips_at_onsets(
    events: Sequence[tuple[float, float, str]], scan: Scan, rule: EventRule
) -> list[tuple[int, int, str]]:
    """Return one clip per event, from its onset plus the delay, if the scan is long enough."""
    first = [(round((onset + rule.delay - scan.start) / MODEL_TR), label) for onset, _, label in events]
    length = scan.clip_volumes
    return [(k, length, label) for k, label in first if 0 <= k <= scan.n_vols - length]
