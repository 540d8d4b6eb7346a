"""Anatomical preprocessing: brain mask, bias field, normalisation and tissues of the T1w image, at 2 mm.

The brain is extracted by a neural network. If that fails, the brain mask is the template's, warped to the T1w, with a
warning. Tissues are segmented by a Gaussian mixture with the template's tissue maps as prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.bids.full_disk import is_full, no_space
from bids_app.catalog.templates import WORKING_MM, Template, load_template
from bids_app.errors import BadDataError
from bids_app.preprocess.brain_extraction import VOLUME_ML, extract_brain, measure_shape
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.masking import ball, head_mask, largest_part
from bids_app.preprocess.registration.ants import Image, dice, isotropic
from bids_app.preprocess.registration.ants_program import run_ants
from bids_app.preprocess.registration.t1w_plausibility import doubts_about_size
from bids_app.preprocess.registration.t1w_to_template import above_neck, align_with_template, warp_mask
from bids_app.preprocess.registration.transforms import Chain, grid_points, resample_to
from bids_app.preprocess.t1w_average import merge_t1w

STRIPPED_ML = VOLUME_ML
STRIPPED_EMPTY = 0.4
"""A skull-stripped image is constant in more than this share of its voxels; the rest has a volume of `STRIPPED_ML`."""
MIN_STRIPPED_DICE = 0.9
"""Minimum Dice overlap of the voxels of a skull-stripped image and the brain found in it."""
LESION_EDGE = 0.05
"""Voxels of which the lesion mask fills more than this share are left out."""
LESION_MARGIN_MM = 8.0
"""Voxels this near to a lesion are left out, too: at coarse levels of the registration, smoothing mixes them with it.
With a simulated lesion, the false displacement around it was 1.3 mm without a mask, 1.5 mm with a mask without margin,
0.5 mm with this margin, and 0.2 mm without the lesion."""
MAX_LESION = 0.5
"""Maximum share of the brain or image that a lesion mask covers; an inverted mask covers more."""
BIAS_MARGIN_MM = 6.0
"""The bias field is estimated in the brain and this far around it."""
SMALL_FIELD = 1.2
"""N4 is repeated while its last field spans more than this ratio; see `field_ratio`."""
MAX_REPEATS = 4
REPEAT_SHRINK = 4
N4_CONVERGENCE = "[50x50x30, 0.0000010000]"
"""Maximum iterations of each level, and the tolerance."""


@dataclass(frozen=True)
class PreparedT1w:
    """A bias-corrected T1w image at 2 mm, and its bias field.

    ``source`` is the first file; ``merged`` is the mean image at its resolution if several were averaged, and ``used``
    lists these. ``stripped``: the input was skull-stripped. ``brain`` is the brain mask at 2 mm; None: brain extraction
    failed.
    """

    source: Path
    image: Path
    bias: Path
    warnings: tuple[str, ...] = ()
    merged: Path | None = None
    used: tuple[Path, ...] = ()
    stripped: bool = False
    brain: Path | None = None
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UnusableT1w:
    """A T1w image that could not be read or aligned, and the reason."""

    source: Path
    reason: str


@dataclass(frozen=True)
class Anatomy:
    """A normalised T1w image. All images except ``in_template`` are on the T1w's 2 mm grid.

    ``chain`` maps template points to T1w points, ``inverse`` the reverse.
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
    merged: Path | None = None
    used: tuple[Path, ...] = ()
    stripped: bool = False
    """As in `PreparedT1w`."""
    lesion: Path | None = None
    """Lesion mask that was left out of the registration."""
    doubts: tuple[str, ...] = ()
    """Signs that the image is not what its header says, with the likely cause."""

    @property
    def native(self) -> Path:
        """The image at its native resolution; the mean if several were averaged."""
        return self.merged or self.source


