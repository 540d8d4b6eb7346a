"""Group report: a summary, then sections with static figures and sortable tables.

The group level computes the contents; this module renders them. Long tables are truncated on the page and link to the
complete file, so that the page stays small for large cohorts. All text from files is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from bids_app import __version__
from bids_app.bids.writer import write_text
from bids_app.reports.pages import page_template, style_and_script
from bids_app.reports.run_table import RunTable

MAX_ROWS = 25
"""Maximum rows of a table on the page."""
MAX_REMARKS = 12
"""Maximum remarks in the summary."""
FIGURES = "group_figures"
"""Folder of the figures, next to the page."""
GOOD, WARN, BAD = "good", "warn", "bad"
SEVERITIES = (BAD, WARN, GOOD)
"""Most severe first."""


@dataclass(frozen=True)
class Cell:
    """Table cell."""

    text: str
    url: str = ""
    level: str = ""
    """`GOOD`, `WARN` or `BAD` for a badge; empty for plain text."""
    value: float | None = None
    """Sort key, if it differs from the text."""


@dataclass(frozen=True)
class Table:
    """Table of the page, truncated to `MAX_ROWS`."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    url: str = ""
    """File with all rows."""
    total: int = 0
    """Total number of rows, if ``rows`` is already truncated."""

    @property
    def n_rows(self) -> int:
        """Total number of rows."""
        return max(self.total, len(self.rows))


@dataclass(frozen=True)
class Figure:
    """Figure of the page; ``url`` is relative to the page."""

    url: str
    title: str
    caption: str
    alt: str
    plot: Callable[[Path], object]
    """Writes the figure to a file."""

    @property
    def name(self) -> str:
        """Name of the file without extension."""
        return Path(self.url).stem


@dataclass(frozen=True)
class Remark:
    """Sentence for the summary, with its severity."""

    level: str
    text: str
    url: str = ""
    """Link target; the section of the remark if empty."""


@dataclass
class Section:
    """Section of the page."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    """Sentences for the summary."""
    has_map: bool = False
    """True to show the maps of `GroupPage.table` above the figures, which are then folded."""


@dataclass(frozen=True)
class GroupPage:
    """Contents of the group report."""

    name: str
    """Name of the dataset."""
    lead: str
    """First sentence."""
    counts: Sequence[tuple[str, Cell]]
    """Counts at the top of the page, with their labels."""
    sections: Sequence[Section]
    table: RunTable
    """All runs."""
    demonstration: bool = False
    untrained: tuple[str, ...] = ()
    """Encoders with random weights."""
    research_only: tuple[str, ...] = ()
    """Adapters for research use only."""
    selection: str = ""
    """Sentence on what is left out, if the page is of a part of the output folder."""
    notes: tuple[str, ...] = ()
    """Notes on missing inputs."""
    files: tuple[str, ...] = ()
    """URLs of the tables, relative to the page."""


def write_group_page(path: Path, page: GroupPage, reports: Collection[str]) -> Path:
    """Write the group report; ``reports`` are the file names of the participants' reports, from `find_pages`."""
    return write_text(path, render(page, reports))


def render(page: GroupPage, reports: Collection[str]) -> str:
    """Render the group report as HTML; reports that do not exist are not linked."""
    from markupsafe import Markup

    urls = {cell.url for section in page.sections for table in section.tables for row in table.rows for cell in row}
    missing = {url for url in urls if url.startswith("sub-") and unquote(url) not in reports}

    remarks = [(section, remark) for section in page.sections for remark in section.remarks]
    remarks.sort(key=lambda item: SEVERITIES.index(item[1].level))
    return page_template("group").render(
        page=page,
        remarks=remarks[:MAX_REMARKS],
        n_remarks=len(remarks),
        max_rows=MAX_ROWS,
        missing=missing,
        version=__version__,
        run_table=Markup(page.table.to_json()),
        **style_and_script(("style", "group", "runs"), ("script", "runs", "map")),
    )


def report_url(participant: str) -> str:
    """Return the URL of the report of a participant (``sub-<label>``), relative to the group report."""
    return quote(f"{participant}.html")
