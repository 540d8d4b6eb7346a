"""Normalisation of a boldref without a T1w: rigid, affine and SyN registration with the template.

If the field of view is much lower than a brain, an affine transform would stretch the slab to the whole brain, so only
a rigid transform with one scale is estimated, from the boldref's field of view.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import Template, load_template
from bids_app.errors import RegistrationError
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.masking import ball, largest_part, volume_ml
from bids_app.preprocess.registration.alignment import Alignment, Tissues, finish_alignment
from bids_app.preprocess.registration.ants import (
    Image,
    Registration,
    Stage,
    best_start,
    centre_of_mass,
    dice,
    optimum_margin,
    register,
    resample_mask,
    similarity,
)
from bids_app.preprocess.registration.boldref import EPI_CONTRAST, EpiReference, EpiView, cut_ends
from bids_app.preprocess.registration.checks import BRAIN_ML, SCALES, failed_checks
from bids_app.preprocess.registration.t1w_plausibility import TURN_GAIN, doubts_about_size, find_turn
from bids_app.preprocess.registration.transforms import grid_points, rigid

DIRECT_LINEAR = (
    Stage("Rigid[0.1]", (300, 200, 50), (4, 2, 2), (3, 2, 1)),
    Stage("Affine[0.1]", (300, 200, 50), (4, 2, 2), (3, 2, 1)),
)
DIRECT_SYN = (Stage("SyN[0.2,3,0.5]", (30, 15), (4, 2), (2, 1), "MI[{fixed},{moving},1,32]", "1e-6,8"),)
TURNS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (0, 0, 20), (0, 0, -20))
SLAB_METRIC = "MI[{fixed},{moving},1,32,Regular,0.5]"
SLAB_STAGES = (
    Stage("Rigid[0.2]", (100, 50), (3, 2), (2, 1), SLAB_METRIC),
    Stage("Similarity[0.1]", (100, 50), (3, 2), (2, 1), SLAB_METRIC),
)
SLAB_FINE = (Stage("Similarity[0.05]", (50,), (1,), (1,), SLAB_METRIC),)
SLAB_SHIFTS_MM = (-30.0, -15.0, 0.0, 15.0, 30.0)
"""Initial positions of a slab along the template's z axis, relative to the centre of the brain."""
SLAB_PITCH_DEG = (0.0, -15.0, 15.0)
N_SLAB_STARTS = 4
MIN_HEIGHT = 0.75
"""Minimum height of the brain in the boldref, relative to the template's, for an affine and SyN. Whole brains of three
real scans have 0.84 to 0.92; one of them without the lowest 30 % of its slices has 0.72."""
SMALL_ML = 350.0
"""Volume of the brain in a boldref below which its voxel size is doubtful, if no slices cut it: half of the true voxel
size gives an eighth of the volume."""


def normalise_boldref(reference: EpiReference, out_dir: Path, template: str | None = None, seed: int = 1) -> Alignment:
    """Align a boldref directly with the template (rigid, affine, SyN).

    The template's tissues are assigned their T2*-weighted intensities before registration.

    Parameters
    ----------
    reference : EpiReference
    out_dir : pathlib.Path
    template : str, optional
        Name of the template; the best available one by default.
    seed : int

    Raises
    ------
    RegistrationError
        No alignment passed the quality checks, from two initialisations.
    """
    target = load_template(template)
    found, quality, warnings = _find_direct(reference, target, out_dir, seed)
    boldref, affine = read_volume(reference.boldref)
    return finish_alignment(
        "direct",
        target,
        reference,
        largest_part(resample_mask(target.mask, target.affine, boldref.shape, affine, found.inverse)),
        Tissues(np.stack([target.gm, target.wm, target.csf], axis=-1), target.affine, found.inverse),
        found.chain,
        quality,
        warnings,
        out_dir,
        doubts=doubts_about_boldref(reference, quality),
        to_template=found.forward_file,
        from_template=found.inverse_file,
    )


