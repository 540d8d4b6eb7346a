"""BOLD to T1w, refined where grey matter meets white matter (boundary-based registration: Greve and Fischl, 2009).

The boundary is a surface at half a probability of white matter, from the tissues of the T1w at 2 mm. In a T2*-weighted
image grey matter is brighter than white, so a rigid map is better the more the image rises across the boundary,
outwards: ``cost = mean(1 - tanh(SLOPE * 200 * (outer - inner) / (outer + inner)))``.

Two choices differ from the paper. Only boundary with grey matter behind it counts, so that ventricles and the base of
the brain do not. And the slope is 0.04 for each percent instead of 0.5: with 0.5 the tangent is saturated wherever the
boundary is roughly right, and what is left to be minimised is where the boundary itself is wrong; on simulated scans
the best rigid map was then 0.3 to 0.8 mm off, with 0.04 it is 0.1 to 0.3 mm off (`benchmarks/accuracy.py --boundary`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.transforms import apply_matrix, rigid

SLOPE = 0.04
DEPTH_MM = 2.0
"""How far from the boundary, on both sides, the image is sampled."""
N_POINTS = 20_000
MIN_POINTS = 1_000
MIN_INSIDE = 0.3
"""Share of the boundary that must lie in the field of view."""
MIN_GAIN = 0.005
"""Share of the cost by which a refinement must lower it. Simulated scans, whose start is within 0.25 mm of the truth,
gain 0.0003 to 0.003."""
MAX_MOVE_MM = 4.0


@dataclass(frozen=True)
class Boundary:
    """Points of the surface between white and grey matter.

    Parameters
    ----------
    points : numpy.ndarray, (N, 3)
        RAS mm of the T1w.
    normals : numpy.ndarray, (N, 3)
        Unit vectors out of white matter.
    """

    points: np.ndarray
    normals: np.ndarray


def white_matter_boundary(tissues: np.ndarray, affine: np.ndarray, n_points: int = N_POINTS) -> Boundary:
    """The boundary of white matter that has grey matter behind it.

    Parameters
    ----------
    tissues : numpy.ndarray, (X, Y, Z, 3)
        Probabilities of grey matter, white matter and CSF.
    affine : numpy.ndarray, (4, 4)
    n_points : int
        Most points, spread evenly at random.
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
    """Cost of a map from T1w points to boldref points, 0 to 2; 2 where too little of the boundary is in the image.

    Parameters
    ----------
    boundary : Boundary
    boldref : Image
        Without its bias field.
    slope : float
        Of the tangent, for each percent of contrast.
    """

    def __init__(self, boundary: Boundary, boldref: Image, slope: float = SLOPE) -> None:
        self.slope = slope
        self.sides = [boundary.points + side * DEPTH_MM * boundary.normals for side in (-1, 1)]
        self.spline = ndimage.spline_filter(boldref.data, order=3, output=np.float32, mode="mirror")
        self.to_voxels = np.linalg.inv(boldref.affine)
        self.last = np.array(boldref.data.shape) - 1

    def __call__(self, matrix: np.ndarray) -> float:
        """Cost of ``matrix`` (4, 4), T1w to boldref."""
        usable = np.ones(len(self.sides[0]), dtype=bool)
        seen = []
        for points in self.sides:
            voxels = apply_matrix(self.to_voxels @ matrix, points)
            usable &= np.all((voxels >= 0) & (voxels <= self.last), axis=1)
            seen.append(ndimage.map_coordinates(self.spline, voxels.T, order=3, mode="mirror", prefilter=False))
        inner, outer = seen
        usable &= inner + outer > 0
        if usable.sum() < MIN_INSIDE * len(usable):
            return 2.0
        rise = 200 * (outer - inner)[usable] / (outer + inner)[usable]  # percent
        return float((1 - np.tanh(self.slope * rise)).mean())


@dataclass(frozen=True)
class Refinement:
    """What came of a refinement: the map to use, cost before and after, and how far points of the boundary moved."""

    matrix: np.ndarray
    cost_start: float
    cost: float
    moved_mm: float
    accepted: bool

    @property
    def quality(self) -> dict[str, float]:
        """Figures for the report."""
        return {
            "bbr_cost_start": self.cost_start,
            "bbr_cost": self.cost,
            "bbr_moved_mm": self.moved_mm,
            "bbr_used": float(self.accepted),
        }


def refine(
    boundary: Boundary, boldref: Image, start: np.ndarray, min_gain: float = MIN_GAIN, slope: float = SLOPE
) -> Refinement | None:
    """Lower the boundary cost by a rigid move (Powell's method); the start stays where that gains little or leads away.

    Parameters
    ----------
    boundary : Boundary
    boldref : Image
        Without its bias field.
    start : numpy.ndarray, (4, 4)
        T1w to boldref, rigid.
    min_gain : float
        Share of the cost by which it must fall.
    slope : float
        See `BoundaryCost`.

    Returns
    -------
    Refinement or None
        None when there is too little boundary, or too little of it in the image.
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
    accepted = after < before * (1 - min_gain) and move <= MAX_MOVE_MM
    return Refinement(matrix if accepted else start, before, after, move, accepted)
