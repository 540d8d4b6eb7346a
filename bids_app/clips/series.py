"""Series: a run on the model grid, stored in a folder with the brain voxels of each volume at the run's own TR.

    values.npy   (T, V) float32      mask.npy   (96, 96, 96) bool, V = mask.sum()      meta.json   tr, start

Rows are written and read in chunks, to limit memory. A folder without meta.json is incomplete.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bids_app.clips.grid import MODEL_GRID_SHAPE, check_loaded, image_name, map_to_grid, read_volumes
from bids_app.errors import BadDataError, NoInputError

MAX_TR = 60.0
"""Maximum repetition time, s; a larger one is in milliseconds."""
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class GridSeries:
    """A run on the model grid.

    Attributes
    ----------
    values : np.ndarray of float32, (T, V)
        Memory-mapped if opened from a folder; in scanner units, without dummy volumes.
    mask : np.ndarray of bool, (96, 96, 96)
        Brain mask; V voxels, in C order.
    tr : float
        Repetition time, s.
    start : float
        Time of the first volume in the run as scanned, s, i.e. the duration of the dropped dummy volumes.
    """

    values: np.ndarray
    mask: np.ndarray
    tr: float
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.mask.shape != MODEL_GRID_SHAPE or self.mask.dtype != bool:
            raise BadDataError(
                f"A mask of shape {self.mask.shape} is not on the model grid.", "The shape must be 96x96x96."
            )
        if self.values.ndim != 2 or self.values.shape[1] != int(self.mask.sum()):
            raise BadDataError(
                f"A series of shape {self.values.shape} does not match a mask of {int(self.mask.sum())} voxels.",
                "Rows must be volumes, and columns the voxels of the mask.",
            )
        if not 0 < self.tr <= MAX_TR:
            raise BadDataError(
                f"Invalid repetition time: {self.tr} s.", f"Give it in seconds, above 0 and at most {MAX_TR:g}."
            )

    @property
    def n_vols(self) -> int:
        """Number of volumes, T."""
        return self.values.shape[0]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read volumes ``start`` to ``stop`` into a new array, (n, V) float32.

        The memory map is bypassed, because its pages would stay resident as long as the series is open.
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
        """Open a folder written by `GridSeriesWriter`."""
        folder = Path(folder)
        if not (folder / "meta.json").is_file():
            raise NoInputError(f"{folder}: no complete series on the model grid.", "Run the preprocessing again.")
        try:
            meta = json.loads((folder / "meta.json").read_text())
            values = np.load(folder / "values.npy", mmap_mode="r")
            return cls(values, np.load(folder / "mask.npy"), float(meta["tr"]), float(meta["start"]))
        except (ValueError, KeyError, OSError) as err:
            raise BadDataError(f"{folder}: cannot be read ({err}).", "Remove the folder, and run again.") from err


class GridSeriesWriter:
    """Writer of a `GridSeries`, volume by volume; a context manager.

    Parameters
    ----------
    folder : str or Path
        Created if missing; an existing series is replaced.
    mask : np.ndarray of bool, (96, 96, 96)
        Brain mask on the model grid.
    tr : float
        Repetition time, s.
    n_vols : int
        Number of volumes to append; a different number raises an error on closing.
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
                f"Invalid mask of shape {self.mask.shape} with {int(self.mask.sum())} voxels.",
                "The shape must be 96x96x96, with at least one voxel.",
            )
        if n_vols < 1 or not self.tr > 0:
            raise BadDataError(f"Invalid series of {n_vols} volumes at {tr} s.", "Both must be above 0.")
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
                f"Volumes of shape {volumes.shape} do not match a mask of {int(self.mask.sum())} voxels.",
                "Rows must be volumes, and columns the voxels of the mask.",
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
            raise BadDataError(
                f"{self.folder}: {self.written} volumes were written instead of {self.n_vols}.", "Run again."
            )
        temporary = self.folder / ".meta.json"
        temporary.write_text(json.dumps({"tr": self.tr, "start": self.start}))
        os.replace(temporary, self.folder / "meta.json")


