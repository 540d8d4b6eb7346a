"""Files of a cohort in ``OUT/logs/cluster``: what is to be done, and which jobs were submitted.

``cohort.json`` has the participants, the options and the resources of a job. Each submission has a folder with the job
script, the participants of each task (``shards.txt``, a line for each), and ``tasks`` with logs, starts and ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bids_app.bids.entities import LABEL
from bids_app.bids.writer import write_json
from bids_app.errors import BadDataError, NoInputError
from bids_app.outputs.schema import Record
from bids_app.outputs.schema.readers import by_name, number, several, text, whole
from bids_app.outputs.schema.record import key, record

FOLDER = Path("logs", "cluster")
"""Folder of the cohort in the output folder."""
COHORT, SUBMISSION = "cohort.json", "submission.json"


@dataclass(frozen=True, kw_only=True)
class Resources(Record):
    """Resources of one task of an array job, and limits of the array."""

    cpus: int = key("cpus", whole, required=True)
    memory_gb: float = key("memory_gb", number, required=True)
    time: str = key("time", text, required=True)
    """``[days-]hours:minutes:seconds``."""
    max_running: int | None = key("max_running", whole)
    """Maximum number of tasks at the same time; None: no limit."""
    max_array: int = key("max_array", whole, required=True)
    """Maximum number of tasks of one array job; more tasks are several jobs."""
    scheduler_options: tuple[str, ...] = key("scheduler_options", several(text), default=())


@dataclass(frozen=True, kw_only=True)
class Cohort(Record):
    """Participants to process, and how."""

    bids_dir: str = key("bids_dir", text, required=True)
    out_dir: str = key("output_dir", text, required=True)
    participants: tuple[str, ...] = key("participants", several(text), required=True)
    """Labels without ``sub-``."""
    options: tuple[str, ...] = key("options", several(text), default=())
    """Further words of the command ``neurostorm``."""
    decisive: dict[str, str] = key("decisive", by_name(text), factory=dict)
    """Options that decide the outputs, as in ``neurostorm.toml``; outputs with others are not those of this cohort."""
    working_folder: str = key("working_folder", text, required=True)
    """Folder that relative paths of the options refer to."""
    command: str = key("command", text, required=True)
    scheduler: str = key("scheduler", text, required=True)
    shard_size: int = key("shard_size", whole, required=True)
    """Participants of a task."""
    resources: Resources = key("resources", record(Resources), required=True)

    @property
    def folder(self) -> Path:
        """Folder of the files of this cohort."""
        return Path(self.out_dir) / FOLDER


@dataclass(frozen=True, kw_only=True)
class Job(Record):
    """Array job of a submission."""

    job_id: str = key("id", text, required=True)
    first: int = key("first", whole, required=True)
    """Number of the shards before its first one."""
    count: int = key("count", whole, required=True)


@dataclass(frozen=True, kw_only=True)
class Submission(Record):
    """Shards that were submitted together."""

    folder: str = key("folder", text, required=True)
    scheduler: str = key("scheduler", text, required=True)
    submitted: str = key("submitted", text, required=True)
    """Date and time, ISO 8601."""
    cpus: int = key("cpus", whole, required=True)
    shards: tuple[tuple[str, ...], ...] = key("shards", several(several(text)), required=True)
    """Labels of the participants of each task."""
    decisive: dict[str, str] = key("decisive", by_name(text), factory=dict)
    """Those of the cohort (`Cohort.decisive`) when it was submitted."""
    before: dict[str, str] = key("before", by_name(text), factory=dict)
    """Last invocation (`Summary.run_id`) before the submission, by participant that had one."""
    jobs: tuple[Job, ...] = key("jobs", several(record(Job)), default=())

    def job_of(self, shard: int) -> tuple[str, int] | None:
        """Return the job and task number of a shard (from 1); None if it was not submitted."""
        for job in self.jobs:
            if job.first < shard <= job.first + job.count:
                return job.job_id, shard - job.first
        return None


def read_cohort(out_dir: Path) -> Cohort:
    """Read the cohort of an output folder.

    Raises
    ------
    NoInputError, BadDataError
        None was prepared; its file is damaged, has words that are no labels, or is of another output folder, as
        after a copy.
    """
    path = out_dir.absolute() / FOLDER / COHORT
    try:
        cohort = Cohort.read(path)
    except OSError as error:
        raise NoInputError(
            f"{path}: {error.strerror}.", "Run neurostorm-cluster prepare first, or correct the output folder."
        ) from error
    except BadDataError as error:
        raise BadDataError(f"{path.parent}/{error.message}", "Run neurostorm-cluster prepare again.") from error
    if wrong := [label for label in cohort.participants if not LABEL.fullmatch(label)]:
        raise BadDataError(
            f"{path}: not the label of a participant: {wrong[0]!r}.", "Run neurostorm-cluster prepare again."
        )
    if not (os.path.isdir(cohort.out_dir) and os.path.samefile(cohort.out_dir, out_dir)):
        raise BadDataError(
            f"{path}: the cohort is of the output folder {cohort.out_dir}.",
            f"Give that folder. If it was moved or copied to {out_dir}, run neurostorm-cluster prepare again.",
        )
    return cohort


def write_cohort(cohort: Cohort) -> Path:
    """Write the cohort to its output folder."""
    return write_json(cohort.folder / COHORT, cohort.to_json())


def write_submission(submission: Submission) -> Path:
    """Write a submission to its folder."""
    return write_json(Path(submission.folder) / SUBMISSION, submission.to_json())


def submission_folders(cohort: Cohort) -> list[Path]:
    """Return the folders of all submissions in order."""
    return sorted(path for path in cohort.folder.glob("submission-*") if path.is_dir())


def read_submissions(cohort: Cohort) -> Iterator[Submission]:
    """Yield the submissions in order; folders in which nothing was submitted are left out.

    Raises
    ------
    BadDataError
        The file of a submission is damaged.
    """
    for folder in submission_folders(cohort):
        try:
            yield Submission.read(folder / SUBMISSION)
        except FileNotFoundError:
            continue
        except BadDataError as error:
            raise BadDataError(
                f"{folder}/{error.message}", f"If none of its jobs is in the queue, delete {folder}."
            ) from error
