"""Field maps in Hz, and reading of fieldmap images."""

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
"""Maximum number of volumes in the mean of an EPI fieldmap."""


@dataclass(frozen=True)
class Field:
    """A field map, and the image that registers it with a run.

    Parameters
    ----------
    hz : numpy.ndarray, (X, Y, Z)
        Field inhomogeneity.
    image : Image
        Undistorted image on the same grid.
    measured : Image, optional
        Distorted EPI on the same grid.
    direction : numpy.ndarray, (3,), optional
        Phase-encoding direction of ``measured``, RAS.
    quality : dict
    """

    hz: np.ndarray
    image: Image
    measured: Image | None = None
    direction: np.ndarray | None = None
    quality: dict[str, float] = field(default_factory=dict)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Interpolate the field at points (N, 3) mm, Hz; outside the map, values of its edge are used."""
        voxels = apply_matrix(np.linalg.inv(self.image.affine), points)
        return ndimage.map_coordinates(self.hz, voxels.T, order=1, mode="nearest")


def read_epi(path: Path) -> Image:
    """Read the mean volume of a fieldmap image.

    Raises
    ------
    NoInputError
        The file does not exist.
    BadDataError
        The image is not 3D or 4D, empty or not finite.
    """
    if not path.exists():
        raise NoInputError(
            f"{path}: no such file.",
            "In a DataLad dataset, run 'datalad get' on the file first, or skip fieldmaps with --ignore fieldmaps.",
        )
    image = load_nifti(path)
    check_geometry(image, path)
    if len(image.shape) not in (3, 4) or min(image.shape[:3]) < 4:
        raise BadDataError(
            f"{path.name}: shape {' x '.join(map(str, image.shape))} is not that of a 3D or 4D fieldmap.",
            "Check the conversion from DICOM, or skip fieldmaps with --ignore fieldmaps.",
        )
    data = np.asarray(image.dataobj[..., :MEAN_OF] if len(image.shape) == 4 else image.dataobj, dtype=np.float32)
    data = data.mean(axis=3) if data.ndim == 4 else data
    if not np.isfinite(data).all() or data.max() <= data.min():
        raise BadDataError(
            f"{path.name}: constant, or with NaN or infinite values.",
            "Convert it again from DICOM, or skip fieldmaps with --ignore fieldmaps.",
        )
    return Image(data, np.asarray(image.affine, dtype=np.float64))
