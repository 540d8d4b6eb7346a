"""Opening image files, and judging by their headers and sidecars whether they can be used; no voxel is read here.

Every refusal is a `BadDataError` that names the file and says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.openers import ImageOpener

from bids_app.errors import BadDataError, NoInputError
from bids_app.preprocess.io.timing import SliceTimes, read_slice_times, repetition_time

MIN_VOLUMES = 20
MIN_SECONDS = 20.0
VOXEL_SIZES_MM = (0.2, 12.0)
FORMS_APART_MM = 2.0
"""By how much sform and qform may put a voxel apart, mm."""
MAX_COMPRESSION = 1032
"""Bytes that a byte of gzip can become at most (the format's own limit)."""
FORMS_HINT = "Set both to the one that is true (nibabel: set_sform and set_qform)."
SLICE_TIMING = "slicetiming"
"""What ``--ignore`` calls the correction of slice timing."""


def load_nifti(path: Path) -> Any:
    """Open a NIfTI file without reading its data; says in plain words why it cannot be opened."""
    if not path.exists():
        raise NoInputError(f"{path}: no such file.", "If the dataset is kept by DataLad, get its content first.")
    try:
        image = nib.load(path)
    except (PermissionError, IsADirectoryError) as error:
        raise NoInputError(f"{path}: {error.strerror}.", "Check that it is a file that this user may read.") from error
    except Exception as error:  # a damaged header makes nibabel raise whatever its readers stumble over
        raise unreadable(path, error) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image derives from it
        raise BadDataError(f"{path.name}: not a NIfTI image.", "Convert it to .nii.gz.")
    return image


def unreadable(path: Path, error: BaseException) -> BadDataError:
    """The error for a file whose bytes make no image."""
    return BadDataError(
        f"{path.name}: unreadable or truncated ({error}).",
        f"Copy or download the file again; {path.stat().st_size:,} bytes are here.",
    )


def claimed_bytes(image: Any) -> int:
    """Bytes that an image's file has, uncompressed, by its header."""
    return int(image.dataobj.offset) + math.prod(map(int, image.shape)) * int(image.get_data_dtype().itemsize)


def check_size(image: Any, path: Path) -> None:
    """Refuse a header that claims more than its file can hold, before room is made for it.

    Raises
    ------
    BadDataError
        The file is cut off, or its header is damaged.
    """
    claimed, here = claimed_bytes(image), path.stat().st_size
    most = here * MAX_COMPRESSION if path.suffix == ".gz" else here
    if min(image.shape, default=0) < 1 or claimed > most:
        raise BadDataError(
            f"{path.name}: truncated, or its header is damaged: {' x '.join(map(str, image.shape))} voxels are "
            f"{claimed:,} bytes, and {here:,} are here.",
            "Copy or download the file again.",
        )


def check_values(image: Any, path: Path) -> None:
    """Refuse voxels that are not numbers on one scale."""
    dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        raise BadDataError(f"{path.name}: colour or complex voxels.", "Give the magnitude image.")


def check_geometry(image: Any, path: Path) -> tuple[str, ...]:
    """Refuse headers that do not say where the voxels lie in the scanner.

    Returns
    -------
    tuple of str
        What is odd, but can be worked with.

    Raises
    ------
    BadDataError
        Both orientation codes unknown, a singular affine, voxel sizes that no scan has, or two affines that disagree
        about left and right.
    """
    with ImageOpener(str(path)) as file:
        header = type(image.header).from_fileobj(file, check=False)  # with a check, nibabel mends what we look for
    hint = "Convert the scan again from DICOM, or repair the header."
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise BadDataError(
            f"{path.name}: its orientation is unknown (qform_code and sform_code are both 0), so left and right "
            "cannot be told apart.",
            hint,
        )
    raw_sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.all(np.isfinite(raw_sizes)) or np.any(raw_sizes == 0):
        raise BadDataError(f"{path.name}: a voxel size of zero, or none at all, in its header.", hint)
    affine = np.asarray(image.affine, dtype=np.float64)
    sizes = voxel_sizes(affine)
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) <= 1e-4 * sizes.prod():
        raise BadDataError(f"{path.name}: its affine is singular, so voxels have no place in space.", hint)
    if sizes.min() < VOXEL_SIZES_MM[0] or sizes.max() > VOXEL_SIZES_MM[1]:
        listed = " x ".join(f"{s:.3g}" for s in sizes)
        raise BadDataError(f"{path.name}: voxels of {listed} mm, which no human scan has.", hint)
    apart = forms_apart(image, path)
    if apart <= FORMS_APART_MM:
        return ()
    return (f"{path.name}: sform and qform put voxels up to {apart:.0f} mm apart; the sform was taken.",)


