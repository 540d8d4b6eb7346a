"""Signs that a coregistration is wrong although it passes its checks, and the likely cause in plain words.

An alignment that is merely the best of a wrong pair of images passes the checks of `checks.py`: the brains overlap and
the similarity has an optimum. The T1w mirrored left-right is a control: a brain of the same shape with other folds. In
a right alignment the T1w as stored is more similar and fits the boundary of white matter better than the control. Wrong
voxel sizes are found by an affine fit. The limits are from right and wrong alignments (`benchmarks/gates.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.errors import RegistrationError
from bids_app.preprocess.masking import volume_ml
from bids_app.preprocess.registration.ants import Image, Stage, fit_linear, similarity
from bids_app.preprocess.registration.bbr import Boundary, BoundaryCost
from bids_app.preprocess.registration.boldref import EpiView, cut_ends
from bids_app.preprocess.registration.t1w_plausibility import TURN_GAIN, find_turn
from bids_app.preprocess.registration.transforms import apply_matrix

METRIC = "MI[{fixed},{moving},1,32,Regular,0.5]"
MIRROR_STAGE = Stage("Rigid[0.1]", (60, 30), (3, 2), (2, 1), METRIC, "1e-5,10")
SCALE_STAGE = Stage("Affine[0.1]", (60, 40), (3, 2), (2, 1), METRIC, "1e-5,10")
TURN_STAGE = Stage("Rigid[0.2]", (60, 30), (4, 2), (3, 1), METRIC, "1e-5,10")

MAX_CONTROL_RATIO = 0.88
"""Maximum of `control_ratio`: right alignments have up to 0.85, wrong ones 0.91 and more, but for one with 0.87."""
VOLUMES = (0.35, 1.4)
"""Range of the volume of the brain in the boldref, relative to the T1w: half of the voxel size gives an eighth."""
MIN_WHOLE_VOLUME = 0.65
"""Minimum of the same if no slices cut the brain: 0.8 of the voxel size gives a half."""
MAX_MOVED_MM = 3.0
"""Maximum displacement by a boundary-based refinement that was not accepted: right alignments have up to 2.9, 11 of 17
wrong ones 3.3 and more (the refinements of the others were accepted, or are smaller)."""
MIN_BRAIN_SEEN = 0.5
"""Fraction of the brain in the field of view below which that is the likely cause of a doubtful alignment."""
MAX_VOXEL_MM = 5.0
"""Maximum voxel size of a boldref for the comparison with the mirrored T1w: the folds must be visible. A right
alignment of a real boldref resampled to 7 mm has a `control_ratio` of 0.93 (0.82 with its own voxels)."""
VOXEL_SIZE = "wrong voxel size or slice gap in the header of one of the two?"
OTHER_PERSON = "T1w of another person, or left and right flipped in one of the two?"
FLIPPED = 1.1
"""Ratio of cost or of similarity above which left and right are probably flipped in one of the images."""
SCALES = (0.81, 1.23)
"""Range of the affine scales along the boldref's axes; right alignments have up to 1.18, with a lost gap 1.28 and more,
but a slab of 18 slices had 1.35 in a right one."""
MIN_SCALE_GAIN = 1.12
"""Minimum of ``coreg_scale_gain`` for scales to count: that slab has 1.06, with a lost gap 1.21."""


SLICE_SCALES = (1.0, 1.25, 0.8)
"""Scales along the slices from which the affine fit starts."""


@dataclass(frozen=True)
class Pair:
    """A boldref and a T1w, and what is compared of them.

    Attributes
    ----------
    epi : EpiView
    boldref : Image
        Bias-corrected, on its own grid.
    brain : Image
        T1w near the brain.
    boundary : Boundary
        Of the T1w's white matter.
    """

    epi: EpiView
    boldref: Image
    brain: Image
    boundary: Boundary

    @property
    def epi_ml(self) -> float:
        """Volume of the brain in the boldref, mL."""
        return volume_ml(self.epi.mask, self.epi.image.affine)

    def similarity(self, matrix: np.ndarray) -> float:
        """Compute the mutual information for a matrix from boldref to T1w."""
        return similarity(self.epi.image, self.epi.near, self.brain, matrix)

    def boundary_cost(self, matrix: np.ndarray) -> float:
        """Compute the boundary cost for a matrix from boldref to T1w; 2 if too little of the boundary is visible."""
        return BoundaryCost(self.boundary, self.boldref)(np.linalg.inv(matrix)) if len(self.boundary.points) else 2.0

    def mirrored(self, centre: np.ndarray) -> Pair:
        """Return the pair with its T1w mirrored left-right about the plane through a point (3,) mm."""
        return Pair(self.epi, self.boldref, mirror(self.brain, centre), mirror_boundary(self.boundary, centre))

    def fit(
        self, stage: Stage, starts: Sequence[np.ndarray], out_dir: Path, seed: int
    ) -> list[np.ndarray | RegistrationError]:
        """Refine matrices from boldref to T1w by one linear stage; see `fit_linear`."""
        seeds = [seed] * len(starts)
        return fit_linear(self.epi.image, self.brain, self.epi.near, (stage,), starts, out_dir, seeds)


def mirror(image: Image, centre: np.ndarray) -> Image:
    """Mirror an image left-right about the sagittal plane through a point (3,) mm; the affine becomes left-handed."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 2 * centre[0]
    return Image(image.data, flip @ image.affine)


