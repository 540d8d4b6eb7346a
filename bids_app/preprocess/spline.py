"""Cubic B-splines of volumes, evaluated at points: by the native kernel, or by scipy if it was not compiled."""

from __future__ import annotations

from ctypes import POINTER, byref, c_double, c_int64

import numpy as np
from scipy import ndimage

from bids_app.model import native

ORDER = 3


def coefficients(volume: np.ndarray) -> np.ndarray:
    """Compute the spline coefficients of a volume (X, Y, Z), float32; mirrored at the border voxels."""
    return ndimage.spline_filter(volume, order=ORDER, output=np.float32, mode="mirror")


def evaluate(spline: np.ndarray, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Evaluate a spline, that is, interpolate its volume.

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
    if native.library() is None:
        voxels = np.einsum("ij,nj->in", matrix[:3, :3], points) + matrix[:3, 3:]
        return ndimage.map_coordinates(spline, voxels, np.float32, order=ORDER, mode="mirror", prefilter=False)
    spline = np.ascontiguousarray(spline, dtype=np.float32)
    points = np.asarray(points, dtype=np.float64)
    values = np.empty(len(points), dtype=np.float32)
    strides = (stride // points.itemsize for stride in points.strides)
    struct = native.Spline(
        (c_int64 * 3)(*spline.shape),
        len(points),
        *strides,
        (c_double * 12)(*np.asarray(matrix, dtype=np.float64)[:3].ravel()),
        spline.ctypes.data_as(native.Floats),
        points.ctypes.data_as(POINTER(c_double)),
        values.ctypes.data_as(native.Floats),
    )
    native.call("ns_spline_sample", byref(struct), 1)
    return values
