"""Two roads from a boldref to the template: by way of the T1w (rigid), or, without one, direct (rigid, affine, SyN).

Both begin with the boldref's own brain mask and end in an `Alignment`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.catalog.templates import Template, load_template
from bids_app.errors import BadDataError, RegistrationError
from bids_app.preprocess.anatomical import Anatomy, bias_field
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.masking import ball, brain_mask, head_mask, largest_part
from bids_app.preprocess.registration.alignment import (
    Alignment,
    EpiReference,
    Tissues,
    complaints_about,
    finish_alignment,
)
from bids_app.preprocess.registration.ants import (
    Image,
    Registration,
    Stage,
    best_start,
    centre_of_mass,
    dice,
    draw_mask,
    isotropic,
    register,
    similarity,
    stands_out,
)
from bids_app.preprocess.registration.bbr import refine, white_matter_boundary
from bids_app.preprocess.registration.transforms import (
    Chain,
    apply_matrix,
    draw,
    grid_points,
    linear,
    rigid,
    write_itk_text,
)

COARSE_STAGE = Stage("Rigid[0.2]", (100, 50), (3, 2), (2, 1), "MI[{fixed},{moving},1,32,Regular,0.5]", "1e-5,10")
FINE_STAGE = Stage("Rigid[0.05]", (100, 50), (2, 1), (0.5, 0), "MI[{fixed},{moving},1,48,Regular,0.5]")
DIRECT_LINEAR = (
    Stage("Rigid[0.1]", (300, 200, 50), (4, 2, 2), (3, 2, 1)),
    Stage("Affine[0.1]", (300, 200, 50), (4, 2, 2), (3, 2, 1)),
)
DIRECT_SYN = (Stage("SyN[0.2,3,0.5]", (30, 15), (4, 2), (2, 1), "MI[{fixed},{moving},1,32]", "1e-6,8"),)
TURNS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (0, 0, 20), (0, 0, -20))
EPI_CONTRAST = {"gm": 1.0, "wm": 0.80, "csf": 1.25}
"""Brightness of tissues in a T2*-weighted image, relative to grey matter."""
MIN_EPI_BRAIN_ML = 150.0


@dataclass(frozen=True)
class EpiView:
    """A bias-corrected boldref on an isotropic grid with right angles, and its own brain mask there."""

    image: Image
    mask: np.ndarray

    @classmethod
    def of(cls, reference: EpiReference) -> EpiView:
        """Read it."""
        data, affine = read_volume(reference.corrected)
        mask, _ = read_volume(reference.mask)
        image = isotropic(Image(data, affine), float(np.clip(voxel_sizes(affine).min(), 2.0, 3.0)))
        return cls(image, draw_mask(mask > 0.5, affine, image.data.shape, image.affine, Chain()))

    @cached_property
    def near(self) -> np.ndarray:
        """The brain and 5 mm around it, bool."""
        return ndimage.binary_dilation(self.mask, ball(5.0, self.image.affine))

    @cached_property
    def centre(self) -> np.ndarray:
        """The brain's centre, (3,) mm."""
        return centre_of_mass(self.image, self.mask)

    def brain(self) -> Image:
        """The image without what lies farther than 5 mm from the brain."""
        return Image(self.image.data * self.near, self.image.affine)


