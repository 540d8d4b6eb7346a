"""Commands of the schedulers, and their queues."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.cluster.cohort import Job, Resources
from bids_app.cluster.schedulers import SCHEDULERS, checked
from bids_app.errors import NoInputError, TemporaryError

JOB = Job(job_id="", first=2000, count=500)
RESOURCES = Resources(
    cpus=4, memory_gb=6.0, time="1-02:30:00", max_running=50, max_array=1000, scheduler_options=("--account=a b",)
)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("slurm", ["--array=1-500%50", "--cpus-per-task=4", "--mem=6000M", "--time=1-02:30:00", "--account=a b",
                   "--export=ALL,NEUROSTORM_FIRST=2000", "--output=/o 5%%/tasks/%A_%a.log"]),
        ("sge", ["-t", "1-500", "-tc", "50", "-pe", "smp", "4", "h_vmem=1500M", "h_rt=26:30:00", "--account=a b",
                 "NEUROSTORM_FIRST=2000"]),
        ("pbs", ["-J", "1-500%50", "select=1:ncpus=4:mem=6000mb", "walltime=26:30:00", "--account=a b",
                 "NEUROSTORM_FIRST=2000"]),
    ],
)  # fmt: skip
def test_resources_limits_and_options_are_passed_on(name: str, wanted: list[str]) -> None:
    words = SCHEDULERS[name].words(Path("/o 5%/job.sh"), JOB, RESOURCES)
    assert [word for word in wanted if word not in words] == []
    assert words[-1] == "/o 5%/job.sh"


def test_pbs_has_no_array_of_one_task() -> None:
    assert "-J" not in SCHEDULERS["pbs"].words(Path("job.sh"), Job(job_id="", first=0, count=1), RESOURCES)


@pytest.mark.parametrize(
    ("name", "printed", "wanted"),
    [("slurm", "123;cluster\n", "123"), ("sge", "123.1-500:1\n", "123"), ("pbs", "123[].server\n", "123[].server")],
)
def test_names_of_jobs_are_read(name: str, printed: str, wanted: str) -> None:
    assert SCHEDULERS[name].read_id(printed) == wanted


def test_tasks_in_the_queue_are_read(commands) -> None:
    jobs = [Job(job_id="12", first=0, count=9), Job(job_id="13", first=9, count=9)]
    commands("squeue", r"printf '12|3\n12|4\n99|1\n13|N/A\n'")
    assert SCHEDULERS["slurm"].in_queue(jobs) == {"12": {3, 4}}
    commands(
        "qstat", r"printf 'job-ID prior name\n---\n 12 0.5 n u qw 1 4 2-8:2,9\n 12 0.5 n u r all.q@h 4 1\n 99 0 n 1\n'"
    )
    assert SCHEDULERS["sge"].in_queue(jobs) == {"12": {1, 2, 4, 6, 8, 9}}
    commands("qstat", '[ "$1" = 13 ]')
    assert SCHEDULERS["pbs"].in_queue(jobs) == {"13": None}


def test_a_scheduler_that_fails_or_is_missing_is_an_error_with_its_message(commands) -> None:
    commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(TemporaryError, match="squeue failed: Unable to contact"):
        SCHEDULERS["slurm"].in_queue([JOB])
    with pytest.raises(NoInputError, match="no-such-scheduler: no such command"):
        checked("no-such-scheduler")
