"""A T1w image's way to the template: rigid, affine, SyN; two attempts, and the gates that each must pass."""

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
"""Voxels of more than 2 mm blur what steers the last level, which then takes more steps to arrive."""
MIN_CORRELATION = 0.55
MIN_LINEAR_CORRELATION = 0.3
"""Below it, in the brain and 8 mm around, no warp is tried."""
BRAIN_ML = (700.0, 2300.0)
MIN_COVERAGE = 0.80
MIN_DICE = 0.80
SCALES = (0.6, 1.5)
DOUBTFUL_ML = 2000.0
DOUBTFUL_CORRELATION = 0.7
"""A larger brain, or less correlation, is possible, but mostly the neck or another wrong start: it is tried again."""
HEAD_MM = 180.0
"""A brain ends less far below the top of the head."""
SECOND_STARTS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (40, 0, 0), (-40, 0, 0), (0, 20, 0), (0, -20, 0))
"""Turns about x, y and z that a second attempt begins from."""


def align_with_template(
    target: Template,
    moving: Image,
    name: str,
    out_dir: Path,
    seed: int,
    stripped: bool = False,
    coarse: bool = False,
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Two attempts: from the centres of mass, then, without the neck, from the best of several turned starts.

    The second is made, too, where the first passed its gates but is doubtful; the one that correlates more is kept.
    """
    fixed = Image(target.t1w * target.mask if stripped else target.t1w, target.affine)
    near = ndimage.binary_dilation(target.mask, ball(8.0, target.affine))
    syn = (SYN_OF_COARSE if coarse else SYN,)
    guess = first_guess(fixed, moving)
    centre = centre_of_mass(fixed)
    turned = [guess @ rigid(np.radians(degrees), (0, 0, 0), centre) for degrees in SECOND_STARTS_DEG]

    def score(matrix: np.ndarray) -> float:
        points = grid_points(fixed.data.shape, fixed.affine, near)
        return correlation(moving.at(apply_matrix(matrix, points)), fixed.data[near])

    failures: list[str] = []
    passed: list[tuple[Registration, dict[str, float], tuple[str, ...]]] = []
    warning = f"{name}: aligned with the template at the second attempt."
    for attempt, (seen, starts) in enumerate(((moving, [guess]), (without_neck(moving), turned))):
        try:
            matrix = best_start(fixed, seen, near, LINEAR_STAGES, starts, score, out_dir, seed)
            if score(matrix) < MIN_LINEAR_CORRELATION:
                failures = [f"correlation with the template {score(matrix):.2f} before warping"]
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
        "Look at the image: it should be a T1w of a whole human head. Leave it out with --bids-filter-file to go on "
        "without a T1w.",
    )


def first_guess(fixed: Image, moving: Image) -> np.ndarray:
    """A shift that brings the head's upper part onto the template's brain, (4, 4).

    The centre of mass of a whole head lies lower the more neck there is, so that only the upper 180 mm count.
    """
    head = head_mask(moving.data, moving.affine)
    points = grid_points(moving.data.shape, moving.affine, head)
    upper = points[points[:, 2] > top_of_head(points) - HEAD_MM]
    shift = np.eye(4)
    shift[:3, 3] = upper.mean(axis=0) - centre_of_mass(fixed)
    return shift


def top_of_head(points: np.ndarray) -> float:
    """Height of a head's top, mm: one point in a thousand (N, 3) may lie above it, as noise or a coil's marker does."""
    return float(np.percentile(points[:, 2], 99.9))


def above_neck(image: Image, head: np.ndarray) -> np.ndarray:
    """Voxels that are not farther below the top of the head (a mask) than a brain can reach, (X, Y, Z) bool."""
    lowest = top_of_head(grid_points(image.data.shape, image.affine, head)) - HEAD_MM
    return grid_points(image.data.shape, image.affine)[:, 2].reshape(image.data.shape) > lowest


def without_neck(moving: Image) -> Image:
    """An image that is empty farther below the top of the head than a brain can reach."""
    above = above_neck(moving, head_mask(moving.data, moving.affine))
    return replace(moving, data=np.where(above, moving.data, np.float32(0)))


def check_normalisation(target: Template, moving: Image, found: Registration) -> dict[str, float]:
    """Numbers by which an alignment with the template is judged."""
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
    """Which gates an alignment with the template does not pass, in words."""
    failures = []
    if quality["norm_correlation"] < MIN_CORRELATION:
        failures.append(f"correlation with the template {quality['norm_correlation']:.2f}, below {MIN_CORRELATION}")
    if not BRAIN_ML[0] <= quality["norm_brain_ml"] <= BRAIN_ML[1]:
        failures.append(f"a brain of {quality['norm_brain_ml']:.0f} mL")
    if quality["norm_coverage"] < MIN_COVERAGE:
        failures.append(f"only {quality['norm_coverage']:.0%} of the template's brain lies in the image")
    if quality["norm_coverage"] > 0.98 and quality["norm_dice"] < MIN_DICE:
        failures.append(f"brain masks there and back overlap by {quality['norm_dice']:.2f}, below {MIN_DICE}")
    if quality["norm_scale_min"] < SCALES[0] or quality["norm_scale_max"] > SCALES[1]:
        failures.append(f"scaled by {quality['norm_scale_min']:.2f} to {quality['norm_scale_max']:.2f}")
    return failures


def is_doubtful(quality: dict[str, float]) -> bool:
    """Whether an alignment that passes the gates is odd enough to look for a better one."""
    return quality["norm_brain_ml"] > DOUBTFUL_ML or quality["norm_correlation"] < DOUBTFUL_CORRELATION


def warp_mask(target: Template, moving: Image, inverse: Chain) -> np.ndarray:
    """The template's brain mask on the moving image's grid, bool."""
    drawn = resample_to(target.mask.astype(np.float32), target.affine, moving.data.shape, moving.affine, inverse)
    return largest_part(drawn > 0.5)
