"""Coregistration of a boldref with the participant's T1w: rigid, with boundary-based refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_app.catalog.templates import load_template
from bids_app.errors import RegistrationError
from bids_app.preprocess.anatomical import Anatomy, PreparedT1w
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.masking import volume_ml
from bids_app.preprocess.registration.alignment import Alignment, Tissues, finish_alignment
from bids_app.preprocess.registration.ants import (
    Image,
    Stage,
    best_start,
    centre_of_mass,
    dice,
    optimum_margin,
    resample_mask,
    similarity,
)
from bids_app.preprocess.registration.bbr import refine, white_matter_boundary
from bids_app.preprocess.registration.boldref import EpiReference, EpiView
from bids_app.preprocess.registration.checks import failed_checks
from bids_app.preprocess.registration.plausibility import (
    Pair,
    compare,
    describe,
    likely_cause,
    signs_of_error,
)
from bids_app.preprocess.registration.transforms import (
    Chain,
    apply_matrix,
    grid_points,
    linear,
    resample_to,
    rigid,
    write_itk_text,
)

COARSE_STAGE = Stage("Rigid[0.2]", (100, 50), (3, 2), (2, 1), "MI[{fixed},{moving},1,32,Regular,0.5]", "1e-5,10")
FINE_STAGE = Stage("Rigid[0.05]", (100, 50), (2, 1), (0.5, 0), "MI[{fixed},{moving},1,48,Regular,0.5]", "1e-5,10")


@dataclass(frozen=True)
class RigidAlignment:
    """Matrix (4, 4) from boldref to T1w in RAS mm, its quality metrics, warnings, and signs that it is wrong."""

    matrix: np.ndarray
    quality: dict[str, float]
    warnings: tuple[str, ...]
    doubts: tuple[str, ...]


def search(reference: EpiReference, prepared: PreparedT1w, out_dir: Path, seed: int = 1) -> np.ndarray | None:
    """Find the rigid alignment of a boldref with the T1w from which `coregister` starts, before tissues are known.

    Returns
    -------
    numpy.ndarray, (4, 4), optional
        Boldref to T1w, RAS mm; None: brain extraction failed, or ANTs did, so that `coregister` searches.
    """
    if prepared.brain is None:
        return None
    t1w, mask = Image(*read_volume(prepared.image)), read_volume(prepared.brain)[0] > 0.5
    epi = EpiView.of(reference)
    try:
        return _best_rigid(epi, brain_of(t1w, mask), _starts(epi, t1w, mask, seed)[0], out_dir, seed)
    except RegistrationError:
        return None


def coregister(
    reference: EpiReference, anatomy: Anatomy, out_dir: Path, seed: int = 1, start: np.ndarray | None = None
) -> Alignment:
    """Align a boldref with the T1w (rigid, several initialisations, boundary-based refinement).

    Parameters
    ----------
    reference : EpiReference
    anatomy : Anatomy
    out_dir : pathlib.Path
    seed : int
    start : numpy.ndarray, (4, 4), optional
        Result of `search`, which is then not repeated.

    Raises
    ------
    RegistrationError
        No alignment passed the quality checks, from two sets of initialisations.
    """
    t1w, affine = read_volume(anatomy.image)
    t1w_mask = read_volume(anatomy.mask)[0] > 0.5
    tissues = np.asarray(load_nifti(anatomy.tissues).dataobj, dtype=np.float32) / 255
    head = Image(t1w, affine)
    found = align_rigidly(reference, head, t1w_mask, tissues, anatomy.source.name, out_dir, seed, start)
    matrix = found.matrix
    to_epi, onto_epi = linear(np.linalg.inv(matrix)), linear(matrix)
    boldref, epi_affine = read_volume(reference.boldref)
    resampled = resample_to(boldref, epi_affine, t1w.shape, affine, to_epi)
    return finish_alignment(
        "t1w",
        load_template(anatomy.template),
        reference,
        resample_mask(t1w_mask, affine, boldref.shape, epi_affine, onto_epi),
        Tissues(tissues, affine, onto_epi),
        Chain.load(anatomy.chain).then(to_epi),
        found.quality,
        found.warnings,
        out_dir,
        doubts=found.doubts,
        boldref_in_t1w=save_image(out_dir / "boldref_in_t1w.nii.gz", resampled, affine),
        coreg_file=write_itk_text(out_dir / "t1w_to_boldref.txt", np.linalg.inv(matrix)),
    )


def align_rigidly(
    reference: EpiReference,
    t1w: Image,
    t1w_mask: np.ndarray,
    tissues: np.ndarray,
    t1w_name: str,
    out_dir: Path,
    seed: int = 1,
    start: np.ndarray | None = None,
) -> RigidAlignment:
    """Align a boldref with a T1w, and look for signs that the alignment is wrong.

    Parameters
    ----------
    reference : EpiReference
    t1w : Image
        Bias-corrected.
    t1w_mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask on the T1w's grid.
    tissues : numpy.ndarray, (X, Y, Z, 3)
        Probabilities of grey matter, white matter and CSF.
    t1w_name : str
        File name for messages.
    out_dir : pathlib.Path
    seed : int
    start : numpy.ndarray, (4, 4), optional
        Result of `search`.

    Raises
    ------
    RegistrationError
        No alignment passed the quality checks, from two sets of initialisations.
    """
    matrix, quality, warnings = _find_rigid(reference, t1w, t1w_mask, tissues, t1w_name, out_dir, seed, start)
    pair = pair_of(reference, t1w, t1w_mask, tissues)
    quality |= compare(pair, matrix, out_dir, seed)
    doubts: tuple[str, ...] = ()
    if signs := signs_of_error(quality):
        cause = likely_cause(pair, matrix, quality, volume_ml(t1w_mask, t1w.affine), out_dir, seed)
        doubts = (describe(signs, reference.source.name, t1w_name, cause),)
    return RigidAlignment(matrix, quality, warnings, doubts)


def brain_of(t1w: Image, mask: np.ndarray) -> Image:
    """Return a T1w set to 0 outside the brain: bright fat has no counterpart in an EPI."""
    return Image(t1w.data * mask, t1w.affine)


def pair_of(reference: EpiReference, t1w: Image, t1w_mask: np.ndarray, tissues: np.ndarray) -> Pair:
    """Return boldref and T1w for `plausibility`."""
    return Pair(
        EpiView.of(reference),
        Image(*read_volume(reference.corrected)),
        brain_of(t1w, t1w_mask),
        white_matter_boundary(tissues, t1w.affine),
    )


def _find_rigid(
    reference: EpiReference,
    t1w: Image,
    t1w_mask: np.ndarray,
    tissues: np.ndarray,
    t1w_name: str,
    out_dir: Path,
    seed: int,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, float], tuple[str, ...]]:
    """Estimate the matrix from boldref to T1w, with its quality metrics and warnings."""
    epi = EpiView.of(reference)
    brain = brain_of(t1w, t1w_mask)
    name = reference.source.name
    failures: list[str] = []
    refused: tuple[np.ndarray, dict[str, float]] | None = None
    for attempt, starts in enumerate(_starts(epi, t1w, t1w_mask, seed)):
        try:
            if attempt == 0 and start is not None:
                matrix = start
            else:
                matrix = _best_rigid(epi, brain, starts, out_dir, seed)
        except RegistrationError as error:
            failures = [error.message]
            continue
        quality = check_coregistration(epi, brain, t1w_mask, matrix)
        failures = failed_checks(quality)
        if failures:
            refused = matrix, quality
        else:
            matrix, quality = _refined(reference, epi, brain, t1w_mask, tissues, matrix, quality)
            return matrix, quality, (f"{name}: aligned with the T1w at the second attempt.",) if attempt else ()
    cause = ""
    if refused:
        pair = pair_of(reference, t1w, t1w_mask, tissues)
        matrix, quality = refused
        quality = quality | compare(pair, matrix, out_dir, seed)
        cause = f" Likely cause: {likely_cause(pair, matrix, quality, volume_ml(t1w_mask, t1w.affine), out_dir, seed)}"
    raise RegistrationError(
        f"{name}: could not be aligned with {t1w_name}: {'; '.join(failures)}.{cause}",
        "Check that both images are of the same person and correctly oriented, or exclude the T1w with "
        "--bids-filter-file to align the run directly with the template.",
    )


def _refined(
    reference: EpiReference,
    epi: EpiView,
    brain: Image,
    t1w_mask: np.ndarray,
    tissues: np.ndarray,
    matrix: np.ndarray,
    quality: dict[str, float],
) -> tuple[np.ndarray, dict[str, float]]:
    """Refine an alignment at the white-matter boundary; keep the start if the refinement fails its checks."""
    boldref = Image(*read_volume(reference.corrected))
    refined = refine(white_matter_boundary(tissues, brain.affine), boldref, np.linalg.inv(matrix))
    if refined is None:
        return matrix, quality
    if refined.accepted:
        better = np.linalg.inv(refined.matrix)
        better_quality = check_coregistration(epi, brain, t1w_mask, better)
        if not failed_checks(better_quality):
            return better, better_quality | refined.quality
    return matrix, quality | replace(refined, accepted=False).quality


def _starts(epi: EpiView, t1w: Image, t1w_mask: np.ndarray, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return two sets of initial matrices, boldref to T1w: near the headers, and from the centres of the brains."""
    rng = np.random.default_rng(seed)
    centred = np.eye(4)
    centred[:3, 3] = centre_of_mass(t1w, t1w_mask) - epi.centre

    def perturbed(around: np.ndarray, degrees: float, mm: float) -> np.ndarray:
        rotation, shift = rng.uniform(-1, 1, (2, 3))
        return around @ rigid(np.radians(degrees) * rotation, mm * shift, epi.centre)

    first = [np.eye(4), centred, perturbed(np.eye(4), 5, 5), perturbed(np.eye(4), 5, 5)]
    second = [centred, *(perturbed(centred, 25, 20) for _ in range(7))]
    return first, second


