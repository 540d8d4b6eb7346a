"""Image input and output: voxels of BOLD series and T1w images, with checks of their values.

All failed checks raise `BadDataError` with the file's name and the remedy; `headers.py` checks headers.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from bids_app.errors import BadDataError, InputOutputError
from bids_app.preprocess.io.compression import DAMAGED, UNREADABLE, open_gzip
from bids_app.preprocess.io.headers import (
    MIN_SECONDS,
    MIN_VOLUMES,
    check_size,
    check_values,
    claimed_bytes,
    examine_anatomy,
    examine_header,
    load_nifti,
    unreadable,
)
from bids_app.preprocess.io.slice_timing import SliceTimed
from bids_app.preprocess.io.timing import SliceTimes
from bids_app.preprocess.io.volumes import Volumes, VolumeSource, chunks

NATIVE_CODE, MNI_CODE = 1, 4
"""NIfTI codes of scanner coordinates and of MNI space."""
MIN_FINITE_ML = 300.0
"""Minimum volume of the finite part of a T1w image: that of the smallest brain that is accepted."""
MAX_SURPLUS = 2**20
"""Bytes accepted after the last volume of a compressed file."""


@dataclass(frozen=True)
class Series:
    """A checked BOLD series.

    ``path`` is uncompressed (``source`` itself, or a copy in the work folder). ``data_mask`` (3D, uint8) marks voxels
    that vary over time.
    """

    path: Path
    source: Path
    tr: float
    n_volumes: int
    n_dummy: int
    data_mask: Path
    warnings: tuple[str, ...] = ()
    slices: SliceTimes | None = None
    """Slice times; None: no slice timing correction."""
    omitted: tuple[str, ...] = ()
    """Sentences on corrections that are left out because of the sidecar."""

    def open(self) -> VolumeSource:
        """Open the series, with slice timing correction if slice times are known."""
        return open_series(self.path, self.slices, self.tr, self.n_dummy)

    def open_raw(self) -> Volumes:
        """Open the series without slice timing correction."""
        return Volumes(self.path)


def open_series(path: Path, slices: SliceTimes | None, tr: float, n_dummy: int) -> VolumeSource:
    """Open a series on disk, with slice timing correction if slice times are given."""
    source = Volumes(path)
    return source if slices is None else SliceTimed(source, slices, tr, n_dummy)


def examine_bold(
    bold: Path,
    metadata: dict[str, Any],
    out_dir: Path,
    *,
    events_end_s: float | None = None,
    ignore: Container[str] = (),
) -> Series:
    """Check a BOLD file and make its volumes randomly accessible; ``n_dummy`` is still 0.

    Parameters
    ----------
    bold : pathlib.Path
        4D NIfTI file.
    metadata : dict
        Its sidecar; ``RepetitionTime`` takes precedence over the header.
    out_dir : pathlib.Path
        Folder for the uncompressed copy and the data mask.
    events_end_s : float, optional
        Onset of the last event, s; compared with the duration of the run.
    ignore : container of str
        ``slicetiming``: skip slice timing correction.

    Raises
    ------
    BadDataError
        The file or its sidecar is invalid.
    """
    header = examine_header(bold, metadata, ignore)
    warnings = list(header.warnings)
    seconds = header.tr * header.n_volumes
    if events_end_s is not None and events_end_s > seconds:
        warnings.append(
            f"{bold.name}: the last event starts at {events_end_s:.1f} s, but the run ends at {seconds:.1f} s "
            f"({header.n_volumes} volumes of {header.tr:g} s); the repetition time may be wrong."
        )
    path = _uncompressed(bold, out_dir)
    data_mask = out_dir / "data_mask.nii.gz"
    varies = _examine_values(Volumes(path), bold)
    save_image(data_mask, varies.astype(np.uint8), header.affine)
    slices, omitted = header.slices, header.omitted
    return Series(path, bold, header.tr, header.n_volumes, 0, data_mask, tuple(warnings), slices, omitted)


def set_dummies(series: Series, n_dummy: int) -> Series:
    """Return the series with the number of dummy volumes set.

    Raises
    ------
    BadDataError
        The run is too short without them.
    """
    check_n_dummies(series.source.name, series.n_volumes, series.tr, n_dummy)
    return replace(series, n_dummy=n_dummy)


def check_n_dummies(name: str, n_volumes: int, tr: float | None, n_dummy: int) -> None:
    """Check that a run is long enough without its dummy volumes; if ``tr`` is unknown, that it has enough volumes.

    Raises
    ------
    BadDataError
        It is not.
    """
    n_steady = n_volumes - n_dummy
    if n_steady < MIN_VOLUMES or (tr is not None and n_steady * tr < MIN_SECONDS):
        seconds = "" if tr is None else f" ({max(n_steady * tr, 0):.1f} s)"
        raise BadDataError(
            f"{name}: only {max(n_steady, 0)} volumes{seconds} remain after dropping "
            f"{n_dummy} dummy volumes; at least {MIN_VOLUMES} volumes and {MIN_SECONDS:g} s are required.",
            "Drop fewer volumes with --dummy-scans, or exclude the run.",
        )


def _uncompressed(bold: Path, out_dir: Path) -> Path:
    """Return the file itself if it is not compressed, else an uncompressed copy in ``out_dir``."""
    if bold.suffix != ".gz":
        return bold
    n_bytes, path = claimed_bytes(load_nifti(bold)), out_dir / "bold.nii"
    try:
        with open_gzip(bold) as source, path.open("wb") as target:
            found = _copy(source, target, n_bytes)
            surplus = len(source.read(MAX_SURPLUS + 1))  # reads to the end, where gzip verifies its checksum
    except DAMAGED as error:
        path.unlink(missing_ok=True)
        raise unreadable(bold, error) from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputOutputError(
            f"{bold.name}: decompression into {out_dir} failed ({error.strerror}).",
            "Check free disk space and write permissions of that folder.",
        ) from error
    if found < n_bytes or surplus > MAX_SURPLUS:
        path.unlink()
        size = f"{found:,} of" if found < n_bytes else "more than"
        raise BadDataError(
            f"{bold.name}: truncated, or its header is damaged ({size} {n_bytes:,} bytes).",
            "Copy or download the file again.",
        )
    return path


def _copy(source: GzipFile, target: BinaryIO, n_bytes: int) -> int:
    """Copy up to ``n_bytes`` bytes and return the number of bytes copied."""
    remaining = n_bytes
    while remaining and (block := source.read(min(remaining, 2**22))):
        target.write(block)
        remaining -= len(block)
    return n_bytes - remaining


def _examine_values(source: VolumeSource, bold: Path) -> np.ndarray:
    """Check all values and return the mask of voxels that vary over time, (X, Y, Z) bool."""
    lowest = highest = None
    empty = []
    hint = "Exclude the run, or convert it again from DICOM."
    for first, volumes in chunks(source):
        flat = volumes.reshape(len(volumes), -1)
        spread = flat.max(axis=1) - flat.min(axis=1)
        bad = ~np.isfinite(spread)
        if bad.any():
            n_voxels = int((~np.isfinite(flat)).any(axis=0).sum())
            raise BadDataError(
                f"{bold.name}: NaN or infinite values in {n_voxels:,} voxels, first in volume "
                f"{first + int(bad.argmax())}.",
                "Convert the run again from DICOM, or replace these values.",
            )
        empty += [first + int(i) for i in np.flatnonzero(spread == 0)]
        low, high = flat.min(axis=0), flat.max(axis=0)
        lowest = low if lowest is None else np.minimum(lowest, low)
        highest = high if highest is None else np.maximum(highest, high)
    if len(empty) == source.shape[3]:
        raise BadDataError(f"{bold.name}: empty, each volume is constant.", hint)
    if empty:
        raise BadDataError(
            f"{bold.name}: {len(empty)} of {source.shape[3]} volumes are empty, the first is volume {empty[0]}.", hint
        )
    assert lowest is not None
    assert highest is not None
    varies = (highest > lowest).reshape(source.shape[:3])
    if not varies.any():
        raise BadDataError(f"{bold.name}: constant, no voxel changes over time.", hint)
    return varies


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3D image of the work folder or of a template.

    Returns
    -------
    tuple of numpy.ndarray
        (X, Y, Z) float32, and the affine (4, 4), voxel indices to RAS mm.
    """
    image = load_nifti(path)
    check_values(image, path)
    check_size(image, path)
    try:
        data = np.asarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return data, np.asarray(image.affine, dtype=np.float64)


