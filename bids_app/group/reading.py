"""Reading what the participant level left: one record a run, from sidecars and rows of means; no image is opened.

Tens of thousands of small files are read, so folders are listed once and tables are looked through as bytes. What
cannot be read is kept as a fault of its run, and the others go on.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.entities import join_name, split_name
from bids_app.errors import BadDataError
from bids_app.outputs.schema import (
    LEVELS,
    OK,
    EmbeddingsSidecar,
    PredictionSidecar,
    QualitySidecar,
    Reliability,
    RunOutcome,
    Summary,
    Uncertainty,
    Verdict,
    Views,
)

MEAN = b"mean"
UNREADABLE, MISSING = "unreadable", "missing"

OF_OUTPUTS = ("desc", "space", "res", "den", "label")
"""Entities that tell outputs of one run apart."""

FEATURE = re.compile(r"e\d+")
FEW = 64
"""Participants that are read without further processes."""


@dataclass(frozen=True)
class Vector:
    """A run's mean embedding under one normalisation."""

    values: np.ndarray
    """(C,) float32."""
    duration: float
    """Time that its clips cover, s."""
    split_half: float | None = None
    """Correlation of the halves of the clips, stepped up to all clips (Spearman-Brown)."""


@dataclass(frozen=True)
class Card:
    """What is kept of sidecars, once for all runs of an adapter or model."""

    task: str = ""
    target: str = ""
    unit: str = ""
    demonstration: bool = False
    research_only: bool = False


@dataclass
class RunRecord:
    """What is known of one run."""

    stem: str
    entities: dict[str, str]
    status: str = ""
    """`OK`, `FAILED` (of the log), `UNREADABLE`, `MISSING`; empty before it is known."""
    reason: str = ""
    hint: str = ""
    exit_code: int | str = "n/a"
    quality: dict[str, float] = field(default_factory=dict)
    n_warnings: int = 0
    verdict: str = ""
    """The model's own, without an adapter: one of `LEVELS`, or empty where nothing was judged."""
    reasons: tuple[str, ...] = ()
    """Names of the checks that did not pass."""
    vectors: dict[tuple[str, str], Vector] = field(default_factory=dict)
    """By model (or adapter that gives vectors) and normalisation."""
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Cells of each adapter's row."""
    faults: list[str] = field(default_factory=list)
    """Files that could not be read, and why."""

    @property
    def participant(self) -> str:
        """``sub-01``."""
        return f"sub-{self.entities['sub']}"

    @property
    def worst_verdict(self) -> str:
        """The worst of the run's own verdict and its predictions'; empty where nothing was judged."""
        found = {self.verdict, *(row.get("verdict", "") for row in self.predictions.values())}
        return next((name for name in reversed(LEVELS) if name in found), "")


@dataclass
class ParticipantRecord:
    """What one participant's folder holds."""

    participant: str
    runs: list[RunRecord]
    cards: dict[str, Card] = field(default_factory=dict)
    """By model or adapter."""
    faults: list[str] = field(default_factory=list)
    """Files that belong to no run in particular."""


def read_participants(folders: Sequence[Path], n_procs: int) -> Iterator[ParticipantRecord]:
    """Records of participants' folders, in the order given, with so many processes."""
    if len(folders) <= FEW or n_procs < 2:
        yield from map(read_participant, folders)
        return
    with ProcessPoolExecutor(min(n_procs, 16)) as pool:
        yield from pool.map(read_participant, folders, chunksize=8)


def read_participant(folder: Path) -> ParticipantRecord:
    """Read one participant's derivatives."""
    record = ParticipantRecord(folder.name, [])
    runs: dict[str, RunRecord] = {}
    try:
        files = sorted(_files_of_func(folder))
        outcomes = _last_outcomes(folder, record.faults)
    except OSError as error:
        record.faults.append(f"{folder.name}: {error.strerror}")
        return record
    for path in files:
        entities, suffix, _ = split_name(path.name)
        run = _run_of(runs, folder, entities)
        try:
            READERS[suffix](path, entities.get("desc", ""), run, record.cards)
        except (OSError, BadDataError, ValueError, KeyError, IndexError) as error:
            run.faults.append(f"{path.relative_to(folder.parent)}: {_reason(error)}")
    for stem in outcomes.keys() - runs.keys():
        _run_of(runs, folder, split_name(stem + "_bold")[0])
    for stem, run in runs.items():
        settle(run, outcomes.get(stem))
    record.runs = list(runs.values())
    return record


