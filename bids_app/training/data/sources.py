"""Sources of scans for training: preprocessed series of any tree that the participant level reads, and its own clips.

Series of fMRIPrep, XCP-D, HCP, UK Biobank and of this app are found, ingested and resampled to the model grid by the
code of the participant level, so that a scan has the same clips in training and in prediction. Runs that the
participant level has kept with ``--output-clips`` are used as they are.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from bids_app.bids.datasets import main_dataset, participants_of, read_dataset
from bids_app.bids.derivatives import SPACES
from bids_app.bids.entities import natural_key
from bids_app.bids.processes import end_with_main_process
from bids_app.bids.query import BoldRun, run_of_derivatives
from bids_app.errors import (
    EXIT_TERMINATED,
    BadDataError,
    NoInputError,
    NoMatchError,
    TemporaryError,
    Terminated,
    UsageError,
)
from bids_app.outputs.schema import CLIPS, PREPROCESSING, FileStamp, read_run_files
from bids_app.terminal import first_of
from bids_app.training.data.entries import read_entry
from bids_app.training.data.facts import facts_of, series_on_grid
from bids_app.training.data.scan import Scan, new_scan
from bids_app.training.data.shards import SHARD_BYTES, ShardWriter
from bids_app.training.data.store import ClipStore

log = logging.getLogger(__name__)
METHOD = 2
"""Version of the preparation: raised when clips of the same series change, so that stored ones are made again."""
SERIES_PER_TASK = 20
"""Maximum number of series that a process prepares in one task, which ends a shard."""
END_SECONDS = 8.0
"""Time that workers have to publish their complete scans; SLURM waits 30 s, ``docker stop`` 10 s."""
MAX_NAMED = 2
"""Maximum number of runs to name in a message about several."""
SERIES_HINT = (
    "Run neurostorm with --output-clips, or with --output-spaces MNI152NLin6Asym, or give derivatives of fMRIPrep, "
    "XCP-D, HCP or UK Biobank."
)


@dataclass(frozen=True)
class Series:
    """Preprocessed series of a run.

    Attributes
    ----------
    run : BoldRun
        As the participant level finds it.
    stamp : str
        Hash of the state of its files and of the method; see `Scan.stamp`.
    """

    run: BoldRun
    stamp: str

    @property
    def name(self) -> str:
        """Name of the run, without the entities of preprocessing."""
        return self.run.stem


@dataclass(frozen=True)
class Message:
    """What is reported about one run: ``omitted``, or ``note`` for a warning, with the reason and the file."""

    kind: str
    name: str
    reason: str
    file: str = ""

    @property
    def where(self) -> str:
        """Run and file."""
        return f"{self.name} ({self.file})" if self.file else self.name


@dataclass(frozen=True)
class Found:
    """Series of a dataset, and messages about runs without one."""

    series: tuple[Series, ...] = ()
    messages: tuple[Message, ...] = ()


def participants_of_part(dataset: Path, part: tuple[int, int]) -> list[str]:
    """Return the participants of a part of a dataset: its number from 0 and the number of parts."""
    return sorted(participants_of(dataset), key=natural_key)[part[0] :: part[1]]


def find_series(dataset: Path, part: tuple[int, int] = (0, 1)) -> Found:
    """Find the preprocessed series of a dataset, one per run, by the rules of the participant level.

    ``part`` is that of `participants_of_part`; other participants are not read.

    Raises
    ------
    NoMatchError
        The dataset has no series.
    UsageError
        All series are in unsupported spaces.
    """
    participants = participants_of_part(dataset, part)
    derived = read_dataset(dataset, main_dataset(dataset), participants) if participants else None
    runs = [run_of_derivatives(run) for run in derived.runs] if derived else []
    unusable = {_name_of(dict(key)): what for key, what in derived.unusable.items()} if derived else {}
    if not runs and any("_space-" in what for what in unusable.values()):
        raise UsageError(
            f"{dataset}: no series in a supported space; found {next(iter(unusable.values()))}.",
            f"Use one of {', '.join(SPACES)}.",
        )
    if not runs:
        found = f"; found {next(iter(unusable.values()))}" if unusable else ""
        raise NoMatchError(f"{dataset}: no preprocessed BOLD series in a template space{found}.", SERIES_HINT)
    series = [Series(run, _stamp_of(run)) for run in runs]
    messages = tuple(Message("omitted", name, f"only {what}.") for name, what in unusable.items())
    return Found(tuple(sorted(series, key=lambda each: natural_key(each.name))), messages)


def _name_of(entities: Mapping[str, str]) -> str:
    return BoldRun(Path(), dict(entities)).stem


def _stamp_of(run: BoldRun) -> str:
    """Hash the method, and size and modification time of the files that decide the clips of a run."""
    assert run.derived is not None
    parts: list[Any] = [METHOD]
    for path in filter(None, (run.bold, run.derived.confounds, run.derived.warp)):
        try:
            state = path.stat()
            parts.append((path.name, state.st_size, state.st_mtime_ns))
        except OSError:
            parts.append((path.name, "missing"))
    return hashlib.sha256(repr(parts).encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


def find_own_clips(
    dataset: Path, normalisation: str, part: tuple[int, int] = (0, 1)
) -> tuple[dict[str, Scan], set[str]]:
    """Find the runs that the participant level kept with ``--output-clips``; ``part`` as in `find_series`.

    Entries that are not in the complete manifest of their run are of an earlier preprocessing, or are being written;
    they are not used.

    Returns
    -------
    tuple
        Scans by name, and the other normalisations that runs were kept with.
    """
    found: dict[str, Scan] = {}
    others: set[str] = set()
    labels = None if part == (0, 1) else set(participants_of_part(dataset, part))
    for folder in sorted(dataset.glob(f"sub-*/{CLIPS}")):
        if labels is not None and folder.parent.name.removeprefix("sub-") not in labels:
            continue
        for stem, run in read_run_files(folder.parent).items():
            manifest = run.current(PREPROCESSING)
            files = manifest.files if manifest else {}
            for name in files:
                path = dataset / name
                if path.name == "scan.json" and path.parent.name == stem:
                    kept = path.parents[1].name
                    if kept != normalisation:
                        others.add(kept)
                    elif _is_whole(path.parent, dataset, files):
                        found[stem] = read_entry(path.parent)
    return found, others


def _is_whole(entry: Path, dataset: Path, files: Mapping[str, FileStamp]) -> bool:
    """Return True if the files of an entry have the sizes of the manifest."""
    start = f"{entry.relative_to(dataset).as_posix()}/"
    try:
        return all((dataset / n).stat().st_size == files[n].size for n in files if n.startswith(start))
    except OSError:
        return False


def prepare(
    dataset: Path,
    store: ClipStore,
    n_procs: int = 1,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[str], None] | None = None,
) -> list[Scan]:
    """Add the preprocessed series of a dataset to a clip store; see `find_series` and `prepare_series`."""
    return prepare_series(dataset, find_series(dataset), store, n_procs, shard, report)


def prepare_series(
    dataset: Path,
    found: Found,
    store: ClipStore,
    n_procs: int = 1,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[str], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Scan]:
    """Add series to a clip store.

    Parameters
    ----------
    dataset : Path
        For messages.
    found : Found
    store : ClipStore
        Existing scans of unchanged series are kept, so an interrupted preparation can be resumed.
    n_procs : int
        Parallel processes.
    shard : tuple of int
        Part of the dataset to prepare and number of parts, if several processes fill one store.
    report : callable, optional
        Receives a message for each omitted series with the reason, and for each warning; equal ones are summed up.

    shard_bytes : int
        Size from which a shard is closed.

    Returns
    -------
    list of Scan
        Scans of this part.

    Raises
    ------
    NoMatchError
        All series are unusable.
    """
    store.refresh()
    wanted = found.series[shard[0] :: shard[1]]
    missing = [series for series in wanted if not store.has(series.name, series.stamp)]
    work = [(series, store.next_generation(series.name)) for series in missing]
    size = max(1, min(SERIES_PER_TASK, -(-len(work) // n_procs)))
    tasks = [work[k : k + size] for k in range(0, len(work), size)]
    if n_procs > 1 and len(tasks) > 1:
        context, n_workers = get_context("spawn"), min(n_procs, len(tasks))
        with ProcessPoolExecutor(n_workers, context, _start_worker) as pool:
            try:
                parts = list(pool.map(_prepare_task, tasks, [store] * len(tasks), [shard_bytes] * len(tasks)))
            except BrokenProcessPool as error:
                raise TemporaryError(
                    "A process that prepared clips was killed, probably out of memory.",
                    "Use fewer --nprocs; complete files are kept.",
                ) from error
            except (KeyboardInterrupt, Terminated):
                _end_workers(pool)
                raise
    else:
        parts = [_prepare_task(task, store, shard_bytes) for task in tasks]
    messages = [message for part in parts for message in part]
    for line in sum_up((*(found.messages if shard[0] == 0 else ()), *messages)):
        (report or log.warning)(line)
    scans = scans_of(wanted, store)
    if wanted and not scans:
        first = next(message for message in messages if message.kind == "omitted")
        raise NoMatchError(
            f"{dataset}: no usable series of {len(wanted)}.", f"First error: {first.where}: {first.reason}"
        )
    return scans


def scans_of(series: Sequence[Series], store: ClipStore) -> list[Scan]:
    """Return the scans of series that a store has, those of other writers included."""
    store.refresh()
    return [store[each.name] for each in series if store.has(each.name, each.stamp)]


def sum_up(messages: Sequence[Message]) -> list[str]:
    """Write one line per message; messages that differ in the run only become one line."""
    groups: dict[tuple[str, str], list[Message]] = {}
    for message in messages:
        groups.setdefault((message.kind, message.reason), []).append(message)
    lines = []
    for (kind, reason), alike in groups.items():
        names = alike[0].where if len(alike) == 1 else first_of([each.name for each in alike], MAX_NAMED)
        lines.append(f"{kind}: {names}: {reason}")
    return lines


def _start_worker() -> None:
    """Set up a process that prepares series; it ends with the main process, or when this one asks it to."""
    end_with_main_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the main process ends its workers
    signal.signal(signal.SIGTERM, _end_worker)


def _end_worker(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: complete scans are published now
    raise SystemExit(EXIT_TERMINATED)


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """Have the workers of a pool publish their complete scans and end; kill those that do not."""
    workers = list((pool._processes or {}).values())
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + END_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
    pool.shutdown(cancel_futures=True)


def _prepare_task(task: Sequence[tuple[Series, int]], store: ClipStore, shard_bytes: int) -> list[Message]:
    """Prepare series, given with their generations, in shards of their own; return warnings and reasons of omission."""
    messages = []
    try:
        with store.writer(shard_bytes) as writer:
            for series, generation in task:
                messages += _prepare_or_reason(series, generation, store, writer)
    except SystemExit:  # the pool would keep it as the result, and go on with the next task
        os._exit(EXIT_TERMINATED)
    return messages


def _prepare_or_reason(series: Series, generation: int, store: ClipStore, writer: ShardWriter) -> list[Message]:
    """Prepare a series; return its warnings, or the reason if it is unusable."""
    name, file = series.name, series.run.bold.name
    try:
        warnings = _prepare_series(series, generation, store, writer)
    except (BadDataError, NoInputError) as error:
        return [Message("omitted", name, str(error).removeprefix(f"{file}: "), file)]
    return [Message("note", name, warning.removeprefix(f"{file}: "), file) for warning in warnings]


def _prepare_series(series: Series, generation: int, store: ClipStore, writer: ShardWriter) -> tuple[str, ...]:
    """Add a series to a store; return the warnings of its ingestion."""
    run = series.run
    if run.problem is not None:
        raise NoInputError(run.problem.message, run.problem.hint)
    with store.place.scratch() as scratch:
        preprocessed, grid = series_on_grid(run, scratch)
        facts = facts_of(run.entities, run.metadata, preprocessed)
        scan = new_scan(series.name, grid, store.normalisation, source=str(run.bold), stamp=series.stamp, **facts)
        writer.add(scan, generation)
    return preprocessed.warnings
