"""Matrix of the correlations between regions, with blocks of networks or hemispheres."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_app.reports.figures.style import INK, MUTED, new_figure, save_figure

COLOURS = "RdBu_r"
"""Blue: negative, red: positive."""


def plot_connectivity(matrix: np.ndarray, blocks: Sequence[tuple[str, int]], path: Path, *, title: str) -> Path:
    """Plot correlations from -1 to 1.

    Parameters
    ----------
    matrix : np.ndarray, (R, R)
        Correlations, in the order of the blocks; NaN is not drawn.
    blocks : sequence of (str, int)
        Names of networks or hemispheres and their numbers of regions, in order; empty: none.
    path : pathlib.Path
        The SVG file to write.
    title : str
    """
    n_regions = len(matrix)
    with new_figure(9, 7.6) as figure:
        axes = figure.subplots()
        shown = axes.imshow(np.ma.masked_invalid(matrix), cmap=COLOURS, vmin=-1, vmax=1, interpolation="nearest")
        ends = np.cumsum([size for _, size in blocks])
        middles = [end - size / 2 - 0.5 for end, (_, size) in zip(ends, blocks, strict=True)]
        for end in ends[:-1] if len(ends) else []:
            axes.axhline(end - 0.5, color=INK, linewidth=0.8)
            axes.axvline(end - 0.5, color=INK, linewidth=0.8)
        names = [name for name, _ in blocks]
        axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, names)
        axes.tick_params(length=0)
        if not blocks:
            axes.set(xlabel="region, in the order of the atlas", ylabel="region, in the order of the atlas")
        for spine in axes.spines.values():
            spine.set(visible=True, color=MUTED)
        axes.set_title(title)
        figure.colorbar(shown, ax=axes, label="Pearson correlation", shrink=0.8, ticks=[-1, -0.5, 0, 0.5, 1])
        return save_figure(figure, path, title, describe_matrix(matrix, names, n_regions))


def describe_matrix(matrix: np.ndarray, names: Sequence[str], n_regions: int) -> str:
    """Return the text alternative: number of regions, blocks, mean correlation."""
    pairs = matrix[np.triu_indices(n_regions, 1)]
    pairs = pairs[np.isfinite(pairs)]
    mean = f", mean {pairs.mean():.2f}, from {pairs.min():.2f} to {pairs.max():.2f}" if len(pairs) else ""
    ordered = f", ordered by {', '.join(names)}" if names else ""
    return f"Correlations between {n_regions} regions{ordered}{mean}."
