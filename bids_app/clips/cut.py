"""Clips: time in steps of 0.8 s, one of two normalisations, 20 volumes each, none overlapping, the rest dropped.

    T  volumes at the run's TR      U  volumes at 0.8 s      V  voxels of the brain

Two passes over a series, a chunk at a time: one for its statistics, one to cut. No run is ever held as a whole, except
by `to_model_grid`, whose answer is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bids_app.clips.grid import MODEL_GRID_SHAPE, place, read_volumes
from bids_app.clips.series import (
    GridSeries,
    brain_on_grid,
    check_finite,
    check_image,
    checked_tr,
    zero_outside,
)
from bids_app.errors import BadDataError, UsageError

MODEL_TR = 0.8
"""Time between the volumes that the encoder reads, s."""
CLIP_VOLUMES = 20


@dataclass(frozen=True)
class TimeGrid:
    """Linear interpolation in time, as `torch.nn.functional.interpolate(mode="linear", align_corners=False)` does it.

    Attributes
    ----------
    n_in, n_out : int
        Volumes at the run's TR, and at `MODEL_TR`.
    """

    n_in: int
    n_out: int

    @classmethod
    def of(cls, n_vols: int, tr: float) -> TimeGrid:
        """For a run of ``n_vols`` volumes at ``tr`` seconds."""
        return cls(n_vols, max(1, round(n_vols * tr / MODEL_TR)))

    def neighbours(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For volumes ``start`` to ``stop`` at 0.8 s: the two volumes they lie between, and the share of the second."""
        step = np.float32(self.n_in) / np.float32(self.n_out)
        # torch multiplies and adds in one rounding; so does this, by way of float64
        place = (np.float64(step) * (np.arange(start, stop) + 0.5) - 0.5).astype(np.float32)
        place = np.maximum(place, np.float32(0))
        before = np.minimum(place.astype(np.int64), self.n_in - 1)
        after = np.minimum(before + 1, self.n_in - 1)
        return before, after, np.minimum(place - before.astype(np.float32), np.float32(1))

    def sample(self, rows: Callable[[int, int], np.ndarray], start: int, stop: int) -> np.ndarray:
        """Interpolate volumes ``start`` to ``stop``, reading no more than they need; (stop - start, V)."""
        before, after, share = self.neighbours(start, stop)
        first = int(before[0])
        if self.n_in == self.n_out:
            return rows(start, stop)
        source = rows(first, int(after[-1]) + 1)
        share = share[:, None]
        return (1 - share) * source[before - first] + share * source[after - first]


@dataclass(frozen=True)
class SeriesStatistics:
    """What both normalisations need of a series, of signals at 0.8 s with negatives set to 0.

    Attributes
    ----------
    mean, std, low : np.ndarray of float64, (V,)
        Over time, of each voxel.
    signal : np.ndarray of bool, (V,)
        Voxels that are above 0 at least once; the others (outside of the field of view) are background.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    signal: np.ndarray


def series_statistics(series: GridSeries) -> SeriesStatistics:
    """Gather the statistics of a series in one pass."""
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
    """value -> (value - shift) / scale for voxels with signal, ``background`` everywhere else.

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
    """One z-score over all voxels of the brain and all volumes, as the published models were trained with."""
    mean, low = stats.mean[stats.signal], stats.low[stats.signal]
    shift = mean.mean()
    scale = np.sqrt((stats.std[stats.signal] ** 2 + (mean - shift) ** 2).mean())
    if not scale > 0:
        raise BadDataError("The brain has the same value everywhere.", "Look at the image; it holds no BOLD signal.")
    return Normalisation(np.float32(shift), np.float32(scale), float((low.min() - shift) / scale))


def _voxel(stats: SeriesStatistics) -> Normalisation:
    """Each voxel's own z-score over time, which keeps most of what is known about dynamics; constant voxels are 0."""
    if not (stats.std[stats.signal] > 0).any():
        raise BadDataError("No voxel of the brain changes over time.", "Look at the image; it holds no BOLD signal.")
    scale = np.where(stats.std > 0, stats.std, np.inf)
    background = ((stats.low - stats.mean) / scale)[stats.signal].min()
    return Normalisation(stats.mean.astype(np.float32), scale.astype(np.float32), float(background))


NORMALISATIONS: dict[str, Callable[[SeriesStatistics], Normalisation]] = {"global": _global, "voxel": _voxel}


