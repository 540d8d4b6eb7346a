"""Signs that a T1w image is not what its name and header say, and the likely cause in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bids_app.catalog.templates import Template
from bids_app.errors import RegistrationError
from bids_app.preprocess.registration.ants import Image, Stage, register
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, rigid

BRAIN_ML = (1000.0, 2000.0)
"""Intracranial volumes of adults and of children from about two years; see `brain_extraction.VOLUME_ML`. With 0.8 of
the voxel size, a brain of 1,950 mL or less is below."""
HEAD_ML = (1000.0, 10_000.0)
"""Volumes of a whole head in the field of view; a smaller one than a brain has wrong voxel sizes."""
MAX_STRETCH = 1.2
"""Maximum ratio of the largest to the smallest scale of the affine transform between T1w and template."""
PURE = 0.8
"""Minimum probability of a tissue in the template for a comparison of intensities."""
TURN_GAIN = 0.1
"""Minimum gain in similarity after a turn for it to be named as a cause."""
BODY_AXES = ("left-right", "anterior-posterior", "superior-inferior")


def doubts_about_size(quality: Mapping[str, float], volume: float, name: str) -> tuple[str, ...]:
    """Return sentences on an image that was aligned with the template, but has an unlikely size.

    Parameters
    ----------
    quality : mapping
        ``norm_scale_min`` and ``norm_scale_max``.
    volume : float
        Of the whole brain, mL.
    name : str
        File name.
    """
    found = []
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        found.append(
            f"{name}: the brain has {volume:.0f} mL, outside {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} mL: wrong voxel "
            "size in the header? (Infants have smaller brains.)"
        )
    stretch = quality["norm_scale_max"] / quality["norm_scale_min"]
    if stretch > MAX_STRETCH:
        found.append(
            f"{name}: the affine transform to the template scales one axis {stretch:.2f} times as much as another, "
            f"above {MAX_STRETCH}: wrong voxel size or slice gap in the header?"
        )
    return tuple(found)


def voxel_size_cause(head_ml: float) -> str:
    """Return the likely cause of a failed alignment as a sentence after a space; empty: the head's volume is usual."""
    if HEAD_ML[0] <= head_ml <= HEAD_ML[1]:
        return ""
    return f" Likely cause: wrong voxel size in the header? The whole head has {head_ml:.0f} mL."


def tissue_intensities(target: Template, moving: Image, matrix: np.ndarray) -> dict[str, float]:
    """Return the median intensity of a T1w where the template has pure grey matter, white matter and CSF.

    Parameters
    ----------
    target : Template
    moving : Image
    matrix : numpy.ndarray, (4, 4)
        Template to T1w.
    """
    found = {}
    for tissue in ("gm", "wm", "csf"):
        points = grid_points(target.mask.shape, target.affine, getattr(target, tissue) > PURE)
        found[tissue] = float(np.median(moving.at(apply_matrix(matrix, points)))) if len(points) else float("nan")
    return found


def is_inverted(intensities: Mapping[str, float]) -> bool:
    """Return True if white matter is darker than grey matter, as in T2w images."""
    return intensities["wm"] < intensities["gm"]


def find_turn(
    fixed: Image,
    moving: Image,
    near: np.ndarray,
    matrix: np.ndarray,
    centre: np.ndarray,
    stages: tuple[Stage, ...],
    score: Callable[[np.ndarray], float],
    out_dir: Path,
    seed: int,
) -> tuple[str, float]:
    """Align an image after a turn by 180 degrees about each axis; return the best axis in words, and its score.

    Parameters
    ----------
    fixed, moving, near, stages, out_dir, seed
        As for `ants.register`.
    matrix : numpy.ndarray, (4, 4)
        The alignment that failed, fixed to moving.
    centre : numpy.ndarray, (3,)
        Centre of the turn, mm of the fixed image.
    score : callable
        Similarity for a matrix.
    """
    scores = {}
    for axis, name in enumerate(BODY_AXES):
        start = matrix @ rigid(np.pi * np.eye(3)[axis], (0, 0, 0), centre)
        try:
            found = register(fixed, moving, near, stages, out_dir, start=start, seed=seed, name="turn")
        except RegistrationError:
            continue
        found.forward_file.unlink()
        found.inverse_file.unlink()
        scores[name] = score(found.matrix)
    best = max(scores, key=lambda name: scores[name], default=BODY_AXES[0])
    return best, scores.get(best, 0.0)
