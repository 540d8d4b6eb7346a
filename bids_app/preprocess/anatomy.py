"""The T1w image: bias field, alignment with the template, brain mask and tissues. Done once for all runs that share it.

Everything is computed at 2 mm. The brain mask is the template's, carried back; tissues are three Gaussians of
brightness with the template's tissue maps as their prior.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import WORKING_MM, Template, load_template
from bids_app.errors import RegistrationError
from bids_app.preprocess.epi import ball, head_mask, largest_part
from bids_app.preprocess.images import read_anatomy, read_volume, save_image
from bids_app.preprocess.registration import (
    Image,
    Registration,
    Stage,
    ants_library,
    best_start,
    centre_of_mass,
    correlation,
    dice,
    isotropic,
    register,
)
from bids_app.preprocess.transforms import Chain, Linear, apply_matrix, draw, grid_points, rigid

LINEAR_STAGES = (
    Stage("Rigid[0.1]", (500, 250, 100), (4, 2, 2), (3, 2, 1)),
    Stage("Affine[0.1]", (500, 250, 50), (4, 2, 2), (3, 2, 1)),
)
SYN_STAGES = (Stage("SyN[0.3,3,0]", (40, 20, 10), (4, 2, 1), (2, 1, 0), "MI[{fixed},{moving},1,32]", "1e-7,8"),)
MIN_CORRELATION = 0.55
MIN_LINEAR_CORRELATION = 0.3
"""Below it, in the brain and 8 mm around, no warp is tried."""
BRAIN_ML = (700.0, 2300.0)
MIN_COVERAGE = 0.80
MIN_DICE = 0.80
SCALES = (0.6, 1.5)
SECOND_STARTS_DEG = ((0, 0, 0), (20, 0, 0), (-20, 0, 0), (40, 0, 0), (-40, 0, 0), (0, 20, 0), (0, -20, 0))
"""Turns about x, y and z that a second attempt begins from."""


@dataclass(frozen=True)
class PreparedT1w:
    """A T1w image at 2 mm without its bias field, and the field."""

    source: Path
    image: Path
    bias: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """A T1w image that is aligned with a template. All images but ``in_template`` are on the T1w's 2 mm grid.

    ``chain`` takes template points to T1w points, ``inverse`` the other way.
    """

    source: Path
    template: str
    image: Path
    bias: Path
    mask: Path
    tissues: Path
    dseg: Path
    chain: Path
    inverse: Path
    to_template: Path
    from_template: Path
    in_template: Path
    quality: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def prepare_t1w(t1w: Path, out_dir: Path) -> PreparedT1w:
    """Bring a T1w image to 2 mm and remove its bias field.

    Parameters
    ----------
    t1w : pathlib.Path
    out_dir : pathlib.Path
    """
    data, affine, warnings = read_anatomy(t1w)
    image = isotropic(Image(data - min(float(data.min()), 0.0), affine), WORKING_MM)
    bias = bias_field(image, head_mask(image.data, image.affine))
    corrected = save_image(out_dir / "t1w_2mm.nii.gz", image.data / bias, image.affine)
    return PreparedT1w(t1w, corrected, save_image(out_dir / "bias_2mm.nii.gz", bias, image.affine), warnings)


def bias_field(image: Image, where: np.ndarray, shrink: int = 3) -> np.ndarray:
    """Bias field of an image by N4, (X, Y, Z) float32, above 0 everywhere, 1 in the middle of its range.

    Parameters
    ----------
    image : Image
        Isotropic, values at least 0.
    where : numpy.ndarray, bool
        The head.
    shrink : int
        Factor by which the image is made smaller for the fit.
    """
    ants = ants_library()
    spacing = [float(np.linalg.norm(image.affine[:3, i])) for i in range(3)]
    as_ants = ants.from_numpy(np.maximum(image.data, 0).astype(np.float32), spacing=spacing)
    mask = ants.from_numpy(where.astype(np.float32), spacing=spacing)
    found = ants.n4_bias_field_correction(
        as_ants,
        mask=mask,
        shrink_factor=shrink,
        convergence={"iters": [50, 50, 30], "tol": 1e-6},
        return_bias_field=True,
    ).numpy()
    found = np.nan_to_num(found, nan=1.0, posinf=1.0, neginf=1.0)
    middle = float(np.median(found[where])) or 1.0
    return np.clip(found / middle, 0.1, 10.0).astype(np.float32)


def normalise_t1w(prepared: PreparedT1w, out_dir: Path, template: str | None = None, seed: int = 1) -> Anatomy:
    """Align a T1w image with the template: rigid, affine, SyN; then carry the brain mask back and find the tissues.

    Parameters
    ----------
    prepared : PreparedT1w
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
    moving = Image(*read_volume(prepared.image))
    found, quality, warnings = _align(target, moving, prepared.source.name, out_dir, seed)
    mask = carry_mask(target, moving, found.inverse)
    tissues = segment(moving.data, mask, _priors(target, moving, found.inverse))
    in_template = draw(moving.data, moving.affine, target.t1w.shape, target.affine, found.chain)
    dseg = (tissues.argmax(axis=-1) + 1).astype(np.uint8) * mask
    quality["brain_ml"] = float(mask.sum()) * WORKING_MM**3 / 1e3

    def save(name: str, data: np.ndarray, code: int = 1) -> Path:
        return save_image(out_dir / name, data, target.affine if code == 4 else moving.affine, space_code=code)

    return Anatomy(
        source=prepared.source,
        template=target.name,
        image=prepared.image,
        bias=prepared.bias,
        mask=save("t1w_mask_2mm.nii.gz", mask.astype(np.uint8)),
        tissues=save("t1w_tissues_2mm.nii.gz", np.round(tissues * 255).astype(np.uint8)),
        dseg=save("t1w_dseg_2mm.nii.gz", dseg),
        chain=found.chain.save(out_dir / "template_to_t1w.npz"),
        inverse=found.inverse.save(out_dir / "t1w_to_template.npz"),
        to_template=found.forward_file,
        from_template=found.inverse_file,
        in_template=save("t1w_in_template.nii.gz", in_template, 4),
        quality=quality,
        warnings=prepared.warnings + warnings,
    )


