"""Common style of all figures: colours for light and dark pages, fonts, and SVG output."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from bids_app.bids.writer import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, HAIRLINE = "#1c2430", "#5d6b7a", "#d5dbe2"
"""Colours of text and axes, notes, and grid lines; replaced by `DARK` on dark pages."""

DARK = {INK: "#e8edf2", MUTED: "#a7b3c0", HAIRLINE: "#3c4854"}

PALETTE = ("#0d7ab8", "#d95f02", "#1a9469", "#c2589b", "#8a6fc9", "#b58900", "#3b9594", "#c0504d")
"""Colour-blind safe colours of series, legible on white and on black."""

FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"

NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters with which no browser shows an SVG file."""

SVG_DPI = 72
"""Resolution at which matplotlib writes SVG."""

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": HAIRLINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.parse_math": False,  # names of regions, atlases and labels may have "$"
    "svg.fonttype": "none",  # keep text as text: small and searchable
    "svg.hashsalt": "neurostorm",  # reproducible files
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Create a matplotlib figure in the common style, without pyplot or a display.

    Parameters
    ----------
    width, height : float
        Size, inches; 100 SVG pixels per inch.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
        FigureCanvasSVG(figure)
        yield figure


def save_figure(figure: Figure, path: Path, title: str, description: str, span: Axes | None = None) -> Path:
    """Write a matplotlib figure as SVG, with title and description for screen readers.

    Colours of text and axes follow the colour scheme of the page. With ``span``, the horizontal extent of these axes is
    written as fractions of the width (``data-span``), so that a page can mark a position in them.
    """
    return write_text(path, figure_svg(figure, title, description, span))


def figure_svg(figure: Figure, title: str, description: str, span: Axes | None = None) -> str:
    """Return a matplotlib figure as SVG, see `save_figure`."""
    buffer = StringIO()
    with warnings.catch_warnings():
        # the browser draws the text, with its own fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        _lay_out(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = NOT_IN_XML.sub("", buffer.getvalue())
    end = text.index(">", text.index("<svg"))
    extent = f' data-span="{span.get_position().x0:.5f} {span.get_position().x1:.5f}"' if span else ""
    return f"{text[:end]}{extent}>{_head(title, description, dark_style())}{text[end + 1 :]}"


def _lay_out(figure: Figure) -> None:
    """Place the panels of a figure, at the resolution of SVG; matplotlib would draw everything once more for this."""
    engine, dpi = figure.get_layout_engine(), figure.dpi
    if engine is None:
        return
    figure.dpi = SVG_DPI
    engine.execute(figure)
    figure.set_layout_engine(None)
    figure.dpi = dpi


def save_svg(path: Path, width: float, height: float, body: str, title: str, description: str, style: str = "") -> Path:
    """Write an SVG file of ``width`` x ``height`` pixels."""
    head = (
        '<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'font-family="{FONTS}">'
    )
    return write_text(path, f"{head}{_head(title, description, style)}{body}</svg>\n")


def dark_style() -> str:
    """Return CSS that replaces the common colours on dark pages, for viewers without CSS variables too."""
    rules = [
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    ]
    # text without a colour is black by default
    rules.append(f'text:not([style*="fill"]){{fill:{DARK[INK]}}}')
    return f"@media (prefers-color-scheme: dark){{{''.join(rules)}}}"


def _head(title: str, description: str, style: str) -> str:
    css = f"<style>{style}</style>" if style else ""
    title, description = (NOT_IN_XML.sub("", text) for text in (title, description))
    return f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{css}"
