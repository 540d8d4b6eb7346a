"""Orientation check of normalised images against the template: axes, shifts, and left and right.

- Axes that were permuted or flipped without updating the affine: of all 48 ways to store three axes, the image's own
  must be the most similar to the template.
- Voxels that were cropped without updating the affine: the brain is shifted relative to the template.
- Left-right flips: the template's asymmetry (in MNI152 the right hemisphere extends farther anterior, the left farther
  posterior) is compared with that of the image. The embedded template is symmetric, but the measured matrix to the
  model's space holds the asymmetry; TemplateFlow's template is asymmetric itself. The effect is small, so it gives a
  warning and no error. Where the similarity does not decide, since the contrast of a brain has an asymmetry of its own,
  the asymmetry of the brain's shape can still confirm left and right. The participant's own anatomy in the same space
  is stronger evidence. A flip before normalisation cannot be detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations, product

import numpy as np
from scipy import fft, ndimage

from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.catalog.templates import Template, load_template, stand_in_for, templateflow_home
from bids_app.errors import BadDataError
from bids_app.preprocess.registration.ants import correlation, mutual_information
from bids_app.preprocess.registration.bold_to_template import epi_like
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.transforms import resample_to

STEP_MM = 2.0
SHAPE, LOW_MM = (87, 107, 91), (-86.0, -124.0, -72.0)
"""The lattice for comparisons: the brain and a margin, symmetric about x = 0."""
TURN_STEP_MM, TURN_POINTS, TURN_CENTRE_MM = 9.0, 25, (0.0, -18.0, 8.0)
"""The coarse cubic lattice for comparisons of the 48 orientations."""
FWHM_TO_SIGMA = 1 / 2.3548
TEXTURE_MM = 16.0
MAX_SHIFT_MM = 32.0
MIN_POINTS = 1000
MIN_CONTRAST = 1e-3
"""Range of the brain's intensity; below it the image is a mask, and only its shape is compared."""
MIN_OVERLAP = 0.4
"""Share of the brain that must overlap with the image for a shift to be considered."""

SHIFT_WARNED_MM, SHIFT_REFUSED_MM = 3.0, 10.0
TURN_MARGIN = 0.05
"""Similarity gain of another orientation above which the image is refused."""
SIDE_MARGIN = 0.02
"""Similarity difference between image and mirror image above which left and right are decided."""
SHAPE_ALPHA = 0.001
"""Error rate at which the asymmetry of the brain's shape confirms left and right."""
BLOCK_MM = 20.0
"""Edge of the blocks whose asymmetries are compared as independent."""
ANATOMY_MARGIN = 0.03
"""Relative similarity difference for the participant's own images."""


@dataclass(frozen=True)
class OrientationCheck:
    """Similarity of an image to the template; the mean of two correlations, of brain shape and of brain intensity."""

    similarity: float
    mirrored: float
    """Similarity of the left-right mirror image."""
    shift_mm: tuple[float, float, float]
    """Position of the brain relative to the template, RAS mm."""
    orientation: str
    """The best of the 48 orientations: ``as stored``, or the order and signs of the axes (``x, -y, z``)."""
    reorientation_gain: float
    """Similarity gain of the best orientation over the stored one."""
    shape_p: float = 1.0
    """Upper limit of the p value of the asymmetry of the brain's shape, if it agrees with the template's, else 1."""
    companions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Similarity to the participant's own images in the space, as stored and mirrored."""

    @property
    def distance_mm(self) -> float:
        """Length of the shift."""
        return float(np.linalg.norm(self.shift_mm))

    @property
    def quality(self) -> dict[str, float]:
        """Image quality metrics for the report."""
        found = {
            "place_similarity": self.similarity,
            "place_mirrored": self.mirrored,
            "place_shift_mm": self.distance_mm,
        }
        for name, (stored, mirrored) in self.companions.items():
            found[f"place_{name}_margin"] = stored / max(mirrored, 1e-9) - 1
        return found


