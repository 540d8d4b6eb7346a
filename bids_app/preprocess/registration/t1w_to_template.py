"""Normalisation of a T1w image: rigid, affine and diffeomorphic registration with the template, with quality checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import Template
from bids_app.errors import RegistrationError
from bids_app.preprocess.brain_extraction import VOLUME_ML
from bids_app.preprocess.masking import ball, head_mask, largest_part, volume_ml
from bids_app.preprocess.registration.ants import (
    Image,
    Registration,
    Stage,
    best_start,
    centre_of_mass,
    correlation,
    dice,
)
from bids_app.preprocess.registration.t1w_plausibility import (
    TURN_GAIN,
    find_turn,
    is_inverted,
    tissue_intensities,
    voxel_size_cause,
)
from bids_app.preprocess.registration.transforms import Chain, Linear, apply_matrix, grid_points, resample_to, rigid

LINEAR_STAGES = (
    Stage("Rigid[0.1]", (100, 50), (4, 2), (3, 1)),
    Stage("Affine[0.1]", (100, 50), (4, 2), (3, 1)),
)
MARGIN_MM = 4.0
"""The linear metric is computed in the template's brain and this far around it, which includes the edge of the brain.
The diffeomorphic registration compares what is within both brains: their masks do not end at the same distance from
the cortex, and matching their edges would displace it."""
HEAD_MARGIN_MM = 8.0
"""The same for images with the head."""
MIN_CORRELATION = 0.55
MIN_LINEAR_CORRELATION = 0.3
"""Minimum correlation after the affine registration, in the brain and its margin."""
MIN_COVERAGE = 0.80
WHOLE_BRAIN = 0.9
"""Fraction of the template's brain in the field of view below which that is the likely cause of a failed alignment."""
MIN_DICE = 0.80
MIN_MASK_DICE = 0.85
"""Minimum Dice overlap of the warped template's brain mask and the extracted brain."""
SCALES = (0.5, 1.5)
DOUBTFUL_ML = 2000.0
DOUBTFUL_CORRELATION = 0.7
DOUBTFUL_DICE = 0.92
"""Beyond these limits an alignment is possible, but mostly due to a poor initialisation: it is tried again."""
HEAD_MM = 180.0
"""Maximum extent of a brain below the top of the head."""
SECOND_STARTS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (40, 0, 0), (-40, 0, 0), (0, 20, 0), (0, -20, 0))
"""Rotations about x, y and z that initialise the second attempt."""
AGAIN = "aligned with the template at the second attempt"
BY_THE_HEAD = "aligned with the template by the whole head, because the alignment by the brain failed"


@dataclass(frozen=True)
class Attempt:
    """One way to register a T1w image with the template."""

    fixed: Image
    moving: Image
    near: np.ndarray
    """Mask of the linear metric on the template's grid, bool."""
    starts: tuple[np.ndarray, ...]
    warning: str = ""
    within: tuple[np.ndarray, np.ndarray] | None = None
    """Brains of template and T1w, bool: masks of the diffeomorphic registration; None: ``near``."""

    def score(self, matrix: np.ndarray) -> float:
        """Compute the correlation in the mask for a matrix, template to T1w."""
        points = grid_points(self.fixed.data.shape, self.fixed.affine, self.near)
        return correlation(self.moving.at(apply_matrix(matrix, points)), self.fixed.data[self.near])