def prepare_t1w(t1w: Path, out_dir: Path, repeats: Sequence[Path] = (), seed: int = 1, threads: int = 1) -> PreparedT1w:
    """Average a T1w image with its repeats, resample it to 2 mm, extract the brain, and remove the bias field.

    Parameters
    ----------
    t1w : pathlib.Path
    out_dir : pathlib.Path
    repeats : sequence of pathlib.Path
        Further T1w images of the session.
    seed : int
        Seed of their registration.
    threads : int
        Threads of the brain extraction.
    """
    mean = merge_t1w((t1w, *repeats), out_dir, seed)
    warnings, merged = mean.warnings, None
    if len(mean.used) > 1 or mean.used[0] != t1w:
        merged = save_image(out_dir / "t1w_merged.nii.gz", mean.image.data, mean.image.affine)
    coarse = bool(voxel_sizes(mean.image.affine).max() > WORKING_MM)
    lowest = min(float(mean.image.data.min()), 0.0)
    shifted = Image(mean.image.data - lowest, mean.image.affine) if lowest else mean.image
    image = isotropic(shifted, WORKING_MM, order=3 if coarse else 1)
    brain, stripped, more = find_t1w_brain(image, shifted, t1w.name, threads)
    bias = estimate_bias(image, head_for_bias(image, brain), brain, out_dir)
    mask, quality = None, {}
    if brain is not None:
        mask = save_image(out_dir / "t1w_brain_2mm.nii.gz", brain.astype(np.uint8), image.affine)
        quality = measure_shape(brain, image.affine).quality
    return PreparedT1w(
        source=t1w,
        image=save_image(out_dir / "t1w_2mm.nii.gz", image.data / bias, image.affine),
        bias=save_image(out_dir / "bias_2mm.nii.gz", bias, image.affine),
        warnings=warnings + more,
        merged=merged,
        used=mean.used,
        stripped=stripped,
        brain=mask,
        quality=quality,
    )


def find_t1w_brain(
    image: Image, original: Image, name: str, threads: int = 1
) -> tuple[np.ndarray | None, bool, tuple[str, ...]]:
    """Find the brain in a T1w image, with or without skull.

    Parameters
    ----------
    image : Image
        Isotropic and non-negative.
    original : Image
        The same before resampling, which blurs the edge of a skull-stripped brain.
    name : str
        File name for warnings.
    threads : int

    Returns
    -------
    tuple
        Brain mask (X, Y, Z) bool, None if brain extraction failed; True if the image is skull-stripped; warnings.
    """
    brain: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    try:
        brain = extract_brain(image, name, threads)
    except BadDataError as error:
        warnings = (f"{error.message} The brain mask of the template was used instead.",)
    except ImportError as error:
        warnings = (
            f"{name}: brain extraction needs deepbet, which could not be imported ({error}). The brain mask of the "
            "template was used instead.",
        )
    if not is_stripped(original):
        return brain, False, warnings
    values = (original.data > float(original.data.min())).astype(np.float32)
    shown = resample_to(values, original.affine, image.data.shape, image.affine) > 0.5
    shown = largest_part(ndimage.binary_fill_holes(shown))
    if brain is not None and dice(shown, brain) < MIN_STRIPPED_DICE:
        return brain, False, warnings  # a head without background
    return shown, True, (f"{name}: the image is skull-stripped; its brain mask is that of its non-zero voxels.",)


def head_for_bias(image: Image, brain: np.ndarray | None) -> np.ndarray:
    """Return the mask in which the bias field is estimated: near the brain, or else the head above the neck."""
    if brain is None:
        head = head_mask(image.data, image.affine)
        return head & above_neck(image, head)  # low signal in the neck would distort the fit
    return ndimage.binary_dilation(brain, ball(BIAS_MARGIN_MM, image.affine)) & (image.data > 0)


