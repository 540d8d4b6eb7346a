"""Slice timing correction: a series as if all slices of a volume had been measured at once.

The correction is part of reading: `SliceTimed` hands out volumes that were interpolated in time by a cubic spline,
chunk by chunk, so nothing is written and the interpolation in space stays the only one. The spline's weights fall by
a factor of 3.7 a volume; those beyond `REACH` volumes are left out.

    T  volumes      m  volumes that a chunk is made from      n  volumes of the chunk
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_app.preprocess.io.timing import SliceTimes
from bids_app.preprocess.io.volumes import VolumeSource

REACH = 8
"""Volumes on either side that take part in an interpolated value; what is farther weighs less than 3e-5."""
POLE = np.sqrt(3.0) - 2.0


@dataclass(frozen=True)
class SliceTimed:
    """A series in which all slices of a volume are as if measured at `SliceTimes.reference`.

    Parameters
    ----------
    source : VolumeSource
        The series as it was measured.
    slices : SliceTimes
    tr : float
        s.
    n_dummy : int
        Volumes at the start that stay as they are, and take no part in others.
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
        """Volumes ``start`` to ``stop``, (n, X, Y, Z) float32."""
        n_volumes = self.shape[3]
        first = max(start, self.n_dummy)
        if first >= stop:
            return self.source.read(start, stop)
        low, high = max(self.n_dummy, first - REACH), min(n_volumes, stop + REACH)
        raw = self.source.read(min(start, low), high)
        own, raw = raw[start - min(start, low) : stop - min(start, low)].copy(), raw[low - min(start, low) :]
        times = np.array(self.slices.times)
        along = self.slices.axis + 1
        for time in np.unique(times):
            weights = self._weights(float(time), first, stop, low, high)
            where: list[Any] = [slice(None)] * 4
            where[along] = np.flatnonzero(times == time)
            values = np.tensordot(weights, raw[tuple(where)], axes=1)  # (n, m) @ (m, X, Y, slices)
            where[0] = slice(first - start, None)
            own[tuple(where)] = values
        return own

    def _weights(self, time: float, first: int, stop: int, low: int, high: int) -> np.ndarray:
        """Weights of volumes ``low`` to ``high`` in volumes ``first`` to ``stop`` of a slice, (n, m) float32."""
        kernel = shift_kernel((self.slices.reference - time) / self.tr)
        begin, end = self.n_dummy, self.shape[3] - 1
        weights = np.zeros((stop - first, high - low))
        rows = np.arange(stop - first)
        for offset, weight in zip(range(-REACH, REACH + 1), kernel, strict=True):
            wanted = rows + first + offset
            nearest = np.clip(wanted, begin, end)
            beyond = wanted != nearest  # there, the series goes on as its turned mirror image: 2 x(0) - x(k) at -k
            weights[rows, np.clip(nearest, low, high - 1) - low] += np.where(beyond, 2 * weight, weight)
            mirrored = np.clip(2 * nearest - wanted, low, high - 1)
            weights[rows[beyond], mirrored[beyond] - low] -= weight
        return weights.astype(np.float32)


def shift_kernel(shift: float) -> np.ndarray:
    """Weights of the volumes around t in the cubic spline's value at t + shift, (2 REACH + 1,).

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
