"""Model grid: MNI152NLin6Asym, 2 mm, stored L-A-S, its 91x109x91 padded (3, 2), cropped (6, 7), padded (3, 2).

Images are mapped to it by their affine. Each image is reoriented to L-A-S first, so that its stored orientation does
not affect the numbers. Voxels on the 2 mm lattice are copied, others are interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.ndimage import affine_transform

from bids_app.errors import BadDataError, UsageError

MODEL_GRID_SHAPE = (96, 96, 96)
MODEL_GRID_AFFINE = np.array(
    [[-2.0, 0.0, 0.0, 96.0], [0.0, 2.0, 0.0, -114.0], [0.0, 0.0, 2.0, -78.0], [0.0, 0.0, 0.0, 1.0]]
)
MODEL_GRID_AFFINE.flags.writeable = False
LATTICE_TOLERANCE = 1e-3
"""Maximum offset from the 2 mm lattice, in voxels; affines are stored in float32."""


@dataclass(frozen=True)
class GridMapping:
    """Mapping of an image, reoriented to L-A-S, to the model grid.

    Attributes
    ----------
    reorient : np.ndarray, (3, 2)
        Orientation transform of nibabel from the stored axes to L-A-S.
    matrix : np.ndarray, (4, 4)
        Affine from model voxels to reoriented image voxels.
    shape : tuple of int
        Shape of the reoriented image.
    """

    reorient: np.ndarray
    matrix: np.ndarray
    shape: tuple[int, ...]

    @property
    def on_lattice(self) -> bool:
        """True if model voxels coincide with image voxels."""
        off = self.matrix - np.rint(self.matrix)
        return bool(np.abs(off).max() < LATTICE_TOLERANCE and np.array_equal(np.rint(self.matrix[:3, :3]), np.eye(3)))

    def apply(self, stored: np.ndarray, order: int) -> np.ndarray:
        """Resample volumes to the grid.

        Parameters
        ----------
        stored : np.ndarray, (i, j, k) or (i, j, k, n)
            Volumes as stored in the file.
        order : int
            Order of interpolation: 1 for signals, 0 for masks and labels.

        Returns
        -------
        np.ndarray, (96, 96, 96) or (96, 96, 96, n)
            0 outside the image.
        """
        oriented = apply_orientation(stored, self.reorient)
        out = np.zeros((*MODEL_GRID_SHAPE, *oriented.shape[3:]), dtype=oriented.dtype)
        if self.on_lattice:
            here, there = [], []
            for start, n, size in zip(
                np.rint(self.matrix[:3, 3]).astype(int), self.shape, MODEL_GRID_SHAPE, strict=True
            ):
                first, last = max(0, -start), max(0, min(size, n - start))
                here.append(slice(first, max(first, last)))
                there.append(slice(first + start, max(first, last) + start))
            out[tuple(here)] = oriented[tuple(there)]
        elif oriented.ndim == 3:
            affine_transform(oriented, self.matrix, output_shape=MODEL_GRID_SHAPE, output=out, order=order, cval=0)
        else:
            for volume in range(oriented.shape[3]):
                # a contiguous copy, because scipy is several times slower on strided volumes
                source = np.ascontiguousarray(oriented[..., volume])
                out[..., volume] = affine_transform(
                    source, self.matrix, output_shape=MODEL_GRID_SHAPE, order=order, cval=0
                )
        return out


def map_to_grid(img: Any, what: str) -> GridMapping:
    """Compute the mapping of an image to the model grid.

    Parameters
    ----------
    img : nibabel spatial image
        3D or 4D, in MNI152NLin6Asym space.
    what : str
        Name of the image in errors.

    Raises
    ------
    BadDataError
        The affine is not invertible, or the image does not overlap the grid.
    """
    affine = np.asarray(img.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadDataError(f"{what}: the affine cannot be inverted.", "The header is damaged; write the image again.")
    reorient = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "A", "S")))
    shape = tuple(int(n) for n in img.shape[:3])
    oriented_affine = affine @ inv_ornt_aff(reorient, shape)
    oriented_shape = tuple(shape[int(np.flatnonzero(reorient[:, 0] == axis)[0])] for axis in range(3))
    # rounded, so that rounding errors of reoriented affines do not affect the result
    matrix = np.round(np.linalg.inv(oriented_affine) @ MODEL_GRID_AFFINE, 6)
    corners = np.array(np.meshgrid(*([0, n - 1] for n in MODEL_GRID_SHAPE), indexing="ij")).reshape(3, -1)
    reached = matrix[:3, :3] @ corners + matrix[:3, 3:]
    if (reached.max(axis=1) < 0).any() or (reached.min(axis=1) > np.array(oriented_shape) - 1).any():
        raise BadDataError(
            f"{what}: does not overlap the model grid.",
            "The image must be in MNI152NLin6Asym space; check its affine and space.",
        )
    return GridMapping(reorient, matrix, oriented_shape)


def read_volumes(img: Any, start: int, stop: int) -> np.ndarray:
    """Read some volumes of a 4D image as float32, without reading the others; (i, j, k, n)."""
    return np.asarray(img.dataobj[..., start:stop], dtype=np.float32)


def labels_to_model_grid(img: Any) -> np.ndarray:
    """Resample a label image (an atlas in MNI152NLin6Asym space) to the model grid, by nearest neighbour.

    Parameters
    ----------
    img : nibabel spatial image, 3D
        Stored in any orientation.

    Returns
    -------
    np.ndarray of int32, (96, 96, 96)
        0 outside the regions.
    """
    what = image_name(img, "the atlas")
    values = np.squeeze(np.asarray(img.dataobj))
    if values.ndim != 3 or not np.array_equal(values, np.rint(values)):
        raise BadDataError(f"{what}: not a 3D image of whole numbers.", "Give a label image.")
    return map_to_grid(img, what).apply(values.astype(np.int32), order=0)


def check_loaded(img: Any, default: str) -> str:
    """Return the name of an image for errors; raise if it is no image of nibabel, such as the path of one."""
    if not isinstance(img, nib.spatialimages.SpatialImage):
        raise UsageError(
            f"{default} is of type {type(img).__name__}, not an image of nibabel.", "Load it with nibabel.load first."
        )
    return image_name(img, default)


def image_name(img: Any, default: str) -> str:
    """Return the file name of an image, for errors."""
    path = img.get_filename() if isinstance(img, nib.filebasedimages.FileBasedImage) else None
    return path or default