def is_stripped(image: Image) -> bool:
    """Return True if a T1w image is skull-stripped: largely constant, and the rest has the volume of a brain."""
    lowest = float(image.data.min())
    shown = image.data > lowest
    volume_ml = float(shown.sum()) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1e3
    return float(shown.mean()) < 1 - STRIPPED_EMPTY and STRIPPED_ML[0] <= volume_ml <= STRIPPED_ML[1]


def estimate_bias(image: Image, head: np.ndarray, brain: np.ndarray | None, out_dir: Path) -> np.ndarray:
    """Estimate a bias field by N4, repeated in the brain while the field is large: N4 underestimates strong fields.

    Parameters
    ----------
    image : Image
        Isotropic and non-negative.
    head, brain : numpy.ndarray, bool
        Masks of the first and of all further fields; without a brain, there is only the first.
    out_dir : pathlib.Path
        Folder for temporary files.

    Returns
    -------
    numpy.ndarray, (X, Y, Z) float32
        Positive, with a median near 1 in the head.
    """
    total = last = bias_field(image, head, out_dir)
    for _ in range(MAX_REPEATS):
        if brain is None or field_ratio(last, brain) < SMALL_FIELD:
            break
        last = bias_field(Image(image.data / total, image.affine), brain, out_dir, REPEAT_SHRINK)
        total = total * last
    return total


def field_ratio(bias: np.ndarray, where: np.ndarray) -> float:
    """Return the ratio of the highest to the lowest bias in a mask (98th to 2nd percentile)."""
    low, high = np.percentile(bias[where], [2, 98])
    return float(high / low)


def bias_field(image: Image, where: np.ndarray, out_dir: Path, shrink: int = 3) -> np.ndarray:
    """Estimate the bias field of an image by N4, (X, Y, Z) float32, positive, with a median of 1 in the head.

    Parameters
    ----------
    image : Image
        Isotropic and non-negative.
    where : numpy.ndarray, bool
        Head mask.
    out_dir : pathlib.Path
        Folder for temporary files.
    shrink : int
        Shrink factor for the fit.

    Raises
    ------
    InputOutputError
        The disk is full.
    """
    grid = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*voxel_sizes(image.affine), 1.0])  # LPS: the axes of ITK
    with TemporaryDirectory(dir=out_dir, prefix="n4_") as folder:
        files = {name: Path(folder) / f"{name}.nii" for name in ("image", "mask", "corrected", "bias")}
        save_image(files["image"], np.maximum(image.data, 0).astype(np.float32), grid)
        save_image(files["mask"], where.astype(np.float32), grid)
        arguments = ["-d", "3", "-i", files["image"], "-x", files["mask"], "-s", shrink, "-c", N4_CONVERGENCE]
        arguments += ["-b", "[1x1x1]", "-r", "0", "-o", f"[{files['corrected']},{files['bias']}]", "-v", "0"]
        try:
            run_ants("N4BiasFieldCorrection", list(map(str, arguments)))
            found = read_volume(files["bias"])[0]
        except (RuntimeError, OSError, BadDataError) as error:
            if is_full(out_dir):  # before the scratch files are deleted
                raise no_space(out_dir, "N4 bias field correction") from error
            raise
    found = np.nan_to_num(found, nan=1.0, posinf=1.0, neginf=1.0)
    middle = float(np.median(found[where])) or 1.0
    return np.clip(found / middle, 0.1, 10.0).astype(np.float32)