def check_orientation(check: OrientationCheck, source: str) -> tuple[str, ...]:
    """Return warnings about an image's orientation.

    Parameters
    ----------
    check : OrientationCheck
    source : str
        Name of the file.

    Raises
    ------
    BadDataError
        The image does not match its affine.
    """
    hint = "Voxels were reoriented, flipped or cropped without updating the affine; write the file again with both."
    if check.reorientation_gain > TURN_MARGIN:
        raise BadDataError(
            f"{source}: the orientation does not match the affine; the image is most similar to the template with its "
            f"axes reordered as ({check.orientation}).",
            hint,
        )
    x, y, z = check.shift_mm
    where = f"{abs(x):.0f} mm {'right' if x > 0 else 'left'}, {abs(y):.0f} mm {'anterior' if y > 0 else 'posterior'} "
    where += f"and {abs(z):.0f} mm {'superior' if z > 0 else 'inferior'} of its position in the template"
    if check.distance_mm > SHIFT_REFUSED_MM:
        raise BadDataError(f"{source}: the brain is {where} (at most {SHIFT_REFUSED_MM:g} mm are accepted).", hint)
    for name, (stored, mirrored) in check.companions.items():
        if mirrored > stored * (1 + ANATOMY_MARGIN):
            raise BadDataError(
                f"{source}: left-right flipped relative to the participant's own {name} in the same space.", hint
            )
    if check.distance_mm > SHIFT_WARNED_MM:
        return (f"{source}: the brain is {where}; check whether voxels were cropped without updating the affine.",)
    if check.mirrored > check.similarity + SIDE_MARGIN:
        return (
            f"{source}: more similar to the left-right mirror image of the template ({check.mirrored:.2f}) than to the "
            f"template ({check.similarity:.2f}); the image may be left-right flipped.",
        )
    return ()


def find_left_right(check: OrientationCheck) -> Orientation:
    """Determine whether the image is stored with left and right as in its affine."""
    gain = check.similarity - check.mirrored
    same = tuple(
        name for name, (stored, mirrored) in check.companions.items() if stored > mirrored * (1 + ANATOMY_MARGIN)
    )
    if same:
        return Orientation(LeftRight.AS_STORED, same)
    if check.distance_mm > SHIFT_WARNED_MM or (abs(gain) <= SIDE_MARGIN and check.shape_p > SHAPE_ALPHA):
        return Orientation(LeftRight.UNKNOWN)
    if abs(gain) <= SIDE_MARGIN:
        return Orientation(LeftRight.AS_STORED)
    return Orientation(LeftRight.AS_STORED if gain > 0 else LeftRight.FLIPPED)


