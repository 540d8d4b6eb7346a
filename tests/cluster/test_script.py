"""The script of array jobs, run by bash with a stub of the app."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.cluster.cohort import Cohort, Submission
from bids_app.cluster.submit import submit
from tests.cluster.conftest import make_cohort


def started(cohort: Cohort) -> Submission:
    submission = submit(cohort)
    assert submission is not None
    return submission


def run(submission: Submission, number: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", f"{submission.folder}/job.sh", number]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_task_passes_its_participants_and_options_and_writes_its_end(tmp_path: Path, commands) -> None:
    seen = tmp_path / "seen"
    app = commands("my app", f"printf '%s\\n' \"$PWD\" \"$@\" > '{seen}'; echo out; echo err >&2; exit 65")
    options = ("--task-id", "a b", "--bids-filter-file", '{"bold": {"run": 1}}')
    labels = ("01", "02", "03")
    cohort = make_cohort(tmp_path, labels, command=f"'{app}' --first", shard_size=2, options=options)
    submission = started(cohort)
    assert run(submission, "1").returncode == 65
    words = seen.read_text().splitlines()
    scratch = words[words.index("--work-dir") + 1]
    assert words == [
        str(tmp_path), "--first", cohort.bids_dir, cohort.out_dir, "participant", "--participant-label", "01", "02",
        "--work-dir", scratch, "--nprocs", "1", "--mem", "1.8GB", *options,
    ]  # fmt: skip
    assert not Path(scratch).exists()
    tasks = Path(submission.folder) / "tasks"
    assert [line.split("\t")[0] for line in (tasks / "1.tsv").read_text().splitlines()] == ["started", "ended"]
    assert (tasks / "1.tsv").read_text().endswith("\t65\n")
    assert (tasks / "1.log").read_text() == "out\nerr\n"


@pytest.mark.parametrize("word", ["", "abc", "-1", "1;2"])
def test_a_word_that_is_no_number_of_a_task_is_refused(cohort: Cohort, word: str) -> None:
    submission = started(cohort)
    done = run(submission, word)
    assert (done.returncode, done.stderr.partition(" NUMBER")[0]) == (64, "Usage: bash job.sh")
    assert not list((Path(submission.folder) / "tasks").iterdir())


def test_a_number_with_zeros_in_front_is_read_as_decimal(tmp_path: Path, commands) -> None:
    commands("neurostorm", f"echo $5 > '{tmp_path}/label'")
    submission = started(make_cohort(tmp_path, tuple(f"{k:02d}" for k in range(1, 10))))
    assert run(submission, "08").returncode == 0
    assert (tmp_path / "label").read_text() == "08\n"


def test_an_array_after_the_first_counts_on(tmp_path: Path, commands) -> None:
    commands("neurostorm", f"echo $5 > '{tmp_path}/label'")
    submission = started(make_cohort(tmp_path))
    assert run(submission, "1", NEUROSTORM_FIRST="2").returncode == 0
    assert (tmp_path / "label").read_text() == "03\n"
    done = run(submission, "4")
    assert (done.returncode, done.stderr) == (64, "shards.txt has no line 4.\n")


def test_sigterm_is_passed_on_and_the_script_waits_for_the_app(tmp_path: Path, commands) -> None:
    """SLURM kills the app when the script ends, so the script must not end first."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    commands("neurostorm", f"trap 'sleep 0.3; touch {ended}; exit 143' TERM\ntouch {begun}\nsleep 60 &\nwait")
    submission = started(make_cohort(tmp_path))
    task = subprocess.Popen(["bash", f"{submission.folder}/job.sh", "1"], start_new_session=True)
    try:
        while not begun.exists():
            assert task.poll() is None
            time.sleep(0.02)
        task.terminate()
        assert task.wait(timeout=20) == 143
        assert ended.exists()
        assert (Path(submission.folder) / "tasks" / "1.tsv").read_text().endswith("\t143\n")
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended before
            os.killpg(task.pid, signal.SIGKILL)  # the sleep of the app


@pytest.mark.parametrize("scheduler", ["slurm", "sge", "pbs"])
def test_scripts_of_all_schedulers_are_valid(tmp_path: Path, scheduler: str) -> None:
    from bids_app.cluster.script import job_script

    text = job_script(replace(make_cohort(tmp_path), scheduler=scheduler), tmp_path / "a 'b")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
