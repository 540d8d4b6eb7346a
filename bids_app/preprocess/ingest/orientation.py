"""Whether an image lies where its affine says: against the template's brain, its left-right mirror image, and shifts.

What can be told, and what cannot:

- An image that is turned, or mirrored front to back or top to bottom, is unlike the template: of all 48 ways to store
  three axes, its own must be the best.
- An image whose voxels were cropped by index, with an affine that was not told, lies beside the template.
- Left and right are told apart by what is not alike in the two halves of the mean brain: in MNI152 the right half
  reaches farther forward, and the left one farther back. The embedded template is its own mirror image, but the matrix
  to the model's space, which was measured, carries that asymmetry; TemplateFlow's template shows it itself. It is a
  small thing, so it warns and never refuses. The participant's own anatomy, where it stands beside the run in the same
  space, tells more; but where everything was mirrored before it was normalised, nothing here can see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations, product

import numpy as np
from scipy import fft, ndimage

from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.catalog.templates import Template, load_template, space, stand_in_for, templateflow_home
from bids_app.errors import BadDataError
from bids_app.preprocess.registration.ants import correlation, mutual_information
from bids_app.preprocess.registration.bold_to_template import epi_like
from bids_app.preprocess.registration.transforms import linear, resample_to

STEP_MM = 2.0
SHAPE, LOW_MM = (87, 107, 91), (-86.0, -124.0, -72.0)
"""The lattice on which images are compared: the brain and a margin, and its own mirror image about x = 0."""
TURN_STEP_MM, TURN_POINTS, TURN_CENTRE_MM = 9.0, 25, (0.0, -18.0, 8.0)
"""A cube of points, coarse, on which axes are exchanged."""
FWHM_TO_SIGMA = 1 / 2.3548
TEXTURE_MM = 16.0
MAX_SHIFT_MM = 32.0
MIN_POINTS = 1000
MIN_CONTRAST = 1e-3
"""Of a brain's brightness; below it the image is a mask, and only its shape is compared."""
MIN_OVERLAP = 0.4
"""Share of the brain's points that must lie in the image for a shift to be looked at."""

SHIFT_WARNED_MM, SHIFT_REFUSED_MM = 3.0, 10.0
TURN_MARGIN = 0.05
"""By how much another orientation must be more similar for the image to be refused."""
SIDE_MARGIN = 0.02
"""Difference of similarity between image and mirror image from which left and right count as told."""
ANATOMY_MARGIN = 0.03
"""The same for the participant's own images, relative."""


@dataclass(frozen=True)
class Placement:
    """How an image lies on the template; correlations are of the brain's shape and of its brightness, averaged."""

    similarity: float
    mirrored: float
    """The same of the left-right mirror image."""
    shift_mm: tuple[float, float, float]
    """Where the template's brain is found in the image, away from where it should be; RAS mm."""
    orientation: str
    """Which of the 48 ways to store the axes fits best: ``as stored``, or what was exchanged and mirrored."""
    turn_gain: float
    """By how much that one is more similar than the image as it is stored."""
    companions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Similarity with the participant's own images in the space, as stored and mirrored."""

    @property
    def distance_mm(self) -> float:
        """Length of the shift."""
        return float(np.linalg.norm(self.shift_mm))

    @property
    def quality(self) -> dict[str, float]:
        """Figures for the report."""
        found = {
            "place_similarity": self.similarity,
            "place_mirrored": self.mirrored,
            "place_shift_mm": self.distance_mm,
        }
        for name, (stored, mirrored) in self.companions.items():
            found[f"place_{name}_margin"] = stored / max(mirrored, 1e-9) - 1
        return found


def judge(placement: Placement, source: str) -> tuple[str, ...]:
    """What is to be said of an image's place, as sentences for the report.

    Parameters
    ----------
    placement : Placement
    source : str
        Name of the file.

    Raises
    ------
    BadDataError
        The image cannot lie where its affine says.
    """
    hint = "Its voxels were turned, mirrored or cropped without telling the affine; write the file again with both."
    if placement.turn_gain > TURN_MARGIN:
        raise BadDataError(
            f"{source}: does not lie as its affine says; it is most like the template's brain with its axes taken as "
            f"({placement.orientation}).",
            hint,
        )
    x, y, z = placement.shift_mm
    where = f"{abs(x):.0f} mm {'right' if x > 0 else 'left'}, {abs(y):.0f} mm {'anterior' if y > 0 else 'posterior'} "
    where += f"and {abs(z):.0f} mm {'superior' if z > 0 else 'inferior'} of where the template has it"
    if placement.distance_mm > SHIFT_REFUSED_MM:
        raise BadDataError(f"{source}: the brain lies {where}, which no normalised image does.", hint)
    for name, (stored, mirrored) in placement.companions.items():
        if mirrored > stored * (1 + ANATOMY_MARGIN):
            raise BadDataError(
                f"{source}: left and right are exchanged against the participant's own {name} in the same space.", hint
            )
    if placement.distance_mm > SHIFT_WARNED_MM:
        return (f"{source}: the brain lies {where}; were voxels cropped without telling the affine?",)
    if placement.mirrored > placement.similarity + SIDE_MARGIN:
        return (
            f"{source}: is more like the left-right mirror image of the template than like the template "
            f"({placement.mirrored:.2f} against {placement.similarity:.2f}): left and right may be exchanged.",
        )
    return ()


