"""Linear interpolation and smoothing axis by axis, between grids whose axes are parallel.

The result is that of scipy's `affine_transform` and `gaussian_filter` but for rounding (1e-6 of the range), in a tenth
of the time: along each axis, an image is multiplied by a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

PARALLEL = 1e-3
"""Largest distance (voxels) of a point from that of parallel axes; headers store affines in 32 bits."""
TRUNCATE = 4.0
"""Radius of a Gaussian in standard deviations, as scipy's."""


def are_parallel(pull: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether a matrix (4, 4) from voxel indices of a grid to those of another one keeps the axes."""
    off_axis = np.abs(pull[:3, :3] - np.diag(np.diag(pull[:3, :3])))
    return bool((off_axis @ np.asarray(shape[:3])).max() < PARALLEL)


def resample_parallel(
    data: np.ndarray,
    pull: np.ndarray,
    shape: Sequence[int],
    *,
    sigma: Sequence[float] = (0.0, 0.0, 0.0),
    outside: str = "constant",
) -> np.ndarray:
    """Smooth an image, and interpolate it linearly on a grid with parallel axes.

    Parameters
    ----------
    data : numpy.ndarray, (X, Y, Z)
    pull : numpy.ndarray, (4, 4)
        Voxel indices of the grid to those of the image; see `are_parallel`.
    shape : sequence of int
        Shape of the grid.
    sigma : (3,)
        Standard deviations of a Gaussian along the axes, voxels of the image.
    outside : str
        ``constant``: 0 outside the image; ``nearest``: the nearest voxel.

    Returns
    -------
    numpy.ndarray, (X', Y', Z') float32
    """
    found = np.asarray(data, dtype=np.float32)
    grows = int(np.prod(shape)) > found.size
    for axis in (2, 1, 0) if grows else (0, 1, 2):  # the largest image is that which is contiguous along its rows
        positions = pull[axis, axis] * np.arange(shape[axis]) + pull[axis, 3]
        matrix = interpolation_matrix(found.shape[axis], positions, outside)
        if sigma[axis] > 0:
            matrix = matrix @ smoothing_matrix(found.shape[axis], sigma[axis])
        rows = np.moveaxis(found, axis, 0)
        product = matrix.astype(np.float32) @ rows.reshape(len(rows), -1)
        found = np.moveaxis(product.reshape(-1, *rows.shape[1:]), 0, axis)
    return np.ascontiguousarray(found)


def interpolation_matrix(n: int, positions: np.ndarray, outside: str) -> csr_array:
    """Return the matrix (m, n) of linear interpolation at positions (m,) of an axis with n voxels."""
    inside = (positions >= 0) & (positions <= n - 1)
    clipped = np.clip(positions, 0, n - 1)
    low = np.minimum(np.floor(clipped).astype(int), max(n - 2, 0))
    share = clipped - low
    weights = np.stack([1 - share, share])
    if outside == "constant":
        weights *= inside
    index = np.arange(len(positions))
    entries = (weights.ravel(), (np.tile(index, 2), np.concatenate([low, np.minimum(low + 1, n - 1)])))
    return csr_array(entries, shape=(len(positions), n))


def smoothing_matrix(n: int, sigma: float) -> csr_array:
    """Return the matrix (n, n) of Gaussian smoothing of an axis that is mirrored at its ends."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    rows = np.repeat(np.arange(n), len(offsets))
    columns = (rows + np.tile(offsets, n)) % (2 * n)
    columns = np.where(columns < n, columns, 2 * n - 1 - columns)
    return csr_array((np.tile(weights, n), (rows, columns)), shape=(n, n))
