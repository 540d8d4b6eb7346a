"""Checks of image headers and sidecars; no voxel is read.

All failed checks raise `BadDataError` with the file's name and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.openers import ImageOpener

from bids_app.errors import BadDataError, NeurostormError
from bids_app.files import open_regular
from bids_app.preprocess.io.timing import SliceTimes, read_slice_times, repetition_time

MIN_VOLUMES = 20
MIN_SECONDS = 20.0
VOXEL_SIZES_MM = (0.2, 12.0)
MAX_FORM_DISTANCE_MM = 2.0
"""Largest accepted distance between the positions of a voxel by sform and by qform, mm."""
MAX_COMPRESSION = 1032
"""Largest compression ratio of gzip (a limit of the format)."""
MAX_EXTENSION_BYTES = 32 * 2**20
"""Largest accepted size of a header with its extensions; those of CIFTI, the largest known, have a few MB."""
FORM_HINT = "Set both to the correct affine (nibabel: set_sform and set_qform)."
SLICE_TIMING = "slicetiming"
"""Value of ``--ignore`` that skips slice timing correction."""


def load_nifti(path: Path) -> Any:
    """Open a NIfTI file without reading its data.

    Raises
    ------
    NoInputError
        The file does not exist, may not be read, or is not a regular file.
    BadDataError
        The file is not a valid NIfTI image.
    """
    open_regular(path).close()  # nibabel would wait for a named pipe
    try:
        extension_bytes = _extension_bytes(path)
        image = nib.load(path) if extension_bytes <= MAX_EXTENSION_BYTES else None
    except Exception as error:  # nibabel raises many kinds of errors on damaged headers
        raise unreadable(path, error) from error
    if image is None:
        raise BadDataError(
            f"{path.name}: its header is damaged: {extension_bytes:,.0f} bytes before the first voxel.",
            "Copy or download the file again.",
        )
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image derives from it
        raise BadDataError(f"{path.name}: not a NIfTI image.", "Convert it to .nii.gz.")
    return image


def _extension_bytes(path: Path) -> float:
    """Return the number of bytes before the first voxel, which nibabel reads into memory; 0 for other files."""
    with ImageOpener(str(path)) as file:
        content = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if len(content) >= kind.sizeof_hdr and kind.may_contain_header(content):
            return float(kind(content[: kind.sizeof_hdr], check=False)["vox_offset"])
    return 0.0


def unreadable(path: Path, error: BaseException) -> BadDataError:
    """Return the error for a file that cannot be decoded as an image."""
    return BadDataError(
        f"{path.name}: unreadable or truncated ({error}).",
        f"Copy or download the file again; its current size is {path.stat().st_size:,} bytes.",
    )


def claimed_bytes(image: Any) -> int:
    """Return the uncompressed file size that an image's header implies, bytes."""
    return int(image.dataobj.offset) + math.prod(map(int, image.shape)) * int(image.get_data_dtype().itemsize)


def check_size(image: Any, path: Path) -> None:
    """Check that a file is large enough for its header, before memory is allocated.

    Raises
    ------
    BadDataError
        The file is truncated, or its header is damaged.
    """
    claimed, file_bytes = claimed_bytes(image), path.stat().st_size
    max_bytes = file_bytes * MAX_COMPRESSION if path.suffix == ".gz" else file_bytes
    if min(image.shape, default=0) < 1 or claimed > max_bytes:
        raise BadDataError(
            f"{path.name}: truncated, or its header is damaged: {' x '.join(map(str, image.shape))} voxels require "
            f"{claimed:,} bytes, but the file has {file_bytes:,}.",
            "Copy or download the file again.",
        )


def check_values(image: Any, path: Path) -> None:
    """Check that voxels are real numbers.

    Raises
    ------
    BadDataError
        Voxels are complex or in colour.
    """
    dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        raise BadDataError(f"{path.name}: colour or complex voxels ({dtype}).", "Use the magnitude image.")