def read_anatomy(t1w: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read and check a T1w image.

    Returns
    -------
    tuple
        (X, Y, Z) float32; affine (4, 4), voxel indices to RAS mm; warnings.

    Raises
    ------
    BadDataError
        The image is empty, or less than `MIN_FINITE_ML` of it is finite: the background may be NaN.
    """
    _, warnings = examine_anatomy(t1w)
    data, affine = read_volume(t1w)
    data = data.reshape(data.shape[:3])
    finite = np.isfinite(data)
    if not finite.all():
        n_bad = int((~finite).sum())
        finite_ml = float(finite.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1e3
        if finite_ml < MIN_FINITE_ML:
            raise BadDataError(
                f"{t1w.name}: {n_bad:,} of {data.size:,} voxels are NaN or infinite.",
                "Convert the T1w again from DICOM.",
            )
        data = np.where(finite, data, np.float32(0))
        warnings += (f"{t1w.name}: {n_bad:,} voxels are NaN or infinite and were set to 0.",)
    if float(data.max()) == float(data.min()):
        raise BadDataError(
            f"{t1w.name}: empty, all voxels are {float(data.min()):g}.", "Convert the T1w again from DICOM."
        )
    return data, affine, warnings


def save_image(
    path: Path, data: np.ndarray, affine: np.ndarray, *, space_code: int = NATIVE_CODE, tr: float | None = None
) -> Path:
    """Write a NIfTI file with both orientation codes and the units set.

    Parameters
    ----------
    path : pathlib.Path
    data : numpy.ndarray, (X, Y, Z) or (X, Y, Z, T)
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    space_code : int
        NIfTI code of the space: 1 scanner, 2 aligned to another image, 4 MNI.
    tr : float, optional
        Repetition time of a 4D image, s.
    """
    image = nib.Nifti1Image(data, affine)
    stamp_header(image.header, affine, space_code, tr)
    nib.save(image, path)
    return path


def stamp_header(header: Any, affine: np.ndarray, space_code: int, tr: float | None) -> None:
    """Set orientation codes, units and repetition time of a NIfTI header."""
    header.set_sform(affine, space_code)
    header.set_qform(affine, space_code)
    header.set_xyzt_units("mm", "sec")
    if tr is not None:
        header["pixdim"][4] = tr
