"""Progress of a cohort as a page, and as text for the terminal."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from bids_app.cluster.cohort import Cohort
from bids_app.cluster.states import DONE, FAILED, KILLED, NOT_BEGUN, RUNNING, STATES, Participant, Progress
from bids_app.cluster.tasks import Task
from bids_app.reports.pages import find_pages
from bids_app.reports.progress import ProgressPage, Reason, write_progress_page
from bids_app.reports.run_table import CATEGORY, NUMBER, Column, RunTable
from bids_app.terminal import count_of

COLOURS = {DONE: "good", FAILED: "bad", KILLED: "warn"}
VARIABLE = re.compile(r"\bsub-[0-9A-Za-z]+\S*|\S*/\S+|\d+(?:\.\d+)?(?:e-?\d+)?")
"""What may differ between messages of the same reason: names of files, numbers."""
MAX_REASONS = 100
MAX_PRINTED = 8


def group_reasons(progress: Progress, out_dir: Path) -> list[Reason]:
    """Return the reasons of failed and killed participants, and of those that are not begun, most frequent first."""
    groups: dict[tuple[str, str, int | None], list[Participant]] = {}
    for each in progress.participants:
        if each.reason and each.state in (FAILED, KILLED, NOT_BEGUN):
            groups.setdefault((each.state, VARIABLE.sub("0", each.reason), each.exit_code), []).append(each)
    found = []
    for (state, _, code), own in sorted(groups.items(), key=lambda item: (STATES.index(item[0][0]), -len(item[1]))):
        first = own[0]
        log = first.task.log if first.task else None
        is_log = log is not None and log.is_relative_to(out_dir) and log.is_file()
        url = quote(log.relative_to(out_dir).as_posix()) if log is not None and is_log else ""
        found.append(Reason(state, first.reason, first.hint, code, len(own), f"sub-{first.label}", url))
    return found


def describe_speed(tasks: Sequence[Task], n_left: int) -> list[tuple[str, str]]:
    """Return figures of speed from the tasks that ended by themselves; none before the first has."""
    ended = [(t.started, t.ended, t) for t in tasks if t.started is not None and t.ended is not None]
    if not ended:
        return []
    each = [(end - start) / len(task.labels) for start, end, task in ended]
    core_hours = sum((end - start) * task.submission.cpus for start, end, task in ended) / 3600
    n = sum(len(task.labels) for _, _, task in ended)
    busy_hours = _union([(start, end) for start, end, _ in ended]) / 3600
    found = [
        ("Time for a participant, median", f"{statistics.median(each) / 60:.1f} min"),
        ("Processor hours reserved for a participant", f"{core_hours / n:.2f}"),
        ("Participants per hour while jobs ran", f"{n / busy_hours:.0f}" if busy_hours else "n/a"),
    ]
    if n_left and busy_hours:
        found.append(("Time for those that are left, at this speed", f"{n_left * busy_hours / n:.1f} h"))
    return found


def _union(spans: Sequence[tuple[float, float]]) -> float:
    """Return the total time that is in any of some spans."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def write_page(cohort: Cohort, progress: Progress) -> Path:
    """Write the page to the output folder."""
    out_dir, found = Path(cohort.out_dir), progress.participants
    pages = find_pages(out_dir)
    urls = [quote(f"sub-{each.label}.html") if f"sub-{each.label}.html" in pages else "" for each in found]
    codes = ["" if each.exit_code is None else str(each.exit_code) for each in found]
    columns = [
        Column("state", "State", [p.state for p in found], CATEGORY, STATES, COLOURS, shown=True, filtered=True),
        Column("reason", "Reason", [p.reason for p in found], shown=True),
        Column("code", "Exit code", codes, CATEGORY, shown=True),
        Column("runs", "Runs", [p.n_runs for p in found], NUMBER, shown=True),
        Column("minutes", "Time", [p.seconds for p in found], NUMBER, shown=True, factor=1 / 60, digits=1, unit="min"),
        Column("task", "Job", [p.task.name if p.task else "" for p in found]),
    ]  # fmt: skip
    levels = {FAILED: "bad", KILLED: "warn"}
    counts = [("Participants", len(found), "", "")]
    for state, n in progress.counts.items():
        counts.append((state.capitalize(), n, levels.get(state, "") if n else "", f"#wall&is-state={quote(state)}"))
    n_done = progress.counts[DONE]
    page = ProgressPage(
        name=out_dir.name,
        time=time.strftime("%Y-%m-%d %H:%M"),
        counts=counts,
        n_done=n_done,
        n_participants=len(found),
        speed=describe_speed(progress.tasks, len(found) - n_done - progress.counts[FAILED]),
        reasons=group_reasons(progress, out_dir)[:MAX_REASONS],
        table=RunTable([f"sub-{each.label}" for each in found], urls, columns, noun="participant"),
        remark=progress.remark,
    )
    return write_progress_page(out_dir, page)


def as_text(cohort: Cohort, progress: Progress) -> str:
    """Return the progress as lines for the terminal."""
    total = sum(progress.counts.values())
    states = ", ".join(f"{n:,} {state}" for state, n in progress.counts.items() if n or state in (DONE, RUNNING))
    lines = [f"{count_of(total, 'participant')}: {states}"]
    reasons = group_reasons(progress, Path(cohort.out_dir))
    for reason in reasons[:MAX_PRINTED]:
        of = f"{reason.n} participants, such as {reason.example}" if reason.n > 1 else reason.example
        code = "" if reason.exit_code is None else f" (exit code {reason.exit_code})"
        lines.append(f"  {reason.state}: {of}: {reason.text}{code}")
        lines += [f"    {reason.hint}"] if reason.hint else []
    if len(reasons) > MAX_PRINTED:
        lines.append(f"  and {len(reasons) - MAX_PRINTED} more reasons on the page")
    return "\n".join([*lines, *([progress.remark] if progress.remark else [])])
