"""Tasks of the submissions: when they started and ended, and why one was ended by others, from what jobs write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bids_app.cluster.cohort import Submission
from bids_app.cluster.schedulers import SCHEDULERS, Tasks
from bids_app.cluster.script import TASKS
from bids_app.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

LOG_BYTES = 2**14
"""Part of a log, at its end, that is read for a reason."""
SIGNALLED = (EXIT_INTERRUPTED, 137, EXIT_TERMINATED)
"""Exit codes of a command that a signal ended."""
REASONS = {
    re.compile(r"DUE TO TIME LIMIT|exceeded hard wallclock|walltime \S+ exceeded"): "The time limit ended the job.",
    re.compile(r"oom.kill|out.of.memory|mem \S+ exceeded limit", re.IGNORECASE): "The memory limit ended the job.",
    re.compile(r"DUE TO PREEMPTION"): "The job was preempted.",
    re.compile(r"DUE TO NODE FAILURE"): "The node failed.",
    re.compile(r"CANCELLED AT"): "The job was cancelled.",
}
"""Messages of schedulers in the log of a task, and what they mean."""
ERROR = re.compile(r"^neurostorm: (?:error: |internal error)(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """Task of an array job."""

    submission: Submission
    shard: int
    """Number of the shard, from 1."""
    queued: bool = False
    """True if it is in the queue of the scheduler, waiting or running."""
    started: float | None = None
    """s since 1970."""
    ended: float | None = None
    exit_code: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Participants of the task."""
        return self.submission.shards[self.shard - 1]

    @property
    def name(self) -> str:
        """Name of the task for the scheduler, ``job_task``; empty if it was not submitted to one."""
        job = self.submission.job_of(self.shard)
        return f"{job[0]}_{job[1]}" if job and job[0] else ""

    @property
    def log(self) -> Path:
        """Output of the task."""
        form, job = SCHEDULERS[self.submission.scheduler].log, self.submission.job_of(self.shard)
        name = form.format(job=job[0], task=job[1]) if form and job else f"{self.shard}.log"
        return Path(self.submission.folder) / TASKS / name

    @property
    def was_signalled(self) -> bool:
        """True if the task ended without a result of its own."""
        return self.exit_code is None or self.exit_code in SIGNALLED

    def why(self) -> str:
        """Return why the task failed or was ended, from its log."""
        text = read_end(self.log)
        for pattern, meaning in REASONS.items():
            if pattern.search(text):
                return meaning
        errors = [found[1].strip() for found in ERROR.finditer(text)]
        if errors:
            return errors[-1]
        ended = "was killed" if self.exit_code is None else f"ended with exit code {self.exit_code}"
        return f"The job {ended}; its log has no reason."


def read_tasks(submission: Submission, queue: Tasks | None) -> Iterable[Task]:
    """Yield the tasks of a submission.

    Parameters
    ----------
    submission : Submission
    queue : mapping or None
        Tasks in the queue; None: unknown, so that tasks that have not ended may be there.
    """
    folder = Path(submission.folder) / TASKS
    rows: set[str] = set()
    with suppress(FileNotFoundError):
        rows = {name for name in os.listdir(folder) if name.endswith(".tsv")}
    for shard in range(1, len(submission.shards) + 1):
        started, ended, code = _read_row(folder / f"{shard}.tsv") if f"{shard}.tsv" in rows else (None, None, None)
        job = submission.job_of(shard)
        queued = ended is None and job is not None and _is_queued(*job, queue)
        yield Task(submission, shard, queued, started, ended, code)


def _is_queued(job: str, task: int, queue: Tasks | None) -> bool:
    if queue is None:
        return bool(job)
    tasks = queue.get(job, frozenset())
    return tasks is None or task in tasks


def _read_row(path: Path) -> tuple[float | None, float | None, int | None]:
    """Read start, end and exit code of a task; a line that is being written counts as missing.

    If the start cannot be read, it is the time of the file, since the task writes it when it starts.
    """
    found: dict[str, list[str]] = {}
    for line in read_end(path).splitlines():
        name, *cells = line.split("\t")
        found[name] = cells
    try:
        started = float(found["started"][0]) if "started" in found else None
        ended, code = (float(found["ended"][0]), int(found["ended"][1])) if "ended" in found else (None, None)
    except (IndexError, ValueError):
        started, ended, code = None, None, None
    if started is None:
        with suppress(FileNotFoundError):
            started = path.stat().st_mtime
    return started, ended, code


def read_end(path: Path) -> str:
    """Return the end of a text file; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""
