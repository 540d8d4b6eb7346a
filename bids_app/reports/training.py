"""Page of a training run: curves, times and settings in one file without references to others."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app import __version__
from bids_app.bids.writer import write_text
from bids_app.reports.pages import page_template, style_and_script


@dataclass(frozen=True)
class Picture:
    """Figure of the page."""

    svg: str
    title: str
    caption: str

    @property
    def url(self) -> str:
        """Data URL, so that figures do not share styles and identifiers."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True)
class TrainingPage:
    """Contents of the page."""

    name: str
    """Name of the run."""
    counts: Sequence[tuple[str, str]]
    """Figures at the top, with their labels."""
    pictures: Sequence[Picture]
    epochs: Sequence[Sequence[str]]
    """Table of epochs; the first row has the headings."""
    settings: Sequence[tuple[str, str]]
    error: str = ""
    """Why the run was stopped."""


def write_training_page(path: Path, page: TrainingPage) -> Path:
    """Write the page."""
    return write_text(path, render(page))


def render(page: TrainingPage) -> str:
    """Render the page as HTML; all text is escaped."""
    return page_template("training").render(page=page, version=__version__, **style_and_script(("style", "group"), ()))
