"""States of participants, from logs, locks, tasks and the queue."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.cluster.cohort import (
    Cohort,
    Job,
    Submission,
    read_cohort,
    read_submissions,
    write_cohort,
    write_submission,
)
from bids_app.cluster.states import Participant, Progress, decisive_options, read_progress
from bids_app.errors import BadDataError, TemporaryError
from bids_app.outputs.schema import FAILED, RUNNING, RunOutcome
from bids_app.workflow.locks import Locks, lock_files
from tests.cluster.conftest import make_cohort, write_log

BAD = RunOutcome(
    stem="sub-01_ses-2_bold", status=FAILED, reason="bold.nii.gz: truncated.", hint="Copy it.", exit_code=65
)
GOOD = RunOutcome(stem="sub-01_ses-1_bold", exit_code=0)


def submission_of(cohort: Cohort, *shards: tuple[str, ...], job: str = "7", **changes) -> Submission:
    """Write a submission with one job."""
    folder = cohort.folder / f"submission-{len(list(cohort.folder.glob('sub*'))) + 1:04d}"
    (folder / "tasks").mkdir(parents=True)
    made = Submission(
        folder=str(folder), scheduler="slurm", submitted="", cpus=1, shards=shards,
        decisive=cohort.decisive, jobs=(Job(job_id=job, first=0, count=len(shards)),),
    )  # fmt: skip
    write_submission(made := replace(made, **changes))
    return made


def write_row(submission: Submission, shard: int, code: int | None = None, log: str = "") -> None:
    ended = "" if code is None else f"ended\t200\t{code}\n"
    tasks = Path(submission.folder) / "tasks"
    (tasks / f"{shard}.tsv").write_text(f"started\t100\t7\n{ended}")
    (tasks / f"7_{shard}.log").write_text(log)


def queue_is(commands, *tasks: int) -> None:
    commands("squeue", "".join(f"echo '7|{task}'\n" for task in tasks))


def states(cohort: Cohort) -> dict[str, Participant]:
    return {each.label: each for each in progress_of(cohort).participants}


def progress_of(cohort: Cohort) -> Progress:
    return read_progress(cohort, list(read_submissions(cohort)))


def test_without_outputs_nothing_is_begun(cohort: Cohort) -> None:
    assert progress_of(cohort).counts == {
        "done": 0, "failed": 0, "killed": 0, "running": 0, "waiting": 0, "not begun": 3
    }  # fmt: skip


def test_results_are_read_from_the_last_log(cohort: Cohort) -> None:
    write_log(cohort, "01", GOOD, BAD, status=FAILED, day=2)
    write_log(cohort, "01", GOOD, day=1)
    write_log(cohort, "02", BAD, status=FAILED, day=1)
    write_log(cohort, "02", GOOD, day=2)
    found = states(cohort)
    assert (found["01"].state, found["01"].reason) == ("failed", "bold.nii.gz: truncated.")
    assert (found["01"].hint, found["01"].exit_code, found["01"].n_runs) == ("Copy it.", 65, 2)
    assert (found["02"].state, found["02"].exit_code) == ("done", None)


def test_several_failed_sessions_are_counted(cohort: Cohort) -> None:
    write_log(cohort, "01", GOOD, BAD, BAD, status=FAILED)
    assert states(cohort)["01"].reason == "2 of 3 runs failed, the first: bold.nii.gz: truncated."


def test_outputs_of_other_options_or_of_some_sessions_do_not_count(cohort: Cohort) -> None:
    write_log(cohort, "01", GOOD, model="other")
    folder = write_log(cohort, "02", GOOD)
    (folder / "neurostorm.toml").write_text('[options]\nmodel = "demo"\nsession_label = ["1"]\n')
    found = states(cohort)
    assert (found["01"].state, found["01"].reason) == (
        "not begun",
        "Its outputs were made with other options: --model.",
    )
    assert (found["02"].state, found["02"].reason[-18:]) == ("not begun", ": --session-label.")


def test_options_of_speed_and_reports_are_not_decisive() -> None:
    options = {
        "model": "demo",
        "nprocs": 2,
        "work_dir": "/x",
        "device": "cpu",
        "participant_label": ["01"],
        "verbose": 1,
    }
    assert decisive_options(options) == {"model": '"demo"'}


def test_an_invocation_that_was_killed_is_named(cohort: Cohort) -> None:
    write_log(cohort, "01", GOOD, status=RUNNING)
    assert (states(cohort)["01"].state, states(cohort)["01"].reason) == (
        "killed",
        "The job was ended without a message.",
    )


def test_a_participant_that_is_locked_by_a_living_process_is_running(cohort: Cohort) -> None:
    write_log(cohort, "01", BAD, status=RUNNING)
    with Locks() as locks:
        locks.acquire(lock_files("01", Path(cohort.out_dir), cohort.folder)[0])
        assert states(cohort)["01"].state == "running"
    assert states(cohort)["01"].state == "killed"


def test_tasks_are_waiting_running_and_ended_as_the_queue_and_their_rows_say(cohort: Cohort, commands) -> None:
    submission = submission_of(cohort, ("01",), ("02",), ("03",))
    write_row(submission, 2)
    write_row(submission, 3, 65, "neurostorm: error: out: no space.\n  Free some.\n")
    queue_is(commands, 1, 2)
    found = states(cohort)
    assert [each.state for each in found.values()] == ["waiting", "running", "failed"]
    assert (found["03"].reason, found["03"].exit_code) == ("out: no space.", 65)
    assert [each.can_be_submitted for each in found.values()] == [False, False, True]
    queue_is(commands)
    assert [each.state for each in states(cohort).values()] == ["not begun", "killed", "failed"]
    assert states(cohort)["01"].reason == "Job 7_1 is no longer in the queue."


def test_a_participant_whose_outputs_were_removed_is_not_done(cohort: Cohort) -> None:
    out = Path(cohort.out_dir)
    names = tuple(f"sub-01/func/sub-01_task-rest_{suffix}" for suffix in ("embeddings.tsv", "embeddings.json"))
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    write_log(cohort, "01", replace(GOOD, outputs=names))
    assert states(cohort)["01"].state == "done"
    (out / names[1]).unlink()
    found = states(cohort)["01"]
    assert (found.state, found.can_be_submitted) == ("not begun", True)
    assert found.reason == f"Its outputs were removed: {names[1]}."
    shutil.rmtree(out / "sub-01" / "func")
    assert states(cohort)["01"].state == "not begun"


def test_a_participant_whose_images_and_clips_were_moved_away_is_done(cohort: Cohort) -> None:
    names = (
        "sub-01/func/sub-01_task-rest_embeddings.tsv",
        "sub-01/func/sub-01_task-rest_desc-preproc_bold.nii.gz",
        "sub-01/func/sub-01_task-rest_from-T1w_to-boldref_mode-image_xfm.txt",
        "sub-01/clips/global/sub-01_task-rest/values.npy",
    )
    table = Path(cohort.out_dir) / names[0]
    table.parent.mkdir(parents=True)
    table.touch()
    write_log(cohort, "01", replace(GOOD, outputs=names))
    assert states(cohort)["01"].state == "done"


@pytest.mark.parametrize("text", ["", "garbage", "started\tx\t7\n", "ended\t200\t0\n"])
def test_a_task_whose_row_is_damaged_counts_as_started_and_is_not_waited_for(cohort: Cohort, text: str) -> None:
    submission = submission_of(cohort, ("01",), scheduler="lists", job="")
    row = Path(submission.folder) / "tasks" / "1.tsv"
    row.write_text(text)
    os.utime(row, (time.time() - 10**6,) * 2)
    found = states(cohort)["01"]
    assert found.state in ("killed", "failed")
    assert found.can_be_submitted


def test_tasks_of_lists_with_other_options_are_not_waited_for(cohort: Cohort) -> None:
    submission_of(cohort, ("01",), scheduler="lists", job="", decisive=cohort.decisive)
    assert states(cohort)["01"].state == "waiting"
    write_cohort(other := replace(cohort, decisive={"model": '"other"'}))
    found = states(other)["01"]
    assert (found.state, found.reason) == ("not begun", "Its last task was prepared with other options.")


def test_a_label_that_is_none_is_refused(cohort: Cohort) -> None:
    write_cohort(replace(cohort, participants=("01", "../../x")))
    with pytest.raises(BadDataError, match=re.escape("'../../x'")):
        read_cohort(Path(cohort.out_dir))


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (
            None,
            "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
            "time limit",
        ),
        (143, "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "preempted"),
        (137, "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.", "memory limit"),
        (None, "09:00:00 1 BOLD runs", "was killed"),
    ],
)
def test_what_ended_a_task_is_read_from_its_log(cohort: Cohort, commands, code, log, reason) -> None:
    write_row(submission_of(cohort, ("01",)), 1, code, log)
    queue_is(commands)
    found = states(cohort)["01"]
    assert found.state == "killed"
    assert reason in found.reason


def test_a_result_from_before_the_submission_is_not_that_of_the_task(cohort: Cohort, commands) -> None:
    log = write_log(cohort, "01", BAD, status=FAILED)
    submission = submission_of(cohort, ("01", "02"), before={"01": log.name})
    queue_is(commands, 1)
    assert states(cohort)["01"].state == "waiting"
    write_row(submission, 1)
    assert states(cohort)["01"].state == "running"
    write_log(cohort, "01", GOOD, day=2)
    found = states(cohort)
    assert (found["01"].state, found["02"].state) == ("done", "running")


def test_a_failed_participant_of_a_task_that_still_runs_is_not_submitted(cohort: Cohort, commands) -> None:
    write_row(submission_of(cohort, ("01", "02")), 1)
    write_log(cohort, "01", BAD, status=FAILED)
    queue_is(commands, 1)
    assert (states(cohort)["01"].state, states(cohort)["01"].can_be_submitted) == ("failed", False)


def test_a_queue_that_does_not_answer_is_a_remark_and_stops_submissions(cohort: Cohort, commands) -> None:
    write_row(submission_of(cohort, ("01",)), 1)
    commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    found = progress_of(cohort)
    assert "Unable to contact" in found.remark
    assert found.counts["running"] == 1
    with pytest.raises(TemporaryError, match="Unable to contact"):
        read_progress(cohort, list(read_submissions(cohort)), queue_must_answer=True)


def test_a_damaged_summary_is_a_failure_with_its_name(cohort: Cohort) -> None:
    folder = write_log(cohort, "01", GOOD)
    (folder / "summary.json").write_text('{"status": 5}')
    assert (states(cohort)["01"].state, states(cohort)["01"].reason) == ("failed", "summary.json: status is not text.")


def test_ten_thousand_participants_are_read_in_seconds(tmp_path: Path, commands) -> None:
    cohort = make_cohort(tmp_path, tuple(f"{n:05d}" for n in range(10_000)))
    submission_of(cohort, *((label,) for label in cohort.participants))
    queue_is(commands, *range(1, 11))
    started = time.process_time()
    assert progress_of(cohort).counts["waiting"] == 10
    assert time.process_time() - started < 5