def series_from_image(
    img: Any, folder: str | Path, tr: float | None = None, mask: Any = None, start: float = 0.0, skip: int = 0
) -> GridSeries:
    """Resample a 4D image in MNI152NLin6Asym space to the model grid, in chunks.

    Parameters
    ----------
    img : nibabel image, 4D
        Stored in any orientation and resolution.
    folder : str or Path
        Folder of the series.
    tr : float, optional
        Repetition time, s; None uses the header's.
    mask : nibabel image, 3D, optional
        Brain mask in the same space. Without one, voxels that are 0 in all volumes are background.
    start, skip : float, int
        See `GridSeries.start`; number of volumes to drop at the beginning.
    """
    what = check_image(img)
    tr = read_tr(img, tr)
    mapping = map_to_grid(img, what)
    n_vols = img.shape[3]
    if not 0 <= skip < n_vols:
        raise BadDataError(f"{what}: {skip} of {n_vols} volumes would be dropped.", "Keep at least one volume.")
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(MODEL_GRID_SHAPE))))
    spans = [(a, min(a + step, n_vols)) for a in range(skip, n_vols, step)]
    brain = mask_on_grid(mask) if mask is not None else _voxels_with_signal(img, mapping, spans)
    with GridSeriesWriter(folder, brain, tr, n_vols - skip, start) as writer:
        for a, b in spans:
            rows = mapping.apply(zero_outside(read_volumes(img, a, b)), order=1)[brain].T
            check_finite(rows, what)
            writer.append(rows)
    return GridSeries.open(folder)


def check_image(img: Any) -> str:
    """Return the image's name for errors; raise if it is not a 4D image."""
    what = check_loaded(img, "the image")
    if len(img.shape) != 4 or min(img.shape) < 1:
        raise BadDataError(f"{what}: invalid shape {tuple(img.shape)}.", "Give a 4D BOLD image.")
    dtype = img.get_data_dtype()
    if dtype.kind not in "biuf":
        raise BadDataError(f"{what}: colour or complex voxels ({dtype}).", "Use the magnitude image.")
    return what


def read_tr(img: Any, tr: float | None) -> float:
    """Return the repetition time, s: the given one, or that of the header in its units."""
    if tr is None:
        step, unit = float(img.header.get_zooms()[3]), int(img.header["xyzt_units"]) & ~7  # by NIfTI's codes
        tr = step * {16: 1e-3, 24: 1e-6}.get(unit, 1.0)
    if isinstance(tr, bool) or not isinstance(tr, int | float | np.number) or not 0 < tr <= MAX_TR:
        raise BadDataError(
            f"{image_name(img, 'the image')}: invalid repetition time: {tr!r} s.",
            f"Give it in seconds, above 0 and at most {MAX_TR:g}.",
        )
    return float(tr)


def mask_on_grid(mask: Any) -> np.ndarray:
    """Resample a 3D mask image to the model grid, (96, 96, 96) bool, by nearest neighbour."""
    what = check_loaded(mask, "the mask")
    values = np.asarray(mask.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise BadDataError(f"{what}: invalid shape {values.shape}.", "Give a 3D mask.")
    brain = map_to_grid(mask, what).apply((values > 0.5).astype(np.uint8), order=0) > 0
    if not brain.any():
        raise BadDataError(f"{what}: no voxel on the model grid.", "Check the mask and its space.")
    return brain


def zero_outside(volumes: np.ndarray) -> np.ndarray:
    """Set voxels that are NaN in all of these volumes to 0; some programs mark voxels without data by NaN."""
    blank = np.isnan(volumes).all(axis=3)
    if blank.any():
        volumes[blank] = 0
    return volumes


def check_finite(rows: np.ndarray, what: str) -> None:
    """Raise if brain signals, (n, V), contain NaN or infinite values."""
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(axis=0).sum())
        raise BadDataError(f"{what}: {bad} brain voxels contain NaN or infinite values.", "Check the image.")


def _voxels_with_signal(img: Any, mapping: Any, spans: list[tuple[int, int]]) -> np.ndarray:
    seen = np.zeros(MODEL_GRID_SHAPE, dtype=bool)
    for a, b in spans:
        seen |= (mapping.apply(zero_outside(read_volumes(img, a, b)), order=1) != 0).any(axis=3)
    if not seen.any():
        raise BadDataError(
            f"{image_name(img, 'the image')}: all voxels on the model grid are 0.", "Check the image and its space."
        )
    return seen
