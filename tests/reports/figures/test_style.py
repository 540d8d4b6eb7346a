"""Figures as SVG: matplotlib's own output, drawn once."""

from __future__ import annotations

from io import StringIO
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bids_app.reports.figures.style import NOT_IN_XML, figure_svg, new_figure


def draw(figure: Figure) -> Axes:
    """Draw an image with its colour bar beside a line with long labels, which the layout has to make room for."""
    left, right = figure.subplots(1, 2)
    figure.colorbar(left.imshow(np.arange(12.0).reshape(3, 4)), ax=left, label="units")
    right.plot([0, 1e6], [1e-5, 2e-5])
    right.set(xlabel="a long label", ylabel="two\nlines", title="title")
    return right


def test_a_figure_is_drawn_once_and_as_matplotlib_lays_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = StringIO()
    with new_figure(5, 2) as figure:
        usual = draw(figure)
        figure.savefig(expected, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn, plain = [], Axes.draw
    monkeypatch.setattr(Axes, "draw", lambda self, *rest, **more: (drawn.append(self), plain(self, *rest, **more)))
    with new_figure(5, 2) as figure:
        axes = draw(figure)
        made = figure_svg(figure, "Title", "Description", span=axes)
    assert drawn.count(axes) == 1
    assert axes.get_position().bounds == usual.get_position().bounds
    drawing = expected.getvalue().partition("<defs>")[2]
    assert drawing
    assert made.endswith(drawing)


@pytest.mark.parametrize("text", [r"$\frac{$", "a$b$c", "\x01\x1f name", "a\ufffeb", "名前", "<b>&amp;"])
@pytest.mark.filterwarnings("error")
def test_any_name_of_a_region_or_label_is_drawn_as_it_is(text: str) -> None:
    with new_figure(3, 2) as figure:
        figure.subplots().set(title=text, xlabel=text)
        found = figure_svg(figure, text, text)
    shown = [element.text for element in ElementTree.fromstring(found).iter("{http://www.w3.org/2000/svg}text")]
    assert shown.count(NOT_IN_XML.sub("", text)) == 2
