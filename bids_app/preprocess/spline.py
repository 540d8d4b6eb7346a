"""Interpolation of volumes at points, cubic or linear.

It is computed by the native kernel, or by scipy if that was not compiled; on a GPU by `spline_torch.py`.
"""

from __future__ import annotations

from ctypes import POINTER, byref, c_double, c_int64
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from bids_app.model import native

REACH = 12
"""Voxels beyond which the values of a volume change the coefficients of a cubic spline by less than 1e-7."""


class Points(Protocol):
    """Points (N, 3) at which volumes are interpolated; see `points_on`."""

    def cubic(self, volume: np.ndarray, matrix: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Interpolate a volume (X, Y, Z), (N,) float32; parameters as of the function `cubic`."""
        ...


@dataclass(frozen=True)
class HostPoints:
    """Points in the memory of the CPU."""

    points: np.ndarray

    def cubic(self, volume: np.ndarray, matrix: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        return cubic(coefficients(volume), self.points, matrix, nearest=nearest)


def points_on(device: str, points: np.ndarray) -> Points:
    """Return points (N, 3) for the interpolation of volumes on a device.

    Parameters
    ----------
    device : str
        ``cpu``, or a device for PyTorch, such as ``cuda``; ``cpu:0`` is PyTorch on the CPU.
    points : numpy.ndarray, (N, 3)
    """
    if device == "cpu":
        return HostPoints(points)
    from bids_app.preprocess.spline_torch import DevicePoints

    return DevicePoints(points, device)


def coefficients(volume: np.ndarray) -> np.ndarray:
    """Compute the coefficients of the cubic spline of a volume (X, Y, Z), float32; mirrored at the border voxels."""
    return ndimage.spline_filter(volume, order=3, output=np.float32, mode="mirror")


def cubic(spline: np.ndarray, points: np.ndarray, matrix: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Evaluate a cubic spline, that is, interpolate its volume.

    Parameters
    ----------
    spline : numpy.ndarray, (X, Y, Z)
        Result of `coefficients`.
    points : numpy.ndarray, (N, 3) float64
        Any strides are accepted.
    matrix : numpy.ndarray, (4, 4)
        Maps points to voxels.
    nearest : bool
        Points beyond the border have the values of the border.

    Returns
    -------
    numpy.ndarray, (N,) float32
        Beyond the border, the volume is mirrored by default. 0 for points that are not finite.
    """
    if native.library() is not None:
        return _by_kernel(spline[..., None], points, matrix, order=3, nearest=nearest)[:, 0]
    voxels = _voxels(points, matrix, spline.shape if nearest else None)
    return ndimage.map_coordinates(spline, voxels, np.float32, order=3, mode="mirror", prefilter=False)


def linear(volume: np.ndarray, points: np.ndarray, matrix: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Interpolate a volume linearly.

    Parameters
    ----------
    volume : numpy.ndarray, (X, Y, Z, C)
        C values of each voxel.
    points, matrix, nearest
        As in `cubic`.

    Returns
    -------
    numpy.ndarray, (N, C) float32
        By default, it decays to 0 within a voxel of the border. 0 for points that are not finite.
    """
    if native.library() is not None:
        return _by_kernel(volume, points, matrix, order=1, nearest=nearest)
    voxels = _voxels(points, matrix, volume.shape[:3] if nearest else None)
    channels = (
        ndimage.map_coordinates(channel, voxels, np.float32, order=1, mode="grid-constant")
        for channel in np.moveaxis(volume, -1, 0)
    )
    return np.stack(list(channels), axis=-1)


def _voxels(points: np.ndarray, matrix: np.ndarray, within: tuple[int, ...] | None) -> np.ndarray:
    """Map points to voxels, (3, N); to the nearest ones ``within`` a shape."""
    voxels = np.einsum("ij,nj->in", matrix[:3, :3], points) + matrix[:3, 3:]
    return voxels if within is None else np.clip(voxels, 0, np.array(within)[:, None] - 1)


def _by_kernel(values: np.ndarray, points: np.ndarray, matrix: np.ndarray, order: int, nearest: bool) -> np.ndarray:
    values, points = np.ascontiguousarray(values, dtype=np.float32), np.asarray(points, dtype=np.float64)
    out = np.empty((len(points), values.shape[3]), dtype=np.float32)
    sizes = (values.shape[3], order, nearest, len(points), *(stride // points.itemsize for stride in points.strides))
    struct = native.Spline(
        (c_int64 * 3)(*values.shape[:3]),
        *sizes,
        (c_double * 12)(*np.asarray(matrix, dtype=np.float64)[:3].ravel()),
        values.ctypes.data_as(native.Floats),
        points.ctypes.data_as(POINTER(c_double)),
        out.ctypes.data_as(native.Floats),
    )
    native.call("ns_spline_sample", byref(struct), 1)
    return out
