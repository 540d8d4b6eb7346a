"""Normalisation of a T1w image: rigid, affine and SyN registration with the template, with quality checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import Template
from bids_app.errors import RegistrationError
from bids_app.preprocess.masking import ball, head_mask, largest_part
from bids_app.preprocess.registration.ants import (
    Image,
    Registration,
    Stage,
    best_start,
    centre_of_mass,
    correlation,
    dice,
    register,
)
from bids_app.preprocess.registration.transforms import Chain, Linear, apply_matrix, grid_points, resample_to, rigid

LINEAR_STAGES = (
    Stage("Rigid[0.1]", (500, 250, 100), (4, 2, 2), (3, 2, 1)),
    Stage("Affine[0.1]", (500, 250, 50), (4, 2, 2), (3, 2, 1)),
)
SYN = Stage("SyN[0.3,3,0]", (100, 70, 10), (4, 2, 1), (2, 1, 0), "MI[{fixed},{moving},1,32]", "1e-7,8")
SYN_OF_COARSE = replace(SYN, iterations=(100, 70, 30))
"""Images with voxels above 2 mm need more iterations at the last level."""
MIN_CORRELATION = 0.55
MIN_LINEAR_CORRELATION = 0.3
"""Minimum correlation before SyN, in the brain and 8 mm around it."""
BRAIN_ML = (700.0, 2300.0)
MIN_COVERAGE = 0.80
MIN_DICE = 0.80
SCALES = (0.6, 1.5)
DOUBTFUL_ML = 2000.0
DOUBTFUL_CORRELATION = 0.7
"""A larger brain or a lower correlation is possible, but mostly due to a poor initialisation: it is tried again."""
HEAD_MM = 180.0
"""Maximum extent of a brain below the top of the head."""
SECOND_STARTS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (40, 0, 0), (-40, 0, 0), (0, 20, 0), (0, -20, 0))
"""Rotations about x, y and z that initialise the second attempt."""


def align_with_template(
    target: Template,
    moving: Image,
    name: str,
    out_dir: Path,
    seed: int,
    stripped: bool = False,
    coarse: bool = False,
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Align a T1w image with the template, in up to two attempts.

    The first is initialised by centres of mass. If it fails its quality checks or is doubtful, the second removes the
    neck and starts from several rotations; the result with the higher correlation is kept.

    Returns
    -------
    tuple
        Registration, quality metrics and warnings.

    Raises
    ------
    RegistrationError
        No attempt passed the quality checks.
    """
    fixed = Image(target.t1w * target.mask if stripped else target.t1w, target.affine)
    near = ndimage.binary_dilation(target.mask, ball(8.0, target.affine))
    syn = (SYN_OF_COARSE if coarse else SYN,)
    guess = first_guess(fixed, moving)
    centre = centre_of_mass(fixed)
    rotated = [guess @ rigid(np.radians(degrees), (0, 0, 0), centre) for degrees in SECOND_STARTS_DEG]

    def score(matrix: np.ndarray) -> float:
        points = grid_points(fixed.data.shape, fixed.affine, near)
        return correlation(moving.at(apply_matrix(matrix, points)), fixed.data[near])

    failures: list[str] = []
    passed: list[tuple[Registration, dict[str, float], tuple[str, ...]]] = []
    warning = f"{name}: aligned with the template at the second attempt."
    for attempt, (seen, starts) in enumerate(((moving, [guess]), (without_neck(moving), rotated))):
        try:
            matrix = best_start(fixed, seen, near, LINEAR_STAGES, starts, score, out_dir, seed)
            if score(matrix) < MIN_LINEAR_CORRELATION:
                failures = [
                    f"correlation with the template is {score(matrix):.2f} before warping, below "
                    f"{MIN_LINEAR_CORRELATION}"
                ]
                continue
            found = register(
                fixed, seen, near, syn, out_dir, start=matrix, seed=seed, name=("t1w", "t1w_again")[attempt]
            )
        except RegistrationError as error:
            failures = [error.message]
            continue
        quality = check_normalisation(target, moving, found)
        failures = failed_checks(quality)
        if not failures:
            passed.append((found, quality, (warning,) if attempt else ()))
            if not is_doubtful(quality):
                break
    if passed:
        return max(passed, key=lambda entry: entry[1]["norm_correlation"])
    raise RegistrationError(
        f"{name}: could not be aligned with {target.name}: {'; '.join(failures)}.",
        "Inspect the image: it should be a T1w of a whole human head. Exclude it with --bids-filter-file to process "
        "the runs without a T1w.",
    )


