"""Curves of a training run: values by step or epoch, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.reports.figures.style import PALETTE, figure_svg, new_figure

MAX_POINTS = 1000
"""Curves with more points are averaged in bins."""
DECADES = 1.5
"""Ratio of the highest to the lowest value, as a power of 10, from which on an axis is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes
    ----------
    name : str
        Empty for a figure with a single curve.
    x, y : sequence of float, (N,)
    has_points : bool
        Mark each value.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    has_points: bool = False


def plot_curves(curves: Sequence[Curve], title: str, axes_labels: tuple[str, str]) -> str:
    """Plot curves in one panel; long ones are averaged in bins, and values over `DECADES` have a logarithmic axis."""
    with new_figure(9, 3.2) as figure:
        axes = figure.add_subplot()
        for k, curve in enumerate(curves):
            x, y = _binned(np.asarray(curve.x, float)), _binned(np.asarray(curve.y, float))
            marker = "o" if curve.has_points or len(x) == 1 else ""
            axes.plot(x, y, color=PALETTE[k], linewidth=1.6, marker=marker, markersize=4, label=curve.name or None)
        axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1], title=title)
        low, high = (extreme([extreme(curve.y) for curve in curves]) for extreme in (min, max))
        if 0 < low < high / 10**DECADES:
            axes.set_yscale("log")
        axes.grid(axis="y", linewidth=0.6)
        if any(curve.name for curve in curves):
            axes.legend(loc="best", fontsize=9)
        last = "; ".join(f"{curve.name or axes_labels[1]} ends at {curve.y[-1]:.4g}" for curve in curves)
        return figure_svg(figure, title, f"{axes_labels[1]} by {axes_labels[0]}: {last}.")


def _binned(values: np.ndarray) -> np.ndarray:
    """Average values in at most `MAX_POINTS` bins of equal size."""
    size = -(-len(values) // MAX_POINTS)
    if size < 2:
        return values
    starts = np.arange(0, len(values), size)
    return np.add.reduceat(values, starts) / np.diff([*starts, len(values)])
