"""``index.html`` of the output folder: all runs with status, verdict, rating and quality, and links to the reports.

Each report that is written updates the rows of its own participant; the group level writes all rows. Reports link to
their neighbours through this page (``index.html#after=sub-01``), because participants may be added later.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.entities import natural_key, split_name
from bids_app.bids.writer import one_at_a_time, write_text
from bids_app.files import read_output
from bids_app.outputs.schema import FAILED, LEVELS, OK
from bids_app.reports.pages import find_pages, page_of, page_template, style_and_script
from bids_app.reports.run_table import CATEGORY, Column, RunTable, as_script, metric_column

INDEX = "index.html"
METRICS = ("fd_mean", "tsnr", "coverage", "coreg_dice")
"""Image quality metrics on the page."""
STATUS_COLOURS = {OK: "good", FAILED: "bad", "unreadable": "bad", "missing": "warn"}
VERDICT_COLOURS = {"pass": "good", "warn": "warn", "refuse": "bad"}
RATING_COLOURS = {"pass": "good", "doubtful": "warn", "fail": "bad"}
LINKS = {
    "group.html": "Group report",
    "progress.html": "Progress",
    "review.html": "Review of figures",
    "logs/CITATION.html": "Methods",
    "group_runs.tsv": "Table of runs",
    "group_bold.tsv": "Table of image quality metrics",
    "group_embeddings.tsv": "Table of embeddings",
    "ratings/include.tsv": "Runs to include",
}
"""Other files of the output folder that the page links to, if they exist."""
ROWS = re.compile(r'<script type="application/json" id="index-rows">(.*?)</script>', re.DOTALL)
MAX_TEXT = 200
"""Maximum length of a text in a row that is read back."""


@dataclass(frozen=True)
class IndexRow:
    """Run on the page."""

    run: str
    status: str = ""
    verdict: str = ""
    rating: str = ""
    quality: Mapping[str, float] | None = None
    """Metrics of `METRICS`."""

    @property
    def participant(self) -> str:
        """Participant, such as ``sub-01``."""
        return self.run.partition("_")[0]

    def to_json(self) -> list[Any]:
        """Return the row as a list, to be read back by `read_rows`."""
        quality = {name: value for name, value in (self.quality or {}).items() if math.isfinite(value)}
        return [self.run, self.status, self.verdict, self.rating, *(quality.get(name) for name in METRICS)]


def update_index(out_dir: Path, rows: Iterable[IndexRow], name: str = "") -> Path:
    """Write ``index.html`` with new rows for the participants of these runs; other participants keep theirs.

    Participants without a report are left out; those without rows are listed without details.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    rows : iterable of IndexRow
    name : str
        Name of the dataset; the name of the folder if empty.
    """
    new = list(rows)
    path = out_dir / INDEX
    with one_at_a_time(out_dir):  # what a lost update leaves out is listed without details, until it is made again
        replaced = {row.participant for row in new}
        found = {row.run: row for row in read_rows(path) if row.participant not in replaced}
        found |= {row.run: row for row in new}
        pages = find_pages(out_dir)
        reports = {page.removesuffix(".html") for page in pages if "_" not in page}
        listed = [row for row in found.values() if row.participant in reports or row.participant in replaced]
        known = {row.participant for row in listed}
        listed += [IndexRow(participant) for participant in reports - known]
        listed.sort(key=lambda row: natural_key(row.run))
        links = {url: title for url, title in LINKS.items() if (out_dir / url).is_file()}
        return write_text(path, render(listed, pages, links, name or out_dir.resolve().name))


def read_rows(path: Path) -> list[IndexRow]:
    """Read the rows of a page; none if there is no page or it was changed by others."""
    try:
        found = ROWS.search(read_output(path).decode())
        rows = json.loads(found[1]) if found else []
        return [_row_from(cells) for cells in rows]
    except (OSError, ValueError, TypeError, IndexError, KeyError, RecursionError):
        return []


def render(rows: Sequence[IndexRow], pages: Collection[str], links: Mapping[str, str], name: str) -> str:
    """Render the page.

    Parameters
    ----------
    rows : sequence of IndexRow
        In order.
    pages : collection of str
        File names of the reports.
    links : mapping
        Titles of other pages and tables by their URL.
    name : str
        Name of the dataset.
    """
    from markupsafe import Markup

    urls = [page_of(pages, row.participant, row.run) for row in rows]
    table = RunTable([row.run for row in rows], urls, list(_columns(rows)))
    return page_template("index").render(
        version=__version__,
        name=name,
        counts=_counts(rows),
        links=links,
        participants={name: page_of(pages, name, name) for name in dict.fromkeys(row.participant for row in rows)},
        run_table=Markup(table.to_json()),
        rows=Markup(as_script([row.to_json() for row in rows])),
        **style_and_script(("style", "group", "runs"), ("script", "runs")),
    )


def _columns(rows: Sequence[IndexRow]) -> Iterator[Column]:
    for name, title, levels, colours in (
        ("status", "Status", tuple(STATUS_COLOURS), STATUS_COLOURS),
        ("verdict", "Verdict", LEVELS, VERDICT_COLOURS),
        ("rating", "Rating", tuple(RATING_COLOURS), RATING_COLOURS),
    ):
        values = [getattr(row, name) for row in rows]
        if any(values):
            yield Column(name, title, values, CATEGORY, tuple(levels), colours, shown=True, filtered=True)
    for name in METRICS:
        column = metric_column(name, [(row.quality or {}).get(name) for row in rows], shown=True)
        if any(value is not None for value in column.values):
            yield column
    for entity, title in (("ses", "Session"), ("task", "Task")):
        values = [split_name(f"{row.run}_bold")[0].get(entity, "") for row in rows]
        if len(set(values)) > 1:
            yield Column(entity, title, values, CATEGORY, filtered=True)


def _counts(rows: Sequence[IndexRow]) -> list[tuple[str, int, str, str]]:
    """Return label, number, level and link of the counts at the top of the page."""
    found = [("Participants", len({row.participant for row in rows}), "", ""), ("Runs", len(rows), "", "")]
    for title, name, value, level in (
        ("Failed", "status", FAILED, "bad"), ("Refused", "verdict", "refuse", "bad"),
        ("Warnings", "verdict", "warn", "warn"), ("Rated as failed", "rating", "fail", "bad"),
    ):  # fmt: skip
        n = sum(getattr(row, name) == value for row in rows)
        if n:
            found.append((title, n, level, f"#wall&is-{name}={value}"))
    return found


def _row_from(cells: list[Any]) -> IndexRow:
    """Check a row that was read back.

    Raises
    ------
    ValueError, TypeError
        It is not what `IndexRow.to_json` writes.
    """
    run, status, verdict, rating, *metrics = cells
    texts = (run, status, verdict, rating)
    if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts) or not run.startswith("sub-"):
        raise ValueError("no row of the index")
    quality = {name: float(value) for name, value in zip(METRICS, metrics, strict=True) if value is not None}
    return IndexRow(run, status, verdict, rating, quality)
