"""Displacement along the phase-encoding axis from two images with opposite distortion (PEPOLAR).

With the correct displacement, both corrected images are equal. The displacement is a cubic B-spline, estimated by
Gauss-Newton steps in torch from coarse to fine: least squares on the difference of the corrected images, regularised
by the bending energy of the displacement (the model of Andersson et al., 2003).

    A, B  voxels along the other two axes      N  voxels along the phase-encoding axis, which comes last
    K     nodes of the spline
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

FWHM_PER_SIGMA = 2.3548
MIN_GAIN = 1e-3
"""Relative decrease of the cost below which a level ends."""


@dataclass(frozen=True)
class Level:
    """Resolution level: smoothing, knot spacing, weight of the bending energy, and maximum number of steps."""

    fwhm_mm: float
    knot_mm: float
    bending: float
    max_steps: int
    max_voxel_mm: float = 0.0
    """Images are subsampled to voxels below this size."""


LEVELS = (
    Level(14.0, 30.0, 100.0, 12, 7.0),
    Level(9.0, 20.0, 25.0, 10, 5.0),
    Level(5.0, 13.0, 8.0, 8),
    Level(3.0, 9.0, 2.5, 10),
)
CG_STEPS = 25


@dataclass(frozen=True)
class Spline:
    """A separable cubic B-spline on a grid: values, and slopes along the last axis per mm.

    ``axes`` are matrices (A, Ka), (B, Kb), (N, Kn); ``slope`` is (N, Kn); ``bending`` holds, for each axis, the Gram
    matrices of values, slopes and curvatures (K, K).
    """

    axes: tuple[torch.Tensor, ...]
    slope: torch.Tensor
    bending: tuple[tuple[torch.Tensor, ...], ...]

    @classmethod
    def on(cls, shape: tuple[int, ...], sizes_mm: np.ndarray, knot_mm: float, thin: np.ndarray) -> Spline:
        """Build the spline with a knot spacing over a grid, evaluated at every ``thin``-th voxel."""
        found = [_basis(n, size, knot_mm, int(t)) for n, size, t in zip(shape, sizes_mm, thin, strict=True)]
        tensors = [[torch.from_numpy(m.astype(np.float32)) for m in matrices] for matrices in found]
        grams = tuple(tuple(m.T @ m for m in matrices) for matrices in tensors)
        return cls(tuple(t[0] for t in tensors), tensors[2][1], grams)

    def values(self, nodes: torch.Tensor) -> torch.Tensor:
        """Evaluate the spline: (Ka, Kb, Kn) to (A, B, N)."""
        return _outer(nodes, *self.axes)

    def slopes(self, nodes: torch.Tensor) -> torch.Tensor:
        """Evaluate slopes along the last axis per mm: (Ka, Kb, Kn) to (A, B, N)."""
        return _outer(nodes, self.axes[0], self.axes[1], self.slope)

    def gather(self, values: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """Apply the transposed operators of `values` and `slopes`, summed: (A, B, N) to (Ka, Kb, Kn)."""
        a, b, n = (m.T for m in self.axes)
        return _outer(values, a, b, n) + _outer(slopes, a, b, self.slope.T)

    def bend(self, nodes: torch.Tensor) -> torch.Tensor:
        """Compute the gradient of half the bending energy, (Ka, Kb, Kn)."""
        total = torch.zeros_like(nodes)
        for orders, times in _PRICES:
            total += times * _outer(nodes, *(self.bending[axis][order] for axis, order in enumerate(orders)))
        return total

    def fit(self, values: torch.Tensor) -> torch.Tensor:
        """Fit nodes (Ka, Kb, Kn) to values (A, B, N) by least squares."""
        return _outer(values, *(torch.linalg.pinv(m) for m in self.axes))


SLOPE_PRICE = 2e-3
"""Weight of slopes relative to bending, per mm²; it determines the displacement outside the head."""
FLAT_PRICE = 1e-7
"""Weight of the displacement itself, per mm⁴."""
_PRICES = (
    ((2, 0, 0), 1.0), ((0, 2, 0), 1.0), ((0, 0, 2), 1.0), ((1, 1, 0), 2.0), ((1, 0, 1), 2.0), ((0, 1, 1), 2.0),
    ((1, 0, 0), SLOPE_PRICE), ((0, 1, 0), SLOPE_PRICE), ((0, 0, 1), SLOPE_PRICE), ((0, 0, 0), FLAT_PRICE),
)  # fmt: skip
"""Orders of the derivatives in the regularisation, and their weights."""
MIN_SPREAD = 0.1
"""Minimum Jacobian (1 + slope); prevents folding."""


def _outer(values: torch.Tensor, a: torch.Tensor, b: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Apply a matrix along each axis."""
    values = torch.matmul(b, values @ n.T)
    return (a @ values.reshape(values.shape[0], -1)).reshape(a.shape[0], *values.shape[1:])


