"""A run on the model grid, as a folder: voxels of the brain only, one row a volume, at the run's own TR.

    values.npy   (T, V) float32      mask.npy   (96, 96, 96) bool, V = mask.sum()      meta.json   tr, start

Rows are written and read a few at a time, so that nobody holds a run; a folder without meta.json was not finished.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bids_app.clips.grid import MODEL_GRID_SHAPE, name_of, place, read_volumes
from bids_app.errors import BadDataError, NoInputError

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class GridSeries:
    """A run on the model grid.

    Attributes
    ----------
    values : np.ndarray of float32, (T, V)
        Memory-mapped where it was opened from a folder; in scanner units, without dummy volumes.
    mask : np.ndarray of bool, (96, 96, 96)
        The brain; V voxels, in C order.
    tr : float
        Time between volumes, s.
    start : float
        Time of the first volume in the run as it was scanned, s: the dummy volumes that were dropped.
    """

    values: np.ndarray
    mask: np.ndarray
    tr: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.mask.shape != MODEL_GRID_SHAPE or self.mask.dtype != bool:
            raise BadDataError(f"A mask of shape {self.mask.shape} is not on the model grid.", "It must be 96x96x96.")
        if self.values.ndim != 2 or self.values.shape[1] != int(self.mask.sum()):
            raise BadDataError(
                f"A series of shape {self.values.shape} does not fit a mask of {int(self.mask.sum())} voxels.",
                "Rows are volumes, columns the mask's voxels.",
            )
        if not self.tr > 0:
            raise BadDataError(f"A repetition time of {self.tr} s cannot be.", "Give it in seconds, above 0.")

    @property
    def n_vols(self) -> int:
        """T, the number of volumes."""
        return self.values.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Volumes from ``start`` up to ``stop`` as an array of their own, (n, V) float32.

        Read past the memory map, whose pages would otherwise stay resident for as long as the series is open.
        """
        if not isinstance(self.values, np.memmap) or self.values.filename is None:
            return np.array(self.values[start:stop], dtype=np.float32)
        start, stop, _ = slice(start, stop).indices(self.n_vols)
        n_voxels = self.values.shape[1]
        offset = self.values.offset + start * n_voxels * 4
        count = max(stop - start, 0) * n_voxels
        return np.fromfile(self.values.filename, np.float32, count, offset=offset).reshape(-1, n_voxels)

    @classmethod
    def open(cls, folder: str | Path) -> GridSeries:
        """Open the folder that a `GridSeriesWriter` wrote."""
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise NoInputError(f"{folder}: holds no finished series on the model grid.", "Run the preprocessing again.")
        try:
            meta = json.loads((folder / "meta.json").read_text())
            values = np.load(folder / "values.npy", mmap_mode="r")
            return cls(values, np.load(folder / "mask.npy"), float(meta["tr"]), float(meta["start"]))
        except (ValueError, KeyError, OSError) as err:
            raise BadDataError(f"{folder}: cannot be read ({err}).", "Remove it, and run again.") from err


