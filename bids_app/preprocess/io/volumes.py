"""Series of volumes, read in chunks from an uncompressed file or from memory; chunks are float32, volumes first."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bids_app.preprocess.io.headers import check_size, load_nifti

CHUNK_BYTES = 64 * 2**20
"""Size of a chunk of volumes in float32."""


class VolumeSource(Protocol):
    """Interface of series that can be read in chunks: `Volumes` (disk), `ArrayVolumes` (memory)."""

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to RAS mm, (4, 4)."""
        ...

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(X, Y, Z, T)."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read volumes ``start`` to ``stop``, (n, X, Y, Z) float32."""
        ...


def chunks(source: VolumeSource, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over a series in chunks of `CHUNK_BYTES`.

    Yields
    ------
    tuple of int and numpy.ndarray, (n, X, Y, Z)
        Index of the chunk's first volume, and its volumes in float32.
    """
    *grid, n_volumes = source.shape
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(grid))))
    for first in range(start, n_volumes, step):
        yield first, source.read(first, min(first + step, n_volumes))


@dataclass(frozen=True)
class ArrayVolumes:
    """A series in memory.

    Parameters
    ----------
    data : numpy.ndarray, (X, Y, Z, T)
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    """

    data: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.data.shape  # type: ignore[return-value]

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(self.data[..., start:stop], 3, 0), dtype=np.float32)


class Volumes:
    """A 4D NIfTI file with random access to volumes; uncompressed files only.

    Parameters
    ----------
    path : pathlib.Path
        Uncompressed 4D NIfTI file; axes of length 1 after the fourth are ignored.

    Raises
    ------
    BadDataError
        The file is shorter than its header says, for instance because another program changed it during the run.
    """

    def __init__(self, path: Path) -> None:
        image = load_nifti(path)
        check_size(image, path)
        self.path = path
        self.affine = np.asarray(image.affine, dtype=np.float64)
        self.shape = image.shape[:4]
        self._raw = image.dataobj.get_unscaled().reshape(self.shape, order="F")
        self._mapped: mmap.mmap | None = getattr(self._raw, "_mmap", None)
        self._slope, self._inter = float(image.dataobj.slope), float(image.dataobj.inter)

    def read(self, start: int, stop: int) -> np.ndarray:
        chunk = np.moveaxis(self._raw[..., start:stop], 3, 0).astype(np.float32, order="C")
        if self._slope != 1.0:
            chunk *= np.float32(self._slope)
        if self._inter != 0.0:
            chunk += np.float32(self._inter)
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)  # or the whole series would count as memory of this process
        return chunk