def find_left_right(placement: Placement) -> Orientation:
    """What the image shows of its left and right."""
    gain = placement.similarity - placement.mirrored
    same = tuple(
        name for name, (stored, mirrored) in placement.companions.items() if stored > mirrored * (1 + ANATOMY_MARGIN)
    )
    if same:
        return Orientation(LeftRight.AS_STORED, same)
    if placement.distance_mm > SHIFT_WARNED_MM or abs(gain) <= SIDE_MARGIN:
        return Orientation(LeftRight.UNKNOWN)
    return Orientation(LeftRight.AS_STORED if gain > 0 else LeftRight.FLIPPED)


def look_at_placement(
    image: np.ndarray,
    affine: np.ndarray,
    brain: np.ndarray,
    seen: np.ndarray,
    name: str,
    companions: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Placement:
    """Compare an image with the template's brain.

    Parameters
    ----------
    image : numpy.ndarray, (X, Y, Z)
        Mean of a run; or a mask, of which only the shape is compared.
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm of the space.
    brain : numpy.ndarray, (X, Y, Z) bool
        The brain, as the image's own values show it.
    seen : numpy.ndarray, (X, Y, Z) bool
        Where the image has data.
    name : str
        The space that the image is said to be in.
    companions : dict, optional
        Data and affine of the participant's own images in that space, by name.
    """
    onto = lattice()
    drawn = resample_to(np.where(brain, image, 0), affine, SHAPE, onto)
    own = resample_to(brain.astype(np.float32), affine, SHAPE, onto) > 0.5
    valid = resample_to(seen.astype(np.float32), affine, SHAPE, onto) > 0.5
    expected = expected_brain(name, str(templateflow_home()))
    texture = _texture(drawn, own)
    stored, mirrored = (_alike(texture[::side], own[::side], valid[::side], expected) for side in (1, -1))
    shape = _shape(drawn, own)
    orientation, gain = best_orientation(shape, expected.shape, onto)
    found = {}
    for what, (data, its_affine) in (companions or {}).items():
        other = resample_to(data, its_affine, SHAPE, onto)
        both = own & valid
        found[what] = _alike_own(texture, both, other), _alike_own(texture[::-1], both[::-1], other)
    return Placement(
        similarity=stored,
        mirrored=mirrored,
        shift_mm=best_shift(shape, valid, expected.shape, expected.brain),
        orientation=orientation,
        turn_gain=gain,
        companions=found,
    )


@dataclass(frozen=True)
class Expected:
    """The template's brain on the lattice, as a T2*-weighted image of it would look."""

    brain: np.ndarray
    shape: np.ndarray
    """Brightness, with a median of 1."""
    texture: np.ndarray
    """Brightness relative to the neighbourhood."""
    around: np.ndarray
    """The brain, its mirror image, and what is near."""


def lattice() -> np.ndarray:
    """Affine of the lattice, (4, 4)."""
    onto = np.diag([STEP_MM] * 3 + [1.0])
    onto[:3, 3] = LOW_MM
    return onto


@cache
def expected_brain(name: str, home: str) -> Expected:
    """The template's brain in a space; ``home`` keeps answers for different caches of TemplateFlow apart."""
    template: Template = load_template(stand_in_for(name))
    pull, onto = linear(space(name).pull_to(template.space)), lattice()
    bright = resample_to(epi_like(template), template.affine, SHAPE, onto, pull)
    brain = resample_to(template.mask.astype(np.float32), template.affine, SHAPE, onto, pull) > 0.5
    around = ndimage.binary_dilation(brain | brain[::-1], iterations=2)
    return Expected(brain, _shape(bright, brain), _texture(bright, brain), around)


def _shape(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image whose brain has a median of 1, and nothing outside; without its bright spots."""
    middle = float(np.median(image[mask])) if mask.any() else 0.0
    return (
        np.where(mask, np.clip(image / middle, 0, 2), 0).astype(np.float32) if middle > 0 else mask.astype(np.float32)
    )


def _texture(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Brightness relative to the neighbourhood within a mask, so that coils and dropouts count little."""
    sigma = TEXTURE_MM * FWHM_TO_SIGMA / STEP_MM
    weight = mask.astype(np.float32)
    around = ndimage.gaussian_filter(image * weight, sigma) / np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-6)
    return np.divide(image, around, out=np.zeros_like(image, dtype=np.float32), where=mask & (around > 0))


def _alike(texture: np.ndarray, own: np.ndarray, valid: np.ndarray, expected: Expected) -> float:
    """Mean of two correlations with the template: of the brain's shape, and of its brightness within."""
    around = expected.around & valid
    inside = expected.brain & expected.brain[::-1] & own & valid
    if inside.sum() < MIN_POINTS:
        return 0.0
    shape = correlation(own[around], expected.brain[around])
    if float(np.ptp(texture[inside])) < MIN_CONTRAST:
        return shape
    return (shape + correlation(texture[inside], expected.texture[inside])) / 2


def _alike_own(texture: np.ndarray, mask: np.ndarray, other: np.ndarray) -> float:
    """Mutual information with another image of the participant within the brain."""
    return mutual_information(texture[mask], other[mask]) if mask.sum() >= MIN_POINTS else 0.0


def best_shift(
    image: np.ndarray,
    valid: np.ndarray,
    expected: np.ndarray,
    there: np.ndarray,
    most_mm: float = MAX_SHIFT_MM,
    step: int = 2,
) -> tuple[float, float, float]:
    """By how much an image must be looked at elsewhere to be most similar to the template.

    Parameters
    ----------
    image, valid, expected, there : numpy.ndarray, `SHAPE`
        Image, where it has data, template, and its brain.
    most_mm : float
        Largest shift along an axis.
    step : int
        Every how many points of the lattice are used; what lies between is found by a parabola.

    Returns
    -------
    tuple of float
        RAS mm: a point of the template is found there plus this in the image.
    """
    sparse = (slice(None, None, step),) * 3
    smooth = [ndimage.gaussian_filter(volume, 0.8 * step / 2) for volume in (image, expected)]
    around = ndimage.binary_dilation(there, iterations=4)
    scores = shift_scores(smooth[0][sparse], valid[sparse], smooth[1][sparse], around[sparse])
    reach = int(most_mm / (STEP_MM * step))
    centre = np.array(scores.shape) // 2
    window = scores[tuple(slice(c - reach, c + reach + 1) for c in centre)]
    peak = np.array(np.unravel_index(np.argmax(window), window.shape))
    x, y, z = ((peak[axis] - reach + _vertex(window, peak, axis)) * STEP_MM * step for axis in range(3))
    return float(x), float(y), float(z)


def _vertex(window: np.ndarray, peak: np.ndarray, axis: int) -> float:
    """Where between points the top of a parabola through a peak and its neighbours lies, -0.5 to 0.5."""
    if not 0 < peak[axis] < window.shape[axis] - 1:
        return 0.0
    low, top, high = (float(window[tuple(peak + np.eye(3, dtype=int)[axis] * k)]) for k in (-1, 0, 1))
    bend = low - 2 * top + high
    return float(np.clip((low - high) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def shift_scores(image: np.ndarray, valid: np.ndarray, expected: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Correlation of image and template for every shift by whole points, over what both have (Padfield, 2012).

    Parameters
    ----------
    image, valid, expected, around : numpy.ndarray, (X, Y, Z)
        Image, where it has data; template, and which of its points are compared.

    Returns
    -------
    numpy.ndarray, (X', Y', Z')
        The middle (``shape // 2``) is no shift; -1 where too little overlaps.
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
    """The way to store the axes under which an image is most like the template, wherever it is shifted to.

    Of a way and its left-right mirror image, which the template hardly tells apart, one is tried.

    Parameters
    ----------
    image, expected : numpy.ndarray, `SHAPE`
    onto : numpy.ndarray, (4, 4)
        The lattice.

    Returns
    -------
    tuple of str and float
        ``as stored``, or the axes of the image that lie along right, anterior and superior; and by how much that is
        more similar than the image as stored.
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
        (order, flips): float(shift_scores(turned(coarse[0], order, flips), everywhere, coarse[1], everywhere).max())
        for order, flips in orientations()
        if flips[0] == 1
    }
    best = max(scores, key=lambda key: scores[key])
    gain = scores[best] - scores[(0, 1, 2), (1, 1, 1)]
    return ("as stored" if gain <= 0 else _in_words(*best)), max(gain, 0.0)


def orientations() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The 48 ways to store three axes: their order, and which are flipped (-1)."""
    return list(product(permutations(range(3)), product((1, -1), repeat=3)))


def turned(volume: np.ndarray, order: Sequence[int], flips: Sequence[int]) -> np.ndarray:
    """A volume with its axes in another order, and some of them flipped after that."""
    return np.ascontiguousarray(volume.transpose(order)[tuple(slice(None, None, flip) for flip in flips)])


def _in_words(order: Sequence[int], flips: Sequence[int]) -> str:
    axes = "xyz"
    return ", ".join(f"{'-' if flip < 0 else ''}{axes[axis]}" for axis, flip in zip(order, flips, strict=True))
