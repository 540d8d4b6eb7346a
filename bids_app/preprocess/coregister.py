"""Where a BOLD run lies: its boldref aligned with the T1w, or, without one, with the template directly.

Both roads end in the same `Alignment`: a chain from template points to boldref points, and masks on the boldref's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import Template, load_template
from bids_app.errors import RegistrationError
from bids_app.preprocess.anatomy import Anatomy, bias_field
from bids_app.preprocess.epi import ball, brain_mask, head_mask, largest_part
from bids_app.preprocess.images import read_volume, save_image, voxel_sizes
from bids_app.preprocess.registration import (
    Image,
    Registration,
    Stage,
    centre_of_mass,
    dice,
    draw_mask,
    isotropic,
    register,
    similarity,
    stands_out,
)
from bids_app.preprocess.transforms import Chain, Linear, apply_matrix, draw, grid_points, linear, rigid, write_itk_text

COARSE_STAGE = Stage("Rigid[0.2]", (100, 50), (3, 2), (2, 1), "MI[{fixed},{moving},1,32,Regular,0.5]", "1e-5,10")
FINE_STAGE = Stage("Rigid[0.05]", (100, 50), (2, 1), (0.5, 0), "MI[{fixed},{moving},1,48,Regular,0.5]")
DIRECT_LINEAR = (
    Stage("Rigid[0.1]", (300, 200, 50), (4, 2, 2), (3, 2, 1)),
    Stage("Affine[0.1]", (300, 200, 50), (4, 2, 2), (3, 2, 1)),
)
DIRECT_SYN = (Stage("SyN[0.2,3,0.5]", (30, 15), (4, 2), (2, 1), "MI[{fixed},{moving},1,32]", "1e-6,8"),)
MIN_STANDS_OUT = 0.02
MIN_DICE = 0.80
MIN_BRAIN_SEEN = 0.35
BRAIN_ML = (700.0, 2300.0)
SCALES = (0.6, 1.6)
EPI_CONTRAST = {"gm": 1.0, "wm": 0.80, "csf": 1.25}
"""Brightness of tissues in a T2*-weighted image, relative to grey matter."""


@dataclass(frozen=True)
class EpiReference:
    """A boldref without its bias field, and the brain mask of its own values."""

    source: Path
    """The run's file, for messages."""
    boldref: Path
    corrected: Path
    mask: Path


@dataclass(frozen=True)
class Alignment:
    """Where a run lies. Masks are on the boldref's grid; ``chain`` takes template points to boldref points."""

    route: str
    """``t1w`` or ``direct``."""
    template: str
    chain: Path
    brain_mask: Path
    dseg: Path
    """1 grey matter, 2 white matter, 3 CSF."""
    csf_mask: Path
    wm_mask: Path
    boldref_in_template: Path
    boldref_in_t1w: Path | None = None
    """On the T1w's 2 mm grid."""
    coreg_file: Path | None = None
    """ITK transform that draws the boldref on the T1w (route ``t1w``)."""
    to_template: Path | None = None
    from_template: Path | None = None
    """ITK transforms between boldref and template (route ``direct``)."""
    quality: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def mask_boldref(source: Path, boldref: Path, out_dir: Path) -> EpiReference:
    """Remove the bias field of a boldref, and find the brain in it.

    Parameters
    ----------
    source, boldref : pathlib.Path
        The run's file (for messages), and its reference image.
    out_dir : pathlib.Path
    """
    data, affine = read_volume(boldref)
    lifted = np.maximum(data, 0)
    iso = isotropic(Image(lifted, affine), max(3.0, float(voxel_sizes(affine).min())))
    field_ = bias_field(iso, head_mask(iso.data, iso.affine), shrink=2)
    onto = draw(field_ - 1, iso.affine, data.shape, affine) + 1
    corrected = (lifted / onto).astype(np.float32)
    mask = brain_mask(corrected, affine)
    return EpiReference(
        source,
        boldref,
        save_image(out_dir / "boldref_corrected.nii.gz", corrected, affine),
        save_image(out_dir / "epi_mask.nii.gz", mask.astype(np.uint8), affine),
    )


