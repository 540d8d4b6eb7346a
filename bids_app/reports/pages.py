"""Names of the reports of a participant (one page, or one for each session), and the templates of pages."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from bids_app.bids.entities import split_name


def find_pages(out_dir: Path) -> set[str]:
    """Return the file names of all reports in an output folder."""
    return {path.name for path in out_dir.glob("sub-*.html")}


def page_of(pages: Collection[str], participant: str, stem: str) -> str:
    """Return the URL of the page with the report of a run, relative to the output folder.

    Parameters
    ----------
    pages : collection of str
        File names of the reports, from `find_pages`.
    participant : str
        ``sub-<label>``.
    stem : str
        Name of the run.
    """
    session = split_name(f"{stem}_bold")[0].get("ses")
    own = session_page(participant, session) if session else ""
    return quote(own if own in pages else f"{participant}.html")


def session_page(participant: str, session: str) -> str:
    """Return the file name of the report of a session."""
    return f"{participant}_ses-{session}.html"


def template_text(name: str) -> str:
    """Return the text of a file of the templates."""
    return files("bids_app.reports").joinpath("templates", name).read_text(encoding="utf-8")
