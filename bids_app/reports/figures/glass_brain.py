"""Glass brain figures with nilearn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot_glass_brains(images: Mapping[str, Any], path: Path, unit: str = "") -> Path:
    """Plot the maximum-intensity projections of maps in MNI space, with sign, one map per row.

    Parameters
    ----------
    images : mapping of str to path or nibabel image, 3D
        By title; an empty title is not shown. Each map has its own colour scale.
    path : pathlib.Path
        The PNG file to write.
    unit : str
        Unit of the values, shown next to the colour bar.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_glass_brain as project

    n = len(images)
    figure = plt.figure(figsize=(9.6, 3.2 * n), facecolor="black")
    try:
        for row, (title, image) in enumerate(images.items()):
            bottom = (n - 1 - row) / n
            project(
                image,
                display_mode="lyrz",
                figure=figure,
                axes=(0, bottom, 1, 1 / n),
                black_bg=True,
                colorbar=True,
                plot_abs=False,
                symmetric_cbar=True,
                threshold=1e-9,
                cmap="cold_hot",
            )
            figure.text(0.01, bottom + 0.03 / n, unit, color="white", fontsize=9)
            figure.text(0.01, bottom + 0.93 / n, title, color="white", fontsize=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, facecolor="black", metadata={"Software": None})
    finally:
        plt.close(figure)
    return path
