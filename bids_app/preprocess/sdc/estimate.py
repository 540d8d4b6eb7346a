"""Susceptibility distortion: the field of a fieldmap, brought to a run's reference image, and the displacement there.

A place p is measured at p + d(p) along the phase-encoding axis, d = field in Hz x total readout time x voxel. From a
pair of opposite EPIs, d is found directly (`pepolar`); phase images give the field (`phasemaps`). The displacement
becomes part of the one interpolation; brightness is restored by its slope (Jacobian).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from bids_app.bids.fieldmaps import DIRECT, DIRECTIONS, PAIR, PHASE_DIFFERENCE, TWO_PHASES, Fieldmap
from bids_app.errors import BadDataError, NoInputError, RegistrationError
from bids_app.preprocess.hmc import PASSES, Aligner, MotionEstimate
from bids_app.preprocess.io.headers import check_geometry, load_nifti
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.masking import ball, head_mask
from bids_app.preprocess.registration.ants import (
    Image,
    Stage,
    best_start,
    centre_of_mass,
    correlation,
    isotropic,
    similarity,
    stands_out,
)
from bids_app.preprocess.registration.transforms import apply_matrix, draw, grid_points, linear
from bids_app.preprocess.sdc.apply import Readout, index_vector, read_readout, save_unwarping, size_of, unwarp
from bids_app.preprocess.sdc.pepolar import LEVELS, estimate_displacement
from bids_app.preprocess.sdc.phasediff import measured_hz, phase_as_radians, phase_difference_hz

if TYPE_CHECKING:
    from bids_app.bids.query import BoldRun
    from bids_app.settings import PreprocessSettings

FIELDMAPS = "fieldmaps"
"""What ``--ignore`` calls this step."""
SYN = "syn"
METHODS = {
    PAIR: "a pair of EPIs of opposite phase encoding (PEPOLAR)",
    PHASE_DIFFERENCE: "a phase difference",
    TWO_PHASES: "two phase images",
    DIRECT: "a measured field",
    SYN: "the T1w image, along the phase-encoding axis",
}
RIGID = (
    Stage("Rigid[0.2]", (100, 50), (3, 2), (2, 1), "MI[{fixed},{moving},1,32,Regular,0.5]", "1e-5,10"),
    Stage("Rigid[0.05]", (100, 50), (2, 1), (0.5, 0), "MI[{fixed},{moving},1,48,Regular,0.5]"),
)
MIN_STANDS_OUT = 0.02
SAME_ECHO = 0.1
"""Echo times within this share of each other count as the same."""
PAIR_ROUNDS = 2
"""How often the second EPI is aligned with the first, once both are drawn back."""
MAX_ANGLE_COS = 0.985
"""Two phase-encoding axes are one when they are within 10 degrees."""
MEAN_OF = 20
"""Volumes of an EPI fieldmap that its mean is taken from."""


def correction_of(run: BoldRun, wanted: PreprocessSettings) -> tuple[str, str]:
    """`choose_correction` for a run of the dataset under an invocation's settings."""
    has_t1w = run.t1w is not None
    return choose_correction(run.bold.name, run.metadata, run.fieldmap, has_t1w, wanted.ignore, wanted.use_syn_sdc)