def check_geometry(image: Any, path: Path) -> tuple[str, ...]:
    """Check orientation codes, affines and voxel sizes of a header.

    Returns
    -------
    tuple of str
        Warnings.

    Raises
    ------
    BadDataError
        Both orientation codes are 0, the affine is singular, voxel sizes are implausible, or sform and qform disagree
        about left and right.
    """
    with ImageOpener(str(path)) as file:
        header = type(image.header).from_fileobj(file, check=False)  # nibabel's check would correct these errors
    hint = "Convert the scan again from DICOM, or correct the header."
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise BadDataError(
            f"{path.name}: orientation is unknown (qform_code and sform_code are both 0), so left and right cannot be "
            "distinguished.",
            hint,
        )
    raw_sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.all(np.isfinite(raw_sizes)) or np.any(raw_sizes == 0):
        listed = " x ".join(f"{size:g}" for size in raw_sizes)
        raise BadDataError(f"{path.name}: voxel size of zero or NaN in the header ({listed}).", hint)
    affine = np.asarray(image.affine, dtype=np.float64)
    sizes = voxel_sizes(affine)
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) <= 1e-4 * sizes.prod():
        raise BadDataError(f"{path.name}: the affine is singular or not finite.", hint)
    if sizes.min() < VOXEL_SIZES_MM[0] or sizes.max() > VOXEL_SIZES_MM[1]:
        listed = " x ".join(f"{s:.3g}" for s in sizes)
        raise BadDataError(
            f"{path.name}: voxel size {listed} mm is outside the range of human scans "
            f"({VOXEL_SIZES_MM[0]:g} to {VOXEL_SIZES_MM[1]:g} mm).",
            hint,
        )
    distance = form_distance_mm(image, path)
    if distance <= MAX_FORM_DISTANCE_MM:
        return ()
    return (f"{path.name}: sform and qform differ by up to {distance:.0f} mm; the sform is used.",)


def form_distance_mm(image: Any, path: Path) -> float:
    """Return the largest distance between voxel positions by sform and by qform, mm; 0 if only one is set.

    Raises
    ------
    BadDataError
        They disagree about left and right.
    """
    (sform, has_sform), (qform, has_qform) = image.header.get_sform(coded=True), image.header.get_qform(coded=True)
    if not has_sform or not has_qform:
        return 0.0
    if np.sign(np.linalg.det(sform[:3, :3])) != np.sign(np.linalg.det(qform[:3, :3])):
        raise BadDataError(f"{path.name}: sform and qform disagree about left and right.", FORM_HINT)
    return float(corner_distances(sform, qform, image.shape).max())