def mirror_boundary(boundary: Boundary, centre: np.ndarray) -> Boundary:
    """Mirror a boundary like `mirror`."""
    points, normals = boundary.points.copy(), boundary.normals.copy()
    points[:, 0] = 2 * centre[0] - points[:, 0]
    normals[:, 0] *= -1
    return Boundary(points, normals)


def compare_with_mirror(pair: Pair, matrix: np.ndarray, out_dir: Path, seed: int = 1) -> dict[str, float]:
    """Align the boldref with the mirrored T1w, and measure how similar they are.

    Parameters
    ----------
    pair : Pair
    matrix : numpy.ndarray, (4, 4)
        Boldref to T1w as stored; the start of the alignment.
    out_dir : pathlib.Path
    seed : int

    Returns
    -------
    dict
        ``coreg_mirrored``, and ``bbr_cost_mirrored`` if enough of the boundary is visible.
    """
    mirrored = pair.mirrored(apply_matrix(matrix, pair.epi.centre))
    candidates = [matrix, *without_failures(mirrored.fit(MIRROR_STAGE, [matrix], out_dir, seed))]
    cost = min(map(mirrored.boundary_cost, candidates))
    found = {"coreg_mirrored": max(map(mirrored.similarity, candidates))}
    return found | ({"bbr_cost_mirrored": cost} if cost < 2 else {})


def fit_scales(pair: Pair, matrix: np.ndarray, out_dir: Path, seed: int = 1) -> dict[str, float]:
    """Fit an affine transform, and return its scales along the axes of the boldref's grid.

    The fit starts from several scales along the slices (`SLICE_SCALES`), because in slabs it stays near its start; the
    most similar one is returned.

    Parameters
    ----------
    pair : Pair
    matrix : numpy.ndarray, (4, 4)
        Boldref to T1w, rigid; the start of the fit.

    Returns
    -------
    dict
        ``coreg_scale_i``, ``_j``, ``_k``: true size of a voxel along an axis, relative to the header;
        ``coreg_scale_gain``: similarity with these scales, relative to that of the rigid matrix. Empty if the fit
        failed.
    """
    voxel_mm = np.linalg.norm(pair.epi.image.affine[:3, :3], axis=0)
    axes = pair.epi.image.affine[:3, :3] / voxel_mm
    slices = axes[:, np.argmin(voxel_mm * pair.epi.image.data.shape)]  # the shortest side of the field of view
    starts = [matrix @ stretch(slices, scale, pair.epi.centre) for scale in SLICE_SCALES]
    fits = without_failures(pair.fit(SCALE_STAGE, starts, out_dir, seed))
    if not fits:
        return {}
    best = max(fits, key=pair.similarity)
    along = np.linalg.norm(best[:3, :3] @ axes, axis=0)
    found = {f"coreg_scale_{axis}": float(scale) for axis, scale in zip("ijk", along, strict=True)}
    return found | {"coreg_scale_gain": pair.similarity(best) / max(pair.similarity(matrix), 1e-9)}


def without_failures(fits: Iterable[np.ndarray | RegistrationError]) -> list[np.ndarray]:
    """Return the matrices of fits that did not fail."""
    return [fit for fit in fits if not isinstance(fit, RegistrationError)]