def coregister(reference: EpiReference, anatomy: Anatomy, out_dir: Path, seed: int = 1) -> Alignment:
    """Align a boldref with the T1w (rigid, several starts, the best kept), and so with the template.

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
    epi, epi_mask = _load(reference)
    t1w_data, affine = read_volume(anatomy.image)
    t1w_mask = read_volume(anatomy.mask)[0] > 0.5
    near = ndimage.binary_dilation(t1w_mask, ball(8.0, affine))
    brain = Image(t1w_data * near, affine)
    warnings: tuple[str, ...] = ()
    for _attempt, starts in enumerate(_starts(epi, epi_mask, Image(t1w_data, affine), t1w_mask, seed)):
        matrix, score = _best_rigid(epi, epi_mask, brain, starts, out_dir, seed)
        quality = _judge_coregistration(epi, epi_mask, brain, t1w_mask, matrix) | {"coreg_similarity": score}
        complaints = complaints_about(quality)
        if not complaints:
            break
        warnings = (f"{reference.source.name}: aligned with the T1w at the second attempt.",)
    else:
        raise RegistrationError(
            f"{reference.source.name}: could not be aligned with {anatomy.source.name}: {'; '.join(complaints)}.",
            "Check that both are of the same person, and the orientation of both; without the T1w "
            "(--bids-filter-file) the run is aligned with the template directly.",
        )
    to_epi = linear(np.linalg.inv(matrix))
    chain = Chain.load(anatomy.chain).then(to_epi)
    onto_epi = linear(matrix)  # pulls the T1w's images onto the boldref's grid
    boldref, epi_affine = read_volume(reference.boldref)
    mask = draw_mask(t1w_mask, affine, boldref.shape, epi_affine, onto_epi)
    tissues = np.asarray(read_volume_4d(anatomy.tissues), dtype=np.float32) / 255
    drawn = draw(boldref, epi_affine, t1w_data.shape, affine, to_epi)
    coreg_file = write_itk_text(out_dir / "t1w_to_boldref.txt", np.linalg.inv(matrix))
    return _finish(
        "t1w",
        load_template(anatomy.template),
        reference,
        mask,
        Tissues(tissues, affine, onto_epi),
        chain,
        quality,
        warnings,
        out_dir,
        boldref_in_t1w=save_image(out_dir / "boldref_in_t1w.nii.gz", drawn, affine),
        coreg_file=coreg_file,
    )


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
    epi, epi_mask = _load(reference)
    fixed = Image(epi_like(target), target.affine)
    near = ndimage.binary_dilation(target.mask, ball(6.0, target.affine))
    grown = ndimage.binary_dilation(epi_mask, ball(6.0, epi.affine))
    moving = Image(epi.data * grown, epi.affine)
    shift = np.eye(4)
    shift[:3, 3] = centre_of_mass(epi, epi_mask.astype(np.float32)) - centre_of_mass(fixed, target.mask)
    centre = centre_of_mass(fixed, target.mask)
    turned = [shift @ rigid(np.radians(turn), (0, 0, 0), centre) for turn in ((20, 0, 0), (-20, 0, 0), (0, 0, 0))]
    warnings: tuple[str, ...] = ()
    for _attempt, starts in enumerate(((shift,), turned)):
        found, quality = _best_direct(fixed, near, target, moving, epi_mask, starts, out_dir, seed)
        complaints = complaints_about(quality)
        if not complaints:
            break
        warnings = (f"{reference.source.name}: aligned with the template at the second attempt.",)
    else:
        raise RegistrationError(
            f"{reference.source.name}: could not be aligned with {target.name}: {'; '.join(complaints)}.",
            "Check the run's orientation and field of view; a T1w of the same person makes this far easier.",
        )
    boldref, affine = read_volume(reference.boldref)
    mask = largest_part(draw_mask(target.mask, target.affine, boldref.shape, affine, found.inverse))
    maps = np.stack([target.gm, target.wm, target.csf], axis=-1)
    return _finish(
        "direct",
        target,
        reference,
        mask,
        Tissues(maps, target.affine, found.inverse),
        found.chain,
        quality,
        warnings,
        out_dir,
        to_template=found.forward_file,
        from_template=found.inverse_file,
    )


@dataclass(frozen=True)
class Tissues:
    """Tissue probabilities on some grid, and the pull map from boldref points to it."""

    maps: np.ndarray
    """(X, Y, Z, 3): grey matter, white matter, CSF."""
    affine: np.ndarray
    chain: Chain


def read_volume_4d(path: Path) -> np.ndarray:
    """A small 4D image of ours as it is stored."""
    from bids_app.preprocess.images import load_nifti

    return np.asarray(load_nifti(path).dataobj)


def epi_like(target: Template) -> np.ndarray:
    """The template's brain with the brightness of a T2*-weighted image, (X, Y, Z) float32."""
    return sum(EPI_CONTRAST[name] * getattr(target, name) for name in EPI_CONTRAST).astype(np.float32)


