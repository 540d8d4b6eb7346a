"""Transforms between spaces and their files, with the conventions of the whole package `preprocess`.

- Points are in RAS millimetres; images have an affine from voxel indices to RAS mm.
- All transforms are *pull transforms*: they map a point of the target grid (the reference) to the point of the image
  that is resampled (the source). Resampling the T1w to the template requires template -> T1w; BIDS and ITK name that
  file ``from-T1w_to-template``, by the direction of the image.
- Matrices are 4x4 float64 and act on column vectors: ``q = M @ (x, y, z, 1)``.
- A `Warp` adds a displacement sampled on a grid of the reference space: ``q = p + d(p)``, with d = 0 outside the grid.
- A `Chain` is applied from its first element to its last.
- Motion is (T, 4, 4): a point of the boldref to the point of the same tissue in volume t.
- ITK files hold the same pull transforms in LPS: ``L = F M F`` with ``F = diag(-1, -1, 1, 1)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.errors import BadDataError
from bids_app.preprocess import spline

Vector = Sequence[float] | np.ndarray
"""Three numbers."""
EDGE = "grid-constant"
"""Boundary mode: images decay to 0 within one voxel of the edge; ``constant`` may lose edge voxels by rounding."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Linear:
    """A matrix: ``q = matrix @ p``.

    Parameters
    ----------
    matrix : numpy.ndarray, (4, 4)
        RAS mm to RAS mm.
    """

    matrix: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points, (N, 3) mm."""
        return apply_matrix(self.matrix, points)


@dataclass(frozen=True)
class Warp:
    """A displacement field: ``q = p + d(p)``.

    Parameters
    ----------
    displacement : numpy.ndarray, (X, Y, Z, 3)
        RAS mm, float32.
    affine : numpy.ndarray, (4, 4)
        Voxel indices of the field to RAS mm.
    """

    displacement: np.ndarray
    affine: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points, (N, 3) mm."""
        return points + spline.linear(self.displacement, points, np.linalg.inv(self.affine))


@dataclass(frozen=True)
class Chain:
    """Transforms applied one after the other, from the reference to the source."""

    steps: tuple[Linear | Warp, ...] = ()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points, (N, 3) mm, float64."""
        for step in self.steps:
            points = step(points)
        return np.asarray(points, dtype=np.float64)

    def then(self, other: Chain) -> Chain:
        """Return this chain followed by the other; adjacent matrices are multiplied."""
        steps: list[Linear | Warp] = list(self.steps)
        for step in other.steps:
            last = steps[-1] if steps else None
            if isinstance(last, Linear) and isinstance(step, Linear):
                steps[-1] = Linear(step.matrix @ last.matrix)
            else:
                steps.append(step)
        return Chain(tuple(steps))

    def save(self, path: Path) -> Path:
        """Write the chain to an ``.npz`` file."""
        arrays: dict[str, np.ndarray] = {}
        for i, step in enumerate(self.steps):
            if isinstance(step, Linear):
                arrays[f"{i}_matrix"] = step.matrix
            else:
                arrays[f"{i}_displacement"], arrays[f"{i}_affine"] = step.displacement, step.affine
        np.savez(path, n_steps=np.array(len(self.steps)), **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: Path) -> Chain:
        """Read a chain written by `save`."""
        with np.load(path) as file:
            steps: list[Linear | Warp] = []
            for i in range(int(file["n_steps"])):
                if f"{i}_matrix" in file:
                    steps.append(Linear(file[f"{i}_matrix"]))
                else:
                    steps.append(Warp(file[f"{i}_displacement"], file[f"{i}_affine"]))
        return cls(tuple(steps))


def linear(matrix: np.ndarray) -> Chain:
    """Return a chain of one matrix."""
    return Chain((Linear(np.asarray(matrix, dtype=np.float64)),))


def apply_matrix(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (..., 3) by a matrix (4, 4), without the overhead of BLAS threads."""
    return np.einsum("...j,ij->...i", points, matrix[:3, :3]) + matrix[:3, 3]