def normalise_t1w(
    prepared: PreparedT1w,
    out_dir: Path,
    template: str | None = None,
    seed: int = 1,
    lesion: Path | None = None,
    device: str = "cpu",
) -> Anatomy:
    """Align a T1w image with the template (rigid, affine, diffeomorphic), warp the brain mask, and segment tissues.

    Parameters
    ----------
    prepared : PreparedT1w
    out_dir : pathlib.Path
    template : str, optional
        Name of the template; the best available one by default.
    seed : int
    lesion : pathlib.Path, optional
        Lesion mask in the space of ``prepared.source``, left out of the registration.
    device : str
        Torch device.

    Raises
    ------
    RegistrationError
        No alignment passed the quality checks, from two initialisations.
    BadDataError
        The lesion mask has no voxel in the brain, or covers most of it.
    """
    target = load_template(template)
    moving = Image(*read_volume(prepared.image))
    brain = None if prepared.brain is None else read_volume(prepared.brain)[0] > 0.5
    healthy = None if lesion is None else outside_lesion(lesion, moving, brain)
    found, quality, warnings = align_with_template(
        target, moving, prepared.source.name, out_dir, seed, brain, healthy, device
    )
    mask = warp_mask(target, moving, found.inverse) if brain is None else brain
    tissues = segment(moving.data, mask, _priors(target, moving, found.inverse, mask))
    in_template = resample_to(moving.data, moving.affine, target.t1w.shape, target.affine, found.chain)
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
        quality=prepared.quality | quality,
        warnings=prepared.warnings + warnings,
        merged=prepared.merged,
        used=prepared.used,
        stripped=prepared.stripped,
        lesion=lesion,
        doubts=doubts_about_size(quality, quality["brain_ml"], prepared.source.name),
    )


def outside_lesion(lesion: Path, image: Image, brain: np.ndarray | None) -> np.ndarray:
    """Return the voxels of an image at a distance from a lesion, (X, Y, Z) bool.

    Parameters
    ----------
    lesion : pathlib.Path
        Mask on any grid in the space of the image; not 0 in the lesion.
    image : Image
    brain : numpy.ndarray, (X, Y, Z) bool, optional
        Brain mask on the grid of the image.
    """
    mask, affine = read_lesion(lesion)
    sick = resample_to(mask.astype(np.float32), affine, image.data.shape, image.affine) > LESION_EDGE
    if brain is not None:
        check_lesion(float((sick & brain).sum()) / float(brain.sum()), "the brain", lesion)
    return ~ndimage.binary_dilation(sick, ball(LESION_MARGIN_MM, image.affine))


def read_lesion(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a lesion mask: (X, Y, Z) bool, and its affine (4, 4).

    Raises
    ------
    BadDataError
        It is empty, or covers most of the image.
    """
    data, affine = read_volume(path)
    mask = data.reshape(data.shape[:3]) != 0
    check_lesion(float(mask.mean()), "the image", path)
    return mask, affine


def check_lesion(share: float, what: str, path: Path) -> None:
    """Check the share of the brain or image that a lesion mask covers.

    Raises
    ------
    BadDataError
        It is 0, or above `MAX_LESION`.
    """
    if not 0 < share <= MAX_LESION:
        raise BadDataError(
            f"{path.name}: the lesion mask covers {share:.1%} of {what}; more than 0 and at most {MAX_LESION:.0%} are "
            "possible.",
            "Check that it is in the space of the T1w image, 1 in the lesion and 0 elsewhere; or remove it.",
        )


def _priors(target: Template, moving: Image, inverse: Chain, mask: np.ndarray) -> np.ndarray:
    """Resample the template's tissue probabilities (GM, WM, CSF) to a mask of the moving image's grid, (X, Y, Z, 3).

    CSF includes everything outside the template's brain: the mask of the T1w may be larger.
    """
    points = inverse(grid_points(moving.data.shape, moving.affine, mask))
    gm, wm = (Image(values, target.affine).at(points) for values in (target.gm, target.wm))
    priors = np.zeros((*mask.shape, 3), dtype=np.float32)
    priors[mask] = np.stack([gm, wm, np.clip(1 - gm - wm, 0, 1)], axis=-1)
    return priors


def segment(data: np.ndarray, mask: np.ndarray, priors: np.ndarray, n_rounds: int = 25) -> np.ndarray:
    """Estimate tissue probabilities by a mixture of three Gaussians with prior maps (expectation maximisation).

    Parameters
    ----------
    data : numpy.ndarray, (X, Y, Z)
        Bias-corrected T1w.
    mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask.
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
