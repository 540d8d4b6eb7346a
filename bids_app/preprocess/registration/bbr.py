"""Boundary-based registration of BOLD to T1w (Greve and Fischl, 2009).

The boundary is the surface at a white-matter probability of 0.5, from the tissues of the T1w at 2 mm. In a
T2*-weighted image grey matter is brighter than white matter, so intensity increases outwards across the boundary:
``cost = mean(1 - tanh(SLOPE * 200 * (outer - inner) / (outer + inner)))``.

There are two differences from the paper. First, only boundary next to grey matter is used, which excludes ventricles
and the base of the brain. Second, the slope is 0.04 per percent instead of 0.5. With 0.5 the tanh is saturated where
the boundary is roughly aligned, and errors of the boundary dominate the cost: on simulated scans the best rigid
transform was 0.3 to 0.8 mm off, with 0.04 it is 0.1 to 0.3 mm off (`benchmarks/accuracy.py --boundary`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

from bids_app.preprocess import spline
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.transforms import apply_matrix, rigid

SLOPE = 0.04
DEPTH_MM = 2.0
"""Distance from the boundary, on both sides, at which the image is sampled."""
N_POINTS = 20_000
MIN_POINTS = 1_000
MIN_INSIDE = 0.3
"""Minimum share of the boundary in the field of view."""
MIN_GAIN = 0.005
"""Minimum relative decrease of the cost. Simulated scans that start within 0.25 mm of the truth gain 0.0003 to
0.003."""
MAX_MOVE_MM = 4.0
MAX_COST = 0.95
"""Maximum cost after refinement. It is 1 if grey and white matter are equally bright, as with short repetition times;
the lowest cost is then that of noise. Runs with contrast have 0.59 to 0.89. In a real slab without contrast (1.03 at
the start), the refinement led to 1.02, and lowered similarity and overlap (`benchmarks/README.md`)."""


@dataclass(frozen=True)
class Boundary:
    """Points of the surface between white and grey matter.

    Parameters
    ----------
    points : numpy.ndarray, (N, 3)
        RAS mm of the T1w.
    normals : numpy.ndarray, (N, 3)
        Unit vectors pointing out of white matter.
    """

    points: np.ndarray
    normals: np.ndarray


def white_matter_boundary(tissues: np.ndarray, affine: np.ndarray, n_points: int = N_POINTS) -> Boundary:
    """Extract the boundary between white and grey matter.

    Parameters
    ----------
    tissues : numpy.ndarray, (X, Y, Z, 3)
        Probabilities of grey matter, white matter and CSF.
    affine : numpy.ndarray, (4, 4)
    n_points : int
        Maximum number of points, sampled at random.
    """
    from skimage.measure import marching_cubes

    white = tissues[..., 1]
    if not white.min() < 0.5 < white.max():
        return Boundary(np.zeros((0, 3)), np.zeros((0, 3)))
    voxels = marching_cubes(white, 0.5)[0]
    smooth = ndimage.gaussian_filter(white, 0.7)
    slope = np.stack([ndimage.map_coordinates(g, voxels.T, order=1) for g in np.gradient(smooth)], axis=-1)
    outwards = -slope @ np.linalg.inv(affine)[:3, :3]
    length = np.linalg.norm(outwards, axis=1)
    steep = length > 1e-3
    points = apply_matrix(affine, voxels)[steep]
    normals = outwards[steep] / length[steep, None]
    cortical = np.flatnonzero(Image(tissues[..., 0], affine).at(points + DEPTH_MM * normals) > 0.5)
    chosen = np.sort(np.random.default_rng(0).permutation(cortical)[:n_points])
    return Boundary(points[chosen], normals[chosen])


class BoundaryCost:
    """Cost of a matrix from T1w to boldref, 0 to 2; 2 if too little of the boundary is in the image.

    Parameters
    ----------
    boundary : Boundary
    boldref : Image
        Bias-corrected.
    slope : float
        Slope of the tanh per percent of contrast.
    """

    def __init__(self, boundary: Boundary, boldref: Image, slope: float = SLOPE) -> None:
        self.slope = slope
        self.sides = [boundary.points + side * DEPTH_MM * boundary.normals for side in (-1, 1)]
        self.spline = spline.coefficients(boldref.data)
        self.to_voxels = np.linalg.inv(boldref.affine)
        self.last = np.array(boldref.data.shape) - 1

    def __call__(self, matrix: np.ndarray) -> float:
        """Compute the cost of ``matrix`` (4, 4), T1w to boldref."""
        usable = np.ones(len(self.sides[0]), dtype=bool)
        seen = []
        for points in self.sides:
            voxels = apply_matrix(self.to_voxels @ matrix, points)
            usable &= np.all((voxels >= 0) & (voxels <= self.last), axis=1)
            seen.append(spline.cubic(self.spline, voxels, np.eye(4)))
        inner, outer = seen
        usable &= inner + outer > 0
        if usable.sum() < MIN_INSIDE * len(usable):
            return 2.0
        rise = 200 * (outer - inner)[usable] / (outer + inner)[usable]  # percent
        return float((1 - np.tanh(self.slope * rise)).mean())


@dataclass(frozen=True)
class Refinement:
    """Result of a refinement: the matrix to use, cost before and after, and the median movement of the boundary."""

    matrix: np.ndarray
    cost_start: float
    cost: float
    moved_mm: float
    accepted: bool

    @property
    def quality(self) -> dict[str, float]:
        """Quality metrics for the report; ``bbr_cost`` is that of the alignment that is used."""
        return {
            "bbr_cost_start": self.cost_start,
            "bbr_cost": self.cost if self.accepted else self.cost_start,
            "bbr_moved_mm": self.moved_mm,
            "bbr_used": float(self.accepted),
        }


def refine(
    boundary: Boundary, boldref: Image, start: np.ndarray, min_gain: float = MIN_GAIN, slope: float = SLOPE
) -> Refinement | None:
    """Minimise the boundary cost over rigid transforms (Powell's method).

    The start is kept if the cost decreases too little, the boundary moves too far, or the image shows no boundary.

    Parameters
    ----------
    boundary : Boundary
    boldref : Image
        Bias-corrected.
    start : numpy.ndarray, (4, 4)
        T1w to boldref, rigid.
    min_gain : float
        Minimum relative decrease of the cost.
    slope : float
        See `BoundaryCost`.

    Returns
    -------
    Refinement or None
        None if there is too little boundary, or too little of it in the image.
    """
    if len(boundary.points) < MIN_POINTS:
        return None
    cost = BoundaryCost(boundary, boldref, slope)
    before = cost(start)
    if before >= 2:
        return None
    centre = boundary.points.mean(axis=0)

    def moved(x: np.ndarray) -> np.ndarray:
        return start @ rigid(np.radians(x[:3]), x[3:], centre)  # degrees and mm

    options = {"xtol": 1e-2, "ftol": 1e-5, "maxfev": 1500}
    found = optimize.minimize(lambda x: cost(moved(x)), np.zeros(6), method="Powell", options=options)
    matrix, after = moved(found.x), float(found.fun)
    away = np.linalg.norm(apply_matrix(matrix, boundary.points) - apply_matrix(start, boundary.points), axis=1)
    move = float(np.median(away))
    accepted = after < before * (1 - min_gain) and move <= MAX_MOVE_MM and after <= MAX_COST
    return Refinement(matrix if accepted else start, before, after, move, accepted)
