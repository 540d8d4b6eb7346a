"""State of each participant of a cohort: from its logs and locks in the output folder, its task and the queue."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_app.cluster.cohort import Cohort, Submission
from bids_app.cluster.schedulers import LISTS, SCHEDULERS
from bids_app.cluster.tasks import Task, read_tasks
from bids_app.errors import BadDataError, TemporaryError
from bids_app.files import read_output
from bids_app.outputs.schema import OK, RunOutcome, Summary, may_be_gone
from bids_app.outputs.schema import RUNNING as UNFINISHED
from bids_app.settings import Settings, options_of
from bids_app.settings.sections import DATA, MODEL, PREPROCESSING
from bids_app.workflow.locks import STALE_SECONDS, is_held, lock_files

DONE, FAILED, KILLED, RUNNING, WAITING, NOT_BEGUN = STATES = (
    "done", "failed", "killed", "running", "waiting", "not begun",
)  # fmt: skip
"""States of participants. Killed: ended by a signal, such as that of a limit of the job. Waiting: in the queue."""
TO_SUBMIT = (FAILED, KILLED, NOT_BEGUN)
"""States of participants that are submitted, unless their task is still in the queue."""
RUN_ID = re.compile(r"\d{8}-\d{6}_[0-9a-f-]+")
"""Names of log folders, see `bids_app.workflow.provenance.new_run_id`."""
NOT_DECISIVE = {"participant_label", "bids_database_dir", "exclude_failed", "device"}
"""Options of data, preprocessing and model that do not change the outputs of a participant."""
NO_REASON = "The job was ended without a message."


@dataclass(frozen=True)
class Participant:
    """State of a participant."""

    label: str
    state: str
    reason: str = ""
    hint: str = ""
    exit_code: int | None = None
    n_runs: int | None = None
    """Runs of its last invocation that have ended."""
    seconds: float | None = None
    """Run time of its last invocation."""
    task: Task | None = None
    """Task of its last submission."""

    @property
    def can_be_submitted(self) -> bool:
        """True if it is not done, and no task that is in the queue has it."""
        return self.state in TO_SUBMIT and not (self.task and self.task.queued)


@dataclass(frozen=True)
class Progress:
    """States of all participants, and the tasks of all submissions."""

    participants: Sequence[Participant]
    tasks: Sequence[Task]
    remark: str = ""
    """What could not be read."""
    counts: Mapping[str, int] = field(init=False)
    """Participants by state, in the order of `STATES`."""

    def __post_init__(self) -> None:
        found = Counter(each.state for each in self.participants)
        object.__setattr__(self, "counts", {state: found[state] for state in STATES})


def read_progress(cohort: Cohort, submissions: Sequence[Submission], queue_must_answer: bool = False) -> Progress:
    """Read the states of all participants of a cohort.

    Raises
    ------
    TemporaryError, NoInputError
        The scheduler does not answer, and ``queue_must_answer``.
    """
    queue: dict[str, frozenset[int] | None] = {}
    remark = ""
    for name in {each.scheduler for each in submissions}:
        jobs = [job for each in submissions if each.scheduler == name for job in each.jobs]
        try:
            queue |= SCHEDULERS[name].in_queue(jobs)
        except TemporaryError as error:
            if queue_must_answer:
                raise
            remark = f"The queue could not be read, so that killed jobs count as running. {error.message}"
    tasks = [task for each in submissions for task in read_tasks(each, None if remark else queue)]
    last = {label: task for task in tasks for label in task.labels}
    now = file_system_time(cohort.folder)
    found = [state_of(label, cohort, last.get(label), now) for label in cohort.participants]
    return Progress(found, tasks, remark)


def file_system_time(folder: Path) -> float:
    """Return the present time in the clock of the file system of a folder, s since 1970."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def state_of(label: str, cohort: Cohort, task: Task | None, now: float) -> Participant:
    """Return the state of a participant.

    Parameters
    ----------
    label : str
    cohort : Cohort
    task : Task or None
        The last task that has it.
    now : float
        See `file_system_time`.
    """
    out_dir = Path(cohort.out_dir)
    folder = last_log(out_dir, label)
    summary, problem = read_summary(folder)
    other = differing_options(folder, cohort) if summary else []
    is_new = folder is not None and (task is None or task.submission.before.get(label) != folder.name)
    if summary is not None and is_new and not other and summary.status != UNFINISHED:
        return _ended(label, summary, task, out_dir)
    if task is not None and task.queued:
        return Participant(label, WAITING if task.started is None else RUNNING, task=task)
    if is_held(lock_files(label, out_dir, cohort.folder)[0], now):
        return Participant(label, RUNNING, task=task)
    if summary is not None and is_new and other:
        return Participant(
            label, NOT_BEGUN, f"Its outputs were made with other options: {', '.join(other)}.", task=task
        )
    if task is not None:
        return _without_result(label, cohort, task, now)
    if summary is not None:
        return Participant(label, KILLED, NO_REASON)
    return Participant(label, FAILED, problem) if problem else Participant(label, NOT_BEGUN)


