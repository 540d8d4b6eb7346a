"""Writing of 4D series volume by volume: as scaled int16, compressed, or as float32 for later steps."""

from __future__ import annotations

from gzip import GzipFile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import nibabel as nib
import numpy as np

from bids_app.preprocess.io.compression import open_gzip
from bids_app.preprocess.io.images import stamp_header

N_STEPS = 65_000
"""Values of int16 between the ends of the range."""


def write_header(file: BinaryIO | GzipFile, header: nib.Nifti1Header) -> None:
    """Write the header of a NIfTI file without extensions; its voxels follow."""
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    file.write(header.binaryblock + b"\0\0\0\0")


class SeriesWriter:
    """Context manager that writes a series (``.nii.gz``) of the voxels of a mask; other voxels are 0.

    Parameters
    ----------
    path : pathlib.Path
    where : numpy.ndarray, (X, Y, Z) bool
        Mask of the voxels, in C order.
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    code : int
        NIfTI code of the space.
    tr : float
        s.
    n_volumes : int
    limits : tuple of float
        Lowest and highest value; values beyond are clipped.
    """

    def __init__(
        self,
        path: Path,
        where: np.ndarray,
        affine: np.ndarray,
        code: int,
        tr: float,
        n_volumes: int,
        limits: tuple[float, float],
    ) -> None:
        low, high = limits
        self.slope, self.middle = max((high - low) / N_STEPS, 1e-9), (high + low) / 2
        self.where = where
        self.empty = np.int16(np.clip(round(-self.middle / self.slope), -32_768, 32_767))  # stored value of 0
        header = nib.Nifti1Header()
        header.set_data_shape((*where.shape, n_volumes))
        header.set_data_dtype(np.int16)
        header.set_slope_inter(self.slope, self.middle)
        stamp_header(header, affine, code, tr)
        self._file = open_gzip(path, "wb")
        write_header(self._file, header)

    def append(self, values: np.ndarray) -> None:
        """Append volumes, (n, V) float."""
        for row in values:
            volume = np.full(self.where.shape, self.empty, dtype=np.int16)
            volume[self.where] = np.clip(np.round((row - self.middle) / self.slope), -32_768, 32_767)
            self._file.write(volume.tobytes(order="F"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class RawSeriesWriter:
    """Context manager that writes an uncompressed float32 series (``.nii``) for later steps; parameters as above."""

    def __init__(self, path: Path, where: np.ndarray, affine: np.ndarray, code: int, tr: float, n_volumes: int) -> None:
        self.where = where
        header = nib.Nifti1Header()
        header.set_data_shape((*where.shape, n_volumes))
        header.set_data_dtype(np.float32)
        stamp_header(header, affine, code, tr)
        self._file = path.open("wb")
        write_header(self._file, header)

    def append(self, values: np.ndarray) -> None:
        """Append volumes, (n, V) float."""
        for row in values:
            volume = np.zeros(self.where.shape, dtype=np.float32)
            volume[self.where] = row
            self._file.write(volume.tobytes(order="F"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
