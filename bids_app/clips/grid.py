"""The model grid: MNI152NLin6Asym, 2 mm, stored L-A-S, its 91x109x91 padded (3, 2), cropped (6, 7), padded (3, 2).

An image comes onto it through its affine. Whatever its stored orientation, it is first turned to L-A-S, so that the
same image stored otherwise gives the same numbers; where it lies on the 2 mm lattice its voxels are copied, elsewhere
they are interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.ndimage import affine_transform

from bids_app.errors import BadDataError

MODEL_GRID_SHAPE = (96, 96, 96)
MODEL_GRID_AFFINE = np.array(
    [[-2.0, 0.0, 0.0, 96.0], [0.0, 2.0, 0.0, -114.0], [0.0, 0.0, 2.0, -78.0], [0.0, 0.0, 0.0, 1.0]]
)
MODEL_GRID_AFFINE.flags.writeable = False
LATTICE_TOLERANCE = 1e-3
"""Voxels by which an image may be off the 2 mm lattice and still count as on it; affines are stored in float32."""


@dataclass(frozen=True)
class Placement:
    """How voxels of one image, turned to L-A-S, lie on the model grid.

    Attributes
    ----------
    turn : np.ndarray, (3, 2)
        Orientation transform of nibabel from the stored axes to L-A-S.
    matrix : np.ndarray, (4, 4)
        Model voxel to turned image voxel.
    shape : tuple of int
        Of the turned image.
    """

    turn: np.ndarray
    matrix: np.ndarray
    shape: tuple[int, ...]

    @property
    def on_lattice(self) -> bool:
        """Whether model voxels fall on image voxels."""
        off = self.matrix - np.rint(self.matrix)
        return bool(np.abs(off).max() < LATTICE_TOLERANCE and np.array_equal(np.rint(self.matrix[:3, :3]), np.eye(3)))

    def apply(self, stored: np.ndarray, order: int) -> np.ndarray:
        """Bring volumes onto the grid.

        Parameters
        ----------
        stored : np.ndarray, (i, j, k) or (i, j, k, n)
            As the file holds them.
        order : int
            1 for signals, 0 for masks and labels.

        Returns
        -------
        np.ndarray, (96, 96, 96) or (96, 96, 96, n)
            0 where the image does not reach.
        """
        turned = apply_orientation(stored, self.turn)
        out = np.zeros((*MODEL_GRID_SHAPE, *turned.shape[3:]), dtype=turned.dtype)
        if self.on_lattice:
            here, there = [], []
            for start, n, size in zip(
                np.rint(self.matrix[:3, 3]).astype(int), self.shape, MODEL_GRID_SHAPE, strict=True
            ):
                first, last = max(0, -start), max(0, min(size, n - start))
                here.append(slice(first, max(first, last)))
                there.append(slice(first + start, max(first, last) + start))
            out[tuple(here)] = turned[tuple(there)]
        elif turned.ndim == 3:
            affine_transform(turned, self.matrix, output_shape=MODEL_GRID_SHAPE, output=out, order=order, cval=0)
        else:
            for volume in range(turned.shape[3]):
                # a copy that is contiguous, because scipy is several times slower on strided volumes
                source = np.ascontiguousarray(turned[..., volume])
                out[..., volume] = affine_transform(
                    source, self.matrix, output_shape=MODEL_GRID_SHAPE, order=order, cval=0
                )
        return out


def place(img: Any, what: str) -> Placement:
    """Work out how an image lies on the model grid.

    Parameters
    ----------
    img : nibabel spatial image
        3D or 4D, in MNI152NLin6Asym space.
    what : str
        What the image is called in errors.

    Raises
    ------
    BadDataError
        The affine is not invertible, or the image does not reach the grid at all.
    """
    affine = np.asarray(img.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadDataError(f"{what}: its affine cannot be inverted.", "Its header is damaged; write the image again.")
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "A", "S")))
    shape = tuple(int(n) for n in img.shape[:3])
    turned_affine = affine @ inv_ornt_aff(turn, shape)
    turned_shape = tuple(shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    # rounded, so that the rounding of affines stored in another orientation does not reach the result
    matrix = np.round(np.linalg.inv(turned_affine) @ MODEL_GRID_AFFINE, 6)
    corners = np.array(np.meshgrid(*([0, n - 1] for n in MODEL_GRID_SHAPE), indexing="ij")).reshape(3, -1)
    reached = matrix[:3, :3] @ corners + matrix[:3, 3:]
    if (reached.max(axis=1) < 0).any() or (reached.min(axis=1) > np.array(turned_shape) - 1).any():
        raise BadDataError(
            f"{what}: lies outside the model grid.", "It must be in MNI152NLin6Asym space; check its affine and space."
        )
    return Placement(turn, matrix, turned_shape)


def read_volumes(img: Any, start: int, stop: int) -> np.ndarray:
    """Some volumes of a 4D image as float32, without reading the others; (i, j, k, n)."""
    return np.asarray(img.dataobj[..., start:stop], dtype=np.float32)


def labels_to_model_grid(img: Any) -> np.ndarray:
    """Bring a label image (an atlas in MNI152NLin6Asym space) onto the model grid, by nearest neighbour.

    Parameters
    ----------
    img : nibabel spatial image, 3D
        In any orientation.

    Returns
    -------
    np.ndarray of int32, (96, 96, 96)
        0 where there is no region.
    """
    what = name_of(img, "the atlas")
    values = np.squeeze(np.asarray(img.dataobj))
    if values.ndim != 3 or not np.array_equal(values, np.rint(values)):
        raise BadDataError(f"{what}: is no 3D image of whole numbers.", "Give a label image.")
    return place(img, what).apply(values.astype(np.int32), order=0)


def name_of(img: Any, otherwise: str) -> str:
    """The file an image came from, for errors."""
    path = img.get_filename() if isinstance(img, nib.filebasedimages.FileBasedImage) else None
    return path or otherwise
