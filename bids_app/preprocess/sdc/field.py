"""A map of the magnetic field with the image that shows where it lies, and the reading of fieldmap images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.errors import BadDataError, NoInputError
from bids_app.preprocess.io.headers import check_geometry, load_nifti
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.transforms import apply_matrix

MEAN_OF = 20
"""Volumes of an EPI fieldmap that its mean is taken from."""


@dataclass(frozen=True)
class Field:
    """A map of how far the magnetic field is off, and an image that shows where it lies.

    Parameters
    ----------
    hz : numpy.ndarray, (X, Y, Z)
    image : Image
        On the same grid, not distorted.
    measured : Image, optional
        An EPI on the same grid, distorted by the field.
    direction : numpy.ndarray, (3,), optional
        Its phase-encoding direction.
    quality : dict
    """

    hz: np.ndarray
    image: Image
    measured: Image | None = None
    direction: np.ndarray | None = None
    quality: dict[str, float] = field(default_factory=dict)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Field at points (N, 3) mm, Hz; beyond the map its edge holds."""
        voxels = apply_matrix(np.linalg.inv(self.image.affine), points)
        return ndimage.map_coordinates(self.hz, voxels.T, order=1, mode="nearest")


def read_epi(path: Path) -> Image:
    """The mean of an EPI fieldmap's volumes."""
    if not path.exists():
        raise NoInputError(f"{path}: no such file.", "Get its content (datalad get), or use --ignore fieldmaps.")
    image = load_nifti(path)
    check_geometry(image, path)
    if len(image.shape) not in (3, 4) or min(image.shape[:3]) < 4:
        raise BadDataError(f"{path.name}: shape {image.shape}.", "Give a 3D or 4D image, or use --ignore fieldmaps.")
    data = np.asarray(image.dataobj[..., :MEAN_OF] if len(image.shape) == 4 else image.dataobj, dtype=np.float32)
    data = data.mean(axis=3) if data.ndim == 4 else data
    if not np.isfinite(data).all() or data.max() <= data.min():
        raise BadDataError(f"{path.name}: empty, or not finite.", "Convert it again, or use --ignore fieldmaps.")
    return Image(data, np.asarray(image.affine, dtype=np.float64))