def _best_rigid(epi: EpiView, brain: Image, starts: Sequence[np.ndarray], out_dir: Path, seed: int) -> np.ndarray:
    """Estimate the best rigid alignment from several starts, coarse to fine; boldref to T1w."""

    def score(matrix: np.ndarray) -> float:
        return similarity(epi.image, epi.near, brain, matrix)

    def fit(stage: Stage, starts: Sequence[np.ndarray]) -> np.ndarray:
        found = best_start(epi.image, brain, epi.near, (stage,), starts, score, out_dir, seed)
        left, _, right = np.linalg.svd(found[:3, :3])
        found[:3, :3] = left @ right  # nearest rotation, against rounding in single precision
        return found

    coarse = fit(COARSE_STAGE, starts)
    return max((fit(FINE_STAGE, [coarse]), coarse), key=score)


def check_coregistration(epi: EpiView, brain: Image, t1w_mask: np.ndarray, matrix: np.ndarray) -> dict[str, float]:
    """Compute quality metrics of a rigid alignment.

    Parameters
    ----------
    epi : EpiView
    brain : Image
        T1w.
    t1w_mask : numpy.ndarray, bool
        Brain mask on the T1w's grid.
    matrix : numpy.ndarray, (4, 4)
        Boldref to T1w.
    """
    resampled_mask = resample_mask(t1w_mask, brain.affine, epi.image.data.shape, epi.image.affine, linear(matrix))
    points = grid_points(t1w_mask.shape, brain.affine, t1w_mask)

    def score(m: np.ndarray) -> float:
        return similarity(epi.image, epi.near, brain, m)

    return {
        "coreg_similarity": score(matrix),
        "coreg_stands_out": optimum_margin(score, matrix, epi.centre),
        "coreg_dice": dice(resampled_mask, epi.mask),
        "coreg_brain_seen": float(epi.image.inside(apply_matrix(np.linalg.inv(matrix), points)).mean()),
    }