def complaints_about(quality: dict[str, float]) -> list[str]:
    """Which gates an alignment of a boldref does not pass, in words."""
    complaints = []
    if quality["coreg_stands_out"] < MIN_STANDS_OUT:
        complaints.append(
            f"it is hardly more similar than 8 mm or 8 degrees beside ({quality['coreg_stands_out']:.1%} better)"
        )
    if quality["coreg_dice"] < MIN_DICE:
        complaints.append(f"brain masks overlap by {quality['coreg_dice']:.2f}, below {MIN_DICE}")
    if quality["coreg_brain_seen"] < MIN_BRAIN_SEEN:
        complaints.append(f"only {quality['coreg_brain_seen']:.0%} of the brain lies in the field of view")
    if not SCALES[0] <= quality.get("norm_scale_min", 1.0) <= quality.get("norm_scale_max", 1.0) <= SCALES[1]:
        complaints.append(f"scaled by {quality['norm_scale_min']:.2f} to {quality['norm_scale_max']:.2f}")
    if not BRAIN_ML[0] <= quality.get("norm_brain_ml", 1500.0) <= BRAIN_ML[1]:
        complaints.append(f"a brain of {quality['norm_brain_ml']:.0f} mL")
    return complaints


def _load(reference: EpiReference) -> tuple[Image, np.ndarray]:
    """The corrected boldref on an isotropic grid with right angles, and its own mask there."""
    data, affine = read_volume(reference.corrected)
    mask, _ = read_volume(reference.mask)
    size = float(np.clip(voxel_sizes(affine).min(), 2.0, 3.0))
    image = isotropic(Image(data, affine), size)
    return image, draw_mask(mask > 0.5, affine, image.data.shape, image.affine, Chain())


