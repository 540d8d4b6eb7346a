"""Job schedulers: how an array job is submitted, and which of its tasks are in the queue.

SLURM, SGE and OpenPBS are called through their commands. ``lists`` only writes the script and the lists of
participants, for any other way to run ``bash job.sh NUMBER``.
"""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_app.cluster.cohort import Job, Resources
from bids_app.errors import NoInputError, TemporaryError

TIMEOUT_S = 120.0
"""Maximum time of a command of a scheduler, s."""
FIRST = "NEUROSTORM_FIRST"
"""Variable of a job: number of the shards before its first one."""

Tasks = Mapping[str, frozenset[int] | None]
"""Numbers of the tasks in the queue by job; None: all of the job, as far as the scheduler says."""


@dataclass(frozen=True)
class Scheduler:
    """A job scheduler.

    Attributes
    ----------
    task, job : str
        What the script expands to the number of the task (from 1), and to the name of the job.
    words : callable
        Returns the command that submits tasks; takes the script, a `Job` without its name, and `Resources`.
    read_id : callable
        Returns the name of the job from the output of this command.
    in_queue : callable
        Returns which tasks of some jobs are in the queue.
    log : str
        Name of the file to which the scheduler sends the output of a task; empty: the script sends it.
    """

    task: str
    job: str
    words: Callable[[Path, Job, Resources], list[str]]
    read_id: Callable[[str], str]
    in_queue: Callable[[Iterable[Job]], Tasks]
    log: str = ""


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a scheduler.

    Raises
    ------
    NoInputError
        There is no such command.
    TemporaryError
        It did not end in time.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise NoInputError(
            f"{words[0]}: no such command.", "Run this on a machine that submits jobs, or give another --scheduler."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"{words[0]} did not end in {TIMEOUT_S:.0f} s.", "Try again later.") from error


def checked(*words: str) -> str:
    """Run a command of a scheduler, and return its output.

    Raises
    ------
    TemporaryError
        It failed.
    """
    done = call(*words)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise TemporaryError(f"{words[0]} failed: {reason}", "Correct the options of the scheduler, or try again.")
    return done.stdout


def limit(resources: Resources, separator: str) -> str:
    """Return the limit of tasks at the same time, after a separator; empty without one."""
    return f"{separator}{resources.max_running}" if resources.max_running else ""


def megabytes(resources: Resources) -> int:
    """Return the memory of a task in MB."""
    return round(1000 * resources.memory_gb)


def slurm_words(script: Path, job: Job, resources: Resources) -> list[str]:
    """Return the command that submits an array job to SLURM."""
    logs = str(script.parent / "tasks").replace("%", "%%")
    return [
        "sbatch", "--parsable", "--job-name=neurostorm", f"--array=1-{job.count}{limit(resources, '%')}",
        f"--cpus-per-task={resources.cpus}", f"--mem={megabytes(resources)}M", f"--time={resources.time}",
        f"--output={logs}/%A_%a.log", "--open-mode=append", f"--export=ALL,{FIRST}={job.first}",
        *resources.scheduler_options, str(script),
    ]  # fmt: skip


def slurm_tasks(jobs: Iterable[Job]) -> Tasks:
    """Return the tasks in SLURM's queue."""
    names = {job.job_id for job in jobs}
    found: dict[str, set[int]] = {}
    for line in checked(
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F|%K"
    ).splitlines():
        name, _, task = line.strip().partition("|")
        if name in names and task.isdecimal():
            found.setdefault(name, set()).add(int(task))
    return {name: frozenset(tasks) for name, tasks in found.items()}


def sge_words(script: Path, job: Job, resources: Resources) -> list[str]:
    """Return the command that submits an array job to SGE; its memory is for each processor."""
    days, _, time = resources.time.rpartition("-")
    hours, minutes, seconds = time.split(":")
    return [
        "qsub", "-terse", "-N", "neurostorm", "-S", "/bin/bash", "-t", f"1-{job.count}",
        *(["-tc", str(resources.max_running)] if resources.max_running else []),
        *(["-pe", "smp", str(resources.cpus)] if resources.cpus > 1 else []),
        "-l", f"h_vmem={-(-megabytes(resources) // resources.cpus)}M",
        "-l", f"h_rt={24 * int(days or 0) + int(hours)}:{minutes}:{seconds}",
        "-o", "/dev/null", "-e", "/dev/null", "-v", f"{FIRST}={job.first}", *resources.scheduler_options, str(script),
    ]  # fmt: skip


def sge_tasks(jobs: Iterable[Job]) -> Tasks:
    """Return the tasks in SGE's queue: the last column of a line is ``1-100:1`` while they wait, or one number."""
    names = {job.job_id for job in jobs}
    found: dict[str, set[int]] = {}
    for line in checked("qstat", "-u", getpass.getuser()).splitlines():
        words = line.split()
        if words and words[0] in names:
            found.setdefault(words[0], set()).update(numbers_in(words[-1]))
    return {name: frozenset(tasks) for name, tasks in found.items()}


def numbers_in(text: str) -> Iterable[int]:
    """Yield the numbers of SGE's ``1-9:2,12``."""
    for first, last, step in re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", text):
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def pbs_words(script: Path, job: Job, resources: Resources) -> list[str]:
    """Return the command that submits an array job to OpenPBS, which has no arrays of one task."""
    days, _, time = resources.time.rpartition("-")
    hours, minutes, seconds = time.split(":")
    return [
        "qsub", "-N", "neurostorm", "-S", "/bin/bash",
        *(["-J", f"1-{job.count}{limit(resources, '%')}"] if job.count > 1 else []),
        "-l", f"select=1:ncpus={resources.cpus}:mem={megabytes(resources)}mb",
        "-l", f"walltime={24 * int(days or 0) + int(hours)}:{minutes}:{seconds}",
        "-j", "oe", "-o", "/dev/null", "-v", f"{FIRST}={job.first}", *resources.scheduler_options, str(script),
    ]  # fmt: skip


def pbs_tasks(jobs: Iterable[Job]) -> Tasks:
    """Return the jobs in the queue of OpenPBS; how it lists their tasks differs between versions."""
    return {job.job_id: None for job in jobs if call("qstat", job.job_id).returncode == 0}


def no_queue(jobs: Iterable[Job]) -> Tasks:
    """Return no tasks: nothing is known of them but what they write."""
    return {}


SCHEDULERS: dict[str, Scheduler] = {
    "slurm": Scheduler(
        "${SLURM_ARRAY_TASK_ID}", "${SLURM_ARRAY_JOB_ID}", slurm_words, lambda out: out.strip().partition(";")[0],
        slurm_tasks, log="{job}_{task}.log",
    ),
    "sge": Scheduler(
        "${SGE_TASK_ID}", "${JOB_ID}", sge_words, lambda out: out.strip().partition(".")[0], sge_tasks
    ),
    "pbs": Scheduler("${PBS_ARRAY_INDEX:-1}", "${PBS_JOBID}", pbs_words, str.strip, pbs_tasks),
    "lists": Scheduler("${1-}", "$$", lambda *_: [], lambda _: "", no_queue),
}  # fmt: skip
"""Schedulers by their name on the command line."""
LISTS = "lists"