def choose_correction(
    name: str, metadata: dict[str, Any], fieldmap: Fieldmap | None, has_t1w: bool, ignore: Container[str], syn: bool
) -> tuple[str, str]:
    """How the distortion of a run is to be corrected, and that in words.

    Parameters
    ----------
    name : str
        Of the run's file.
    metadata : dict
        Its sidecar.
    fieldmap : Fieldmap, optional
    has_t1w : bool
    ignore : container of str
        ``fieldmaps``: use none.
    syn : bool
        Whether the T1w image may stand in for a fieldmap.

    Returns
    -------
    tuple of str
        Key of `METHODS`, empty for no correction; and a sentence.
    """
    if FIELDMAPS in ignore and not syn:
        return "", "Distortion was not corrected (--ignore fieldmaps)."
    used = None if FIELDMAPS in ignore else fieldmap
    if used is None and not (syn and has_t1w):
        why = "there is neither a fieldmap nor a T1w image" if syn else "there is no fieldmap for it"
        return "", f"Distortion was not corrected: {why}."
    if metadata.get("PhaseEncodingDirection") not in DIRECTIONS:
        return "", f"Distortion was not corrected: {name} has no PhaseEncodingDirection in its sidecar."
    if used is None:
        return SYN, f"Distortion is corrected by {METHODS[SYN]}, since there is no fieldmap."
    names = ", ".join(path.name for path in used.files)
    if used.kind == PAIR and len(used.files) == 1:
        if not same_contrast(metadata, used.metadata[0]):
            if syn and has_t1w:
                return SYN, f"Distortion is corrected by {METHODS[SYN]}: {names} is a single EPI of another contrast."
            return "", (
                f"Distortion was not corrected: {names} is a single EPI, whose echo time is not known to be the run's. "
                "Images of different contrast cannot be matched well enough; two opposite EPIs are needed."
            )
        names += " and the run's own reference image"
    if used.kind != PAIR and not {"TotalReadoutTime", "EffectiveEchoSpacing"} & metadata.keys():
        return "", f"Distortion was not corrected: {name} has no TotalReadoutTime in its sidecar, which {names} needs."
    return used.kind, f"Distortion is corrected by {METHODS[used.kind]}: {names}."


