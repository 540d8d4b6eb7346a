"""Progress as a page and as text."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bids_app.cluster.cohort import Cohort, Job, Submission
from bids_app.cluster.progress import as_text, describe_speed, group_reasons, write_page
from bids_app.cluster.states import Participant, Progress
from bids_app.cluster.tasks import Task

SUBMISSION = Submission(
    folder="/nowhere", scheduler="slurm", submitted="", cpus=2, shards=(("1", "2"), ("3", "4")),
    jobs=(Job(job_id="7", first=0, count=2),),
)  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)>"


def failed(label: str, reason: str) -> Participant:
    return Participant(label, "failed", reason, "Copy it again.", 65)


def test_participants_that_failed_for_the_same_reason_are_one_line(cohort: Cohort) -> None:
    reasons = [f"sub-{n}_bold.nii.gz: {n} of 200 volumes." for n in range(5)] + ["No space."]
    found = Progress([failed(str(n), reason) for n, reason in enumerate(reasons)], [])
    grouped = group_reasons(found, Path(cohort.out_dir))
    assert [(each.n, each.example) for each in grouped] == [(5, "sub-0"), (1, "sub-5")]
    text = as_text(cohort, found)
    assert text.startswith("6 participants: 0 done, 6 failed, 0 running\n")
    assert (
        "5 participants, such as sub-0: sub-0_bold.nii.gz: 0 of 200 volumes. (exit code 65)\n    Copy it again." in text
    )


def test_speed_counts_the_participants_of_tasks_while_any_ran() -> None:
    tasks = [Task(SUBMISSION, 1, started=0.0, ended=3600.0), Task(SUBMISSION, 2, started=1800.0, ended=5400.0)]
    tasks.append(Task(SUBMISSION, 2, started=9000.0))
    assert [value for _, value in describe_speed(tasks, 8)] == ["30.0 min", "1.00", "3", "3.0 h"]
    assert describe_speed(tasks[2:], 8) == []


def test_the_page_has_all_participants_and_escapes_what_others_wrote(cohort: Cohort) -> None:
    out = Path(cohort.out_dir)
    (out / "sub-01").mkdir()
    (out / "sub-01.html").write_text("report")
    people = [failed("01", HOSTILE), Participant("02", "done", n_runs=2, seconds=90.0), Participant("03", "waiting")]
    path = write_page(cohort, Progress(people, [], f"Queue: {HOSTILE}"))
    page = path.read_text()
    assert path == out / "progress.html"
    assert HOSTILE not in page
    table = json.loads(re.search(r'id="run-table">(.*?)</script>', page, re.DOTALL)[1])
    assert table["runs"] == ["sub-01", "sub-02", "sub-03"]
    assert table["page"]["levels"] == ["sub-01.html"]
    assert '<dt>Failed</dt><dd><a href="#wall&amp;is-state=failed">1</a>' in page


def test_the_page_holds_ten_thousand_participants(cohort: Cohort) -> None:
    people = [failed(f"{n:05d}", f"sub-{n:05d}_bold.nii.gz: the file is truncated at byte {n}.") for n in range(10_000)]
    page = write_page(cohort, Progress(people, [])).read_text()
    assert len(page) < 4_000_000
    assert json.loads(re.search(r'id="run-table">(.*?)</script>', page, re.DOTALL)[1])["left_out"] == []