def first_guess(fixed: Image, moving: Image) -> np.ndarray:
    """Compute the translation between the centres of the head and of the template's brain, (4, 4).

    Only the upper 180 mm of the head are used, because the neck lowers the centre of mass.
    """
    head = head_mask(moving.data, moving.affine)
    points = grid_points(moving.data.shape, moving.affine, head)
    upper = points[points[:, 2] > top_of_head(points) - HEAD_MM]
    shift = np.eye(4)
    shift[:3, 3] = upper.mean(axis=0) - centre_of_mass(fixed)
    return shift


def top_of_head(points: np.ndarray) -> float:
    """Return the height of the top of a head (N, 3), mm: the 99.9th percentile, robust to noise and markers."""
    return float(np.percentile(points[:, 2], 99.9))


def above_neck(image: Image, head: np.ndarray) -> np.ndarray:
    """Return the voxels at most `HEAD_MM` below the top of the head (a mask), (X, Y, Z) bool."""
    lowest = top_of_head(grid_points(image.data.shape, image.affine, head)) - HEAD_MM
    return grid_points(image.data.shape, image.affine)[:, 2].reshape(image.data.shape) > lowest


def without_neck(moving: Image) -> Image:
    """Set an image to 0 farther than `HEAD_MM` below the top of the head."""
    above = above_neck(moving, head_mask(moving.data, moving.affine))
    return replace(moving, data=np.where(above, moving.data, np.float32(0)))


def check_normalisation(target: Template, moving: Image, found: Registration) -> dict[str, float]:
    """Compute quality metrics of an alignment with the template."""
    points = grid_points(target.t1w.shape, target.affine, target.mask)
    pulled = found.chain(points)
    covered = moving.inside(pulled)
    matrix = next(step.matrix for step in found.chain.steps if isinstance(step, Linear))
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    mask = warp_mask(target, moving, found.inverse)
    back = resample_to(mask.astype(np.float32), moving.affine, target.t1w.shape, target.affine, found.chain) > 0.5
    return {
        "norm_correlation": correlation(target.t1w[target.mask][covered], moving.at(pulled[covered])),
        "norm_coverage": float(covered.mean()),
        "norm_dice": dice(back, target.mask),
        "norm_scale_min": float(scales.min()),
        "norm_scale_max": float(scales.max()),
        "norm_brain_ml": float(mask.sum()) * abs(float(np.linalg.det(moving.affine[:3, :3]))) / 1e3,
    }


def failed_checks(quality: dict[str, float]) -> list[str]:
    """Return the quality checks that a normalisation fails, as phrases for an error message."""
    failures = []
    if quality["norm_correlation"] < MIN_CORRELATION:
        failures.append(f"correlation with the template is {quality['norm_correlation']:.2f}, below {MIN_CORRELATION}")
    if not BRAIN_ML[0] <= quality["norm_brain_ml"] <= BRAIN_ML[1]:
        failures.append(
            f"brain volume is {quality['norm_brain_ml']:.0f} mL, outside {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} mL"
        )
    if quality["norm_coverage"] < MIN_COVERAGE:
        failures.append(
            f"only {quality['norm_coverage']:.0%} of the template's brain is in the image, below {MIN_COVERAGE:.0%}"
        )
    if quality["norm_coverage"] > 0.98 and quality["norm_dice"] < MIN_DICE:
        failures.append(
            f"Dice overlap of the brain mask after forward and inverse warp is {quality['norm_dice']:.2f}, below "
            f"{MIN_DICE}"
        )
    if quality["norm_scale_min"] < SCALES[0] or quality["norm_scale_max"] > SCALES[1]:
        failures.append(
            f"scaled by {quality['norm_scale_min']:.2f} to {quality['norm_scale_max']:.2f}, outside {SCALES[0]} to "
            f"{SCALES[1]}"
        )
    return failures


def is_doubtful(quality: dict[str, float]) -> bool:
    """Return True if an alignment passes the quality checks but needs a second attempt."""
    return quality["norm_brain_ml"] > DOUBTFUL_ML or quality["norm_correlation"] < DOUBTFUL_CORRELATION


def warp_mask(target: Template, moving: Image, inverse: Chain) -> np.ndarray:
    """Warp the template's brain mask to the moving image's grid, bool."""
    warped = resample_to(target.mask.astype(np.float32), target.affine, moving.data.shape, moving.affine, inverse)
    return largest_part(warped > 0.5)
