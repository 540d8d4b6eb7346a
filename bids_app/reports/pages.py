"""Names of the reports of a participant (one page, or one for each session), and the templates of pages."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bids_app.bids.entities import split_name

if TYPE_CHECKING:
    from jinja2 import Template


def find_pages(out_dir: Path) -> set[str]:
    """Return the file names of the reports of all participants with outputs in an output folder."""
    found = out_dir.glob("sub-*.html")
    return {path.name for path in found if (out_dir / path.stem.partition("_")[0]).is_dir()}


def pages_without_outputs(out_dir: Path) -> list[str]:
    """Return the file names of reports whose participant has no outputs any more."""
    return sorted({path.name for path in out_dir.glob("sub-*.html")} - find_pages(out_dir))


def page_of(pages: Collection[str], participant: str, stem: str) -> str:
    """Return the URL of the page with the report of a run, relative to the output folder; empty without a report.

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
    return quote(next((page for page in (own, f"{participant}.html") if page in pages), ""))


def session_page(participant: str, session: str) -> str:
    """Return the file name of the report of a session."""
    return f"{participant}_ses-{session}.html"


def page_template(name: str, package: str = "bids_app.reports") -> Template:
    """Return a template of a page, in the folder ``templates`` of a package; it escapes all text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from bids_app.catalog.cards import plain

    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["plain"] = plain
    return environment.get_template(f"{name}.html.jinja")


def style_and_script(styles: Sequence[str], scripts: Sequence[str]) -> dict[str, str]:
    """Return ``style``, ``script`` and ``script_hash``, the only script that the page allows, for a template.

    Parameters
    ----------
    styles, scripts : sequence of str
        Names of files of the templates, without extension.
    """
    from markupsafe import Markup

    script = "".join(template_text(f"{name}.js") for name in scripts)
    return {
        "style": Markup("".join(template_text(f"{name}.css") for name in styles)),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def template_text(name: str) -> str:
    """Return the text of a file of the templates."""
    return files("bids_app.reports").joinpath("templates", name).read_text(encoding="utf-8")