def _starts(
    epi: Image, epi_mask: np.ndarray, t1w: Image, t1w_mask: np.ndarray, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two sets of starts, boldref to T1w: near what the headers say, and then from the centres of the brains."""
    draws = np.random.default_rng(seed)
    centre = centre_of_mass(epi, epi_mask.astype(np.float32))
    centred = np.eye(4)
    centred[:3, 3] = centre_of_mass(t1w, t1w_mask.astype(np.float32)) - centre

    def shaken(around: np.ndarray, degrees: float, mm: float) -> np.ndarray:
        turn, shift = draws.uniform(-1, 1, (2, 3))
        return around @ rigid(np.radians(degrees) * turn, mm * shift, centre)

    first = [np.eye(4), centred, shaken(np.eye(4), 5, 5), shaken(np.eye(4), 5, 5)]
    second = [shaken(centred, 25, 20) for _ in range(8)]
    return first, second


def _best_rigid(
    epi: Image, epi_mask: np.ndarray, brain: Image, starts: list[np.ndarray], out_dir: Path, seed: int
) -> tuple[np.ndarray, float]:
    """The most similar alignment that the starts led to, made finer; boldref to T1w, and its similarity."""
    near = ndimage.binary_dilation(epi_mask, ball(5.0, epi.affine))

    def score(matrix: np.ndarray) -> float:
        return similarity(epi, near, brain, matrix)

    candidates = []
    for number, start in enumerate(starts):
        found = register(
            epi, brain, near, (COARSE_STAGE,), out_dir, start=start, seed=seed + number, name="coregistration"
        )
        matrix = _matrix_of(found)
        candidates.append((score(matrix), -number, matrix))
    matrix = max(candidates, key=lambda item: item[:2])[2]
    fine = _matrix_of(
        register(epi, brain, near, (FINE_STAGE,), out_dir, start=matrix, seed=seed, name="coregistration")
    )
    best = fine if score(fine) >= score(matrix) else matrix
    for path in out_dir.glob("coregistration_*.h5"):
        path.unlink()
    return best, score(best)


def _matrix_of(found: Registration) -> np.ndarray:
    matrix = np.eye(4)
    for step in found.chain.steps:
        assert isinstance(step, Linear)
        matrix = step.matrix @ matrix
    left, _, right = np.linalg.svd(matrix[:3, :3])
    matrix[:3, :3] = left @ right  # single precision leaves it a little off a rotation
    return matrix


def _judge_coregistration(
    epi: Image, epi_mask: np.ndarray, brain: Image, t1w_mask: np.ndarray, matrix: np.ndarray
) -> dict[str, float]:
    carried = draw_mask(t1w_mask, brain.affine, epi.data.shape, epi.affine, linear(matrix))
    points = grid_points(t1w_mask.shape, brain.affine, t1w_mask)
    seen = epi.inside(apply_matrix(np.linalg.inv(matrix), points))
    near = ndimage.binary_dilation(epi_mask, ball(5.0, epi.affine))
    centre = centre_of_mass(epi, epi_mask.astype(np.float32))
    return {
        "coreg_stands_out": stands_out(lambda m: similarity(epi, near, brain, m), matrix, centre),
        "coreg_dice": dice(carried, epi_mask),
        "coreg_brain_seen": float(seen.mean()),
    }


def _best_direct(
    fixed: Image,
    near: np.ndarray,
    target: Template,
    moving: Image,
    epi_mask: np.ndarray,
    starts: Sequence[np.ndarray],
    out_dir: Path,
    seed: int,
) -> tuple[Registration, dict[str, float]]:
    """Linear stages from each start, SyN from the best of them."""
    linears = [
        _any_matrix(register(fixed, moving, near, DIRECT_LINEAR, out_dir, start=start, seed=seed, name="boldref"))
        for start in starts
    ]
    best = max(linears, key=lambda matrix: similarity(fixed, near, moving, matrix))
    found = register(fixed, moving, near, DIRECT_SYN, out_dir, start=best, seed=seed, name="boldref")
    carried = draw_mask(target.mask, target.affine, moving.data.shape, moving.affine, found.inverse)
    seen = moving.inside(found.chain(grid_points(target.mask.shape, target.affine, target.mask)))
    scales = np.linalg.svd(best[:3, :3], compute_uv=False)
    centre = centre_of_mass(fixed, target.mask)
    volume = float(carried.sum()) * abs(float(np.linalg.det(moving.affine[:3, :3]))) / 1e3
    quality = {
        "coreg_stands_out": stands_out(lambda m: similarity(fixed, near, moving, m), best, centre),
        "coreg_similarity": similarity(fixed, near, moving, best),
        "coreg_dice": dice(carried, epi_mask),
        "coreg_brain_seen": float(seen.mean()),
        "norm_scale_min": float(scales.min()),
        "norm_scale_max": float(scales.max()),
        "norm_brain_ml": volume / max(float(seen.mean()), 0.1),
    }
    return found, quality


def _any_matrix(found: Registration) -> np.ndarray:
    matrix = np.eye(4)
    for step in found.chain.steps:
        assert isinstance(step, Linear)
        matrix = step.matrix @ matrix
    return matrix


def _finish(
    route: str,
    target: Template,
    reference: EpiReference,
    mask: np.ndarray,
    tissues: Tissues,
    chain: Chain,
    quality: dict[str, float],
    warnings: tuple[str, ...],
    out_dir: Path,
    **files: Path,
) -> Alignment:
    """Masks on the boldref's grid, and the images that figures need."""
    boldref, affine = read_volume(reference.boldref)
    maps = np.stack(
        [draw(tissues.maps[..., i], tissues.affine, boldref.shape, affine, tissues.chain) for i in range(3)], axis=-1
    )
    dseg = ((maps.argmax(axis=-1) + 1) * (maps.sum(axis=-1) > 0.3) * mask).astype(np.uint8)
    wm, csf = noise_masks(maps, mask, affine)
    drawn = draw(boldref, affine, target.t1w.shape, target.affine, chain)
    epi_mask = read_volume(reference.mask)[0] > 0.5
    quality = quality | {"epi_mask_dice": dice(mask, epi_mask)}
    return Alignment(
        route=route,
        template=target.name,
        chain=chain.save(out_dir / "template_to_boldref.npz"),
        brain_mask=save_image(out_dir / "brain_mask.nii.gz", mask.astype(np.uint8), affine),
        dseg=save_image(out_dir / "dseg.nii.gz", dseg, affine),
        csf_mask=save_image(out_dir / "csf_mask.nii.gz", csf.astype(np.uint8), affine),
        wm_mask=save_image(out_dir / "wm_mask.nii.gz", wm.astype(np.uint8), affine),
        boldref_in_template=save_image(out_dir / "boldref_in_template.nii.gz", drawn, target.affine, space_code=4),
        quality=quality,
        warnings=warnings,
        **files,
    )


def noise_masks(maps: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that are white matter, or CSF, without grey matter beside them.

    Parameters
    ----------
    maps : numpy.ndarray, (X, Y, Z, 3)
        Probabilities of grey matter, white matter and CSF on the boldref's grid.
    mask : numpy.ndarray, (X, Y, Z) bool
        The brain.
    affine : numpy.ndarray, (4, 4)

    Returns
    -------
    tuple of numpy.ndarray, (X, Y, Z) bool
        White matter, CSF. When next to nothing is left without neighbours of grey matter, the purest voxels are taken.
    """
    grey = ndimage.binary_dilation(maps[..., 0] > 0.5, ball(float(voxel_sizes(affine).max()) * 1.01, affine))
    inner = ndimage.binary_erosion(mask, ball(float(voxel_sizes(affine).max()) * 1.01, affine))
    found = []
    for tissue in (1, 2):
        pure = (maps[..., tissue] > 0.9) & mask
        strict = pure & ~grey & inner
        found.append(strict if strict.sum() >= 50 else pure & inner)
    return found[0], found[1]
