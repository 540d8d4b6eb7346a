"""Glass brain figures with nilearn."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_glass_brain(image: Any, path: Path, unit: str = "") -> Path:
    """Plot the maximum-intensity projections of a map in MNI space, with sign.

    Parameters
    ----------
    image : path or nibabel image, 3D
    path : pathlib.Path
        The PNG file to write.
    unit : str
        Unit of the values, shown next to the colour bar.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_glass_brain as project

    figure = plt.figure(figsize=(9.6, 3.2), facecolor="black")
    try:
        project(
            image,
            display_mode="lyrz",
            figure=figure,
            black_bg=True,
            colorbar=True,
            plot_abs=False,
            symmetric_cbar=True,
            threshold=1e-9,
            cmap="cold_hot",
        )
        figure.text(0.01, 0.03, unit, color="white", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, facecolor="black", metadata={"Software": None})
    finally:
        plt.close(figure)
    return path
