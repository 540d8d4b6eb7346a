"""Clips: non-overlapping, normalised segments at 0.8 s, of 20 volumes by default; an incomplete last clip is dropped.

    T  volumes at the run's TR      U  volumes at 0.8 s      V  voxels of the brain

A series is read in chunks, twice: once for its statistics, once to cut it. Only `to_model_grid` holds a whole run in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bids_app.clips.grid import MODEL_GRID_SHAPE, map_to_grid, read_volumes
from bids_app.clips.series import (
    GridSeries,
    check_finite,
    check_image,
    mask_on_grid,
    read_tr,
    zero_outside,
)
from bids_app.errors import BadDataError, UsageError

MODEL_TR = 0.8
"""Repetition time of the encoder's input, s."""
CLIP_VOLUMES = 20


@dataclass(frozen=True)
class TimeGrid:
    """Linear interpolation in time, equal to `torch.nn.functional.interpolate(mode="linear", align_corners=False)`.

    Attributes
    ----------
    n_in, n_out : int
        Number of volumes at the run's TR and at `MODEL_TR`.
    """

    n_in: int
    n_out: int

    @classmethod
    def of(cls, n_vols: int, tr: float) -> TimeGrid:
        """Make the grid of a run with ``n_vols`` volumes at ``tr`` seconds."""
        return cls(n_vols, max(1, round(n_vols * tr / MODEL_TR)))

    def neighbours(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the volumes before and after ``start`` to ``stop`` at 0.8 s, and the weight of the latter."""
        step = np.float32(self.n_in) / np.float32(self.n_out)
        # torch multiplies and adds with a single rounding; float64 reproduces it
        position = (np.float64(step) * (np.arange(start, stop) + 0.5) - 0.5).astype(np.float32)
        position = np.maximum(position, np.float32(0))
        before = np.minimum(position.astype(np.int64), self.n_in - 1)
        after = np.minimum(before + 1, self.n_in - 1)
        return before, after, np.minimum(position - before.astype(np.float32), np.float32(1))

    def sample(self, rows: Callable[[int, int], np.ndarray], start: int, stop: int) -> np.ndarray:
        """Interpolate volumes ``start`` to ``stop``, reading only the volumes required; (stop - start, V)."""
        before, after, weight = self.neighbours(start, stop)
        first = int(before[0])
        if self.n_in == self.n_out:
            return rows(start, stop)
        source = rows(first, int(after[-1]) + 1)
        weight = weight[:, None]
        return (1 - weight) * source[before - first] + weight * source[after - first]


@dataclass(frozen=True)
class SeriesStatistics:
    """Statistics for both normalisations, at 0.8 s with negative values set to 0.

    Attributes
    ----------
    mean, std, low : np.ndarray of float64, (V,)
        Mean, standard deviation and minimum of each voxel over time.
    signal : np.ndarray of bool, (V,)
        Voxels with a positive value; others (outside the field of view) are background.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    signal: np.ndarray


def series_statistics(series: GridSeries) -> SeriesStatistics:
    """Compute the statistics of a series in one pass."""
    time, n_voxels = TimeGrid.of(series.n_vols, series.tr), series.values.shape[1]
    mean, spread, high = np.zeros(n_voxels), np.zeros(n_voxels), np.zeros(n_voxels)
    low = np.full(n_voxels, np.inf)
    for start in range(0, time.n_out, CLIP_VOLUMES):
        chunk = time.sample(series.rows, start, min(start + CLIP_VOLUMES, time.n_out))
        check_finite(chunk, "the series")
        np.maximum(chunk, 0, out=chunk)
        n_old, n_new = start, len(chunk)
        chunk_mean = chunk.mean(axis=0, dtype=np.float64)
        step = chunk_mean - mean
        spread += ((chunk - chunk_mean) ** 2).sum(axis=0) + step**2 * n_old * n_new / (n_old + n_new)
        mean += step * n_new / (n_old + n_new)
        np.maximum(high, chunk.max(axis=0), out=high)
        np.minimum(low, chunk.min(axis=0), out=low)
    return SeriesStatistics(mean, np.sqrt(spread / time.n_out), low, high > 0)


@dataclass(frozen=True)
class Normalisation:
    """Normalisation: (value - shift) / scale for voxels with signal, ``background`` for all others.

    Attributes
    ----------
    shift, scale : np.ndarray of float32, (V,) or ()
    background : float
        The brain's minimum after normalisation.
    """

    shift: np.ndarray | np.floating
    scale: np.ndarray | np.floating
    background: float


def _global(stats: SeriesStatistics) -> Normalisation:
    """Normalise by one z-score over all brain voxels and volumes, as in the training of the published models."""
    mean, low = stats.mean[stats.signal], stats.low[stats.signal]
    shift = mean.mean()
    scale = np.sqrt((stats.std[stats.signal] ** 2 + (mean - shift) ** 2).mean())
    if not scale > 0:
        raise BadDataError("All brain voxels have the same value.", "Check the image; it has no BOLD signal.")
    return Normalisation(np.float32(shift), np.float32(scale), float((low.min() - shift) / scale))


def _voxel(stats: SeriesStatistics) -> Normalisation:
    """Normalise each voxel by its z-score over time, which preserves most of the dynamics; constant voxels are 0."""
    if not (stats.std[stats.signal] > 0).any():
        raise BadDataError("All brain voxels are constant over time.", "Check the image; it has no BOLD signal.")
    scale = np.where(stats.std > 0, stats.std, np.inf)
    background = ((stats.low - stats.mean) / scale)[stats.signal].min()
    return Normalisation(stats.mean.astype(np.float32), scale.astype(np.float32), float(background))


NORMALISATIONS: dict[str, Callable[[SeriesStatistics], Normalisation]] = {"global": _global, "voxel": _voxel}


class ClipReader:
    """Reader of a series in non-overlapping clips of ``clip_volumes`` volumes at 0.8 s.

    Parameters
    ----------
    series : GridSeries
    clip_volumes : int
        Volumes per clip.

    Attributes
    ----------
    n_clips : int
    dropped : float
        Duration of the incomplete last clip, which is dropped, s.

    Raises
    ------
    BadDataError
        The run is shorter than one clip. Padding is not an option: the encoder would read invented volumes, and the
        prediction would not be about the run.
    """

    def __init__(self, series: GridSeries, clip_volumes: int = CLIP_VOLUMES) -> None:
        self.series, self.clip_volumes = series, clip_volumes
        self.time = TimeGrid.of(series.n_vols, series.tr)
        self.n_clips = self.time.n_out // clip_volumes
        self.dropped = (self.time.n_out - self.n_clips * clip_volumes) * MODEL_TR
        self._voxels = torch.from_numpy(np.flatnonzero(series.mask))
        self._normalisations: dict[str, Normalisation] = {}
        if not self.n_clips:
            raise BadDataError(
                f"The run lasts {series.n_vols * series.tr:.1f} s; a clip requires {clip_volumes * MODEL_TR:.1f} s.",
                "Omit the run, or drop fewer volumes at its start.",
            )

    def __len__(self) -> int:
        return self.n_clips

    @cached_property
    def statistics(self) -> SeriesStatistics:
        """Statistics of the whole series, computed once."""
        stats = series_statistics(self.series)
        if not stats.signal.any():
            raise BadDataError(
                "The brain has no signal on the model grid.", "Check brain mask, alignment and field of view."
            )
        return stats

    @property
    def mask(self) -> np.ndarray:
        """Brain mask, (96, 96, 96) bool."""
        return self.series.mask

    @property
    def duration(self) -> float:
        """Duration of a clip, s."""
        return self.clip_volumes * MODEL_TR

    def onset(self, index: int) -> float:
        """Return the onset of a clip in the run as scanned, s."""
        return self.series.start + index * self.duration

    def normalisation(self, name: str) -> Normalisation:
        """Return shift, scale and background for an entry of `NORMALISATIONS`."""
        if name not in NORMALISATIONS:
            raise UsageError(f"Unknown normalisation {name!r}.", f"Choose from {', '.join(NORMALISATIONS)}.")
        if name not in self._normalisations:
            self._normalisations[name] = NORMALISATIONS[name](self.statistics)
        return self._normalisations[name]

    def clip(self, index: int, normalisation: str = "global") -> torch.Tensor:
        """Read one clip, (1, 96, 96, 96, n) float32."""
        if not 0 <= index < self.n_clips:
            raise IndexError(f"clip {index} of {self.n_clips}")
        start = index * self.clip_volumes
        return self.volumes(start, start + self.clip_volumes, normalisation).unsqueeze(0)

    def volumes(self, start: int, stop: int, normalisation: str = "global") -> torch.Tensor:
        """Read volumes ``start`` to ``stop`` at 0.8 s, (96, 96, 96, n) float32."""
        norm = self.normalisation(normalisation)
        values = np.maximum(self.time.sample(self.series.rows, start, stop), 0)  # (n, V)
        values -= norm.shift
        values /= norm.scale
        values[:, ~self.statistics.signal] = norm.background
        grid = torch.full((self.series.mask.size, stop - start), norm.background)
        grid[self._voxels] = torch.from_numpy(values).T
        return grid.reshape(*MODEL_GRID_SHAPE, stop - start)

    def mean_image_clip(self, normalisation: str = "global") -> torch.Tensor:
        """Return a clip without dynamics: each volume is the run's mean image, (1, 96, 96, 96, n) float32."""
        norm, statistics = self.normalisation(normalisation), self.statistics
        values = ((statistics.mean - norm.shift) / norm.scale).astype(np.float32)  # (V,)
        values[~statistics.signal] = norm.background
        grid = torch.full((self.series.mask.size,), norm.background)
        grid[self._voxels] = torch.from_numpy(values)
        return grid.reshape(1, *MODEL_GRID_SHAPE, 1).repeat(1, 1, 1, 1, self.clip_volumes)

    def clips(self, normalisation: str = "global") -> Iterator[torch.Tensor]:
        """Read all clips in order, one at a time."""
        for index in range(self.n_clips):
            yield self.clip(index, normalisation)


def iter_clips(series: GridSeries, normalisation: str = "global") -> Iterator[torch.Tensor]:
    """Read the clips of a series, (1, 96, 96, 96, 20) each; see `ClipReader`."""
    return ClipReader(series).clips(normalisation)


def to_model_grid(img: Any, tr: float | None = None, mask: Any = None, normalisation: str = "global") -> torch.Tensor:
    """Resample a whole 4D image in MNI152NLin6Asym space to the model grid and 0.8 s, and normalise it.

    For long runs use `series_from_image` and `ClipReader`, which give the same numbers in chunks.

    Parameters
    ----------
    img : nibabel image, 4D
        Stored in any orientation; the affine defines the voxel positions.
    tr : float, optional
        Repetition time, s; None uses the header's.
    mask : nibabel image, 3D, optional
        Brain mask. Without one, voxels that are 0 in all volumes are background.
    normalisation : str
        An entry of `NORMALISATIONS`.

    Returns
    -------
    torch.Tensor of float32, (96, 96, 96, U)
        U = round(T * tr / 0.8) volumes.
    """
    what = check_image(img)
    tr = read_tr(img, tr)
    grid = map_to_grid(img, what).apply(zero_outside(read_volumes(img, 0, img.shape[3])), order=1)
    brain = mask_on_grid(mask) if mask is not None else (grid != 0).any(axis=3)
    if not brain.any():
        raise BadDataError(f"{what}: all voxels on the model grid are 0.", "Check the image and its space.")
    rows = grid[brain].T
    check_finite(rows, what)
    series = GridSeries(rows, brain, tr)
    reader = ClipReader(series, clip_volumes=1)
    return reader.volumes(0, reader.time.n_out, normalisation)
