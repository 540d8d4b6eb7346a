"""Submission of what is not done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_app.cluster.cohort import Cohort, Resources, read_submissions
from bids_app.cluster.submit import LOCK, submit
from bids_app.errors import BadDataError, NoMatchError, TemporaryError
from bids_app.outputs.schema import FAILED, RunOutcome
from bids_app.workflow.locks import Locks
from tests.cluster.conftest import make_cohort, write_log

BAD = RunOutcome(stem="sub-01_bold", status=FAILED, reason="truncated", exit_code=65)
GOOD = RunOutcome(stem="sub-01_bold", exit_code=0)
SMALL_ARRAYS = Resources(cpus=1, memory_gb=2.0, time="01:00:00", max_array=2)


def fake_slurm(commands, folder: Path, fail_after: int = 99) -> Path:
    """Write sbatch and squeue: submitted jobs stay in the queue until the file ``queue`` is removed."""
    calls, queue = folder / "calls", folder / "queue"
    commands(
        "sbatch",
        f"""n=$(cat '{calls}' 2> /dev/null | wc -l); n=$((n + 1))
[ $n -gt {fail_after} ] && {{ echo 'QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }}
echo "$@" >> '{calls}'; for task in 1 2; do echo "$n|$task" >> '{queue}'; done; echo "$n;local\"""",
    )
    commands("squeue", f"cat '{queue}' 2> /dev/null; true")
    return calls


def test_only_participants_that_are_not_done_are_submitted(cohort: Cohort) -> None:
    write_log(cohort, "01", GOOD)
    write_log(cohort, "02", BAD, status=FAILED)
    submission = submit(cohort)
    assert submission is not None
    assert submission.shards == (("02",), ("03",))
    assert list(submission.before) == ["02"]
    assert (Path(submission.folder) / "shards.txt").read_text() == "02\n03\n"


def test_failed_ones_can_be_left_out_and_done_ones_repeated(cohort: Cohort) -> None:
    write_log(cohort, "01", GOOD)
    write_log(cohort, "02", BAD, status=FAILED)
    assert submit(cohort, only_killed=True).shards == (("03",),)
    assert submit(cohort, ["01"]).shards == (("01",),)
    with pytest.raises(NoMatchError, match="Not in this cohort: 7, 8"):
        submit(cohort, ["8", "7", "01"])


def test_arrays_are_no_larger_than_the_scheduler_allows(tmp_path: Path, commands) -> None:
    calls = fake_slurm(commands, tmp_path)
    cohort = make_cohort(tmp_path, tuple("abcdefghi"), scheduler="slurm", shard_size=2, resources=SMALL_ARRAYS)
    submission = submit(cohort)
    assert submission.shards[-1] == ("i",)
    assert [(job.job_id, job.first, job.count) for job in submission.jobs] == [("1", 0, 2), ("2", 2, 2), ("3", 4, 1)]
    assert [line.split("FIRST=")[1][0] for line in calls.read_text().splitlines()] == ["0", "2", "4"]
    assert submission.job_of(5) == ("3", 1)


def test_participants_in_the_queue_are_not_submitted_again(tmp_path: Path, commands) -> None:
    calls = fake_slurm(commands, tmp_path)
    cohort = make_cohort(tmp_path, ("01", "02"), scheduler="slurm")
    assert submit(cohort) is not None
    assert submit(cohort) is None
    (tmp_path / "queue").unlink()
    assert submit(cohort).shards == (("01",), ("02",))
    assert len(calls.read_text().splitlines()) == 2


def test_two_submissions_at_once_are_refused(cohort: Cohort) -> None:
    with Locks("is submitting this cohort") as locks:
        locks.acquire(cohort.folder / LOCK)
        with pytest.raises(TemporaryError, match="another run is submitting this cohort"):
            submit(cohort)
    assert list(read_submissions(cohort)) == []


def test_jobs_that_were_accepted_before_a_refusal_are_known(tmp_path: Path, commands) -> None:
    fake_slurm(commands, tmp_path, fail_after=1)
    cohort = make_cohort(tmp_path, tuple("abcd"), scheduler="slurm", resources=SMALL_ARRAYS)
    with pytest.raises(TemporaryError, match="QOSMaxSubmitJobPerUserLimit") as caught:
        submit(cohort)
    assert caught.value.hint.startswith("2 of 4 tasks were submitted before.")
    assert [job.job_id for each in read_submissions(cohort) for job in each.jobs] == ["1"]
    with pytest.raises(TemporaryError):
        submit(cohort)
    assert [each.shards for each in read_submissions(cohort)][-1] == (("c",), ("d",))


def test_a_list_that_was_not_started_is_submitted_again_on_request(cohort: Cohort) -> None:
    assert len(submit(cohort).shards) == 3
    assert submit(cohort) is None
    assert len(submit(cohort, again=True).shards) == 3


def test_a_damaged_submission_is_named(cohort: Cohort) -> None:
    path = Path(submit(cohort).folder) / "submission.json"
    path.write_text("{")
    with pytest.raises(BadDataError, match=r"submission-0001/submission.json: not a valid JSON file") as caught:
        submit(cohort)
    assert "delete" in caught.value.hint
    assert not os.path.exists(cohort.folder / LOCK)
