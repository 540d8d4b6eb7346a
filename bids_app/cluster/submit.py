"""Submission of the participants of a cohort that are not done, as array jobs; one submission at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from bids_app.bids.writer import write_text
from bids_app.cluster.cohort import (
    Cohort,
    Job,
    Submission,
    read_submissions,
    submission_folders,
    write_submission,
)
from bids_app.cluster.schedulers import LISTS, SCHEDULERS, checked
from bids_app.cluster.script import SCRIPT, SHARDS, TASKS, job_script
from bids_app.cluster.states import DONE, FAILED, WAITING, Participant, last_log, read_progress
from bids_app.errors import NoMatchError, TemporaryError
from bids_app.terminal import first_of
from bids_app.workflow.locks import Locks

LOCK = "submitting.json"
MAX_SHOWN = 12


def submit(
    cohort: Cohort, wanted: Collection[str] = (), only_killed: bool = False, again: bool = False
) -> Submission | None:
    """Submit the participants that are not done and that no task in the queue has.

    Parameters
    ----------
    cohort : Cohort
    wanted : collection of str
        Only these participants, also if they are done.
    only_killed : bool
        Only participants whose job was killed, or that are not begun; not those that failed.
    again : bool
        Also participants of lists that have not been started.

    Returns
    -------
    Submission or None
        None: all are done, or running.

    Raises
    ------
    TemporaryError
        Another process submits this cohort, or the scheduler does not answer or refuses the job.
    """
    with Locks("is submitting this cohort") as locks:
        locks.acquire(cohort.folder / LOCK)
        progress = read_progress(cohort, list(read_submissions(cohort)), queue_must_answer=True)
        unknown = sorted(set(wanted) - {each.label for each in progress.participants})
        if unknown:
            raise NoMatchError(
                f"Not in this cohort: {first_of(unknown, MAX_SHOWN)}.",
                "Correct the list, or run neurostorm-cluster prepare with these participants.",
            )
        chosen = [each for each in progress.participants if _is_chosen(each, wanted, only_killed, again)]
        return _submit(cohort, [each.label for each in chosen]) if chosen else None


def _is_chosen(each: Participant, wanted: Collection[str], only_killed: bool, again: bool) -> bool:
    if wanted and each.label not in wanted:
        return False
    if each.state == DONE:
        return bool(wanted) and not (each.task and each.task.queued)
    if again and each.state == WAITING and each.task and each.task.submission.scheduler == LISTS:
        return True
    return each.can_be_submitted and (not only_killed or each.state != FAILED)


def _submit(cohort: Cohort, labels: Sequence[str]) -> Submission:
    """Write the folder of a submission and submit its jobs."""
    out_dir, size = Path(cohort.out_dir), cohort.shard_size
    folder = _new_folder(cohort)
    shards = tuple(tuple(labels[start : start + size]) for start in range(0, len(labels), size))
    logs = {label: last_log(out_dir, label) for label in labels}
    submission = Submission(
        folder=str(folder),
        scheduler=cohort.scheduler,
        submitted=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        cpus=cohort.resources.cpus,
        shards=shards,
        decisive=cohort.decisive,
        before={label: log.name for label, log in logs.items() if log is not None},
    )
    write_text(folder / SHARDS, "".join(" ".join(shard) + "\n" for shard in shards))
    script = write_text(folder / SCRIPT, job_script(cohort, folder))
    write_submission(submission)
    scheduler, most = SCHEDULERS[cohort.scheduler], cohort.resources.max_array
    for first in range(0, len(shards), len(shards) if cohort.scheduler == LISTS else most):
        count = len(shards) if cohort.scheduler == LISTS else min(most, len(shards) - first)
        job = Job(job_id="", first=first, count=count)
        words = scheduler.words(script, job, cohort.resources)
        try:
            name = scheduler.read_id(checked(*words)) if words else ""
        except TemporaryError as error:
            sent = f"{first} of {len(shards)} tasks were submitted before. " if first else ""
            raise TemporaryError(f"{error.message}", f"{sent}{error.hint}") from error
        submission = replace(submission, jobs=(*submission.jobs, replace(job, job_id=name)))
        write_submission(submission)
    return submission


def _new_folder(cohort: Cohort) -> Path:
    numbers = [int(path.name.rpartition("-")[2]) for path in submission_folders(cohort)]
    folder = cohort.folder / f"submission-{max(numbers, default=0) + 1:04d}"
    os.makedirs(folder / TASKS)
    return folder