def forms_apart(image: Any, path: Path) -> float:
    """By how much an image's sform and qform put a voxel apart, mm; 0 where only one is set.

    Raises
    ------
    BadDataError
        They disagree about left and right.
    """
    (sform, has_sform), (qform, has_qform) = image.header.get_sform(coded=True), image.header.get_qform(coded=True)
    if not has_sform or not has_qform:
        return 0.0
    if np.sign(np.linalg.det(sform[:3, :3])) != np.sign(np.linalg.det(qform[:3, :3])):
        raise BadDataError(f"{path.name}: sform and qform of its header disagree about left and right.", FORMS_HINT)
    return float(corner_distances(sform, qform, image.shape).max())


def corner_distances(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """How far apart two affines (4, 4) put the corners of a grid, mm, (8,)."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    return np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1)


@dataclass(frozen=True)
class BoldHeader:
    """What a BOLD file and its sidecar say before any volume is read.

    ``shape`` is (X, Y, Z, T), ``voxel_sizes_mm`` (3,), ``tr`` in s.
    """

    shape: tuple[int, int, int, int]
    voxel_sizes_mm: tuple[float, ...]
    tr: float
    affine: np.ndarray
    slices: SliceTimes | None = None
    warnings: tuple[str, ...] = ()

    @property
    def n_volumes(self) -> int:
        return self.shape[3]


def examine_header(bold: Path, metadata: dict[str, Any], ignore: Container[str] = ()) -> BoldHeader:
    """Examine a BOLD file's header against its sidecar, without reading its volumes.

    Parameters
    ----------
    bold : pathlib.Path
        4D NIfTI file.
    metadata : dict
        Its sidecar; ``RepetitionTime`` wins over the header.
    ignore : container of str
        ``slicetiming``: take slices as they are.

    Raises
    ------
    BadDataError
        The file cannot be used.
    """
    image = load_nifti(bold)
    shape = image.shape
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 4:
        raise BadDataError(
            f"{bold.name}: {len(shape)}D instead of 4D (shape {' x '.join(map(str, shape))}).",
            "A BOLD run is a series of volumes; a single volume belongs to _sbref.",
        )
    check_values(image, bold)
    if shape[3] < MIN_VOLUMES:
        raise BadDataError(
            f"{bold.name}: {shape[3]} volumes, too few (at least {MIN_VOLUMES}).",
            "Leave the run out with --bids-filter-file or --task-id.",
        )
    if min(shape[:3]) < 4:
        raise BadDataError(
            f"{bold.name}: {shape[0]} x {shape[1]} x {shape[2]} voxels cannot hold a brain.", "Check the conversion."
        )
    check_size(image, bold)
    odd = check_geometry(image, bold)
    timing = repetition_time(image.header, metadata, bold.name, shape[3])
    if timing.tr * shape[3] < MIN_SECONDS:
        raise BadDataError(
            f"{bold.name}: {timing.tr * shape[3]:.1f} s of data, too few (at least {MIN_SECONDS:g} s).",
            "Leave the run out with --bids-filter-file or --task-id.",
        )
    sizes = tuple(float(size) for size in voxel_sizes(image.affine))
    slices, more = (None, ()) if SLICE_TIMING in ignore else read_slice_times(metadata, timing.tr, shape, bold.name)
    return BoldHeader(shape, sizes, timing.tr, image.affine, slices, (*odd, *timing.warnings, *more))


def examine_anatomy(t1w: Path) -> tuple[Any, tuple[str, ...]]:
    """Open a T1w image and refuse those that cannot be used, without reading its voxels.

    Returns
    -------
    tuple
        nibabel's image, and warnings.

    Raises
    ------
    BadDataError
        The file cannot be used.
    """
    image = load_nifti(t1w)
    if len(image.shape) < 3 or min(image.shape[:3]) < 2 or any(n > 1 for n in image.shape[3:]):
        raise BadDataError(
            f"{t1w.name}: shape {' x '.join(map(str, image.shape))} instead of three axes.", "Give a 3D T1w image."
        )
    check_values(image, t1w)
    check_size(image, t1w)
    return image, check_geometry(image, t1w)