class ClipReader:
    """Cuts a series into clips of 20 volumes at 0.8 s that do not overlap.

    Parameters
    ----------
    series : GridSeries
    clip_volumes : int
        Volumes of a clip.

    Attributes
    ----------
    n_clips : int
    dropped : float
        Seconds at the end that fill no clip.

    Raises
    ------
    BadDataError
        The run is shorter than one clip. It is refused rather than padded: an encoder that reads invented volumes
        gives an answer that is not about the run.
    """

    def __init__(self, series: GridSeries, clip_volumes: int = CLIP_VOLUMES) -> None:
        self.series, self.clip_volumes = series, clip_volumes
        self.time = TimeGrid.of(series.n_vols, series.tr)
        self.n_clips = self.time.n_out // clip_volumes
        self.dropped = (self.time.n_out - self.n_clips * clip_volumes) * MODEL_TR
        self._places = torch.from_numpy(np.flatnonzero(series.mask))
        self._normalisations: dict[str, Normalisation] = {}
        if not self.n_clips:
            raise BadDataError(
                f"The run lasts {series.n_vols * series.tr:.1f} s, and a clip needs {clip_volumes * MODEL_TR:.1f} s.",
                "The encoder cannot read so short a run; leave it out, or drop fewer volumes at its start.",
            )

    def __len__(self) -> int:
        return self.n_clips

    @cached_property
    def statistics(self) -> SeriesStatistics:
        """Of the whole series; computed once, when first asked for."""
        stats = series_statistics(self.series)
        if not stats.signal.any():
            raise BadDataError("The brain has no signal on the model grid.", "Check mask, alignment and field of view.")
        return stats

    @property
    def duration(self) -> float:
        """Of a clip, s."""
        return self.clip_volumes * MODEL_TR

    def onset(self, index: int) -> float:
        """Start of a clip in the run as scanned, s."""
        return self.series.start + index * self.duration

    def normalisation(self, name: str) -> Normalisation:
        """Shift, scale and background under an entry of `NORMALISATIONS`."""
        if name not in NORMALISATIONS:
            raise UsageError(f"There is no normalisation {name!r}.", f"Choose one of {', '.join(NORMALISATIONS)}.")
        if name not in self._normalisations:
            self._normalisations[name] = NORMALISATIONS[name](self.statistics)
        return self._normalisations[name]

    def clip(self, index: int, normalisation: str = "global") -> torch.Tensor:
        """One clip, (1, 96, 96, 96, n) float32."""
        if not 0 <= index < self.n_clips:
            raise IndexError(f"clip {index} of {self.n_clips}")
        start = index * self.clip_volumes
        return self.volumes(start, start + self.clip_volumes, normalisation).unsqueeze(0)

    def volumes(self, start: int, stop: int, normalisation: str = "global") -> torch.Tensor:
        """Volumes ``start`` to ``stop`` at 0.8 s, (96, 96, 96, n) float32."""
        how = self.normalisation(normalisation)
        values = np.maximum(self.time.sample(self.series.rows, start, stop), 0)  # (n, V)
        values -= how.shift
        values /= how.scale
        values[:, ~self.statistics.signal] = how.background
        grid = torch.full((self.series.mask.size, stop - start), how.background)
        grid[self._places] = torch.from_numpy(values).T
        return grid.reshape(*MODEL_GRID_SHAPE, stop - start)

    def still(self, normalisation: str = "global") -> torch.Tensor:
        """A clip without dynamics: each volume is the run's mean image, (1, 96, 96, 96, n) float32."""
        how, statistics = self.normalisation(normalisation), self.statistics
        values = ((statistics.mean - how.shift) / how.scale).astype(np.float32)  # (V,)
        values[~statistics.signal] = how.background
        grid = torch.full((self.series.mask.size,), how.background)
        grid[self._places] = torch.from_numpy(values)
        return grid.reshape(1, *MODEL_GRID_SHAPE, 1).repeat(1, 1, 1, 1, self.clip_volumes)

    def clips(self, normalisation: str = "global") -> Iterator[torch.Tensor]:
        """All clips in order, one at a time."""
        for index in range(self.n_clips):
            yield self.clip(index, normalisation)


def iter_clips(series: GridSeries, normalisation: str = "global") -> Iterator[torch.Tensor]:
    """Clips of a series, (1, 96, 96, 96, 20) each; see `ClipReader`."""
    return ClipReader(series).clips(normalisation)


def to_model_grid(img: Any, tr: float | None = None, mask: Any = None, normalisation: str = "global") -> torch.Tensor:
    """Bring a whole 4D image in MNI152NLin6Asym space onto the model grid, at 0.8 s and normalised.

    For long runs use `series_from_image` and `ClipReader`, which give the same numbers piece by piece.

    Parameters
    ----------
    img : nibabel image, 4D
        Stored in any orientation: only its affine says where voxels are.
    tr : float, optional
        Repetition time, s; None takes the header's.
    mask : nibabel image, 3D, optional
        The brain. Without one, a voxel that is 0 in all volumes is background.
    normalisation : str
        An entry of `NORMALISATIONS`.

    Returns
    -------
    torch.Tensor of float32, (96, 96, 96, U)
        U = round(T * tr / 0.8) volumes.
    """
    what = check_image(img)
    tr = checked_tr(img, tr)
    grid = place(img, what).apply(zero_outside(read_volumes(img, 0, img.shape[3])), order=1)
    brain = brain_on_grid(mask) if mask is not None else (grid != 0).any(axis=3)
    if not brain.any():
        raise BadDataError(f"{what}: is 0 all over the model grid.", "Check the image and its space.")
    rows = grid[brain].T
    check_finite(rows, what)
    series = GridSeries(rows, brain, tr)
    reader = ClipReader(series, clip_volumes=1)
    return reader.volumes(0, reader.time.n_out, normalisation)