def _align(
    target: Template, moving: Image, name: str, out_dir: Path, seed: int
) -> tuple[Registration, dict[str, float], tuple[str, ...]]:
    """Two attempts: from the centres of mass, then from the best of several turned starts."""
    fixed = Image(target.t1w, target.affine)
    near = ndimage.binary_dilation(target.mask, ball(8.0, target.affine))
    guess = first_guess(fixed, moving)
    centre = centre_of_mass(fixed)
    turned = [guess @ rigid(np.radians(degrees), (0, 0, 0), centre) for degrees in SECOND_STARTS_DEG]

    def score(matrix: np.ndarray) -> float:
        points = grid_points(fixed.data.shape, fixed.affine, near)
        return correlation(moving.at(apply_matrix(matrix, points)), fixed.data[near])

    complaints: list[str] = []
    for attempt, starts in enumerate(([guess], turned)):
        try:
            matrix = best_start(fixed, moving, near, LINEAR_STAGES, starts, score, out_dir, seed)
            if score(matrix) < MIN_LINEAR_CORRELATION:
                complaints = [f"correlation with the template {score(matrix):.2f} before warping"]
                continue
            found = register(fixed, moving, near, SYN_STAGES, out_dir, start=matrix, seed=seed, name="t1w")
        except RegistrationError as error:
            complaints = [error.message]
            continue
        quality = judge_normalisation(target, moving, found)
        complaints = complaints_about(quality)
        if not complaints:
            warning = f"{name}: aligned with the template at the second attempt."
            return found, quality, (warning,) if attempt else ()
    raise RegistrationError(
        f"{name}: could not be aligned with {target.name}: {'; '.join(complaints)}.",
        "Look at the image: it should be a T1w of a whole human head. Leave it out with --bids-filter-file to go on "
        "without a T1w.",
    )


def first_guess(fixed: Image, moving: Image) -> np.ndarray:
    """A shift that brings the head's upper part onto the template's brain, (4, 4).

    The centre of mass of a whole head lies lower the more neck there is, so that only the upper 180 mm count.
    """
    head = head_mask(moving.data, moving.affine)
    points = grid_points(moving.data.shape, moving.affine, head)
    upper = points[points[:, 2] > np.percentile(points[:, 2], 99.9) - 180.0]
    shift = np.eye(4)
    shift[:3, 3] = upper.mean(axis=0) - centre_of_mass(fixed)
    return shift


