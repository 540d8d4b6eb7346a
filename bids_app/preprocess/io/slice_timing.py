"""Slice timing correction by cubic spline interpolation in time.

`SliceTimed` interpolates while reading, chunk by chunk, so no corrected series is written. Spline weights decrease by
a factor of 3.7 per volume; those beyond `REACH` volumes are omitted.

    T  volumes      m  input volumes of a chunk      n  output volumes of a chunk
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_app.preprocess.io.timing import SliceTimes
from bids_app.preprocess.io.volumes import VolumeSource

REACH = 8
"""Volumes on either side that contribute to an interpolated value; weights beyond are below 3e-5."""
POLE = np.sqrt(3.0) - 2.0


@dataclass(frozen=True)
class SliceTimed:
    """A series whose slices are shifted in time to `SliceTimes.reference`.

    Parameters
    ----------
    source : VolumeSource
        The uncorrected series.
    slices : SliceTimes
    tr : float
        s.
    n_dummy : int
        Dummy volumes at the start, which are neither corrected nor used for other volumes.
    """

    source: VolumeSource
    slices: SliceTimes
    tr: float
    n_dummy: int = 0

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to RAS mm, (4, 4)."""
        return self.source.affine

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(X, Y, Z, T)."""
        return self.source.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read volumes ``start`` to ``stop``, (n, X, Y, Z) float32."""
        n_volumes = self.shape[3]
        first = max(start, self.n_dummy)
        if first >= stop:
            return self.source.read(start, stop)
        low, high = max(self.n_dummy, first - REACH), min(n_volumes, stop + REACH)
        raw = self.source.read(min(start, low), high)
        corrected, raw = raw[start - min(start, low) : stop - min(start, low)].copy(), raw[low - min(start, low) :]
        times = np.array(self.slices.times)
        slice_axis = self.slices.axis + 1
        for time in np.unique(times):
            weights = self._weights(float(time), first, stop, low, high)
            index: list[Any] = [slice(None)] * 4
            index[slice_axis] = np.flatnonzero(times == time)
            values = np.tensordot(weights, raw[tuple(index)], axes=1)  # (n, m) @ (m, X, Y, slices)
            index[0] = slice(first - start, None)
            corrected[tuple(index)] = values
        return corrected

    def _weights(self, time: float, first: int, stop: int, low: int, high: int) -> np.ndarray:
        """Compute the weights of volumes ``low`` to ``high`` for volumes ``first`` to ``stop``, (n, m) float32."""
        kernel = shift_kernel((self.slices.reference - time) / self.tr)
        begin, end = self.n_dummy, self.shape[3] - 1
        weights = np.zeros((stop - first, high - low))
        rows = np.arange(stop - first)
        for offset, weight in zip(range(-REACH, REACH + 1), kernel, strict=True):
            wanted = rows + first + offset
            nearest = np.clip(wanted, begin, end)
            beyond = wanted != nearest  # extrapolated by point reflection: 2 x(0) - x(k) at -k
            weights[rows, np.clip(nearest, low, high - 1) - low] += np.where(beyond, 2 * weight, weight)
            mirrored = np.clip(2 * nearest - wanted, low, high - 1)
            weights[rows[beyond], mirrored[beyond] - low] -= weight
        return weights.astype(np.float32)


def shift_kernel(shift: float) -> np.ndarray:
    """Compute the weights of the volumes around t for the cubic spline's value at t + shift, (2 REACH + 1,).

    Parameters
    ----------
    shift : float
        In volumes, -1 to 1.
    """
    nodes = np.arange(-REACH - 2, REACH + 3)
    distance = np.abs(shift - nodes)
    bumps = np.where(
        distance < 1, 2 / 3 - distance**2 * (1 - distance / 2), np.where(distance < 2, (2 - distance) ** 3 / 6, 0.0)
    )
    offsets = np.arange(-REACH, REACH + 1)
    inverse = -6 * POLE / (1 - POLE**2) * POLE ** np.abs(nodes[:, None] - offsets)  # samples to coefficients
    kernel = bumps @ inverse
    return kernel / kernel.sum()
