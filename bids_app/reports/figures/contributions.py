"""Chart of the contributions of regions to a prediction, with those of a control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_app.reports.contents import SIGNIFICANT
from bids_app.reports.figures.style import HAIRLINE, INK, MUTED, PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    import pandas as pd

MAX_BARS = 10
"""Maximum number of regions of each sign."""
LONGEST_NAME = 40
"""Letters of a region's name."""


def plot_contributions(table: pd.DataFrame, path: Path, *, title: str, unit: str = "") -> Path:
    """Plot the largest contributions of each sign, and the control of these regions.

    Parameters
    ----------
    table : pandas.DataFrame
        Attribution table, sorted by sign and size: ``name``, ``attribution``, ``std``, ``tokens``; of a control
        ``control`` and ``p``.
    path : pathlib.Path
        The SVG file to write.
    title : str
        Title of the figure, for its text alternative.
    unit : str
        Unit of the contributions.
    """
    values = table["attribution"].to_numpy(float)
    positive, negative = np.flatnonzero(values > 0)[:MAX_BARS], np.flatnonzero(values < 0)[:MAX_BARS]
    rows = table.iloc[[*positive, *negative[::-1]]]  # from the largest positive to the largest negative
    names = [
        _shorten(name) + ("" if tokens else " †") + (" *" if p <= SIGNIFICANT else "")
        for name, tokens, p in zip(rows["name"], rows["tokens"], rows.get("p", [1.0] * len(rows)), strict=True)
    ]
    with new_figure(11, 1.4 + 0.3 * max(len(rows), 1)) as figure:
        axes = figure.subplots()
        places = np.arange(len(rows))
        shown = rows["attribution"].to_numpy(float)
        colors = np.where(shown > 0, PALETTE[1], PALETTE[0])
        axes.barh(places, shown, xerr=rows["std"].to_numpy(float), height=0.6, color=colors, ecolor=MUTED)
        if "control" in rows:
            axes.plot(rows["control"], places, "D", color=INK, markersize=5, markerfacecolor="none", label="control")
            axes.legend(loc="lower right")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(places, names)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"contribution ({unit})" if unit else "contribution")
        axes.grid(axis="x", linewidth=0.6, color=HAIRLINE)
        axes.set_axisbelow(True)
        ends = [f"{name}: {value:.3g}" for name, value in zip(rows["name"], shown, strict=True)]
        text = f"{len(positive)} positive and {len(negative)} negative contributions. {'; '.join(ends)}."
        return save_figure(figure, path, title, text)


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
