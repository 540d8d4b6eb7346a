"""Page on how far a cohort is: states of all participants, reasons of failures, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app import __version__
from bids_app.bids.writer import write_text
from bids_app.reports.pages import page_template, style_and_script
from bids_app.reports.run_table import RunTable

PAGE = "progress.html"


@dataclass(frozen=True)
class Reason:
    """Reason why participants have no result."""

    state: str
    text: str
    hint: str
    exit_code: int | None
    n: int
    """Participants with this reason."""
    example: str
    """One of them."""
    log: str
    """Output of its job, relative to the page; empty without a job."""


@dataclass(frozen=True)
class ProgressPage:
    """Contents of the page."""

    name: str
    """Name of the output folder."""
    time: str
    """Date and time of the states."""
    counts: Sequence[tuple[str, int, str, str]]
    """Label, number, level (``bad``, ``warn`` or empty) and link of the figures at the top."""
    n_done: int
    n_participants: int
    speed: Sequence[tuple[str, str]]
    """Figures of speed, with their labels."""
    reasons: Sequence[Reason]
    """The most frequent first."""
    table: RunTable
    remark: str = ""


def write_progress_page(out_dir: Path, page: ProgressPage) -> Path:
    """Write the page to the output folder."""
    return write_text(out_dir / PAGE, render(page))


def render(page: ProgressPage) -> str:
    """Render the page as HTML; all text is escaped."""
    from markupsafe import Markup

    return page_template("progress").render(
        page=page,
        version=__version__,
        table=Markup(page.table.to_json()),
        **style_and_script(("style", "group", "runs"), ("script", "runs")),
    )