def _ended(label: str, summary: Summary, task: Task | None, out_dir: Path) -> Participant:
    """Return the state of a participant whose last invocation has ended; without its outputs, it is not begun."""
    runs = summary.runs or ()
    failures = [run for run in runs if run.status != OK]
    done = Participant(label, DONE, n_runs=len(runs), seconds=summary.seconds, task=task)
    if lost := first_lost_output(runs, out_dir):
        return replace(done, state=NOT_BEGUN, reason=f"Its outputs were removed: {lost}.")
    if summary.status == OK and not failures:
        return done
    first = next(iter(failures), None)
    reason, hint = (first.reason, first.hint) if first else ("Its log names no run that failed.", "")
    if len(failures) > 1:
        reason = f"{len(failures)} of {len(runs)} runs failed, the first: {reason}"
    return replace(done, state=FAILED, reason=reason, hint=hint, exit_code=summary.exit_code)


def first_lost_output(runs: Sequence[RunOutcome], out_dir: Path) -> str:
    """Return the first output of some runs that is no longer in the output folder; empty without one.

    Images and clips do not count: the participant is not processed again if they were moved away.
    """
    present: dict[str, set[str]] = {}
    for name in (name for run in runs for name in run.outputs if not may_be_gone(name)):
        folder, _, file = name.rpartition("/")
        if folder not in present:
            try:
                present[folder] = set(os.listdir(out_dir / folder))
            except (FileNotFoundError, NotADirectoryError):
                present[folder] = set()
        if file not in present[folder]:
            return name
    return ""


def _without_result(label: str, cohort: Cohort, task: Task, now: float) -> Participant:
    """Return the state of a participant whose task is not in the queue, and has not written its result."""
    if task.started is None:
        if cohort.decisive != task.submission.decisive:
            return Participant(label, NOT_BEGUN, "Its last task was prepared with other options.", task=task)
        if task.submission.scheduler == LISTS:
            return Participant(label, WAITING, "Its task has not been started.", task=task)
        gone = f"Job {task.name} is no longer in the queue." if task.name else ""
        return Participant(label, NOT_BEGUN, gone, task=task)
    if task.ended is None and task.submission.scheduler == LISTS and now - task.started < STALE_SECONDS:
        return Participant(label, RUNNING, task=task)
    state = KILLED if task.was_signalled else FAILED
    return Participant(label, state, task.why(), exit_code=task.exit_code, task=task)


def last_log(out_dir: Path, label: str) -> Path | None:
    """Return the log folder of the last invocation for a participant; None if there is none."""
    log = out_dir / f"sub-{label}" / "log"
    try:
        names = [name for name in os.listdir(log) if RUN_ID.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return log / max(names) if names else None  # names sort by time


def read_summary(folder: Path | None) -> tuple[Summary | None, str]:
    """Read the summary in a log folder; return it and why it cannot be read."""
    if folder is None:
        return None, ""
    try:
        return Summary.read(folder / "summary.json"), ""
    except FileNotFoundError:
        return None, ""
    except BadDataError as error:
        return None, error.message
    except OSError as error:
        return None, f"{folder.name}/summary.json: {error.strerror}."


def decisive_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that decide the outputs of a participant, as text; ``options`` are as in a TOML file."""
    used = {each.key for each in options_of(Settings) if each.group in (DATA, PREPROCESSING, MODEL)}
    return {name: json.dumps(value) for name, value in options.items() if name in used - NOT_DECISIVE}


def differing_options(folder: Path | None, cohort: Cohort) -> list[str]:
    """Return the options of an invocation that differ from those of the cohort; none if they cannot be read."""
    try:
        content = tomllib.loads(read_output(folder / "neurostorm.toml").decode()) if folder else {}
        found = decisive_options(content["options"])
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    names = sorted(found.keys() | cohort.decisive.keys())
    return [f"--{name.replace('_', '-')}" for name in names if found.get(name) != cohort.decisive.get(name)]
