"""The displacement along the phase-encoding axis, from two images that it moves in opposite directions.

Where the displacement is right, both images, drawn back and with their brightness restored, are the same. It is sought
as a cubic B-spline by Gauss-Newton steps in torch, from coarse to fine: least squares on the difference of the two
images, with the bending energy of the displacement as the price of being rough (the model of Andersson et al., 2003).

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
"""Relative gain of a step below which a level ends."""


@dataclass(frozen=True)
class Level:
    """How images are smoothed, how fine the spline is, what bending costs, and how often steps are taken."""

    fwhm_mm: float
    knot_mm: float
    bending: float
    max_steps: int
    max_voxel_mm: float = 0.0
    """Voxels are thinned out as long as they stay below this size."""


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
        """The spline whose nodes are some mm apart over a grid, on every ``thin``-th of its voxels."""
        found = [_basis(n, size, knot_mm, int(t)) for n, size, t in zip(shape, sizes_mm, thin, strict=True)]
        tensors = [[torch.from_numpy(m.astype(np.float32)) for m in matrices] for matrices in found]
        grams = tuple(tuple(m.T @ m for m in matrices) for matrices in tensors)
        return cls(tuple(t[0] for t in tensors), tensors[2][1], grams)

    def values(self, nodes: torch.Tensor) -> torch.Tensor:
        """(Ka, Kb, Kn) to (A, B, N)."""
        return _outer(nodes, *self.axes)

    def slopes(self, nodes: torch.Tensor) -> torch.Tensor:
        """(Ka, Kb, Kn) to the slopes along the last axis (A, B, N), per mm."""
        return _outer(nodes, self.axes[0], self.axes[1], self.slope)

    def gather(self, values: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """The transposed of `values` and `slopes`, summed: (A, B, N) to (Ka, Kb, Kn)."""
        a, b, n = (m.T for m in self.axes)
        return _outer(values, a, b, n) + _outer(slopes, a, b, self.slope.T)

    def bend(self, nodes: torch.Tensor) -> torch.Tensor:
        """Gradient of half the bending energy, (Ka, Kb, Kn)."""
        total = torch.zeros_like(nodes)
        for orders, times in _PRICES:
            total += times * _outer(nodes, *(self.bending[axis][order] for axis, order in enumerate(orders)))
        return total

    def fit(self, values: torch.Tensor) -> torch.Tensor:
        """Nodes (Ka, Kb, Kn) whose spline is nearest to values (A, B, N)."""
        return _outer(values, *(torch.linalg.pinv(m) for m in self.axes))


SLOPE_PRICE = 2e-3
"""What slopes cost relative to bending, per mm²: next to nothing, but where there is no head a plane is not free."""
FLAT_PRICE = 1e-7
"""The same for the displacement itself, per mm⁴."""
_PRICES = (
    ((2, 0, 0), 1.0), ((0, 2, 0), 1.0), ((0, 0, 2), 1.0), ((1, 1, 0), 2.0), ((1, 0, 1), 2.0), ((0, 1, 1), 2.0),
    ((1, 0, 0), SLOPE_PRICE), ((0, 1, 0), SLOPE_PRICE), ((0, 0, 1), SLOPE_PRICE), ((0, 0, 0), FLAT_PRICE),
)  # fmt: skip
"""Orders of the derivatives whose squares are summed, and their weights."""
MIN_SPREAD = 0.1
"""Places may be drawn together to a tenth, not folded over."""


def _outer(values: torch.Tensor, a: torch.Tensor, b: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Apply a matrix along each axis."""
    values = torch.matmul(b, values @ n.T)
    return (a @ values.reshape(values.shape[0], -1)).reshape(a.shape[0], *values.shape[1:])


def _basis(n: int, size_mm: float, knot_mm: float, thin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, slopes (per mm) and curvatures (per mm²) of the nodes' bumps at every ``thin``-th of n voxels."""
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
    """Displacement along an axis that makes two images one.

    Parameters
    ----------
    first, second : numpy.ndarray, (X, Y, Z)
        On one grid. A place p is seen at p + d(p) in the first, at p + ratio d(p) in the second.
    sizes_mm : numpy.ndarray, (3,)
        Voxels.
    axis : int
        Along which places move.
    ratio : float
        Below 0: readout of the second over that of the first.
    start : numpy.ndarray, (X, Y, Z), optional
        Where to begin, mm; levels are then best the finer ones.
    levels : tuple of Level

    Returns
    -------
    numpy.ndarray, (X, Y, Z) float32
        d in mm along the axis' index.
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
    """Three numbers in the order that `numpy.moveaxis` of ``axis`` to the end gives axes."""
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
    """Two images (A, B, N), and the cost of a displacement between them."""

    first: torch.Tensor
    second: torch.Tensor
    spline: Spline
    ratio: float
    size_mm: float
    bending: float

    def linearise(self, nodes: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cost; the difference of the images drawn back; its derivatives by displacement and by slope, (A, B, N)."""
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
        """The Gauss-Newton step, by conjugate gradients."""

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
    """Values and slopes of an image at places shifted along its last axis.

    Parameters
    ----------
    image : torch.Tensor, (A, B, N)
    shift : torch.Tensor, (A, B, N)
        Voxels.

    Returns
    -------
    tuple of torch.Tensor, (A, B, N)
        Values (by a cubic through four neighbours), slopes per voxel, and which places lie inside the image.
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