def settle(run: RunRecord, outcome: RunOutcome | None) -> None:
    """Say how a run ended, from its log and from what was found of it."""
    run.status = OK
    if outcome is not None:
        run.status, run.reason, run.hint = outcome.status, outcome.reason, outcome.hint
        run.exit_code = "n/a" if outcome.exit_code is None else outcome.exit_code
    if run.faults:
        run.reason = "; ".join(filter(None, [run.reason, *run.faults]))
        if run.status == OK:
            run.status, run.hint = UNREADABLE, "Run this participant again: what is whole is taken from the cache."
    elif run.status == OK and not (run.quality or run.vectors):
        run.status, run.reason = MISSING, "Its log says that it is done, but its outputs are not there."
        run.hint = "Run this participant again."


def _run_of(runs: dict[str, RunRecord], folder: Path, entities: dict[str, str]) -> RunRecord:
    """The record of the run that a file belongs to; made when it is the first."""
    own = {key: label for key, label in entities.items() if key not in OF_OUTPUTS}
    own = {"sub": folder.name.removeprefix("sub-")} | own
    stem = join_name(own, "").removesuffix("_")
    return runs.setdefault(stem, RunRecord(stem, own))


def _files_of_func(folder: Path) -> Iterator[Path]:
    """Tables and sidecars that are read, of the participant's func folders, with and without sessions."""
    for place in [folder, *(Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith("ses-"))]:
        func = place / "func"
        try:
            with os.scandir(func) as entries:
                names = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (func / name for name in names if name.endswith(WANTED) and not name.startswith("."))


