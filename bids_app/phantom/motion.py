"""Simulated head motion: slow drift and occasional jerks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_app.phantom.geometry import rigid

MAX_MOTION = 2.0
"""Maximum translation (mm) and rotation (degrees)."""
PIVOT_MM = np.array([0.0, -5.0, -60.0])
"""Approximate pivot of head rotations at the neck, scanner mm."""


def random_motion(
    n_volumes: int, tr: float, extent_mm: float, rng: np.random.Generator, reference: int = 0
) -> np.ndarray:
    """Simulate the rigid head motion of a run.

    Parameters
    ----------
    n_volumes : int
    tr : float
        Repetition time, s.
    extent_mm : float
        Standard deviation of the slow drift, mm; rotations have the same number of degrees.
    reference : int
        The reference volume, at which the motion is zero.

    Returns
    -------
    (n_volumes, 4, 4) float64
        From a point of the reference volume to its position in volume t, RAS mm; identity at ``reference``.
    """
    slow = _drift(n_volumes, tr, 40.0, rng)
    quick = _drift(n_volumes, tr, 8.0, rng)
    # heads nod and shift along the table more than they tilt
    weights = np.array([0.5, 0.7, 1.0, 1.0, 0.5, 0.5])
    parameters = extent_mm * weights * (0.9 * slow + 0.25 * quick) + _jerks(n_volumes, tr, extent_mm, rng)
    parameters = np.clip(parameters - parameters[reference], -MAX_MOTION, MAX_MOTION)
    return np.stack([rigid(p[:3], p[3:], PIVOT_MM) for p in parameters])


def _drift(n_volumes: int, tr: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Simulate smooth noise (n_volumes, 6) of unit standard deviation with a FWHM of ``seconds``."""
    sigma = seconds / tr / 2.355
    pad = int(np.ceil(4 * sigma))
    noise = ndimage.gaussian_filter1d(rng.standard_normal((n_volumes + 2 * pad, 6)), sigma, axis=0)
    return noise[pad : pad + n_volumes] * np.sqrt(2 * sigma * np.sqrt(np.pi))


def _jerks(n_volumes: int, tr: float, extent_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Simulate sudden movements (n_volumes, 6), about one per minute at 1 mm extent; half of them return."""
    moves = np.zeros((n_volumes, 6))
    for _ in range(rng.poisson(n_volumes * tr / 60.0 * min(extent_mm, 1.0))):
        start = int(rng.integers(1, max(2, n_volumes)))
        lasts = n_volumes if rng.random() < 0.5 else max(1, round(rng.uniform(1.0, 5.0) / tr))
        moves[start : start + lasts] += rng.normal(0, 0.4, 6)
    return moves
