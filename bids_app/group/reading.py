"""Reader of the participants' derivatives: one record per run, from sidecars and mean rows. No image is opened.

To read tens of thousands of small files quickly, folders are listed once and tables are searched as bytes. Unreadable
files are recorded as faults of their run and do not stop the others.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.entities import join_name, split_name
from bids_app.errors import BadDataError
from bids_app.files import read_output
from bids_app.group.processes import MAX_SERIAL
from bids_app.outputs.schema import (
    LEVELS,
    OK,
    PASS,
    EmbeddingsSidecar,
    PredictionSidecar,
    QualitySidecar,
    Reliability,
    RunFiles,
    RunOutcome,
    Sidecar,
    Summary,
    Uncertainty,
    VerdictRecord,
    Views,
    read_run_files,
)
from bids_app.terminal import first_of

MEAN = b"mean"
UNREADABLE, MISSING = "unreadable", "missing"

OUTPUT_ENTITIES = ("desc", "space", "res", "den", "label")
"""Entities that distinguish the outputs of one run."""

FEATURE = re.compile(r"e\d+")
MAX_METRIC = 1e9
"""Image quality metrics from here on are no measurements."""
SHARES = ("coverage", "coreg_dice", "norm_dice", "epi_mask_dice", "coreg_brain_seen")
"""Metrics from 0 to 1."""
NOT_NEGATIVE = (*SHARES, "fd_mean", "tsnr")
PROBABILITY, ROUNDING = "p_", 1e-3
"""Prefix of the columns of probabilities, and by how much their sum may differ from 1."""


@dataclass(frozen=True)
class Vector:
    """Mean embedding of a run under one normalisation."""

    values: np.ndarray
    """(C,) float32."""
    duration: float
    """Total duration of the clips, s."""
    split_half: float | None = None
    """Split-half correlation over clips, with Spearman-Brown correction."""


@dataclass(frozen=True)
class Card:
    """Facts from the sidecars that apply to all runs of an adapter or model."""

    task: str = ""
    target: str = ""
    unit: str = ""
    demonstration: bool = False
    untrained: bool = False
    research_only: bool = False


@dataclass
class RunRecord:
    """Record of one run."""

    stem: str
    entities: dict[str, str]
    status: str = ""
    """`OK`, `FAILED` (from the log), `UNREADABLE` or `MISSING`; empty until set."""
    reason: str = ""
    hint: str = ""
    exit_code: int | str = "n/a"
    quality: dict[str, float] = field(default_factory=dict)
    n_warnings: int = 0
    verdict: str = ""
    """Verdict on the scan, independent of adapters: one of `LEVELS`, or empty."""
    reasons: tuple[str, ...] = ()
    """Names of the failed checks."""
    vectors: dict[tuple[str, str], Vector] = field(default_factory=dict)
    """Mean embeddings, by model (or vector adapter) and normalisation."""
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Table cells, by adapter."""
    faults: list[str] = field(default_factory=list)
    """Files that could not be read, with the reason."""
    lost: list[str] = field(default_factory=list)
    """Tables and sidecars that its last invocation wrote and that are gone, relative to the output folder."""
    configurations: set[str] = field(default_factory=set)
    """Configurations (`ConfigurationHash`) of its outputs; empty for outputs of versions without."""
    n_not_used: int = 0
    """Tables and sidecars that are no outputs of its last invocation, and are left out."""

    @property
    def participant(self) -> str:
        """Participant, such as ``sub-01``."""
        return f"sub-{self.entities['sub']}"

    @property
    def worst_verdict(self) -> str:
        """Worst verdict of the scan and its predictions; empty if unknown: another file may have had a worse one."""
        found = {self.verdict, *(row.get("verdict", "") for row in self.predictions.values())}
        worst = next((name for name in reversed(LEVELS) if name in found), "")
        return "" if (self.faults or self.lost) and worst == PASS else worst

    @property
    def all_reasons(self) -> list[str]:
        """Names of the failed checks of the scan and of its predictions."""
        names = [*self.reasons, *(row.get("verdict_reasons", "") for row in self.predictions.values())]
        return list(dict.fromkeys(part for name in names for part in name.split(", ") if part))