def doubts_about_boldref(reference: EpiReference, quality: Mapping[str, float]) -> tuple[str, ...]:
    """Return sentences on a boldref that was aligned with the template, but is cut or has an unlikely size.

    Parameters
    ----------
    reference : EpiReference
    quality : mapping
        ``norm_brain_ml``, ``norm_scale_min``, ``norm_scale_max``, and ``norm_height`` if it is low.
    """
    mask, affine = read_volume(reference.mask)
    name = reference.source.name
    cut = tuple(
        f"{name}: the {end} slices cut the brain (its cross-section there is {area:.0%} of the largest), so the "
        "alignment without a T1w image is uncertain: field of view too low, or slices missing? Add a T1w image of the "
        "same person if available."
        for end, area in cut_ends(mask > 0.5, affine).items()
    )
    if not cut and "norm_height" in quality:
        cut = (
            f"{name}: the brain has only {quality['norm_height']:.0%} of the usual height, although no slices cut it: "
            "wrong voxel size or slice gap in the header?",
        )
    return cut or doubts_about_size(quality, quality["norm_brain_ml"], name)


def cause_of_size(quality: Mapping[str, float], reference: EpiReference) -> str:
    """Return the likely cause of a failed alignment as a sentence after a space; empty: the brain's size is usual.

    Parameters
    ----------
    quality : mapping
        ``norm_brain_ml``, ``norm_scale_min`` and ``norm_scale_max``, if they are known.
    reference : EpiReference
        Its mask tells the size of the brain if the alignment does not.
    """
    data, affine = read_volume(reference.mask)
    small = volume_ml(data > 0.5, affine) < SMALL_ML and not cut_ends(data > 0.5, affine)
    scales = quality.get("norm_scale_min", 1.0), quality.get("norm_scale_max", 1.0)
    usual = SCALES[0] <= min(scales) <= max(scales) <= SCALES[1]
    if usual and not small and BRAIN_ML[0] <= quality.get("norm_brain_ml", 1500.0) <= BRAIN_ML[1]:
        return ""
    return " Likely cause: wrong voxel size or slice gap in the header?"