def estimate_orientation(
    image: np.ndarray,
    affine: np.ndarray,
    brain: np.ndarray,
    seen: np.ndarray,
    name: str,
    companions: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> OrientationCheck:
    """Compare an image with the template's brain.

    Parameters
    ----------
    image : numpy.ndarray, (X, Y, Z)
        Mean of a run, or a mask.
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm of the space.
    brain : numpy.ndarray, (X, Y, Z) bool
        Brain mask from the image's own values.
    seen : numpy.ndarray, (X, Y, Z) bool
        Voxels with data.
    name : str
        Name of the image's space.
    companions : dict, optional
        Data and affine of the participant's own images in that space, by name.
    """
    onto = lattice()
    resampled = resample_to(np.where(brain, image, 0), affine, SHAPE, onto)
    mask = resample_to(brain.astype(np.float32), affine, SHAPE, onto) > 0.5
    valid = resample_to(seen.astype(np.float32), affine, SHAPE, onto) > 0.5
    expected = expected_brain(name, str(templateflow_home()))
    texture = _texture(resampled, mask)
    stored, mirrored = (
        _template_similarity(texture[::side], mask[::side], valid[::side], expected) for side in (1, -1)
    )
    shape = _shape(resampled, mask)
    orientation, gain = best_orientation(shape, expected.shape, onto)
    found = {}
    for companion, (data, its_affine) in (companions or {}).items():
        other = resample_to(data, its_affine, SHAPE, onto)
        both = mask & valid
        found[companion] = (
            _anatomy_similarity(texture, both, other),
            _anatomy_similarity(texture[::-1], both[::-1], other),
        )
    return OrientationCheck(
        similarity=stored,
        mirrored=mirrored,
        shift_mm=best_shift(shape, valid, expected.shape, expected.brain),
        orientation=orientation,
        reorientation_gain=gain,
        shape_p=shape_asymmetry_p(mask, valid, expected),
        companions=found,
    )


@dataclass(frozen=True)
class ExpectedBrain:
    """The template's brain on the lattice, with T2*-weighted contrast."""

    brain: np.ndarray
    shape: np.ndarray
    """Intensity, with a median of 1."""
    texture: np.ndarray
    """Intensity relative to the neighbourhood."""
    around: np.ndarray
    """The brain, its mirror image, and a margin."""


def lattice() -> np.ndarray:
    """Return the affine of the lattice, (4, 4)."""
    onto = np.diag([STEP_MM] * 3 + [1.0])
    onto[:3, 3] = LOW_MM
    return onto


@cache
def expected_brain(name: str, home: str) -> ExpectedBrain:
    """Resample the template's brain to the lattice; ``home`` is TemplateFlow's folder, a key of the cache."""
    template: Template = load_template(stand_in_for(name))
    pull, onto = chain_between(name, template.name), lattice()
    bright = resample_to(epi_like(template), template.affine, SHAPE, onto, pull)
    brain = resample_to(template.mask.astype(np.float32), template.affine, SHAPE, onto, pull) > 0.5
    around = ndimage.binary_dilation(brain | brain[::-1], iterations=2)
    return ExpectedBrain(brain, _shape(bright, brain), _texture(bright, brain), around)


def _shape(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scale an image to a median of 1 in the mask, limited to 0 to 2 and 0 outside."""
    middle = float(np.median(image[mask])) if mask.any() else 0.0
    return (
        np.where(mask, np.clip(image / middle, 0, 2), 0).astype(np.float32) if middle > 0 else mask.astype(np.float32)
    )


def _texture(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Divide intensity by its local mean within a mask, which reduces bias fields and dropout."""
    sigma = TEXTURE_MM * FWHM_TO_SIGMA / STEP_MM
    weight = mask.astype(np.float32)
    around = ndimage.gaussian_filter(image * weight, sigma) / np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-6)
    return np.divide(image, around, out=np.zeros_like(image, dtype=np.float32), where=mask & (around > 0))


def _template_similarity(texture: np.ndarray, mask: np.ndarray, valid: np.ndarray, expected: ExpectedBrain) -> float:
    """Return the mean of two correlations with the template: of brain shape, and of intensity in the brain."""
    around = expected.around & valid
    inside = expected.brain & expected.brain[::-1] & mask & valid
    if inside.sum() < MIN_POINTS:
        return 0.0
    shape = correlation(mask[around], expected.brain[around])
    if float(np.ptp(texture[inside])) < MIN_CONTRAST:
        return shape
    return (shape + correlation(texture[inside], expected.texture[inside])) / 2


def shape_asymmetry_p(mask: np.ndarray, valid: np.ndarray, expected: ExpectedBrain) -> float:
    """Test whether the asymmetry of a brain's shape agrees with that of the template.

    The product of both asymmetries is summed over blocks of one hemisphere. If left and right of the brain were
    exchangeable, the sign of each block would be random, and Hoeffding's inequality (1963) limits the p value of the
    sum of independent blocks.

    Parameters
    ----------
    mask, valid : numpy.ndarray of bool, `SHAPE`
        Brain mask from the image's own values, and voxels with data.
    expected : ExpectedBrain

    Returns
    -------
    float
        Upper limit of the one-sided p value; 1 for the opposite asymmetry, and for none.
    """
    left = np.zeros(SHAPE, bool)
    left[: SHAPE[0] // 2] = True  # the lattice is symmetric about x = 0
    compared = left & expected.around & valid & valid[::-1]
    agreement = _asymmetry(mask) * _asymmetry(expected.brain)
    places = np.indices(SHAPE)[:, compared] // int(BLOCK_MM / STEP_MM)
    size = [n // int(BLOCK_MM / STEP_MM) + 1 for n in SHAPE]
    sums = np.bincount(np.ravel_multi_index(tuple(places), size), agreement[compared])
    spread = float(np.sqrt((sums**2).sum()))
    return float(np.exp(-((max(float(sums.sum()), 0.0) / spread) ** 2) / 2)) if spread > 0 else 1.0


def _asymmetry(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.float32) - mask[::-1]


def _anatomy_similarity(texture: np.ndarray, mask: np.ndarray, other: np.ndarray) -> float:
    """Return the mutual information with another image of the participant within the brain."""
    return mutual_information(texture[mask], other[mask]) if mask.sum() >= MIN_POINTS else 0.0


def best_shift(
    image: np.ndarray,
    valid: np.ndarray,
    expected: np.ndarray,
    there: np.ndarray,
    max_mm: float = MAX_SHIFT_MM,
    step: int = 2,
) -> tuple[float, float, float]:
    """Find the shift of an image relative to the template by correlation.

    Parameters
    ----------
    image, valid, expected, there : numpy.ndarray, `SHAPE`
        Image, its mask of valid data, template, and its brain.
    max_mm : float
        Largest shift along an axis.
    step : int
        Subsampling of the lattice; positions between points are interpolated by a parabola.

    Returns
    -------
    tuple of float
        RAS mm: a point p of the template is at p plus this shift in the image.
    """
    sparse = (slice(None, None, step),) * 3
    smooth = [ndimage.gaussian_filter(volume, 0.8 * step / 2) for volume in (image, expected)]
    around = ndimage.binary_dilation(there, iterations=4)
    scores = shift_scores(smooth[0][sparse], valid[sparse], smooth[1][sparse], around[sparse])
    reach = int(max_mm / (STEP_MM * step))
    centre = np.array(scores.shape) // 2
    window = scores[tuple(slice(c - reach, c + reach + 1) for c in centre)]
    peak = np.array(np.unravel_index(np.argmax(window), window.shape))
    x, y, z = ((peak[axis] - reach + _vertex(window, peak, axis)) * STEP_MM * step for axis in range(3))
    return float(x), float(y), float(z)


def _vertex(window: np.ndarray, peak: np.ndarray, axis: int) -> float:
    """Return the offset of the vertex of a parabola through a peak and its neighbours, -0.5 to 0.5."""
    if not 0 < peak[axis] < window.shape[axis] - 1:
        return 0.0
    low, top, high = (float(window[tuple(peak + np.eye(3, dtype=int)[axis] * k)]) for k in (-1, 0, 1))
    bend = low - 2 * top + high
    return float(np.clip((low - high) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def shift_scores(image: np.ndarray, valid: np.ndarray, expected: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Compute the masked correlation of image and template for all whole-voxel shifts (Padfield, 2012).

    Parameters
    ----------
    image, valid, expected, around : numpy.ndarray, (X, Y, Z)
        Image and its mask; template and its mask.

    Returns
    -------
    numpy.ndarray, (X', Y', Z')
        Zero shift is in the middle (``shape // 2``); -1 where the overlap is too small.
    """
    size = [fft.next_fast_len(2 * n, real=True) for n in image.shape]
    weights, fixed = around.astype(np.float64), expected * around
    known, moving = valid.astype(np.float64), image * valid
    ours = [np.conj(fft.rfftn(a, size)) for a in (weights, fixed, fixed * fixed)]
    theirs = [fft.rfftn(a, size) for a in (known, moving, moving * moving)]

    def over_shifts(one: int, other: int) -> np.ndarray:
        return fft.irfftn(ours[one] * theirs[other], size)

    n = np.maximum(over_shifts(0, 0), 1e-6)
    sum_fixed, sum_moving = over_shifts(1, 0), over_shifts(0, 1)
    between = over_shifts(1, 1) - sum_fixed * sum_moving / n
    spread = (over_shifts(2, 0) - sum_fixed**2 / n) * (over_shifts(0, 2) - sum_moving**2 / n)
    usable = (n > MIN_OVERLAP * weights.sum()) & (spread > 1e-9 * spread.max())
    scores = np.full(n.shape, -1.0)
    scores[usable] = between[usable] / np.sqrt(spread[usable])
    return fft.fftshift(scores)


def best_orientation(image: np.ndarray, expected: np.ndarray, onto: np.ndarray) -> tuple[str, float]:
    """Find the orientation of the axes in which an image is most similar to the template, at any shift.

    Of each orientation and its left-right mirror image, which are almost equally similar, one is tried.

    Parameters
    ----------
    image, expected : numpy.ndarray, `SHAPE`
    onto : numpy.ndarray, (4, 4)
        The lattice.

    Returns
    -------
    tuple of str and float
        ``as stored``, or the axes of the image along right, anterior and superior; and the similarity gain over the
        stored orientation.
    """
    cube = np.diag([TURN_STEP_MM] * 3 + [1.0])
    cube[:3, 3] = np.array(TURN_CENTRE_MM) - TURN_STEP_MM * (TURN_POINTS // 2)
    sigma = TURN_STEP_MM / STEP_MM * FWHM_TO_SIGMA
    coarse = [
        resample_to(ndimage.gaussian_filter(volume, sigma), onto, (TURN_POINTS,) * 3, cube)
        for volume in (image, expected)
    ]
    everywhere = np.ones((TURN_POINTS,) * 3, dtype=bool)
    scores = {
        (order, flips): float(shift_scores(reorient(coarse[0], order, flips), everywhere, coarse[1], everywhere).max())
        for order, flips in orientations()
        if flips[0] == 1
    }
    best = max(scores, key=lambda key: scores[key])
    gain = scores[best] - scores[(0, 1, 2), (1, 1, 1)]
    return ("as stored" if gain <= 0 else _describe_axes(*best)), max(gain, 0.0)


def orientations() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the 48 orientations of three axes: their order, and their signs (-1: flipped)."""
    return list(product(permutations(range(3)), product((1, -1), repeat=3)))


def reorient(volume: np.ndarray, order: Sequence[int], flips: Sequence[int]) -> np.ndarray:
    """Permute the axes of a volume, then flip those with a sign of -1."""
    return np.ascontiguousarray(volume.transpose(order)[tuple(slice(None, None, flip) for flip in flips)])


def _describe_axes(order: Sequence[int], flips: Sequence[int]) -> str:
    axes = "xyz"
    return ", ".join(f"{'-' if flip < 0 else ''}{axes[axis]}" for axis, flip in zip(order, flips, strict=True))
