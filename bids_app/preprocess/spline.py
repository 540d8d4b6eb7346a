"""Interpolation of volumes at points, cubic or linear: by the native kernel, or by scipy if it was not compiled."""

from __future__ import annotations

from ctypes import POINTER, byref, c_double, c_int64

import numpy as np
from scipy import ndimage

from bids_app.model import native


def coefficients(volume: np.ndarray) -> np.ndarray:
    """Compute the coefficients of the cubic spline of a volume (X, Y, Z), float32; mirrored at the border voxels."""
    return ndimage.spline_filter(volume, order=3, output=np.float32, mode="mirror")


def cubic(spline: np.ndarray, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Evaluate a cubic spline, that is, interpolate its volume.

    Parameters
    ----------
    spline : numpy.ndarray, (X, Y, Z)
        Result of `coefficients`.
    points : numpy.ndarray, (N, 3) float64
        Any strides are accepted.
    matrix : numpy.ndarray, (4, 4)
        Maps points to voxels.

    Returns
    -------
    numpy.ndarray, (N,) float32
        Beyond the border, the volume is mirrored. 0 for points that are not finite.
    """
    if native.library() is not None:
        return _by_kernel(spline[..., None], points, matrix, order=3)[:, 0]
    voxels = _voxels(points, matrix)
    return ndimage.map_coordinates(spline, voxels, np.float32, order=3, mode="mirror", prefilter=False)


def linear(volume: np.ndarray, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Interpolate a volume linearly.

    Parameters
    ----------
    volume : numpy.ndarray, (X, Y, Z, C)
        C values of each voxel.
    points, matrix
        As in `cubic`.

    Returns
    -------
    numpy.ndarray, (N, C) float32
        Decays to 0 within a voxel of the border. 0 for points that are not finite.
    """
    if native.library() is not None:
        return _by_kernel(volume, points, matrix, order=1)
    voxels = _voxels(points, matrix)
    channels = (
        ndimage.map_coordinates(channel, voxels, np.float32, order=1, mode="grid-constant")
        for channel in np.moveaxis(volume, -1, 0)
    )
    return np.stack(list(channels), axis=-1)


def _voxels(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.einsum("ij,nj->in", matrix[:3, :3], points) + matrix[:3, 3:]


def _by_kernel(values: np.ndarray, points: np.ndarray, matrix: np.ndarray, order: int) -> np.ndarray:
    values, points = np.ascontiguousarray(values, dtype=np.float32), np.asarray(points, dtype=np.float64)
    out = np.empty((len(points), values.shape[3]), dtype=np.float32)
    sizes = (values.shape[3], order, len(points), *(stride // points.itemsize for stride in points.strides))
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