class GridSeriesWriter:
    """Writes a `GridSeries` volume by volume; use as a context manager.

    Parameters
    ----------
    folder : str or Path
        Made where it is missing; what it held of another series is replaced.
    mask : np.ndarray of bool, (96, 96, 96)
        The brain on the model grid.
    tr : float
        s.
    n_vols : int
        Volumes that will be appended; another number on closing is an error.
    start : float
        Time of the first volume in the run as scanned, s.

    Examples
    --------
    >>> with GridSeriesWriter(folder, mask, tr=2.0, n_vols=200) as writer:  # doctest: +SKIP
    ...     for volumes in resampled:  # (n, V), or (96, 96, 96, n)
    ...         writer.append(volumes)
    >>> series = GridSeries.open(folder)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, mask: np.ndarray, tr: float, n_vols: int, start: float = 0.0) -> None:
        self.folder, self.mask = Path(folder), np.asarray(mask, dtype=bool)
        self.tr, self.n_vols, self.start = float(tr), n_vols, float(start)
        self.written = 0
        if self.mask.shape != MODEL_GRID_SHAPE or not self.mask.any():
            raise BadDataError(
                f"A mask of {int(self.mask.sum())} voxels on {self.mask.shape} was given.", "It must be 96x96x96."
            )
        if n_vols < 1 or not self.tr > 0:
            raise BadDataError(f"A series of {n_vols} volumes at {tr} s cannot be.", "Both must be above 0.")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "meta.json").unlink(missing_ok=True)
        np.save(self.folder / "mask.npy", self.mask)
        self._file = open(self.folder / "values.npy", "wb")  # noqa: SIM115
        header = {"descr": "<f4", "fortran_order": False, "shape": (n_vols, int(self.mask.sum()))}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, volumes: np.ndarray) -> None:
        """Append volumes in order.

        Parameters
        ----------
        volumes : np.ndarray, (n, V) or (96, 96, 96, n)
        """
        if volumes.ndim == 4 and volumes.shape[:3] == MODEL_GRID_SHAPE:
            volumes = volumes[self.mask].T
        if volumes.ndim != 2 or volumes.shape[1] != self.mask.sum():
            raise BadDataError(
                f"Volumes of shape {volumes.shape} do not fit a mask of {int(self.mask.sum())} voxels.",
                "Rows are volumes, columns the mask's voxels.",
            )
        self._file.write(np.ascontiguousarray(volumes, dtype="<f4").data)
        self.written += len(volumes)

    def __enter__(self) -> GridSeriesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            return
        if self.written != self.n_vols:
            raise BadDataError(f"{self.folder}: {self.written} volumes came instead of {self.n_vols}.", "Run it again.")
        temporary = self.folder / ".meta.json"
        temporary.write_text(json.dumps({"tr": self.tr, "start": self.start}))
        os.replace(temporary, self.folder / "meta.json")


def series_from_image(
    img: Any, folder: str | Path, tr: float | None = None, mask: Any = None, start: float = 0.0, skip: int = 0
) -> GridSeries:
    """Bring a 4D image in MNI152NLin6Asym space onto the model grid, chunk by chunk.

    Parameters
    ----------
    img : nibabel image, 4D
        In any orientation and resolution.
    folder : str or Path
        Where the series is written.
    tr : float, optional
        s; None takes the header's.
    mask : nibabel image, 3D, optional
        The brain, in the same space. Without one, a voxel that is 0 in all volumes is background.
    start, skip : float, int
        See `GridSeries.start`; volumes to leave out at the beginning.
    """
    what = check_image(img)
    tr = checked_tr(img, tr)
    placement = place(img, what)
    n_vols = img.shape[3]
    if not 0 <= skip < n_vols:
        raise BadDataError(f"{what}: {skip} of {n_vols} volumes are to be left out.", "Leave at least one.")
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(MODEL_GRID_SHAPE))))
    spans = [(a, min(a + step, n_vols)) for a in range(skip, n_vols, step)]
    brain = brain_on_grid(mask) if mask is not None else _voxels_with_signal(img, placement, spans)
    with GridSeriesWriter(folder, brain, tr, n_vols - skip, start) as writer:
        for a, b in spans:
            rows = placement.apply(zero_outside(read_volumes(img, a, b)), order=1)[brain].T
            check_finite(rows, what)
            writer.append(rows)
    return GridSeries.open(folder)


def check_image(img: Any) -> str:
    """The image's name for errors; refuses what is no 4D image."""
    what = name_of(img, "the image")
    if len(img.shape) != 4 or min(img.shape) < 1:
        raise BadDataError(f"{what}: has shape {tuple(img.shape)}.", "A BOLD series with four axes is needed.")
    return what


def checked_tr(img: Any, tr: float | None) -> float:
    """The repetition time in s: the one given, or that of the header in its units."""
    if tr is None:
        step, unit = float(img.header.get_zooms()[3]), int(img.header["xyzt_units"]) & ~7  # by NIfTI's codes
        tr = step * {16: 1e-3, 24: 1e-6}.get(unit, 1.0)
    if not (np.isfinite(tr) and tr > 0):
        raise BadDataError(
            f"{name_of(img, 'the image')}: its repetition time is {tr} s.", "Give it in seconds, above 0."
        )
    return float(tr)


def brain_on_grid(mask: Any) -> np.ndarray:
    """A 3D mask image on the model grid, (96, 96, 96) bool, by nearest neighbour."""
    what = name_of(mask, "the mask")
    values = np.asarray(mask.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise BadDataError(f"{what}: has shape {values.shape}.", "A mask has three axes.")
    brain = place(mask, what).apply((values > 0.5).astype(np.uint8), order=0) > 0
    if not brain.any():
        raise BadDataError(f"{what}: has no voxel on the model grid.", "Check the mask and its space.")
    return brain


def zero_outside(volumes: np.ndarray) -> np.ndarray:
    """Set voxels that are NaN in all of these volumes to 0: that is how some programs write what they did not see."""
    blank = np.isnan(volumes).all(axis=3)
    if blank.any():
        volumes[blank] = 0
    return volumes


def check_finite(rows: np.ndarray, what: str) -> None:
    """Refuse signals of the brain, (n, V), that are not numbers."""
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(axis=0).sum())
        raise BadDataError(f"{what}: {bad} voxels of the brain hold values that are no numbers.", "Look at the image.")


def _voxels_with_signal(img: Any, placement: Any, spans: list[tuple[int, int]]) -> np.ndarray:
    seen = np.zeros(MODEL_GRID_SHAPE, dtype=bool)
    for a, b in spans:
        seen |= (placement.apply(zero_outside(read_volumes(img, a, b)), order=1) != 0).any(axis=3)
    if not seen.any():
        raise BadDataError(
            f"{name_of(img, 'the image')}: is 0 all over the model grid.", "Check the image and its space."
        )
    return seen