def corner_distances(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the distances between the corners of a grid under two affines (4, 4), mm, (8,)."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1)


@dataclass(frozen=True)
class BoldHeader:
    """Header and timing of a BOLD run.

    ``shape`` is (X, Y, Z, T), ``voxel_sizes_mm`` (3,), ``tr`` in s. ``omitted`` are sentences on corrections that are
    left out because of the sidecar.
    """

    shape: tuple[int, int, int, int]
    voxel_sizes_mm: tuple[float, ...]
    tr: float
    affine: np.ndarray
    slices: SliceTimes | None = None
    warnings: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def n_volumes(self) -> int:
        return self.shape[3]


def examine_header(bold: Path, metadata: dict[str, Any], ignore: Container[str] = ()) -> BoldHeader:
    """Check a BOLD file's header and sidecar, without reading its volumes.

    Parameters
    ----------
    bold : pathlib.Path
        4D NIfTI file.
    metadata : dict
        Its sidecar; ``RepetitionTime`` takes precedence over the header.
    ignore : container of str
        ``slicetiming``: skip slice timing correction.

    Raises
    ------
    BadDataError
        The header or sidecar is invalid, or the run is too short.
    """
    faults: list[NeurostormError] = []
    header = inspect_header(bold, metadata, ignore, faults)
    if header is None or faults:
        raise faults[0]
    return header


def inspect_header(
    bold: Path, metadata: dict[str, Any], ignore: Container[str], faults: list[NeurostormError]
) -> BoldHeader | None:
    """Do the checks of `examine_header`, and add all faults to a list; return None if size or timing are unknown."""
    image = inspect_image(bold, faults)
    if image is None:
        return None
    timing = None
    with collected(faults):
        timing = repetition_time(image.header, metadata, bold.name, image.shape[3])
    if timing is None:
        return None
    tr, n_volumes = timing.tr, image.shape[3]
    if tr * n_volumes < MIN_SECONDS and n_volumes >= MIN_VOLUMES:
        faults.append(
            BadDataError(
                f"{bold.name}: {tr * n_volumes:.1f} s of data, too short (at least {MIN_SECONDS:g} s are required).",
                "Check RepetitionTime, or exclude the run with --bids-filter-file or --task-id.",
            )
        )
    slices: SliceTimes | None = None
    omitted: tuple[str, ...] = ()
    if SLICE_TIMING not in ignore:
        slices, omitted = read_slice_times(metadata, tr, image.shape, bold.name)
    warnings = (*image.warnings, *timing.warnings)
    return BoldHeader(image.shape, image.voxel_sizes_mm, tr, image.affine, slices, warnings, omitted)


@dataclass(frozen=True)
class BoldImage:
    """What the header of a BOLD file says without its sidecar; attributes as those of `BoldHeader`."""

    header: Any
    shape: tuple[int, int, int, int]
    voxel_sizes_mm: tuple[float, ...]
    affine: np.ndarray
    warnings: tuple[str, ...]


def inspect_image(bold: Path, faults: list[NeurostormError]) -> BoldImage | None:
    """Check the header of a BOLD file without its timing, and add all faults to a list; None if its size is unknown."""
    shape: tuple[int, ...] = ()
    with collected(faults):
        image = load_nifti(bold)
        shape = image.shape
        while len(shape) > 4 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 4:
            raise BadDataError(
                f"{bold.name}: image is {len(shape)}D instead of 4D (shape {' x '.join(map(str, shape))}).",
                "Use a 4D BOLD series; rename a single-band reference to *_sbref.",
            )
    if len(shape) != 4:
        return None
    with collected(faults):
        check_values(image, bold)
    with collected(faults):
        if shape[3] < MIN_VOLUMES:
            raise BadDataError(
                f"{bold.name}: {shape[3]} volumes, too few (at least {MIN_VOLUMES} are required).",
                "Exclude the run with --bids-filter-file or --task-id.",
            )
    with collected(faults):
        if min(shape[:3]) < 4:
            raise BadDataError(
                f"{bold.name}: {shape[0]} x {shape[1]} x {shape[2]} voxels are too few for a brain.",
                "Check the conversion from DICOM.",
            )
    with collected(faults):
        check_size(image, bold)
    warnings: tuple[str, ...] = ()
    with collected(faults):
        warnings = check_geometry(image, bold)
    sizes = tuple(float(size) for size in voxel_sizes(image.affine))
    return BoldImage(image.header, shape, sizes, image.affine, warnings)


@contextmanager
def collected(faults: list[NeurostormError]) -> Iterator[None]:
    """Add an error to a list of faults instead of raising it."""
    try:
        yield
    except NeurostormError as error:
        faults.append(error)


def examine_anatomy(t1w: Path) -> tuple[Any, tuple[str, ...]]:
    """Check a T1w image's header, without reading its voxels.

    Returns
    -------
    tuple
        The nibabel image, and warnings.

    Raises
    ------
    BadDataError
        The file is not a valid 3D image.
    """
    image = load_nifti(t1w)
    if len(image.shape) < 3 or min(image.shape[:3]) < 2 or any(n > 1 for n in image.shape[3:]):
        raise BadDataError(
            f"{t1w.name}: shape {' x '.join(map(str, image.shape))} instead of three axes.", "Use a 3D T1w image."
        )
    check_values(image, t1w)
    check_size(image, t1w)
    return image, check_geometry(image, t1w)