def mask_boldref(source: Path, boldref: Path, out_dir: Path) -> EpiReference:
    """Remove the bias field of a boldref, and find the brain in it.

    Parameters
    ----------
    source, boldref : pathlib.Path
        The run's file (for messages), and its reference image.
    out_dir : pathlib.Path

    Raises
    ------
    BadDataError
        There is no brain in it.
    """
    data, affine = read_volume(boldref)
    iso = isotropic(Image(data, affine), max(3.0, float(voxel_sizes(affine).min())))
    bias = bias_field(iso, head_mask(iso.data, iso.affine), shrink=2)
    corrected = (data / (draw(bias - 1, iso.affine, data.shape, affine) + 1)).astype(np.float32)
    mask = brain_mask(corrected, affine)
    volume = float(mask.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1e3
    if volume < MIN_EPI_BRAIN_ML:
        raise BadDataError(
            f"{source.name}: no brain was found in it (the brightest connected part has {volume:.0f} mL).",
            "Look at the image; leave the run out if it is not a BOLD scan of a head.",
        )
    return EpiReference(
        source,
        boldref,
        save_image(out_dir / "boldref_corrected.nii.gz", corrected, affine),
        save_image(out_dir / "epi_mask.nii.gz", mask.astype(np.uint8), affine),
    )


def coregister(reference: EpiReference, anatomy: Anatomy, out_dir: Path, seed: int = 1) -> Alignment:
    """Align a boldref with the T1w, and so with the template: rigid, from several starts, refined at the boundary.

    Parameters
    ----------
    reference : EpiReference
    anatomy : Anatomy
    out_dir : pathlib.Path
    seed : int

    Raises
    ------
    RegistrationError
        No alignment passed the gates, from two sets of starts.
    """
    t1w, affine = read_volume(anatomy.image)
    t1w_mask = read_volume(anatomy.mask)[0] > 0.5
    tissues = np.asarray(load_nifti(anatomy.tissues).dataobj, dtype=np.float32) / 255
    head = Image(t1w, affine)
    matrix, quality, warnings = _find_rigid(reference, head, t1w_mask, tissues, anatomy.source.name, out_dir, seed)
    to_epi, onto_epi = linear(np.linalg.inv(matrix)), linear(matrix)
    boldref, epi_affine = read_volume(reference.boldref)
    drawn = draw(boldref, epi_affine, t1w.shape, affine, to_epi)
    return finish_alignment(
        "t1w",
        load_template(anatomy.template),
        reference,
        draw_mask(t1w_mask, affine, boldref.shape, epi_affine, onto_epi),
        Tissues(tissues, affine, onto_epi),
        Chain.load(anatomy.chain).then(to_epi),
        quality,
        warnings,
        out_dir,
        boldref_in_t1w=save_image(out_dir / "boldref_in_t1w.nii.gz", drawn, affine),
        coreg_file=write_itk_text(out_dir / "t1w_to_boldref.txt", np.linalg.inv(matrix)),
    )


def _find_rigid(
    reference: EpiReference,
    t1w: Image,
    t1w_mask: np.ndarray,
    tissues: np.ndarray,
    t1w_name: str,
    out_dir: Path,
    seed: int,
) -> tuple[np.ndarray, dict[str, float], tuple[str, ...]]:
    """Boldref to T1w as a matrix, from two sets of starts; with figures of quality, and warnings."""
    epi = EpiView.of(reference)
    brain = Image(t1w.data * ndimage.binary_dilation(t1w_mask, ball(8.0, t1w.affine)), t1w.affine)
    name = reference.source.name
    complaints: list[str] = []
    for attempt, starts in enumerate(_starts(epi, t1w, t1w_mask, seed)):
        try:
            matrix = _best_rigid(epi, brain, starts, out_dir, seed)
        except RegistrationError as error:
            complaints = [error.message]
            continue
        quality = judge_coregistration(epi, brain, t1w_mask, matrix)
        complaints = complaints_about(quality)
        if not complaints:
            matrix, quality = _refined(reference, epi, brain, t1w_mask, tissues, matrix, quality)
            return matrix, quality, (f"{name}: aligned with the T1w at the second attempt.",) if attempt else ()
    raise RegistrationError(
        f"{name}: could not be aligned with {t1w_name}: {'; '.join(complaints)}.",
        "Check that both are of the same person, and the orientation of both; without the T1w (--bids-filter-file) the "
        "run is aligned with the template directly.",
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
    """An alignment after its refinement at the boundary, where that gains enough and passes the gates."""
    boldref = Image(*read_volume(reference.corrected))
    refined = refine(white_matter_boundary(tissues, brain.affine), boldref, np.linalg.inv(matrix))
    if refined is None:
        return matrix, quality
    if refined.accepted:
        better = np.linalg.inv(refined.matrix)
        judged = judge_coregistration(epi, brain, t1w_mask, better)
        if not complaints_about(judged):
            return better, judged | refined.quality
    return matrix, quality | refined.quality | {"bbr_used": 0.0}


def _starts(epi: EpiView, t1w: Image, t1w_mask: np.ndarray, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two sets of starts, boldref to T1w: near what the headers say, and then from the centres of the brains."""
    draws = np.random.default_rng(seed)
    centred = np.eye(4)
    centred[:3, 3] = centre_of_mass(t1w, t1w_mask) - epi.centre

    def shaken(around: np.ndarray, degrees: float, mm: float) -> np.ndarray:
        turn, shift = draws.uniform(-1, 1, (2, 3))
        return around @ rigid(np.radians(degrees) * turn, mm * shift, epi.centre)

    first = [np.eye(4), centred, shaken(np.eye(4), 5, 5), shaken(np.eye(4), 5, 5)]
    second = [centred, *(shaken(centred, 25, 20) for _ in range(7))]
    return first, second


def _best_rigid(epi: EpiView, brain: Image, starts: Sequence[np.ndarray], out_dir: Path, seed: int) -> np.ndarray:
    """The most similar alignment that the starts led to, made finer; boldref to T1w."""

    def score(matrix: np.ndarray) -> float:
        return similarity(epi.image, epi.near, brain, matrix)

    def fit(stage: Stage, starts: Sequence[np.ndarray]) -> np.ndarray:
        found = best_start(epi.image, brain, epi.near, (stage,), starts, score, out_dir, seed)
        left, _, right = np.linalg.svd(found[:3, :3])
        found[:3, :3] = left @ right  # single precision leaves it a little off a rotation
        return found

    coarse = fit(COARSE_STAGE, starts)
    return max((fit(FINE_STAGE, [coarse]), coarse), key=score)


def judge_coregistration(epi: EpiView, brain: Image, t1w_mask: np.ndarray, matrix: np.ndarray) -> dict[str, float]:
    """Numbers by which a rigid alignment is judged.

    Parameters
    ----------
    epi : EpiView
    brain : Image
        T1w.
    t1w_mask : numpy.ndarray, bool
        On its grid.
    matrix : numpy.ndarray, (4, 4)
        Boldref to T1w.
    """
    carried = draw_mask(t1w_mask, brain.affine, epi.image.data.shape, epi.image.affine, linear(matrix))
    points = grid_points(t1w_mask.shape, brain.affine, t1w_mask)

    def score(m: np.ndarray) -> float:
        return similarity(epi.image, epi.near, brain, m)

    return {
        "coreg_similarity": score(matrix),
        "coreg_stands_out": stands_out(score, matrix, epi.centre),
        "coreg_dice": dice(carried, epi.mask),
        "coreg_brain_seen": float(epi.image.inside(apply_matrix(np.linalg.inv(matrix), points)).mean()),
    }


def normalise_boldref(reference: EpiReference, out_dir: Path, template: str | None = None, seed: int = 1) -> Alignment:
    """Without a T1w: align a boldref with the template directly (rigid, affine, SyN).

    The template's tissues are given the brightness that they have in T2*-weighted images first, so that like is
    compared with like.

    Parameters
    ----------
    reference : EpiReference
    out_dir : pathlib.Path
    template : str, optional
        By default the best that is on this machine.
    seed : int

    Raises
    ------
    RegistrationError
        No alignment passed the gates, from two initialisations.
    """
    target = load_template(template)
    found, quality, warnings = _find_direct(reference, target, out_dir, seed)
    boldref, affine = read_volume(reference.boldref)
    return finish_alignment(
        "direct",
        target,
        reference,
        largest_part(draw_mask(target.mask, target.affine, boldref.shape, affine, found.inverse)),
        Tissues(np.stack([target.gm, target.wm, target.csf], axis=-1), target.affine, found.inverse),
        found.chain,
        quality,
        warnings,
        out_dir,
        to_template=found.forward_file,
        from_template=found.inverse_file,
    )


def _find_direct(
    reference: EpiReference, target: Template, out_dir: Path, seed: int
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Template to boldref, from two sets of starts; with figures of quality, and warnings."""
    epi = EpiView.of(reference)
    fixed, moving = Image(epi_like(target), target.affine), epi.brain()
    near = ndimage.binary_dilation(target.mask, ball(6.0, target.affine))
    centre = centre_of_mass(fixed, target.mask)
    shift = np.eye(4)
    shift[:3, 3] = epi.centre - centre
    turned = [shift @ rigid(np.radians(turn), (0, 0, 0), centre) for turn in TURNS_DEG]

    def score(matrix: np.ndarray) -> float:
        return similarity(fixed, near, moving, matrix)

    complaints: list[str] = []
    for attempt, starts in enumerate(([shift], turned)):
        try:
            best = best_start(fixed, moving, near, DIRECT_LINEAR, starts, score, out_dir, seed)
            found = register(fixed, moving, near, DIRECT_SYN, out_dir, start=best, seed=seed, name="boldref")
        except RegistrationError as error:
            complaints = [error.message]
            continue
        quality = {"coreg_similarity": score(best), "coreg_stands_out": stands_out(score, best, centre)}
        quality |= _judge_direct(epi, target, found, best)
        complaints = complaints_about(quality)
        if not complaints:
            warning = f"{reference.source.name}: aligned with the template at the second attempt."
            return found, quality, (warning,) if attempt else ()
    raise RegistrationError(
        f"{reference.source.name}: could not be aligned with {target.name}: {'; '.join(complaints)}.",
        "Check the run's orientation and field of view; a T1w of the same person makes this far easier.",
    )


def epi_like(target: Template) -> np.ndarray:
    """The template's brain with the brightness of a T2*-weighted image, (X, Y, Z) float32."""
    bright = [EPI_CONTRAST[name] * getattr(target, name) for name in EPI_CONTRAST]
    return np.asarray(np.sum(bright, axis=0), dtype=np.float32)


def _judge_direct(epi: EpiView, target: Template, found: Registration, affine_part: np.ndarray) -> dict[str, float]:
    carried = draw_mask(target.mask, target.affine, epi.mask.shape, epi.image.affine, found.inverse)
    seen = epi.image.inside(found.chain(grid_points(target.mask.shape, target.affine, target.mask)))
    scales = np.linalg.svd(affine_part[:3, :3], compute_uv=False)
    volume = float(carried.sum()) * abs(float(np.linalg.det(epi.image.affine[:3, :3]))) / 1e3
    return {
        "coreg_dice": dice(carried, epi.mask),
        "coreg_brain_seen": float(seen.mean()),
        "norm_scale_min": float(scales.min()),
        "norm_scale_max": float(scales.max()),
        "norm_brain_ml": volume / max(float(seen.mean()), 0.1),
    }