def align_with_template(
    target: Template,
    moving: Image,
    name: str,
    out_dir: Path,
    seed: int,
    brain: np.ndarray | None = None,
    healthy: np.ndarray | None = None,
    device: str = "cpu",
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Align a T1w image with the template, in up to three attempts.

    With a brain mask, the brain is registered with the template's brain, initialised by the centres of both; if that
    fails its quality checks or is doubtful, from several rotations; if that fails, too, the whole head is registered
    with the template's head. Without a brain mask, only the head is registered. Of the attempts that pass, the one with
    the highest correlation is kept.

    Parameters
    ----------
    target : Template
    moving : Image
        Bias-corrected T1w.
    name : str
        File name for messages.
    out_dir : pathlib.Path
    seed : int
    brain : numpy.ndarray, (X, Y, Z) bool, optional
        Brain mask on the grid of ``moving``.
    healthy : numpy.ndarray, (X, Y, Z) bool, optional
        Voxels outside lesions on the grid of ``moving``: mask of the metric.
    device : str
        Torch device of the diffeomorphic registration.

    Returns
    -------
    tuple
        Registration, quality metrics and warnings.

    Raises
    ------
    RegistrationError
        No attempt passed the quality checks.
    """
    from bids_app.preprocess.registration.diffeomorphic import register_diffeomorphically  # imports torch

    failures: list[str] = []
    last: tuple[Attempt, np.ndarray] | None = None
    passed: list[tuple[Registration, dict[str, float], tuple[str, ...]]] = []
    for number, attempt in enumerate(attempts_for(target, moving, brain)):
        if passed and attempt.warning == BY_THE_HEAD:
            break
        try:
            matrix = best_start(
                attempt.fixed,
                attempt.moving,
                attempt.near,
                LINEAR_STAGES,
                attempt.starts,
                attempt.score,
                out_dir,
                seed,
                healthy,
            )
            last = attempt, matrix
            if attempt.score(matrix) < MIN_LINEAR_CORRELATION:
                failures = [
                    f"correlation with the template is {attempt.score(matrix):.2f} before warping, below "
                    f"{MIN_LINEAR_CORRELATION}"
                ]
                continue
            label = ("t1w", "t1w_again", "t1w_head")[number]
            near, counted = attempt.within or (attempt.near, None)
            if counted is not None and healthy is not None:
                counted = counted & healthy
            found = register_diffeomorphically(
                attempt.fixed,
                attempt.moving,
                near,
                healthy if counted is None else counted,
                matrix,
                out_dir,
                name=label,
                device=device,
            )
        except RegistrationError as error:
            failures = [error.message]
            continue
        quality = check_normalisation(target, moving, found, brain)
        failures = failed_checks(quality)
        if not failures:
            passed.append((found, quality, (f"{name}: {attempt.warning}.",) if attempt.warning else ()))
            if not is_doubtful(quality):
                break
    if passed:
        return max(passed, key=lambda entry: entry[1]["norm_correlation"])
    cause = likely_cause(target, moving, *last, out_dir, seed) if last else ""
    raise RegistrationError(
        f"{name}: could not be aligned with {target.name}: {'; '.join(failures)}.{cause}",
        "Inspect the image: it should be a T1w of a whole human head. Exclude it with --bids-filter-file to process "
        "the runs without a T1w.",
    )


def likely_cause(
    target: Template, moving: Image, attempt: Attempt, matrix: np.ndarray, out_dir: Path, seed: int
) -> str:
    """Return the likely cause of a failed alignment as a sentence after a space; empty: none was found."""
    head = head_mask(moving.data, moving.affine)
    if cause := voxel_size_cause(volume_ml(head, moving.affine)):
        return cause
    centre = centre_of_mass(attempt.fixed, target.mask)
    images = attempt.fixed, attempt.moving, attempt.near
    axis, correlation_after = find_turn(*images, matrix, centre, LINEAR_STAGES, attempt.score, out_dir, seed)
    if correlation_after > max(attempt.score(matrix) + TURN_GAIN, MIN_LINEAR_CORRELATION):
        return (
            f" Likely cause: upside down or back to front? After a turn by 180 degrees about the {axis} axis the "
            f"correlation is {correlation_after:.2f}."
        )
    seen = tissue_intensities(target, moving, matrix)
    if is_inverted(seen):
        return (
            f" Likely cause: not a T1w image? White matter is darker than grey matter ({seen['wm']:.3g} and "
            f"{seen['gm']:.3g})."
        )
    points = apply_matrix(matrix, grid_points(target.mask.shape, target.affine, target.mask))
    covered = float(moving.inside(points).mean())
    if covered < WHOLE_BRAIN:
        return f" Likely cause: only a part of the brain in the field of view ({covered:.0%})?"
    return ""


def attempts_for(target: Template, moving: Image, brain: np.ndarray | None) -> Iterator[Attempt]:
    """Yield the ways to register a T1w image, in order."""
    stripped = Image(target.t1w * target.mask, target.affine)
    centre = centre_of_mass(stripped, target.mask)
    rotations = [rigid(np.radians(degrees), (0, 0, 0), centre) for degrees in SECOND_STARTS_DEG]

    def near(margin_mm: float) -> np.ndarray:
        return ndimage.binary_dilation(target.mask, ball(margin_mm, target.affine))

    if brain is not None:
        guess = np.eye(4)
        guess[:3, 3] = centre_of_mass(moving, brain) - centre
        seen = Image(moving.data * brain, moving.affine)
        within = target.mask, brain
        yield Attempt(stripped, seen, near(MARGIN_MM), (guess,), within=within)
        yield Attempt(stripped, seen, near(MARGIN_MM), tuple(guess @ r for r in rotations), AGAIN, within)
    head = Image(target.t1w, target.affine)
    guess = first_guess(stripped, moving)
    if brain is None:
        yield Attempt(head, moving, near(HEAD_MARGIN_MM), (guess,))
    starts = tuple(guess @ r for r in rotations)
    yield Attempt(head, without_neck(moving), near(HEAD_MARGIN_MM), starts, AGAIN if brain is None else BY_THE_HEAD)


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


def check_normalisation(
    target: Template, moving: Image, found: Registration, brain: np.ndarray | None = None
) -> dict[str, float]:
    """Compute quality metrics of an alignment with the template; ``brain`` is the extracted brain, if known."""
    points = grid_points(target.t1w.shape, target.affine, target.mask)
    pulled = found.chain(points)
    covered = moving.inside(pulled)
    matrix = next(step.matrix for step in found.chain.steps if isinstance(step, Linear))
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    mask = warp_mask(target, moving, found.inverse)
    back = resample_to(mask.astype(np.float32), moving.affine, target.t1w.shape, target.affine, found.chain) > 0.5
    quality = {
        "norm_correlation": correlation(target.t1w[target.mask][covered], moving.at(pulled[covered])),
        "norm_coverage": float(covered.mean()),
        "norm_dice": dice(back, target.mask),
        "norm_scale_min": float(scales.min()),
        "norm_scale_max": float(scales.max()),
        "norm_brain_ml": volume_ml(mask, moving.affine),
    }
    return quality if brain is None else quality | {"norm_mask_dice": dice(mask, brain)}


def failed_checks(quality: dict[str, float]) -> list[str]:
    """Return the quality checks that a normalisation fails, as phrases for an error message."""
    failures = []
    if quality["norm_correlation"] < MIN_CORRELATION:
        failures.append(f"correlation with the template is {quality['norm_correlation']:.2f}, below {MIN_CORRELATION}")
    if not VOLUME_ML[0] <= quality["norm_brain_ml"] <= VOLUME_ML[1]:
        failures.append(
            f"brain volume is {quality['norm_brain_ml']:.0f} mL, outside {VOLUME_ML[0]:.0f} to {VOLUME_ML[1]:.0f} mL"
        )
    if quality.get("norm_mask_dice", 1.0) < MIN_MASK_DICE:
        failures.append(
            f"Dice overlap of the template's brain mask and the extracted brain is {quality['norm_mask_dice']:.2f}, "
            f"below {MIN_MASK_DICE}"
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
    return (
        quality["norm_brain_ml"] > DOUBTFUL_ML
        or quality["norm_correlation"] < DOUBTFUL_CORRELATION
        or quality.get("norm_mask_dice", 1.0) < DOUBTFUL_DICE
    )


def warp_mask(target: Template, moving: Image, inverse: Chain) -> np.ndarray:
    """Warp the template's brain mask to the moving image's grid, bool."""
    warped = resample_to(target.mask.astype(np.float32), target.affine, moving.data.shape, moving.affine, inverse)
    return largest_part(warped > 0.5)