@dataclass
class ParticipantRecord:
    """Records of one participant."""

    participant: str
    runs: list[RunRecord]
    cards: dict[str, Card] = field(default_factory=dict)
    """Facts by model or adapter."""
    faults: list[str] = field(default_factory=list)
    """Unreadable files that belong to no single run."""
    configurations: dict[str, dict[str, str]] = field(default_factory=dict)
    """Options by configuration."""


def read_participants(folders: Sequence[Path], n_procs: int) -> Iterator[ParticipantRecord]:
    """Yield the records of participants' folders in the given order, read with ``n_procs`` processes."""
    if len(folders) <= MAX_SERIAL or n_procs < 2:
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
    known = read_run_files(folder)
    present: set[str] = set()
    for path in files:
        entities, suffix, _ = split_name(path.name)
        run = _run_of(runs, folder, entities)
        name = path.relative_to(folder.parent).as_posix()
        present.add(name)
        if not known.get(run.stem, RunFiles()).includes(name, outcomes.get(run.stem)):
            run.n_not_used += 1
            continue
        try:
            READERS[suffix](path, entities.get("desc", ""), run, record.cards)
        except (OSError, BadDataError, ValueError, KeyError, IndexError) as error:
            run.faults.append(f"{path.relative_to(folder.parent)}: {_reason(error)}")
    for stem in (outcomes.keys() | known.keys()) - runs.keys():
        _run_of(runs, folder, split_name(stem + "_bold")[0])
    for stem, run in runs.items():
        own = known.get(stem, RunFiles())
        run.faults += filter(None, [own.problem])
        wanted = [name for name in own.outputs(outcomes.get(stem)) if name.endswith(WANTED)]
        run.lost = [name for name in wanted if name not in present]
        record.configurations |= {m.configuration: m.options for m in own.parts.values() if m.configuration}
        set_status(run, outcomes.get(stem))
    record.runs = list(runs.values())
    return record


def set_status(run: RunRecord, outcome: RunOutcome | None) -> None:
    """Set the status of a run from its log and its outputs."""
    run.status = OK
    if outcome is not None:
        run.status, run.reason, run.hint = outcome.status, outcome.reason, outcome.hint
        run.exit_code = "n/a" if outcome.exit_code is None else outcome.exit_code
    if run.faults:
        run.reason = "; ".join(filter(None, [run.reason, *run.faults]))
        if run.status == OK:
            run.status, run.hint = UNREADABLE, "Run this participant again; complete results are taken from the cache."
    elif run.status == OK and (run.lost or not (run.quality or run.vectors)):
        files = f": {first_of(run.lost, 3)}" if run.lost else ""
        run.status, run.reason = MISSING, f"The log reports success, but outputs are missing{files}."
        run.hint = "Run this participant again."


def _run_of(runs: dict[str, RunRecord], folder: Path, entities: dict[str, str]) -> RunRecord:
    """Return the record of the run that a file belongs to; create it if needed."""
    own = {key: label for key, label in entities.items() if key not in OUTPUT_ENTITIES}
    own = {"sub": folder.name.removeprefix("sub-")} | own
    stem = join_name(own, "").removesuffix("_")
    return runs.setdefault(stem, RunRecord(stem, own))


def _files_of_func(folder: Path) -> Iterator[Path]:
    """Yield the tables and sidecars in the func folders of a participant, with and without sessions."""
    for parent in [folder, *(Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith("ses-"))]:
        func = parent / "func"
        try:
            with os.scandir(func) as entries:
                names = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (func / name for name in names if name.endswith(WANTED) and not name.startswith("."))


def _last_outcomes(folder: Path, faults: list[str]) -> dict[str, RunOutcome]:
    """Return the most recent outcome of each run, from the logs."""
    last: dict[str, RunOutcome] = {}
    log = folder / "log"
    for name in sorted(os.listdir(log)) if log.is_dir() else []:  # names sort by time
        path = log / name / "summary.json"
        try:
            last |= {run.stem: run for run in Summary.read(path).runs or ()}
        except FileNotFoundError:
            continue  # still running, or killed
        except (OSError, BadDataError) as error:
            faults.append(f"{path.relative_to(folder.parent)}: {_reason(error)}")
    return last


