"""Points, rigid transforms, image grids and interpolation, in RAS mm; pure functions of arrays.

A transform "from A to B" maps points of A to points of B: ``b = apply(a_to_b, a)``.
"""

from __future__ import annotations

import zlib

import nibabel as nib
import numpy as np
from scipy import ndimage


def rng_for(*keys: int | str) -> np.random.Generator:
    """Return a random generator for a named item, independent of all other generators.

    Parameters
    ----------
    keys : int or str
        The seed first, then the names of the item: ``rng_for(seed, "sub-01", "motion", 3)``.
    """
    return np.random.default_rng([zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in keys])


def rotation(degrees: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of rotations about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def rigid(translation_mm: np.ndarray, degrees: np.ndarray, centre_mm: np.ndarray | None = None) -> np.ndarray:
    """Return a rigid transform (4, 4): rotate about a centre, then translate."""
    centre = np.zeros(3) if centre_mm is None else np.asarray(centre_mm, float)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.asarray(degrees, float))
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + translation_mm
    return matrix


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply an affine (4, 4) to points (..., 3), in the points' precision."""
    kind = points.dtype if np.issubdtype(points.dtype, np.floating) else np.dtype(float)
    return points @ affine[:3, :3].T.astype(kind) + affine[:3, 3].astype(kind)


def grid_points(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return the positions of all voxels of a grid, (X, Y, Z, 3) float32, mm."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    return apply(affine, np.stack(axes, axis=-1))


def grid_axes(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x (X, 1, 1), y (1, Y, 1) and z (1, 1, Z) of a grid along the world's axes, float32, mm."""
    x, y, z = (affine[i, 3] + affine[i, i] * np.arange(n, dtype=np.float32) for i, n in enumerate(shape))
    return x[:, None, None].astype(np.float32), y[None, :, None].astype(np.float32), z[None, None].astype(np.float32)


def grid_affine(
    shape_ras: tuple[int, int, int],
    voxel_mm: tuple[float, float, float],
    centre_mm: np.ndarray,
    orientation: str = "RAS",
    oblique_deg: np.ndarray | None = None,
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of an image that covers a box, stored in the given orientation.

    Parameters
    ----------
    shape_ras, voxel_mm : tuple
        Voxels and their size along right, anterior and superior.
    centre_mm : (3,)
        Centre of the box, mm.
    orientation : str
        Axis codes of the stored array, for example ``"LAS"`` or ``"PIR"``.
    oblique_deg : (3,), optional
        Rotation of the box about its centre, degrees.

    Returns
    -------
    shape : tuple of int
        In the stored order of axes.
    affine : (4, 4)
    """
    linear = (np.eye(3) if oblique_deg is None else rotation(oblique_deg)) @ np.diag(voxel_mm)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.asarray(centre_mm) - linear @ ((np.array(shape_ras) - 1) / 2)
    codes = nib.orientations.axcodes2ornt(tuple(orientation))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), codes)
    stored = affine @ nib.orientations.inv_ornt_aff(turn, shape_ras)
    shape = np.empty(3, int)
    shape[turn[:, 0].astype(int)] = shape_ras
    return (int(shape[0]), int(shape[1]), int(shape[2])), stored


def sample(volume: np.ndarray, affine: np.ndarray, points: np.ndarray, order: int = 1) -> np.ndarray:
    """Interpolate a volume at points; 0 outside.

    Parameters
    ----------
    volume : (X, Y, Z)
    affine : (4, 4)
        Voxel to mm.
    points : (..., 3)
        Positions, mm.

    Returns
    -------
    (...) float32
    """
    index = apply(np.linalg.inv(affine), points)
    coordinates = np.moveaxis(index, -1, 0)
    return ndimage.map_coordinates(volume, coordinates, output=np.float32, order=order, mode="constant", cval=0.0)


def smooth_noise(
    shape: tuple[int, int, int], spacing_mm: float | np.ndarray, fwhm_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Simulate a smooth random field of zero mean and unit standard deviation.

    Parameters
    ----------
    shape : tuple of int
        Shape of the grid.
    spacing_mm : float or (3,)
        Distance between grid points.
    fwhm_mm : float
        Smoothness of the field.

    Returns
    -------
    (X, Y, Z) float32
    """
    node_mm = fwhm_mm / 4.0
    ratio = np.broadcast_to(np.asarray(spacing_mm, float), (3,)) / node_mm
    coarse = rng.standard_normal([int(np.ceil((n - 1) * r)) + 4 for n, r in zip(shape, ratio, strict=True)])
    field = ndimage.gaussian_filter(coarse, fwhm_mm / node_mm / 2.355)
    for axis, (n, r) in enumerate(zip(shape, ratio, strict=True)):
        field = _interpolate_axis(field, np.arange(n) * r + 1.0, axis)
    return ((field - field.mean()) / max(float(field.std()), 1e-6)).astype(np.float32)


def distance_from_zero(field: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Approximate the distance from the zero surfaces of a smooth field (X, Y, Z), mm."""
    slope = np.sqrt(sum(part**2 for part in np.gradient(field, spacing_mm)))
    return np.abs(field) / np.maximum(slope, 0.35 * float(slope.mean()))


def halve_spacing(values: np.ndarray) -> np.ndarray:
    """Interpolate (X, Y, Z) linearly to two voxels within each voxel, along each axis."""
    import torch  # imported late: most simulations do without it

    volume = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(volume, scale_factor=2.0, mode="trilinear")[0, 0].numpy()


def _interpolate_axis(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate linearly along one axis, at positions in units of its samples."""
    nodes = np.arange(values.shape[axis])
    weights = np.clip(1 - np.abs(positions[:, None] - nodes), 0, None)
    return np.moveaxis(np.tensordot(weights, np.moveaxis(values, axis, 0), axes=1), 0, axis)
