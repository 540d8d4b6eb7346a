"""Displacement fields of FSL (``applywarp --warp``), as chains of `transforms.py`.

A field has one vector per voxel of the reference: the position in the source (absolute), or its difference from the
position in the reference (relative), both in FSL's coordinates (`to_fsl_coordinates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_app.errors import BadDataError
from bids_app.preprocess.io.compression import UNREADABLE
from bids_app.preprocess.io.headers import check_size, load_nifti, unreadable
from bids_app.preprocess.registration.transforms import Chain, Warp, apply_matrix, grid_points, to_fsl_coordinates

COEFFICIENTS = (2007, 2008, 2009)
"""NIfTI intent codes of FNIRT's coefficient files, which are no displacement fields."""


def check_fsl_warp(path: Path) -> None:
    """Check by its header that a file is a displacement field.

    Raises
    ------
    NoInputError, BadDataError
        It cannot be read, or has no vector per voxel, or has coefficients of splines.
    """
    image = load_nifti(path)
    check_size(image, path)
    if int(image.header["intent_code"]) in COEFFICIENTS:
        raise BadDataError(
            f"{path.name}: has FNIRT's coefficients, not a displacement field.",
            "Convert it with FSL: fnirtfileutils --in=... --ref=... --out=... --withaff.",
        )
    if len(image.shape) != 4 or image.shape[3] != 3:
        raise BadDataError(
            f"{path.name}: not a displacement field (shape {tuple(image.shape)}).",
            "Give a field of three values per voxel, as FSL's convertwarp writes it.",
        )


def read_fsl_warp(path: Path, shape: Sequence[int], affine: np.ndarray) -> Chain:
    """Read a displacement field as the transform from points of its reference to points of the source.

    Whether it is absolute or relative is found as by FSL: relative displacements vary less than positions.

    Parameters
    ----------
    path : pathlib.Path
    shape, affine : sequence of int, numpy.ndarray (4, 4)
        Grid of the source; voxel indices to RAS mm.

    Raises
    ------
    NoInputError, BadDataError
        Not a displacement field, see `check_fsl_warp`; or with NaN or infinite values.
    """
    check_fsl_warp(path)
    image = load_nifti(path)
    try:
        field = np.asarray(image.dataobj, dtype=np.float64).reshape(-1, 3)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if not np.isfinite(field).all():
        raise BadDataError(f"{path.name}: has NaN or infinite values.", "Copy the file again.")
    reference = np.asarray(image.affine, dtype=np.float64)
    points = grid_points(image.shape[:3], reference)
    positions = apply_matrix(to_fsl_coordinates(image.shape, reference), points)
    if field.std(axis=0).sum() <= (field - positions).std(axis=0).sum():
        field = field + positions
    moved = apply_matrix(np.linalg.inv(to_fsl_coordinates(shape, affine)), field)
    displacement = (moved - points).astype(np.float32)
    return Chain((Warp(displacement.reshape(*image.shape[:3], 3), reference),))