def _reason(error: Exception) -> str:
    """Return the message of an error without its hint."""
    return getattr(error, "message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__


def _read_quality(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = QualitySidecar.read(path)
    if sidecar.quality is None:
        raise ValueError("image quality metrics are missing")
    _keep_configuration(run, sidecar)
    run.quality = {sys.intern(key): _metric(key, value) for key, value in sidecar.quality.items() if value is not None}
    run.n_warnings = len(sidecar.warnings or ())


def _metric(name: str, value: Any) -> float:
    """Check an image quality metric, which may have been changed by hand."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_METRIC:
        raise ValueError(f"{name} is no plausible number: {str(value)[:40]}")
    if (value < 0 and name in NOT_NEGATIVE) or (value > 1 and name in SHARES):
        raise ValueError(f"{name} is out of its range: {value:g}")
    return value


def _read_embeddings(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = EmbeddingsSidecar.read(path.with_suffix(".json"))
    cards.setdefault(desc, Card(demonstration=bool(sidecar.demonstration), untrained=bool(sidecar.untrained)))
    _keep_configuration(run, sidecar)
    _keep_verdict(run, sidecar.verdict)
    halves = {name: half.spearman_brown for name, half in (sidecar.split_half or {}).items() if half}
    for normalisation, values, duration in _mean_vectors(path):
        run.vectors[sys.intern(desc), normalisation] = Vector(values, duration, halves.get(normalisation))


def _read_vectors(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = PredictionSidecar.read(path.with_suffix(".json"))
    cards.setdefault(desc, card_of(sidecar))
    _keep_configuration(run, sidecar)
    _keep_verdict(run, sidecar.verdict)
    for normalisation, values, duration in _mean_vectors(path):
        name = normalisation or sys.intern(sidecar.adapter.normalisation or "")
        run.vectors[sys.intern(desc), name] = Vector(values, duration)


def _keep_configuration(run: RunRecord, sidecar: Sidecar) -> None:
    """Keep the configuration of a sidecar."""
    if sidecar.configuration:
        run.configurations.add(sys.intern(sidecar.configuration))


def _keep_verdict(run: RunRecord, verdict: VerdictRecord | None) -> None:
    """Keep the first verdict of a run."""
    if not run.verdict and verdict is not None:
        run.verdict, run.reasons = verdict.level, tuple(check.name for check in verdict.failed)


def _mean_vectors(path: Path) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield normalisation (or empty), mean vector (C,) float32 and duration (s) for each mean row of a table."""
    header, rows = mean_rows(read_output(path))
    first = next((i for i, name in enumerate(header) if FEATURE.fullmatch(name)), len(header))
    end = next((i for i in range(len(header), first, -1) if FEATURE.fullmatch(header[i - 1])), first)
    if first == end:
        raise ValueError("feature columns (e0000, …) are missing")
    for row in rows:
        if row[first] == "n/a":
            continue  # withheld
        values = np.array(row[first:end], np.float32)
        if not np.isfinite(values).all():
            raise ValueError("non-finite feature values")
        cells = dict(zip(header[:first], row, strict=False))
        yield sys.intern(cells.get("normalisation", "")), values, float(cells["duration"])


def _read_predictions(path: Path, desc: str, run: RunRecord, cards: dict[str, Card]) -> None:
    sidecar = PredictionSidecar.read(path.with_suffix(".json"))
    cards.setdefault(desc, card_of(sidecar))
    _keep_configuration(run, sidecar)
    header, rows = mean_rows(read_output(path))
    cells: dict[str, Any] = dict(zip(header, rows[0], strict=True))
    _check_probabilities(cells)
    verdict = sidecar.verdict
    row = {sys.intern(key): value for key, value in cells.items() if key not in ("clip", "onset", "verdict")}
    extra = {
        "verdict": cells.get("verdict") or (verdict.level if verdict else ""),
        "verdict_reasons": ", ".join(check.name for check in verdict.failed) if verdict else "",
        **_reliability_cells(sidecar.reliability or Reliability()),
    }
    new = {key: value for key, value in extra.items() if value not in (None, "") and key not in row}
    run.predictions[sys.intern(desc)] = row | new


def _check_probabilities(cells: Mapping[str, str]) -> None:
    """Check that the probabilities of the labels, which may have been changed by hand, are some and sum to 1."""
    if "label" not in cells:
        return  # of a regression
    given = {name: cell for name, cell in cells.items() if name.startswith(PROBABILITY) and cell != "n/a"}
    values = [float(cell) for cell in given.values()]
    if values and not (min(values) >= 0 and abs(sum(values) - 1) <= ROUNDING):
        listed = ", ".join(f"{name} {cell}" for name, cell in given.items())
        raise ValueError(f"the probabilities are not between 0 and 1 with a sum of 1: {listed[:200]}")


def _reliability_cells(found: Reliability) -> dict[str, Any]:
    """Return the uncertainty of a prediction as table cells."""
    sure, views = found.uncertainty or Uncertainty(), found.views or Views()
    lower, upper = sure.interval or (None, None)
    return {
        "lower": lower,
        "upper": upper,
        "label_set": _label_set(sure.labels.label_set),
        "standard_error": sure.standard_error,
        "effective_clips": sure.effective_clips,
        "agreement": found.agreement,
        "from_mean_image": views.from_mean_image,
        "other_normalisation": views.other.answer if views.other else None,
    }


def _label_set(labels: Sequence[str] | None) -> str | None:
    """Join the labels of a prediction set; None if there is no set."""
    return None if labels is None else ", ".join(labels) or "empty"


def card_of(sidecar: PredictionSidecar) -> Card:
    """Return the facts of a sidecar that apply to all runs of an adapter."""
    adapter = sidecar.adapter
    return Card(
        task=adapter.task or "",
        target=adapter.target or "",
        unit=adapter.unit or "",
        demonstration=bool(adapter.demonstration),
        research_only=bool(adapter.research_only),
    )


def mean_rows(table: bytes) -> tuple[list[str], list[list[str]]]:
    """Return the header and the mean rows of a table of clips.

    Raises
    ------
    ValueError
        The table is truncated: no final newline, no mean row, or fewer clips than the mean row covers.
    """
    if not table.endswith(b"\n"):
        raise ValueError("file is truncated or empty")
    start = table.index(b"\n") + 1
    header = _cells(table[: start - 1])
    clip = header.index("clip")
    rows, expected, n_lines = [], 1, 1
    while (end := table.find(b"\n", start)) >= 0:  # much faster than other ways to search the table
        line, start = table[start:end], end + 1
        n_lines += 1
        if line.split(b"\t", clip + 1)[clip:-1] != [MEAN]:
            continue
        row = _cells(line)
        if len(row) != len(header):
            raise ValueError(f"row has {len(row)} cells, header has {len(header)}")
        rows.append(row)
        expected += 1 + _n_clips(row, table[start : start + 200], header)
    if not rows:
        raise ValueError("mean row is missing")
    if n_lines < expected:
        raise ValueError(f"file is truncated: {n_lines} of {expected} lines")
    return header, rows


def _cells(line: bytes) -> list[str]:
    """Return the cells of a line of a table."""
    text = line.decode()
    return next(csv.reader([text], delimiter="\t")) if '"' in text or "\r" in text else text.split("\t")


def _n_clips(mean: list[str], following: bytes, header: list[str]) -> int:
    """Compute the number of clips of a mean row from its duration and that of the following clip."""
    column = header.index("duration")
    below = following.split(b"\n")[0].split(b"\t")
    if len(below) <= column:
        return 1  # the next row is missing, but there is at least one clip
    return round(float(mean[column]) / float(below[column]))


READERS = {
    "metrics": _read_quality,
    "embeddings": _read_embeddings,
    "vectors": _read_vectors,
    "predictions": _read_predictions,
}
WANTED = ("_desc-quality_metrics.json", "_embeddings.tsv", "_vectors.tsv", "_predictions.tsv")