def _basis(n: int, size_mm: float, knot_mm: float, thin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute values, slopes (per mm) and curvatures (per mm²) of the basis at every ``thin``-th of n voxels."""
    places = np.arange(n) * size_mm / knot_mm
    nodes = np.arange(-1, int(np.ceil(places[-1])) + 2)
    t = places[::thin, None] - nodes
    r, near, far = np.abs(t), np.abs(t) < 1, (np.abs(t) >= 1) & (np.abs(t) < 2)
    value = np.where(near, 2 / 3 - r**2 + r**3 / 2, np.where(far, (2 - r) ** 3 / 6, 0))
    slope = np.where(near, -2 * t + 1.5 * t * r, np.where(far, -np.sign(t) * (2 - r) ** 2 / 2, 0))
    curve = np.where(near, 3 * r - 2, np.where(far, 2 - r, 0))
    return value, slope / knot_mm, curve / knot_mm**2


def estimate_displacement(
    first: np.ndarray,
    second: np.ndarray,
    sizes_mm: np.ndarray,
    axis: int,
    ratio: float = -1.0,
    start: np.ndarray | None = None,
    levels: tuple[Level, ...] = LEVELS,
) -> np.ndarray:
    """Estimate the displacement along an axis between two images with opposite distortion.

    Parameters
    ----------
    first, second : numpy.ndarray, (X, Y, Z)
        On one grid. A point p appears at p + d(p) in the first, and at p + ratio d(p) in the second.
    sizes_mm : numpy.ndarray, (3,)
        Voxel sizes.
    axis : int
        Axis of the displacement.
    ratio : float
        Negative ratio of the readout times, second to first.
    start : numpy.ndarray, (X, Y, Z), optional
        Initial displacement, mm; use it with the finer levels.
    levels : tuple of Level

    Returns
    -------
    numpy.ndarray, (X, Y, Z) float32
        d in mm, positive along increasing indices.
    """
    images = [np.moveaxis(np.asarray(image, np.float32), axis, 2) for image in (first, second)]
    images = [image / (_typical(image) or 1.0) for image in images]
    sizes = _axis_last(np.asarray(sizes_mm), axis)
    found = torch.zeros(images[0].shape)
    if start is not None:
        found = torch.from_numpy(np.ascontiguousarray(np.moveaxis(start, axis, 2), np.float32))
    for level in levels:
        found = _solve(images, sizes, ratio, found, level)
    return np.ascontiguousarray(np.moveaxis(found.numpy(), 2, axis))


def _axis_last(values: np.ndarray, axis: int) -> np.ndarray:
    """Move one of three numbers to the end, as `numpy.moveaxis` does with axes."""
    return np.array([*np.delete(values, axis), values[axis]], dtype=float)


def _typical(image: np.ndarray) -> float:
    bright = image[image > 0.1 * np.percentile(image, 99)]
    return float(bright.mean()) if bright.size else 0.0


@torch.inference_mode()
def _solve(
    images: list[np.ndarray], sizes: np.ndarray, ratio: float, start: torch.Tensor, level: Level
) -> torch.Tensor:
    """One level: displacement (A, B, N) mm on the full grid, begun from another."""
    thin = np.maximum(np.floor(level.max_voxel_mm / sizes), 1).astype(int)
    sigma = level.fwhm_mm / FWHM_PER_SIGMA / sizes
    cut = tuple(slice(None, None, step) for step in thin)
    smooth = [torch.from_numpy(np.ascontiguousarray(ndimage.gaussian_filter(i, sigma)[cut])) for i in images]
    coarse = sizes * thin
    spline = Spline.on(tuple(start.shape), sizes, level.knot_mm, thin)
    whole = Spline.on(tuple(start.shape), sizes, level.knot_mm, np.ones(3, int))
    nodes = whole.fit(start)
    problem = _Problem(smooth[0], smooth[1], spline, ratio, float(coarse[2]), level.bending)
    cost, residual, by_value, by_slope = problem.linearise(nodes)
    for _ in range(level.max_steps):
        step = problem.step(nodes, residual, by_value, by_slope)
        for scale in (1.0, 0.5, 0.25, 0.125):
            trial = problem.linearise(nodes + scale * step)
            if trial[0] < cost:
                break
        else:
            break
        gain, nodes = 1 - trial[0] / cost, nodes + scale * step
        cost, residual, by_value, by_slope = trial
        if gain < MIN_GAIN:
            break
    return whole.values(nodes)


@dataclass(frozen=True)
class _Problem:
    """Least-squares problem of two images (A, B, N)."""

    first: torch.Tensor
    second: torch.Tensor
    spline: Spline
    ratio: float
    size_mm: float
    bending: float

    def linearise(self, nodes: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute cost, residual of the corrected images, and its derivatives by displacement and slope, (A, B, N)."""
        moved, slopes = self.spline.values(nodes), self.spline.slopes(nodes)
        value1, slope1, inside1 = read_along(self.first, moved / self.size_mm)
        value2, slope2, inside2 = read_along(self.second, self.ratio * moved / self.size_mm)
        here = (inside1 & inside2).float()
        spread1, spread2 = 1 + slopes, 1 + self.ratio * slopes
        residual = (value1 * spread1 - value2 * spread2) * here
        by_value = (slope1 * spread1 - self.ratio * slope2 * spread2) / self.size_mm * here
        by_slope = (value1 - self.ratio * value2) * here
        cost = float((residual.double() ** 2).sum())
        if float(torch.minimum(spread1, spread2).min()) < MIN_SPREAD:
            cost = float("inf")
        cost += self.bending * float((nodes.double() * self.spline.bend(nodes).double()).sum())
        return cost, residual, by_value, by_slope

    def step(
        self, nodes: torch.Tensor, residual: torch.Tensor, by_value: torch.Tensor, by_slope: torch.Tensor
    ) -> torch.Tensor:
        """Compute the Gauss-Newton step by conjugate gradients."""

        def normal(x: torch.Tensor) -> torch.Tensor:
            change = by_value * self.spline.values(x) + by_slope * self.spline.slopes(x)
            return self.spline.gather(by_value * change, by_slope * change) + self.bending * self.spline.bend(x)

        left = -self.spline.gather(by_value * residual, by_slope * residual) - self.bending * self.spline.bend(nodes)
        step = torch.zeros_like(nodes)
        direction, size = left.clone(), float((left**2).sum())
        first = size
        for _ in range(CG_STEPS):
            if size <= 1e-6 * first or size == 0:
                break
            image = normal(direction)
            length = size / float((direction * image).sum())
            step += length * direction
            left -= length * image
            size, before = float((left**2).sum()), size
            direction = left + size / before * direction
        return step


def read_along(image: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Interpolate values and slopes of an image at positions shifted along its last axis.

    Parameters
    ----------
    image : torch.Tensor, (A, B, N)
    shift : torch.Tensor, (A, B, N)
        Voxels.

    Returns
    -------
    tuple of torch.Tensor, (A, B, N)
        Values (cubic, from four neighbours), slopes per voxel, and the mask of positions inside the image.
    """
    n = image.shape[2]
    place = torch.arange(n, dtype=torch.float32) + shift
    inside = (place >= 0) & (place <= n - 1)
    place = place.clamp(0, n - 1)
    low = place.floor().clamp(max=n - 2)
    t = place - low
    index = low.long()
    p0, p1, p2, p3 = (torch.gather(image, 2, (index + k).clamp(0, n - 1)) for k in (-1, 0, 1, 2))
    c1, c2, c3 = (p2 - p0) / 2, p0 - 2.5 * p1 + 2 * p2 - p3 / 2, (p3 - p0) / 2 + 1.5 * (p1 - p2)
    return p1 + t * (c1 + t * (c2 + t * c3)), c1 + t * (2 * c2 + 3 * t * c3), inside