def judge_normalisation(target: Template, moving: Image, found: Registration) -> dict[str, float]:
    """Numbers by which an alignment with the template is judged."""
    points = grid_points(target.t1w.shape, target.affine, target.mask)
    pulled = found.chain(points)
    covered = moving.inside(pulled)
    matrix = next(step.matrix for step in found.chain.steps if isinstance(step, Linear))
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    mask = carry_mask(target, moving, found.inverse)
    back = draw(mask.astype(np.float32), moving.affine, target.t1w.shape, target.affine, found.chain) > 0.5
    return {
        "norm_correlation": correlation(target.t1w[target.mask][covered], moving.at(pulled[covered])),
        "norm_coverage": float(covered.mean()),
        "norm_dice": dice(back, target.mask),
        "norm_scale_min": float(scales.min()),
        "norm_scale_max": float(scales.max()),
        "norm_brain_ml": float(mask.sum()) * abs(float(np.linalg.det(moving.affine[:3, :3]))) / 1e3,
    }


def complaints_about(quality: dict[str, float]) -> list[str]:
    """Which gates an alignment with the template does not pass, in words."""
    complaints = []
    if quality["norm_correlation"] < MIN_CORRELATION:
        complaints.append(f"correlation with the template {quality['norm_correlation']:.2f}, below {MIN_CORRELATION}")
    if not BRAIN_ML[0] <= quality["norm_brain_ml"] <= BRAIN_ML[1]:
        complaints.append(f"a brain of {quality['norm_brain_ml']:.0f} mL")
    if quality["norm_coverage"] < MIN_COVERAGE:
        complaints.append(f"only {quality['norm_coverage']:.0%} of the template's brain lies in the image")
    if quality["norm_coverage"] > 0.98 and quality["norm_dice"] < MIN_DICE:
        complaints.append(f"brain masks there and back overlap by {quality['norm_dice']:.2f}, below {MIN_DICE}")
    if quality["norm_scale_min"] < SCALES[0] or quality["norm_scale_max"] > SCALES[1]:
        complaints.append(f"scaled by {quality['norm_scale_min']:.2f} to {quality['norm_scale_max']:.2f}")
    return complaints


def carry_mask(target: Template, moving: Image, inverse: Chain) -> np.ndarray:
    """The template's brain mask on the moving image's grid, bool."""
    drawn = draw(target.mask.astype(np.float32), target.affine, moving.data.shape, moving.affine, inverse)
    return largest_part(drawn > 0.5)


def _priors(target: Template, moving: Image, inverse: Chain) -> np.ndarray:
    """Prior probabilities of grey matter, white matter and CSF on the moving image's grid, (X, Y, Z, 3)."""
    points = inverse(grid_points(moving.data.shape, moving.affine))
    maps = [Image(m, target.affine).at(points).reshape(moving.data.shape) for m in (target.gm, target.wm, target.csf)]
    return np.stack(maps, axis=-1)


def segment(data: np.ndarray, mask: np.ndarray, priors: np.ndarray, n_rounds: int = 25) -> np.ndarray:
    """Tissue probabilities: three Gaussians of brightness, weighted by prior maps, fitted by expectation maximisation.

    Parameters
    ----------
    data : numpy.ndarray, (X, Y, Z)
        T1w without bias field.
    mask : numpy.ndarray, (X, Y, Z) bool
        The brain.
    priors : numpy.ndarray, (X, Y, Z, 3)
        Grey matter, white matter, CSF.
    n_rounds : int

    Returns
    -------
    numpy.ndarray, (X, Y, Z, 3) float32
        Grey matter, white matter, CSF; sum 1 in the mask and 0 outside.
    """
    values = data[mask].astype(np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    values = np.clip(values, low, high)
    prior = priors[mask].astype(np.float64) + 0.02
    prior /= prior.sum(axis=1, keepdims=True)
    share = prior
    floor = (0.02 * (high - low)) ** 2
    for _ in range(n_rounds):
        weight = share.sum(axis=0)
        mean = values @ share / weight
        variance = np.maximum(((values[:, None] - mean) ** 2 * share).sum(axis=0) / weight, floor)
        likelihood = np.exp(-0.5 * (values[:, None] - mean) ** 2 / variance) / np.sqrt(variance)
        share = prior * likelihood + 1e-12
        share /= share.sum(axis=1, keepdims=True)
    tissues = np.zeros((*data.shape, 3), dtype=np.float32)
    tissues[mask] = share
    return tissues
