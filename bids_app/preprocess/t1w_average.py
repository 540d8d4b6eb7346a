"""Average of the T1w images of a session: rigid registration with the first, outlier rejection, mean."""

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
"""Minimum correlation in the head, of two images, or of one image with the median of all."""
MAX_BEHIND = 0.1
"""Maximum difference between an image's correlation with the median of all and the highest one."""


@dataclass(frozen=True)
class Merged:
    """The mean image on the grid of the first, the averaged files, and warnings."""

    image: Image
    used: tuple[Path, ...]
    warnings: tuple[str, ...]


def merge_t1w(paths: Sequence[Path], out_dir: Path, seed: int = 1) -> Merged:
    """Average T1w images of one participant.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        The first defines the grid; invalid or inconsistent images are excluded with a warning.
    out_dir : pathlib.Path
        Folder for temporary files.
    seed : int

    Raises
    ------
    BadDataError
        The first image is invalid.
    """
    data, affine, warnings = read_anatomy(paths[0])
    images, used = [Image(data, affine)], [paths[0]]
    for path in paths[1:]:
        try:
            data, affine, more = read_anatomy(path)
        except BadDataError as error:
            warnings += (f"{error.message} The image was excluded from the mean T1w.",)
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
    for path, consistent in zip(used, agreed, strict=True):
        if not consistent:
            warnings += (
                f"{path.name}: differs from {used[0].name} (low correlation after alignment); it was excluded from the "
                "mean T1w.",
            )
    kept = [i for i, consistent in enumerate(agreed) if consistent]
    mean = average(images[0], [images[i] for i in kept], [matrices[i] for i in kept])
    return Merged(mean, tuple(used[i] for i in kept), warnings)


def _to_first(first: Image, other: Image, head: np.ndarray, out_dir: Path, seed: int) -> np.ndarray:
    """Estimate the matrix from the first image to another; identity if the registration fails."""
    shift = np.eye(4)
    shift[:3, 3] = centre_of_mass(other) - centre_of_mass(first)
    try:
        return best_start(
            first, other, head, RIGID, [np.eye(4), shift], lambda m: similarity(first, head, other, m), out_dir, seed
        )
    except RegistrationError:
        return np.eye(4)  # `find_consistent` excludes the image


def sample_images(images: Sequence[Image], matrices: Sequence[np.ndarray], where: np.ndarray) -> np.ndarray:
    """Interpolate images at the points of a mask of the first, (n_images, N)."""
    points = grid_points(images[0].data.shape, images[0].affine, where)
    return np.stack([image.at(apply_matrix(m, points)) for image, m in zip(images, matrices, strict=True)])


def find_consistent(values: np.ndarray) -> list[bool]:
    """Return which images are consistent with the others; of two that differ, the first.

    Parameters
    ----------
    values : numpy.ndarray, (n_images, N)
        Intensities at the same points of the head.
    """
    n_images = len(values)
    if n_images == 2:
        return [True, correlation(values[0], values[1]) >= MIN_CORRELATION]
    spread = values.std(axis=1, keepdims=True)
    standardised = (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    median = np.median(standardised, axis=0)  # robust to one outlier image
    correlations = np.array([correlation(row, median) for row in values])
    agreed = (correlations >= MIN_CORRELATION) & (correlations >= correlations.max() - MAX_BEHIND)
    return agreed.tolist() if agreed.any() else [i == 0 for i in range(n_images)]


def average(first: Image, images: Sequence[Image], matrices: Sequence[np.ndarray]) -> Image:
    """Average images on a grid, scaled to the intensity of the first of them, (X, Y, Z) float32.

    Parameters
    ----------
    first : Image
        Defines the grid.
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
        resampled, inside = image.data, np.ones(shape, dtype=np.float32)
        if not exact:
            resampled, inside = (
                ndimage.affine_transform(values, pull[:3, :3], pull[:3, 3], shape, np.float32, order, mode, 0.0)
                for values, order, mode in (
                    (image.data, 3, "nearest"),
                    (np.ones(image.data.shape, np.float32), 1, "grid-constant"),
                )
            )
        bright = float(np.percentile(resampled[inside > 0.99], 95)) or 1.0
        level = bright if level is None else level
        total += resampled * (inside > 0.99) * np.float32(level / bright)
        weight += inside > 0.99
    return Image(np.divide(total, weight, out=np.zeros_like(total), where=weight > 0), first.affine)
