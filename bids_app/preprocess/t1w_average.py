"""Several T1w images of one session become one: each is aligned with the first, and those that agree are averaged.

Noise falls with the number of images, and the one that moved or is of something else is found by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.errors import BadDataError, RegistrationError
from bids_app.preprocess.io.images import read_anatomy
from bids_app.preprocess.masking import head_mask
from bids_app.preprocess.registration.ants import (
    Image,
    Stage,
    best_start,
    centre_of_mass,
    correlation,
    isotropic,
    similarity,
)
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points

WORKING_MM = 2.0
RIGID = (Stage("Rigid[0.1]", (200, 100, 50), (4, 2, 1), (3, 1, 0)),)
MIN_CORRELATION = 0.8
"""Within the head, of two images, or of one with the median of all; below it they do not show the same."""
MAX_BEHIND = 0.1
"""How much less than the best an image may correlate with the median of all."""


@dataclass(frozen=True)
class Merged:
    """The mean image on the first one's grid, the files that went into it, and warnings."""

    image: Image
    used: tuple[Path, ...]
    warnings: tuple[str, ...]


def merge_t1w(paths: Sequence[Path], out_dir: Path, seed: int = 1) -> Merged:
    """Average T1w images of one head.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        The first gives the grid; what cannot be read, or does not agree with the others, is left out with a warning.
    out_dir : pathlib.Path
        For scratch.
    seed : int

    Raises
    ------
    BadDataError
        The first cannot be used.
    """
    data, affine, warnings = read_anatomy(paths[0])
    images, used = [Image(data, affine)], [paths[0]]
    for path in paths[1:]:
        try:
            data, affine, more = read_anatomy(path)
        except BadDataError as error:
            warnings += (f"{error.message} It was left out of the mean T1w image.",)
            continue
        images.append(Image(data, affine))
        used.append(path)
        warnings += more
    if len(images) == 1:
        return Merged(images[0], tuple(used), warnings)
    coarse = [isotropic(image, WORKING_MM) for image in images]
    head = head_mask(coarse[0].data, coarse[0].affine)
    matrices = [np.eye(4), *(_to_first(coarse[0], other, head, out_dir, seed) for other in coarse[1:])]
    agreed = find_consistent(sample_images(coarse, matrices, head))
    for path, fine in zip(used, agreed, strict=True):
        if not fine:
            warnings += (f"{path.name}: does not agree with {used[0].name} and was left out of the mean T1w image.",)
    kept = [i for i, fine in enumerate(agreed) if fine]
    mean = average(images[0], [images[i] for i in kept], [matrices[i] for i in kept])
    return Merged(mean, tuple(used[i] for i in kept), warnings)


def _to_first(first: Image, other: Image, head: np.ndarray, out_dir: Path, seed: int) -> np.ndarray:
    """Matrix from points of the first image to points of another; the header's where nothing is found."""
    shift = np.eye(4)
    shift[:3, 3] = centre_of_mass(other) - centre_of_mass(first)
    try:
        return best_start(
            first, other, head, RIGID, [np.eye(4), shift], lambda m: similarity(first, head, other, m), out_dir, seed
        )
    except RegistrationError:
        return np.eye(4)  # it will not agree with the others, and says so


def sample_images(images: Sequence[Image], matrices: Sequence[np.ndarray], where: np.ndarray) -> np.ndarray:
    """Values of images at the points of a mask of the first, (n_images, N)."""
    points = grid_points(images[0].data.shape, images[0].affine, where)
    return np.stack([image.at(apply_matrix(m, points)) for image, m in zip(images, matrices, strict=True)])


def find_consistent(values: np.ndarray) -> list[bool]:
    """Which images show what the others show; of two that differ, the first.

    Parameters
    ----------
    values : numpy.ndarray, (n_images, N)
        At the same points of the head.
    """
    n_images = len(values)
    if n_images == 2:
        return [True, correlation(values[0], values[1]) >= MIN_CORRELATION]
    spread = values.std(axis=1, keepdims=True)
    levelled = (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    middle = np.median(levelled, axis=0)  # one image that differs does not move it
    typical = np.array([correlation(row, middle) for row in values])
    agreed = (typical >= MIN_CORRELATION) & (typical >= typical.max() - MAX_BEHIND)
    return agreed.tolist() if agreed.any() else [i == 0 for i in range(n_images)]


def average(first: Image, images: Sequence[Image], matrices: Sequence[np.ndarray]) -> Image:
    """Mean of images on a grid, each scaled to the brightness of the first of them; (X, Y, Z) float32.

    Parameters
    ----------
    first : Image
        Gives the grid.
    images : sequence of Image
    matrices : sequence of numpy.ndarray, (4, 4)
        Points of the grid to points of each image, RAS mm.
    """
    shape = first.data.shape
    total, weight = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    level = None
    for image, matrix in zip(images, matrices, strict=True):
        pull = np.linalg.inv(image.affine) @ matrix @ first.affine
        exact = np.allclose(pull, np.eye(4), atol=1e-6) and image.data.shape == shape
        drawn, inside = image.data, np.ones(shape, dtype=np.float32)
        if not exact:
            drawn, inside = (
                ndimage.affine_transform(values, pull[:3, :3], pull[:3, 3], shape, np.float32, order, mode, 0.0)
                for values, order, mode in (
                    (image.data, 3, "nearest"),
                    (np.ones(image.data.shape, np.float32), 1, "grid-constant"),
                )
            )
        bright = float(np.percentile(drawn[inside > 0.99], 95)) or 1.0
        level = bright if level is None else level
        total += drawn * (inside > 0.99) * np.float32(level / bright)
        weight += inside > 0.99
    return Image(np.divide(total, weight, out=np.zeros_like(total), where=weight > 0), first.affine)
