"""Figures of an output folder that are reviewed, in the order of runs.

Figures of predictions are left out, so that raters judge a scan without knowing what was predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from bids_app.bids.entities import natural_key
from bids_app.errors import NoInputError
from bids_app.outputs.ratings import ANATOMY, FIGURE
from bids_app.reports.contents import Figure, Reader

SECTIONS = ("anatomy", "functional", "grid")
"""Sections of the participant report whose figures are reviewed."""


@dataclass(frozen=True)
class Kind:
    """Kind of figure, such as the alignment of BOLD and T1w image."""

    title: str
    caption: str
    first: str = ""
    second: str = ""
    """Labels of the two images of a flicker figure; empty for other figures."""


@dataclass(frozen=True)
class ReviewFigure:
    """Figure to review."""

    path: str
    """Relative to the output folder."""
    image: str
    """Image that it shows, without ``_bold``."""
    kind: int
    """Index in `Review.kinds`."""

    @property
    def name(self) -> str:
        """Name of the file without extension, the key of its rating."""
        return Path(self.path).stem


@dataclass(frozen=True)
class Review:
    """Figures of an output folder."""

    out_dir: Path
    kinds: tuple[Kind, ...]
    figures: tuple[ReviewFigure, ...]
    left_out: tuple[str, ...] = ()
    """Figures whose names are not BIDS names."""
    by_name: dict[str, ReviewFigure] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name.update((figure.name, figure) for figure in self.figures)


def find_review(out_dir: Path) -> Review:
    """Find the figures to review.

    Raises
    ------
    NoInputError
        The folder does not exist, or has no figures.
    """
    if not out_dir.is_dir():
        raise NoInputError(f"{out_dir}: no such folder.", "Give the output folder of neurostorm.")
    try:
        folders = sorted((p for p in out_dir.glob("sub-*") if p.is_dir()), key=lambda path: natural_key(path.name))
    except OSError as error:
        raise NoInputError(f"{out_dir}: cannot be read ({error.strerror}).", "Check its permissions.") from None
    kinds: dict[Kind, int] = {}
    found: list[ReviewFigure] = []
    left_out: list[str] = []
    for folder in folders:
        for image, figure in _figures_of(out_dir, folder.name):
            path = unquote(figure.url)
            if not FIGURE.fullmatch(Path(path).stem):
                left_out.append(path)
                continue
            kind = Kind(figure.title, figure.caption, figure.first, figure.second)
            found.append(ReviewFigure(path, image, kinds.setdefault(kind, len(kinds))))
    if not found:
        raise NoInputError(
            f"{out_dir}: no figures in sub-*/figures.", "Run the participant level first, without --level minimal."
        )
    return Review(out_dir, tuple(kinds), tuple(found), tuple(left_out))


def _figures_of(out_dir: Path, participant: str) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a participant with their image, those of the anatomy first."""
    by_image = Reader(out_dir, participant.removeprefix("sub-")).figures(*SECTIONS)
    for stem, suffix in sorted(by_image, key=lambda key: (key[1] != ANATOMY, natural_key(key[0]))):
        image = f"{stem}_{suffix}" if suffix == ANATOMY else stem
        yield from ((image, figure) for figure in by_image[stem, suffix])
