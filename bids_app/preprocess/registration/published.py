"""Transforms as they are published: ITK composites between an image and the spaces of the outputs.

A composite (HDF5, as ANTs writes it) holds matrices and displacement fields; the transform that was added last is
applied first. antspyx, ANTs and nitransforms read these files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bids_app.catalog.templates import space
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.transforms import LPS, Chain, Linear, Warp, apply_matrix, grid_points, open_hdf5

ITK_FILE = {"HDFVersion": "1", "ITKVersion": "5.4.0", "OSName": "Linux", "OSVersion": "1"}
"""Strings that ITK writes into its files; constant, so that equal transforms give equal bytes."""


class SpaceTransforms(NamedTuple):
    """Pull transforms between a template space and an image: ``chain`` maps points of the space to the image."""

    space: str
    chain: Chain
    inverse: Chain


def transforms_to_spaces(
    template: str, spaces: Iterable[str], chain: Chain, inverse: Chain
) -> Iterator[SpaceTransforms]:
    """Yield the transforms between an image and its template, and further template spaces, each once.

    Parameters
    ----------
    template : str
        Template that the image was registered to.
    spaces : iterable of str
        Further spaces of the catalog.
    chain, inverse : Chain
        Template points to points of the image, and the reverse.
    """
    own = space(template)
    yield SpaceTransforms(template, cover_grid(chain, own.shape, own.affine), inverse)
    for name in dict.fromkeys(spaces):
        if name == template:
            continue
        target = space(name)
        to_image = compose_on_grid(chain_between(name, template).then(chain), target.shape, target.affine)
        first = inverse.steps[:1] if isinstance(next(iter(inverse.steps), None), Linear) else ()
        rest = Chain(inverse.steps[len(first) :]).then(chain_between(template, name))
        back = Chain(first).then(compose_on_grid(rest, own.shape, own.affine))
        yield SpaceTransforms(name, to_image, back)


def compose_on_grid(chain: Chain, shape: Sequence[int], affine: np.ndarray) -> Chain:
    """Compose a chain to one displacement field on a grid, and a matrix; without a field in it, return it unchanged.

    Programs differ in how they interpolate a field between its voxels, but not at the voxels of this grid.

    Parameters
    ----------
    chain : Chain
    shape, affine : sequence of int, numpy.ndarray (4, 4)
        Grid in the space of the points that the chain maps, RAS mm.
    """
    if all(isinstance(step, Linear) for step in chain.steps):
        return chain
    matrix = np.eye(4)
    for step in chain.steps:
        if isinstance(step, Linear):
            matrix = step.matrix @ matrix
    points = grid_points(shape, affine)
    shift = apply_matrix(np.linalg.inv(matrix), chain(points)) - points
    return Chain((Warp(shift.reshape(*shape, 3).astype(np.float32), affine), Linear(matrix)))


def cover_grid(chain: Chain, shape: Sequence[int], affine: np.ndarray) -> Chain:
    """Extend a displacement field at the start of a chain with zeros, so that it covers a grid of the same spacing.

    The displacement is 0 outside a field, but nitransforms cannot map points of a grid that is larger than the field.

    Parameters
    ----------
    chain : Chain
    shape, affine : sequence of int, numpy.ndarray (4, 4)
        The grid to cover; RAS mm.

    Returns
    -------
    Chain
        Unchanged if the chain does not start with a field, or if that has other voxels than the grid.
    """
    first = chain.steps[0] if chain.steps else None
    if not isinstance(first, Warp) or not np.allclose(first.affine[:3, :3], affine[:3, :3], atol=1e-4):
        return chain
    start = apply_matrix(np.linalg.inv(first.affine), affine[:3, 3])
    before = np.maximum(np.ceil(-start - 1e-3), 0).astype(int)
    after = np.maximum(np.ceil(start + np.array(shape) - first.displacement.shape[:3] - 1e-3), 0).astype(int)
    padded = np.pad(first.displacement, [*zip(before, after, strict=True), (0, 0)])
    grid = first.affine.copy()
    grid[:3, 3] = apply_matrix(first.affine, -before.astype(np.float64))
    return Chain((Warp(padded, grid), *chain.steps[1:]))


def write_itk_composite(path: Path, chain: Chain) -> Path:
    """Write a pull transform as an ITK composite (``.h5``), in single precision.

    Parameters
    ----------
    path : pathlib.Path
    chain : Chain
        RAS mm.
    """
    import h5py

    text = h5py.string_dtype("ascii")  # ITK cannot read UTF-8
    with open_hdf5(path, "w") as file:
        first = file.create_group("TransformGroup/0")
        first.create_dataset("TransformType", data=[b"CompositeTransform_float_3_3"], dtype=text, track_times=False)
        for number, step in enumerate(reversed(chain.steps or (Linear(np.eye(4)),)), start=1):
            kind, fixed, values = _itk_matrix(step) if isinstance(step, Linear) else _itk_field(step)
            group = file.create_group(f"TransformGroup/{number}")
            group.create_dataset("TransformType", data=[kind.encode()], dtype=text, track_times=False)
            group.create_dataset("TransformFixedParameters", data=fixed.astype(np.float64), track_times=False)
            group.create_dataset(
                "TransformParameters",
                data=values.astype(np.float32),
                compression="gzip",
                shuffle=True,
                track_times=False,
            )
        for key, content in ITK_FILE.items():
            file.create_dataset(key, data=[content.encode()], dtype=text, track_times=False)
    return path


def _itk_matrix(step: Linear) -> tuple[str, np.ndarray, np.ndarray]:
    """Return type, fixed parameters and parameters of a matrix."""
    itk = LPS @ step.matrix @ LPS
    return "AffineTransform_float_3_3", np.zeros(3), np.concatenate([itk[:3, :3].ravel(), itk[:3, 3]])


def _itk_field(step: Warp) -> tuple[str, np.ndarray, np.ndarray]:
    """Return type, fixed parameters (size, origin, spacing, direction) and parameters of a displacement field."""
    grid = LPS @ step.affine
    spacing = np.linalg.norm(grid[:3, :3], axis=0)
    fixed = np.concatenate([step.displacement.shape[:3], grid[:3, 3], spacing, (grid[:3, :3] / spacing).ravel()])
    vectors = step.displacement * np.array([-1, -1, 1], np.float32)
    return "DisplacementFieldTransform_float_3_3", fixed, vectors.transpose(2, 1, 0, 3).ravel()