def stretch(direction: np.ndarray, scale: float, centre: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4) that scales along a unit vector (3,) about a point (3,) mm."""
    matrix = np.eye(4)
    matrix[:3, :3] += (scale - 1) * np.outer(direction, direction)
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


def compare(pair: Pair, matrix: np.ndarray, out_dir: Path, seed: int = 1) -> dict[str, float]:
    """Return the results of `fit_scales` and, unless voxels are above `MAX_VOXEL_MM`, of `compare_with_mirror`."""
    found = fit_scales(pair, matrix, out_dir, seed)
    if float(np.linalg.norm(pair.boldref.affine[:3, :3], axis=0).max()) > MAX_VOXEL_MM:
        return found
    return found | compare_with_mirror(pair, matrix, out_dir, seed)


def signs_of_error(quality: Mapping[str, float]) -> list[str]:
    """Return what suggests that a coregistration is wrong, as phrases; empty: nothing does.

    Parameters
    ----------
    quality : mapping
        Of the coregistration, with the results of `compare_with_mirror` and `fit_scales`.
    """
    signs = []
    if control_ratio(quality) > MAX_CONTROL_RATIO:
        signs.append(
            f"the T1w mirrored left-right fits {control_ratio(quality):.2f} times as well, above {MAX_CONTROL_RATIO}"
        )
    if not quality.get("bbr_used", 1.0) and quality.get("bbr_moved_mm", 0.0) > MAX_MOVED_MM:
        signs.append(
            f"boundary-based registration would move the image by {quality['bbr_moved_mm']:.1f} mm, above "
            f"{MAX_MOVED_MM:g}"
        )
    signs += [
        f"an affine fit scales axis {axis} of the BOLD image by {scale:.2f}, outside {SCALES[0]} to {SCALES[1]}"
        for axis, scale in wrong_scales(quality)
    ]
    return signs


def control_ratio(quality: Mapping[str, float]) -> float:
    """Return how well the mirrored T1w fits, relative to the T1w as stored: the lower of two ratios.

    Either may be high in a right alignment: that of similarity if tissues have little contrast, that of the boundary
    cost if grey and white matter are equally bright, as with a short repetition time.
    """
    cost = cost_ratio(quality)
    return similarity_ratio(quality) if cost is None else min(cost, similarity_ratio(quality))


def cost_ratio(quality: Mapping[str, float]) -> float | None:
    """Return the boundary cost, relative to that of the mirrored T1w; None if it was not measured."""
    if "bbr_cost" not in quality or "bbr_cost_mirrored" not in quality:
        return None
    return quality["bbr_cost"] / max(quality["bbr_cost_mirrored"], 1e-9)


def similarity_ratio(quality: Mapping[str, float]) -> float:
    """Return the similarity with the mirrored T1w, relative to the T1w as stored; 0 if they were not compared."""
    return quality.get("coreg_mirrored", 0.0) / max(quality["coreg_similarity"], 1e-9)


def wrong_scales(quality: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the axes of the boldref whose scale in `fit_scales` is outside `SCALES`, with the scale.

    None are returned if the images are hardly more similar with these scales than without (`MIN_SCALE_GAIN`).
    """
    if quality.get("coreg_scale_gain", MIN_SCALE_GAIN) < MIN_SCALE_GAIN:
        return []
    found = ((axis, quality.get(f"coreg_scale_{axis}", 1.0)) for axis in "ijk")
    return [(axis, scale) for axis, scale in found if not SCALES[0] <= scale <= SCALES[1]]


def likely_cause(
    pair: Pair, matrix: np.ndarray, quality: Mapping[str, float], brain_ml: float, out_dir: Path, seed: int = 1
) -> str:
    """Return the likely cause of a wrong coregistration, as a question.

    Parameters
    ----------
    pair : Pair
    matrix : numpy.ndarray, (4, 4)
        Boldref to T1w.
    quality : mapping
        As for `signs_of_error`.
    brain_ml : float
        Volume of the brain in the T1w.
    out_dir : pathlib.Path
    seed : int
    """
    volume = pair.epi_ml / brain_ml
    least = VOLUMES[0] if cut_ends(pair.epi.mask, pair.epi.image.affine) else MIN_WHOLE_VOLUME
    if not least <= volume <= VOLUMES[1]:
        return VOXEL_SIZE
    mirrored = max(similarity_ratio(quality), cost_ratio(quality) or 0.0)
    if mirrored > FLIPPED:
        return f"left and right flipped in one of the two? The mirrored T1w fits {mirrored:.1f} times as well."
    images = pair.epi.image, pair.brain, pair.epi.near
    axis, turned = find_turn(*images, matrix, pair.epi.centre, (TURN_STAGE,), pair.similarity, out_dir, seed)
    if turned > (1 + TURN_GAIN) * quality["coreg_similarity"]:
        return (
            f"one of the two upside down or back to front? It fits better turned by 180 degrees about the {axis} axis."
        )
    if wrong_scales(quality):  # also of wrong pairs, if the boldref is a slab
        return VOXEL_SIZE + (f" Or {OTHER_PERSON}" if control_ratio(quality) > MAX_CONTROL_RATIO else "")
    if quality.get("coreg_brain_seen", 1.0) < MIN_BRAIN_SEEN:
        return f"only {quality['coreg_brain_seen']:.0%} of the brain in the field of view? Or {OTHER_PERSON}"
    return OTHER_PERSON


def describe(signs: Sequence[str], bold: str, t1w: str, cause: str) -> str:
    """Return a sentence on a doubtful coregistration.

    Parameters
    ----------
    signs : sequence of str
        Of `signs_of_error`.
    bold, t1w : str
        File names.
    cause : str
        Of `likely_cause`.
    """
    return f"{bold}: the alignment with {t1w} may be wrong: {'; '.join(signs)}. Likely cause: {cause}"