def same_contrast(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the sidecars of two EPIs tell that they were measured alike: echo time within a tenth, no other sequence.

    Matching a spin echo with a gradient echo removed 32 % of a simulated displacement in one head, and made it worse in
    another.
    """
    echo, other_echo = one.get("EchoTime"), other.get("EchoTime")
    if not isinstance(echo, int | float) or not isinstance(other_echo, int | float) or echo <= 0:
        return False
    sequences = {str(s["ScanningSequence"]) for s in (one, other) if "ScanningSequence" in s}
    return abs(echo - other_echo) <= SAME_ECHO * echo and len(sequences) < 2


def correct_distortion(
    source: Path,
    metadata: dict[str, Any],
    motion: MotionEstimate,
    fieldmap: Fieldmap,
    out_dir: Path,
    seed: int = 1,
) -> MotionEstimate:
    """Find the distortion of a run by its fieldmap, and draw its reference image back.

    Parameters
    ----------
    source : pathlib.Path
        The run, for messages.
    metadata : dict
        Its sidecar.
    motion : MotionEstimate
    fieldmap : Fieldmap
    out_dir : pathlib.Path
    seed : int

    Returns
    -------
    MotionEstimate
        With a boldref that is not distorted, and an `Unwarping`.

    Raises
    ------
    BadDataError
        A file or sidecar that cannot be used.
    RegistrationError
        The fieldmap could not be aligned with the run.
    """
    data, affine = read_volume(motion.boldref)
    run = Image(data, affine)
    readout = read_readout(metadata, data.shape, source.name)
    if fieldmap.kind == PAIR and len(fieldmap.files) == 1:
        found = _against_the_run(run, readout, fieldmap, out_dir, seed)
    else:
        measured = _pair_field(fieldmap) if fieldmap.kind == PAIR else _phase_field(fieldmap)
        found = _bring_to_run(measured, run, readout, source.name, fieldmap.files[0].name, out_dir, seed)
    displacement, quality = found
    quality |= size_of(displacement[head_mask(data, affine)])
    boldref, unwarping = save_unwarping(
        out_dir,
        motion.boldref,
        displacement,
        readout.axis,
        METHODS[fieldmap.kind],
        phase_encoding=metadata["PhaseEncodingDirection"],
        readout_s=readout.seconds,
        quality=quality,
        sources=fieldmap.files,
    )
    return replace(motion, boldref=boldref, unwarping=unwarping)


@dataclass(frozen=True)
class Field:
    """A map of how far the magnetic field is off, and an image that shows where it lies.

    Parameters
    ----------
    hz : numpy.ndarray, (X, Y, Z)
    image : Image
        On the same grid, not distorted.
    measured : Image, optional
        An EPI on the same grid, distorted by the field.
    direction : numpy.ndarray, (3,), optional
        Its phase-encoding direction.
    quality : dict
    """

    hz: np.ndarray
    image: Image
    measured: Image | None = None
    direction: np.ndarray | None = None
    quality: dict[str, float] = field(default_factory=dict)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Field at points (N, 3) mm, Hz; beyond the map its edge holds."""
        voxels = apply_matrix(np.linalg.inv(self.image.affine), points)
        return ndimage.map_coordinates(self.hz, voxels.T, order=1, mode="nearest")


def read_epi(path: Path) -> Image:
    """The mean of an EPI fieldmap's volumes."""
    if not path.exists():
        raise NoInputError(f"{path}: no such file.", "Get its content (datalad get), or use --ignore fieldmaps.")
    image = load_nifti(path)
    check_geometry(image, path)
    if len(image.shape) not in (3, 4) or min(image.shape[:3]) < 4:
        raise BadDataError(f"{path.name}: shape {image.shape}.", "Give a 3D or 4D image, or use --ignore fieldmaps.")
    data = np.asarray(image.dataobj[..., :MEAN_OF] if len(image.shape) == 4 else image.dataobj, dtype=np.float32)
    data = data.mean(axis=3) if data.ndim == 4 else data
    if not np.isfinite(data).all() or data.max() <= data.min():
        raise BadDataError(f"{path.name}: empty, or not finite.", "Convert it again, or use --ignore fieldmaps.")
    return Image(data, np.asarray(image.affine, dtype=np.float64))


def _pair_field(fieldmap: Fieldmap) -> Field:
    """The field of two EPIs of opposite phase encoding, on the grid of the first."""
    first, second = (read_epi(path) for path in fieldmap.files)
    one, other = (
        read_readout(meta, image.data.shape, path.name)
        for meta, image, path in zip(fieldmap.metadata, (first, second), fieldmap.files, strict=True)
    )
    if one.vector(first.affine) @ other.vector(second.affine) > -MAX_ANGLE_COS:
        raise BadDataError(
            f"{fieldmap.files[0].name} and {fieldmap.files[1].name}: their phase encoding is not opposite.",
            "Check PhaseEncodingDirection and the images' orientation, or use --ignore fieldmaps.",
        )
    one, other = alike_in_time(one, other)
    ratio = -abs(other.mm_per_hz(second.affine) / one.mm_per_hz(first.affine))
    displacement, _, quality = estimate_pair(first, second, one.axis, ratio)
    hz = displacement / one.mm_per_hz(first.affine)
    straight = Image(unwarp(first.data, first.affine, displacement, one.axis), first.affine)
    return Field(hz, straight, first, one.vector(first.affine), quality)


def alike_in_time(one: Readout, other: Readout) -> tuple[Readout, Readout]:
    """Two readouts with their times, or both without where one is not known: they are then taken to be equal."""
    if one.seconds is None or other.seconds is None:
        return replace(one, seconds=None), replace(other, seconds=None)
    return one, other


def estimate_pair(
    first: Image, second: Image, axis: int, ratio: float = -1.0, pose: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Displacement between two EPIs of opposite phase encoding, while the head may have moved between them.

    Movement along the phase-encoding axis cannot be told from a constant field, and is taken for one.

    Parameters
    ----------
    first, second : Image
    axis : int
        Stored axis of phase encoding of the first.
    ratio : float
        Displacement in the second over that in the first.
    pose : numpy.ndarray, (4, 4), optional
        First to second, where it is known about.

    Returns
    -------
    tuple
        Displacement (X, Y, Z) in mm along the axis, on the first image's grid; its pose; correlation of the two in the
        head before and after.
    """
    affine, shape = first.affine, first.data.shape
    along = index_vector(affine, axis)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    where = np.eye(4) if pose is None else pose

    def drawn() -> np.ndarray:
        return np.maximum(draw(second.data, second.affine, shape, affine, linear(where), order=3), 0)

    moved = drawn()
    head = head_mask(first.data + moved, affine)
    before = correlation(first.data[head], moved[head])
    displacement = estimate_displacement(first.data, moved, sizes, axis, ratio)
    for _ in range(PAIR_ROUNDS):
        true = unwarp(first.data, affine, displacement, axis)
        aligner = Aligner(true, affine, head, PASSES[1], "cpu")
        step = aligner.align(unwarp(moved, affine, ratio * displacement, axis)[None], np.eye(4)[None])[0]
        shift = step[:3, :3] @ aligner.centre + step[:3, 3] - aligner.centre
        step[:3, 3] -= (shift @ along) * along
        where = where @ step
        moved = drawn()
        displacement = estimate_displacement(first.data, moved, sizes, axis, ratio, displacement, LEVELS[2:])
    both = (unwarp(i, affine, r * displacement, axis)[head] for i, r in ((first.data, 1.0), (moved, ratio)))
    quality = {"sdc_pair_correlation_before": before, "sdc_pair_correlation_after": correlation(*both)}
    return displacement, where, quality


def _phase_field(fieldmap: Fieldmap) -> Field:
    """The field of phase images, or one that was measured directly."""
    images = [read_epi(path) for path in fieldmap.files]
    first, name = images[0], fieldmap.files[0].name
    magnitudes = [
        image
        for image, path in zip(images, fieldmap.files, strict=True)
        if "_magnitude" in path.name
    ]  # fmt: skip
    on_grid = [draw(m.data, m.affine, first.data.shape, first.affine) for m in magnitudes]
    magnitude = on_grid[0]
    units = fieldmap.metadata[0].get("Units")
    if fieldmap.kind == DIRECT:
        hz = measured_hz(first.data, units, magnitude, first.affine, name)
        return Field(hz, Image(magnitude, first.affine))
    if fieldmap.kind == TWO_PHASES:
        echoes = [fieldmap.metadata[i].get("EchoTime") for i in (0, 1)]
        second = images[1]
        if second.data.shape != first.data.shape or not np.allclose(second.affine, first.affine, atol=1e-3):
            raise BadDataError(f"{name}: its grid is not that of the second phase image.", "Use --ignore fieldmaps.")
        phases = [
            phase_as_radians(image.data, fieldmap.metadata[i].get("Units"), name) for i, image in enumerate(images[:2])
        ]
        phase = phases[1] - phases[0]
    else:
        echoes = [fieldmap.metadata[0].get(key) for key in ("EchoTime1", "EchoTime2")]
        phase = phase_as_radians(first.data, units, name)
    seconds = _between(echoes, name)
    return Field(phase_difference_hz(phase, seconds, magnitude, first.affine), Image(magnitude, first.affine))


def _between(echoes: Sequence[Any], name: str) -> float:
    """Time between two echoes, s."""
    first, second = echoes
    known = all(isinstance(echo, int | float) for echo in (first, second))
    if not known or not 1e-4 < second - first < 0.1:
        raise BadDataError(
            f"{name}: echo times of {first!r} and {second!r} s in its sidecar.",
            "A phase difference needs EchoTime1 and EchoTime2 in s (two phases: EchoTime of each); or use "
            "--ignore fieldmaps.",
        )
    return float(second - first)


def _bring_to_run(
    found: Field, run: Image, readout: Readout, run_name: str, name: str, out_dir: Path, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Displacement on the boldref's grid, mm along its axis; and figures of quality."""
    if readout.seconds is None and found.direction is None:
        raise BadDataError(f"{run_name}: no TotalReadoutTime in its sidecar.", "Add it (s), or use --ignore fieldmaps.")
    points = grid_points(run.data.shape, run.affine)
    rate = readout.mm_per_hz(run.affine)

    def displacement(pose: np.ndarray) -> np.ndarray:
        return (rate * found.at(apply_matrix(pose, points))).reshape(run.data.shape)

    alike = found.direction is not None and readout.vector(run.affine) @ found.direction > MAX_ANGLE_COS
    if alike and found.measured is not None:
        pose, score = find_pose(run, found.measured, run_name, name, out_dir, seed)
        return displacement(pose), found.quality | {"sdc_stands_out": score}
    pose, _ = find_pose(run, found.image, run_name, name, out_dir, seed)
    straight = Image(unwarp(run.data, run.affine, displacement(pose), readout.axis), run.affine)
    pose, score = find_pose(straight, found.image, run_name, name, out_dir, seed, pose)
    return displacement(pose), found.quality | {"sdc_stands_out": score}


def find_pose(
    run: Image,
    image: Image,
    run_name: str,
    name: str,
    out_dir: Path,
    seed: int,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Boldref to a fieldmap's image, rigid (4, 4); and how far that stands out from its neighbours.

    Raises
    ------
    RegistrationError
        No alignment stands out.
    """
    size = float(np.clip(np.linalg.norm(run.affine[:3, :3], axis=0).min(), 2.0, 3.0))
    fixed, moving = isotropic(run, size), isotropic(image, size)
    head = head_mask(fixed.data, fixed.affine)
    near = ndimage.binary_dilation(head, ball(5.0, fixed.affine))
    centred = np.eye(4)
    centre = centre_of_mass(fixed, head)
    centred[:3, 3] = centre_of_mass(moving, head_mask(moving.data, moving.affine)) - centre

    def score(matrix: np.ndarray) -> float:
        return similarity(fixed, near, moving, matrix)

    starts = [np.eye(4), centred] if start is None else [start]
    try:
        pose = best_start(fixed, moving, near, RIGID, starts, score, out_dir, seed)
    except RegistrationError as error:
        raise _unaligned(run_name, name, error.message) from error
    left, _, right = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = left @ right
    away = stands_out(score, pose, centre)
    if away < MIN_STANDS_OUT:
        raise _unaligned(run_name, name, f"it is hardly more similar than 8 mm or 8 degrees beside ({away:.1%} better)")
    return pose, away


def _unaligned(run_name: str, name: str, why: str) -> RegistrationError:
    return RegistrationError(
        f"{run_name}: the fieldmap {name} could not be aligned with it: {why}.",
        "Check that both are of the same session; --ignore fieldmaps goes on without.",
    )


def _against_the_run(
    run: Image, readout: Readout, fieldmap: Fieldmap, out_dir: Path, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Displacement from the run's own reference image and one EPI of opposite phase encoding."""
    path = fieldmap.files[0]
    epi = read_epi(path)
    other = read_readout(fieldmap.metadata[0], epi.data.shape, path.name)
    if readout.vector(run.affine) @ other.vector(epi.affine) > -MAX_ANGLE_COS:
        raise BadDataError(
            f"{path.name}: its phase encoding is not opposite to the run's.",
            "Check PhaseEncodingDirection and the images' orientation, or use --ignore fieldmaps.",
        )
    one, other = alike_in_time(readout, other)
    ratio = -abs(other.mm_per_hz(epi.affine) / one.mm_per_hz(run.affine))
    pose, score = find_pose(run, epi, path.name, path.name, out_dir, seed)
    displacement, _, quality = estimate_pair(run, epi, readout.axis, ratio, pose)
    return displacement, quality | {"sdc_stands_out": score}