def _last_outcomes(folder: Path, faults: list[str]) -> dict[str, RunOutcome]:
    """How each run ended when it was last worked on."""
    last: dict[str, RunOutcome] = {}
    log = folder / "log"
    for name in sorted(os.listdir(log)) if log.is_dir() else []:  # names sort by time
        path = log / name / "summary.json"
        try:
            last |= {run.stem: run for run in Summary.read(path).runs or ()}
        except FileNotFoundError:
            continue  # a run that is going on, or was killed
        except (OSError, BadDataError) as error:
            faults.append(f"{path.relative_to(folder.parent)}: {_reason(error)}")
    return last


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without what to do."""
    return getattr(error, "message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__


def _read_quality(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = QualitySidecar.read(path)
    if sidecar.quality is None:
        raise ValueError("has no quality")
    run.quality = {
        sys.intern(key): value
        for key, value in sidecar.quality.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    run.n_warnings = len(sidecar.warnings or ())


def _read_embeddings(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = EmbeddingsSidecar.read(path.with_suffix(".json"))
    cards.setdefault(desc, Card(demonstration=bool(sidecar.demonstration)))
    _keep_verdict(run, sidecar.verdict)
    halves = {name: half.spearman_brown for name, half in (sidecar.split_half or {}).items() if half}
    for normalisation, values, duration in _mean_vectors(path):
        run.vectors[sys.intern(desc), normalisation] = Vector(values, duration, halves.get(normalisation))


def _read_vectors(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = PredictionSidecar.read(path.with_suffix(".json"))
    cards.setdefault(desc, card_of(sidecar))
    _keep_verdict(run, sidecar.verdict)
    for normalisation, values, duration in _mean_vectors(path):
        name = normalisation or sys.intern(sidecar.adapter.normalisation or "")
        run.vectors[sys.intern(desc), name] = Vector(values, duration)


def _keep_verdict(run: RunRecord, verdict: Verdict | None) -> None:
    """Keep the first verdict that is read."""
    if not run.verdict and verdict is not None:
        run.verdict, run.reasons = verdict.level, tuple(check.name for check in verdict.failed)


def _mean_vectors(path: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """Normalisation (empty where the table has none), vector (C,) float32 and duration of each mean in a table."""
    header, rows = mean_rows(path.read_bytes())
    first = next((i for i, name in enumerate(header) if FEATURE.fullmatch(name)), len(header))
    end = next((i for i in range(len(header), first, -1) if FEATURE.fullmatch(header[i - 1])), first)
    if first == end:
        raise ValueError("has no features")
    for row in rows:
        if row[first] == "n/a":
            continue  # withheld
        values = np.array(row[first:end], np.float32)
        if not np.isfinite(values).all():
            raise ValueError("holds values that are not numbers")
        cells = dict(zip(header[:first], row, strict=False))
        yield sys.intern(cells.get("normalisation", "")), values, float(cells["duration"])


def _read_predictions(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = PredictionSidecar.read(path.with_suffix(".json"))
    cards.setdefault(desc, card_of(sidecar))
    header, rows = mean_rows(path.read_bytes())
    cells: dict[str, Any] = dict(zip(header, rows[0], strict=True))
    verdict = sidecar.verdict
    row = {sys.intern(key): value for key, value in cells.items() if key not in ("clip", "onset", "verdict")}
    told = {
        "verdict": cells.get("verdict") or (verdict.level if verdict else ""),
        "verdict_reasons": ", ".join(check.name for check in verdict.failed) if verdict else "",
        **_reliability_cells(sidecar.reliability or Reliability()),
    }
    new = {key: value for key, value in told.items() if value not in (None, "") and key not in row}
    run.predictions[sys.intern(desc)] = row | new


def _reliability_cells(found: Reliability) -> dict[str, Any]:
    """What the sidecar says of how sure an answer is, as cells."""
    sure, views = found.uncertainty or Uncertainty(), found.views or Views()
    lower, upper = sure.interval or (None, None)
    return {
        "lower": lower,
        "upper": upper,
        "label_set": ", ".join(sure.labels.label_set or ()),
        "standard_error": sure.standard_error,
        "effective_clips": sure.effective_clips,
        "agreement": found.agreement,
        "from_mean_image": views.from_mean_image,
        "other_normalisation": views.other.answer if views.other else None,
    }


def card_of(sidecar: PredictionSidecar) -> Card:
    """What holds for all runs of an adapter."""
    adapter = sidecar.adapter
    return Card(
        task=adapter.task or "",
        target=adapter.target or "",
        unit=adapter.unit or "",
        demonstration=bool(adapter.demonstration),
        research_only=bool(adapter.research_only),
    )


def mean_rows(table: bytes) -> tuple[list[str], list[list[str]]]:
    """Header of a table of clips, and its rows that are means over clips.

    Raises
    ------
    ValueError
        The table is cut off: its last line has no end, a mean is missing, or clips are fewer than the mean says.
    """
    if not table.endswith(b"\n"):
        raise ValueError("is cut off, or empty")
    end = table.index(b"\n")
    header = next(csv.reader([table[:end].decode()], delimiter="\t"))
    clip = header.index("clip")
    rows, expected, place = [], 1, 0
    while (place := table.find(MEAN + b"\t", place + 1)) > 0:
        start = table.rfind(b"\n", 0, place) + 1
        if table[start:place].count(b"\t") != clip or table[place - 1 : place] not in (b"\t", b"\n"):
            continue
        end = table.index(b"\n", place)
        row = next(csv.reader([table[start:end].decode()], delimiter="\t"))
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}")
        rows.append(row)
        expected += 1 + _n_clips(row, table[end + 1 : end + 200], header)
        place = end
    if not rows:
        raise ValueError("has no mean over clips")
    n_lines = table.count(b"\n")
    if n_lines < expected:
        raise ValueError(f"is cut off: {n_lines} of {expected} lines")
    return header, rows


def _n_clips(mean: list[str], following: bytes, header: list[str]) -> int:
    """Clips that a mean is over, by its duration and that of the clip below it."""
    column = header.index("duration")
    below = following.split(b"\n")[0].split(b"\t")
    if len(below) <= column:
        return 1  # there is at least one clip, and it is not there
    return round(float(mean[column]) / float(below[column]))


READERS = {
    "metrics": _read_quality,
    "embeddings": _read_embeddings,
    "vectors": _read_vectors,
    "predictions": _read_predictions,
}
WANTED = ("_desc-quality_metrics.json", "_embeddings.tsv", "_vectors.tsv", "_predictions.tsv")
