"""Page of the review: one figure at a time, with its ratings. All scripts and styles are part of the page.

From the server, ratings are stored through it. As a file, `STATIC_PAGE` in the output folder, the page keeps ratings in
the browser and saves them as a table of the same format. Text is inserted as text, never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.writer import write_text
from bids_app.outputs.ratings import COLUMNS, MAX_NOTE, MISSING, RATINGS, TAGS, Rating, hash_figure, is_outdated
from bids_app.reports.pages import page_template, template_text
from bids_app.reports.run_table import as_script
from bids_app.review.figures import Review

STATIC_PAGE = "review.html"
"""Name of the page in the output folder that works without a server."""
FIGURES_URL = "out/"
"""Where the server has the figures, relative to the page."""


def render_page(review: Review, rater: str = "", ratings: Mapping[str, Rating] | None = None) -> str:
    """Render the page.

    Parameters
    ----------
    review : Review
    rater : str
        Label of the rater, for the page of the server; empty: for the page in the output folder.
    ratings : mapping, optional
        Ratings so far by figure; for the page of the server.
    """
    from markupsafe import Markup

    script = _template("review.js")
    style = template_text("style.css")
    content = _content(review, rater, ratings or {})
    return page_template("review", "bids_app.review").render(
        version=__version__,
        dataset=review.out_dir.resolve().name,
        ratings=RATINGS,
        tags=TAGS,
        max_note=MAX_NOTE,
        policy=policy(script, rater != ""),
        style=Markup(style + _template("review.css")),
        script=Markup(script),
        content=Markup(as_script(content)),
    )


def write_static_page(review: Review) -> Path:
    """Write the page that works without a server, and return its path.

    Raises
    ------
    CannotCreateError, InputOutputError
        It cannot be written.
    """
    return write_text(review.out_dir / STATIC_PAGE, render_page(review))


def policy(script: str = "", connects: bool = True) -> str:
    """Return the Content-Security-Policy of the page: only its own script, and figures from where it is."""
    script = script or _template("review.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        f"connect-src {chr(39)}{'self' if connects else 'none'}{chr(39)}; base-uri 'none'; form-action 'none'"
    )


def rating_row(rating: Rating, outdated: bool = False) -> dict[str, Any]:
    """Return what the page knows about a rating; ``outdated``: the figure has changed since."""
    row = {"rating": rating.rating, "tags": rating.tags, "note": rating.note, "time": rating.rated_at}
    return row | ({"outdated": True} if outdated else {})


def figure_version(path: Path) -> str:
    """Return a text that changes when a figure is written; empty if it cannot be read."""
    try:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return ""


def _content(review: Review, rater: str, ratings: Mapping[str, Rating]) -> dict[str, Any]:
    images = list(dict.fromkeys(figure.image for figure in review.figures))
    index = {image: number for number, image in enumerate(images)}
    rows: list[list[Any]] = []
    for figure in review.figures:
        path = review.out_dir / figure.path
        row = [index[figure.image], figure.kind, figure.name, path.suffix]
        rows.append([*row, figure_version(path) if rater else hash_figure(path)])
    return {
        "rater": rater,
        "folder": hashlib.sha256(str(review.out_dir.resolve()).encode(errors="surrogateescape")).hexdigest()[:16],
        "base": FIGURES_URL if rater else "",
        "images": images,
        "kinds": [vars(kind) for kind in review.kinds],
        "figures": rows,
        "rated": {name: rating_row(each, is_outdated(review.out_dir, each)) for name, each in ratings.items()},
        "ratings": RATINGS,
        "tags": TAGS,
        "columns": COLUMNS,
        "missing": MISSING,
    }


def _template(name: str) -> str:
    return files("bids_app.review").joinpath("templates", name).read_text(encoding="utf-8")
