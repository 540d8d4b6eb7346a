"""The group's page: a summary in words, then sections of static figures and sortable tables.

What a section says is found by the group level; here it is laid out. Long lists are cut on the page, with a link to the
table that has all, so that the page stays small however many runs there are. Everything from files is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from bids_app import __version__
from bids_app.bids.writer import write_text

MAX_ROWS = 25
"""Of a table on the page."""
MAX_REMARKS = 12
"""In the summary."""
FIGURES = "group_figures"
"""Folder of the figures, beside the page."""
GOOD, WARN, BAD = "good", "warn", "bad"
SEVERITIES = (BAD, WARN, GOOD)
"""From what should be looked at first."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    url: str = ""
    level: str = ""
    """`GOOD`, `WARN` or `BAD` for a badge; empty for plain text."""
    value: float | None = None
    """What it is sorted by, where that is not its text."""


@dataclass(frozen=True)
class Table:
    """A table of the page, cut to `MAX_ROWS`."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    url: str = ""
    """The file that has all rows."""
    total: int = 0
    """Rows in all, where ``rows`` was cut already."""

    @property
    def n_rows(self) -> int:
        """Rows in all."""
        return max(self.total, len(self.rows))


@dataclass(frozen=True)
class Picture:
    """A figure of the page; ``url`` is relative to it."""

    url: str
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Remark:
    """A sentence for the summary, and how grave it is."""

    level: str
    text: str
    url: str = ""
    """Where to look; the section that it comes from where it is empty."""


@dataclass
class Section:
    """A section of the page."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    """What the summary says of it."""


@dataclass(frozen=True)
class GroupPage:
    """All that the page shows."""

    name: str
    """Of the dataset."""
    lead: str
    """The first sentence."""
    counts: Sequence[tuple[str, Cell]]
    """Numbers of the first screen, with their names."""
    sections: Sequence[Section]
    demonstration: bool = False
    research_only: tuple[str, ...] = ()
    """Adapters of a diagnosis."""
    notes: tuple[str, ...] = ()
    """What was not to be had."""
    files: tuple[str, ...] = ()
    """Tables, relative to the page."""


def write_group_page(out_dir: Path, page: GroupPage) -> Path:
    """Write ``group.html``."""
    return write_text(out_dir / "group.html", render(page))


def render(page: GroupPage) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("bids_app.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script = _template("script.js")
    remarks = [(section, remark) for section in page.sections for remark in section.remarks]
    remarks.sort(key=lambda item: SEVERITIES.index(item[1].level))
    return environment.get_template("group.html.jinja").render(
        page=page,
        remarks=remarks[:MAX_REMARKS],
        n_remarks=len(remarks),
        most_rows=MAX_ROWS,
        version=__version__,
        style=Markup(_template("style.css") + _template("group.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def report_url(participant: str) -> str:
    """The page of a participant, ``sub-<label>``, from the group's."""
    return quote(f"{participant}.html")


def _template(name: str) -> str:
    return files("bids_app.reports").joinpath("templates", name).read_text(encoding="utf-8")