def _find_direct(
    reference: EpiReference, target: Template, out_dir: Path, seed: int
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Register template and boldref from two sets of starts; return quality metrics and warnings, too."""
    epi = EpiView.of(reference)
    fixed, moving = Image(epi_like(target), target.affine), epi.brain()
    near = ndimage.binary_dilation(target.mask, ball(6.0, target.affine))
    centre = centre_of_mass(fixed, target.mask)
    shift = np.eye(4)
    shift[:3, 3] = epi.centre - centre
    rotated = [shift @ rigid(np.radians(turn), (0, 0, 0), centre) for turn in TURNS_DEG]

    def score(matrix: np.ndarray) -> float:
        return similarity(fixed, near, moving, matrix)

    height = brain_height(epi.mask, epi.image.affine) / brain_height(target.mask, target.affine)
    if height < MIN_HEIGHT:
        return _find_slab(reference, epi, target, height, out_dir, seed)
    failures: list[str] = []
    quality: dict[str, float] = {}
    best = None
    for attempt, starts in enumerate(([shift], rotated)):
        try:
            best = best_start(fixed, moving, near, DIRECT_LINEAR, starts, score, out_dir, seed)
            found = register(fixed, moving, near, DIRECT_SYN, out_dir, start=best, seed=seed, name="boldref")
        except RegistrationError as error:
            failures = [error.message]
            continue
        quality = {"coreg_similarity": score(best), "coreg_stands_out": optimum_margin(score, best, centre)}
        quality |= _check_direct(epi, target, found, best)
        failures = failed_checks(quality)
        if not failures:
            warning = f"{reference.source.name}: aligned with the template at the second attempt."
            return found, quality, (warning,) if attempt else ()
    cause = cause_of_size(quality, reference)
    if best is not None and not cause:
        axis, turned = find_turn(fixed, moving, near, best, centre, DIRECT_LINEAR, score, out_dir, seed)
        if turned > (1 + TURN_GAIN) * score(best):
            cause = (
                f" Likely cause: upside down or back to front? The image fits better turned by 180 degrees about the "
                f"{axis} axis."
            )
    raise _not_aligned(reference, target, failures, cause)


def brain_height(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the extent of a brain mask along z in mm, without 0.5 % of its voxels at either end."""
    low, high = np.percentile(grid_points(mask.shape, affine, mask)[:, 2], [0.5, 99.5])
    return float(high - low)


def _find_slab(
    reference: EpiReference, epi: EpiView, target: Template, height: float, out_dir: Path, seed: int
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Register a boldref with a low field of view by a rigid transform and one scale, from several positions."""
    template = Image(epi_like(target), target.affine)
    shift = np.eye(4)
    shift[:3, 3] = centre_of_mass(template, target.mask) - epi.centre

    def score(matrix: np.ndarray) -> float:
        return similarity(epi.image, epi.near, template, matrix)

    starts = []
    for along_z in SLAB_SHIFTS_MM:
        for pitch in SLAB_PITCH_DEG:
            starts.append(shift @ rigid(np.radians((pitch, 0, 0)), (0, 0, along_z), epi.centre))
    starts = sorted(starts, key=score, reverse=True)[:N_SLAB_STARTS]
    best = best_start(epi.brain(), template, epi.near, SLAB_STAGES, starts, score, out_dir, seed)
    fitted = register(epi.brain(), template, epi.near, SLAB_FINE, out_dir, start=best, seed=seed, name="boldref")
    found = Registration(fitted.inverse, fitted.chain, fitted.inverse_file, fitted.forward_file)
    matrix = fitted.matrix
    quality = {"coreg_similarity": score(matrix), "coreg_stands_out": optimum_margin(score, matrix, epi.centre)}
    quality |= _check_direct(epi, target, found, np.linalg.inv(matrix)) | {"norm_height": height}
    failures = failed_checks(quality)
    if failures:
        raise _not_aligned(reference, target, failures, cause_of_size(quality, reference))
    warning = (
        f"{reference.source.name}: the field of view has only {height:.0%} of the height of a brain; without a T1w "
        f"image, the alignment with {target.name} was limited to a rigid transform with one scale. Expect errors of "
        "5 mm and more; add a T1w image of the same person if available."
    )
    return found, quality, (warning,)


def _not_aligned(reference: EpiReference, target: Template, failures: list[str], cause: str = "") -> RegistrationError:
    return RegistrationError(
        f"{reference.source.name}: could not be aligned with {target.name}: {'; '.join(failures)}.{cause}",
        "Check the run's orientation and field of view; add a T1w of the same person if available.",
    )


def epi_like(target: Template) -> np.ndarray:
    """Return the template's brain with T2*-weighted contrast, (X, Y, Z) float32."""
    weighted = [EPI_CONTRAST[name] * getattr(target, name) for name in EPI_CONTRAST]
    return np.asarray(np.sum(weighted, axis=0), dtype=np.float32)


def _check_direct(epi: EpiView, target: Template, found: Registration, affine_part: np.ndarray) -> dict[str, float]:
    warped_mask = resample_mask(target.mask, target.affine, epi.mask.shape, epi.image.affine, found.inverse)
    seen = epi.image.inside(found.chain(grid_points(target.mask.shape, target.affine, target.mask)))
    scales = np.linalg.svd(affine_part[:3, :3], compute_uv=False)
    volume = volume_ml(warped_mask, epi.image.affine)
    return {
        "coreg_dice": dice(warped_mask, epi.mask),
        "coreg_brain_seen": float(seen.mean()),
        "norm_scale_min": float(scales.min()),
        "norm_scale_max": float(scales.max()),
        "norm_brain_ml": volume / max(float(seen.mean()), 0.1),
    }