def grid_points(shape: Sequence[int], affine: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return the points of a grid in RAS mm, (N, 3) float64: all voxels in C order, or those of a mask.

    Parameters
    ----------
    shape : sequence of int
    affine : numpy.ndarray, (4, 4)
    where : numpy.ndarray, (X, Y, Z) bool, optional
    """
    indices = np.argwhere(where) if where is not None else np.indices(tuple(shape)).reshape(3, -1).T
    return apply_matrix(affine, indices.astype(np.float64))


def sample(
    data: np.ndarray, affine: np.ndarray, points: np.ndarray, *, order: int = 1, cval: float = 0.0
) -> np.ndarray:
    """Interpolate an image at points.

    Parameters
    ----------
    data : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
    points : numpy.ndarray, (N, 3)
        RAS mm.
    order : int
        Spline order: 0 nearest, 1 linear, 3 cubic.
    cval : float
        Value outside the image.

    Returns
    -------
    numpy.ndarray, (N,) float32
    """
    if order == 1 and cval == 0:
        return spline.linear(np.asarray(data)[..., None], points, np.linalg.inv(affine))[:, 0]
    voxels = apply_matrix(np.linalg.inv(affine), points).T
    return ndimage.map_coordinates(np.asarray(data, dtype=np.float32), voxels, order=order, mode=EDGE, cval=cval)


def resample_to(
    data: np.ndarray,
    affine: np.ndarray,
    shape: Sequence[int],
    onto: np.ndarray,
    chain: Chain | None = None,
    *,
    order: int = 1,
) -> np.ndarray:
    """Resample an image to another grid.

    Parameters
    ----------
    data, affine : numpy.ndarray, (X, Y, Z) and (4, 4)
        Source image.
    shape, onto : sequence of int, numpy.ndarray (4, 4)
        Target grid.
    chain : Chain, optional
        Pull transform from the target's space to the source's; identity by default.
    order : int
        Spline order.

    Returns
    -------
    numpy.ndarray, (X', Y', Z') float32
    """
    points = grid_points(shape, onto)
    if chain is not None:
        points = chain(points)
    return sample(data, affine, points, order=order).reshape(tuple(shape))


def open_hdf5(path: Path, mode: str = "r") -> Any:
    """Open an HDF5 file without locking it.

    A process that is being started inherits the lock of a file that was just closed here, and some file systems of
    clusters have no locks. No two processes write the same file.
    """
    import h5py

    return h5py.File(path, mode, locking=False)


def read_itk_composite(path: Path) -> Chain:
    """Read an ITK composite transform (``.h5``) of matrices and displacement fields.

    Parameters
    ----------
    path : pathlib.Path
        Written by ANTs; the transform that was added last is applied first.
    """
    steps: list[Linear | Warp] = []
    with open_hdf5(path) as file:
        groups = file["TransformGroup"]
        for key in sorted(groups, key=int, reverse=True):
            group = groups[key]
            kind = group["TransformType"][()]
            kind = (kind[0] if isinstance(kind, np.ndarray) else kind).decode()
            if kind.startswith("Composite"):
                continue
            fixed, values = (group[name][()] for name in _parameter_names(group))
            if kind.startswith("DisplacementField"):
                steps.append(_itk_displacement(fixed, values))
            else:
                steps.append(Linear(_itk_matrix(kind, fixed, values)))
    return Chain(()).then(Chain(tuple(steps)))


def _parameter_names(group: Iterable[str]) -> tuple[str, str]:
    # old versions of ITK misspell the name
    fixed = next(name for name in group if name in ("TransformFixedParameters", "TranformFixedParameters"))
    return fixed, fixed.replace("Fixed", "")


def _itk_displacement(fixed: np.ndarray, values: np.ndarray) -> Warp:
    size = fixed[:3].astype(int)
    affine = np.eye(4)
    affine[:3, :3] = fixed[9:18].reshape(3, 3) * fixed[6:9]
    affine[:3, 3] = fixed[3:6]
    field = np.ascontiguousarray(values.reshape(*size[::-1], 3).transpose(2, 1, 0, 3), dtype=np.float32)
    field[..., :2] *= -1
    return Warp(field, LPS @ affine)


def _itk_matrix(kind: str, fixed: np.ndarray, values: np.ndarray) -> np.ndarray:
    if len(values) != 12:
        raise BadDataError(
            f"Unsupported ITK transform {kind} with {len(values)} parameters.",
            "Use a composite of matrices (12 parameters) and displacement fields.",
        )
    matrix = np.eye(4)
    matrix[:3, :3] = values[:9].reshape(3, 3)
    centre = fixed[:3]
    matrix[:3, 3] = values[9:] + centre - matrix[:3, :3] @ centre
    return LPS @ matrix @ LPS


def write_itk_text(path: Path, matrices: np.ndarray) -> Path:
    """Write matrices in ITK's text format, one transform each.

    Parameters
    ----------
    path : pathlib.Path
    matrices : numpy.ndarray, (N, 4, 4)
        Pull transforms, RAS mm.
    """
    lines = ["#Insight Transform File V1.0"]
    for i, matrix in enumerate(np.asarray(matrices, dtype=np.float64).reshape(-1, 4, 4)):
        itk = LPS @ matrix @ LPS
        values = " ".join(f"{v:.12g}" for v in [*itk[:3, :3].ravel(), *itk[:3, 3]])
        lines += [
            f"#Transform {i}",
            "Transform: MatrixOffsetTransformBase_double_3_3",
            f"Parameters: {values}",
            "FixedParameters: 0 0 0",
            "",
        ]
    path.write_text("\n".join(lines))
    return path


def read_itk_text(path: Path) -> np.ndarray:
    """Read the first matrix of a file written by `write_itk_text`, (4, 4)."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("Parameters:"))
    values = np.array(line.split()[1:], dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = values[:9].reshape(3, 3), values[9:]
    return LPS @ matrix @ LPS


def rigid(rotation: Vector, translation: Vector, centre: Vector = (0, 0, 0)) -> np.ndarray:
    """Return the matrix of a rigid transform about a centre, (4, 4).

    Parameters
    ----------
    rotation : (3,)
        Angles about x, y and z in rad; ``R = Rz @ Ry @ Rx``.
    translation, centre : (3,)
        mm.
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(rotation), np.sin(rotation)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = np.asarray(centre) + np.asarray(translation) - matrix[:3, :3] @ np.asarray(centre)
    return matrix


def to_fsl_coordinates(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the matrix from RAS mm to FSL's coordinates of an image, (4, 4).

    They are voxel indices times voxel sizes (mm), with the first axis reversed if the determinant of the affine is
    positive.
    """
    sizes = voxel_sizes(affine)
    matrix = np.diag([*sizes, 1.0]) @ np.linalg.inv(affine)
    if np.linalg.det(affine[:3, :3]) > 0:
        reverse = np.diag([-1.0, 1.0, 1.0, 1.0])
        reverse[0, 3] = (shape[0] - 1) * sizes[0]
        matrix = reverse @ matrix
    return matrix


def fsl_parameters(poses: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Convert rigid head motion to the parameters that FSL's MCFLIRT writes.

    MCFLIRT describes the transform from volume t to the reference in FSL's coordinates (`to_fsl_coordinates`).
    Rotations are left-handed, ``R = Rx Ry Rz`` (``rotmat2euler`` of FSL's miscmaths), about the centre of the field of
    view.

    Parameters
    ----------
    poses : numpy.ndarray, (T, 4, 4)
        Reference point to point of volume t, RAS mm.
    shape : sequence of int
        Grid of the reference, (X, Y, Z).
    affine : numpy.ndarray, (4, 4)
        Its voxel indices to RAS mm.

    Returns
    -------
    numpy.ndarray, (T, 6)
        ``trans_x, trans_y, trans_z`` (mm), ``rot_x, rot_y, rot_z`` (rad).
    """
    extent = (np.array(shape[:3]) - 1) * voxel_sizes(affine)
    to_fsl = to_fsl_coordinates(shape, affine)
    moved = to_fsl @ np.linalg.inv(poses) @ np.linalg.inv(to_fsl)
    rotation, centre = moved[:, :3, :3], extent / 2
    shift = moved[:, :3, 3] + rotation @ centre - centre
    about_x = np.arctan2(rotation[:, 1, 2], rotation[:, 2, 2])
    about_y = np.arcsin(np.clip(-rotation[:, 0, 2], -1, 1))
    about_z = np.arctan2(rotation[:, 0, 1], rotation[:, 0, 0])
    return np.column_stack([shift, about_x, about_y, about_z])
