"""Field estimation from two EPIs of opposite phase encoding, with head motion between them (see `pepolar`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bids_app.bids.fieldmaps import Fieldmap
from bids_app.errors import BadDataError
from bids_app.preprocess.hmc import PASSES, Aligner
from bids_app.preprocess.masking import head_mask
from bids_app.preprocess.registration.ants import Image, correlation
from bids_app.preprocess.registration.transforms import linear, resample_to
from bids_app.preprocess.sdc.apply import Readout, apply_correction, index_vector, read_readout
from bids_app.preprocess.sdc.field import Field, read_epi
from bids_app.preprocess.sdc.pepolar import LEVELS, estimate_displacement

PAIR_ROUNDS = 2
"""Number of times that the corrected second EPI is aligned with the corrected first."""
MAX_ANGLE_COS = 0.985
"""Cosine of 10 degrees, the largest angle between equal phase-encoding axes."""


def pair_field(fieldmap: Fieldmap) -> Field:
    """Estimate the field from two EPIs of opposite phase encoding, on the grid of the first."""
    first, second = (read_epi(path) for path in fieldmap.files)
    one, other = (
        read_readout(meta, image.data.shape, path.name)
        for meta, image, path in zip(fieldmap.metadata, (first, second), fieldmap.files, strict=True)
    )
    if one.vector(first.affine) @ other.vector(second.affine) > -MAX_ANGLE_COS:
        raise BadDataError(
            f"{fieldmap.files[0].name} and {fieldmap.files[1].name}: phase encoding is not opposite "
            f"({fieldmap.metadata[0]['PhaseEncodingDirection']} and {fieldmap.metadata[1]['PhaseEncodingDirection']}).",
            "Check PhaseEncodingDirection and the images' orientation, or skip fieldmaps with --ignore fieldmaps.",
        )
    one, other = match_readout_times(one, other)
    ratio = -abs(other.mm_per_hz(second.affine) / one.mm_per_hz(first.affine))
    displacement, _, quality = estimate_pair(first, second, one.axis, ratio)
    hz = displacement / one.mm_per_hz(first.affine)
    straight = Image(apply_correction(first.data, first.affine, displacement, one.axis), first.affine)
    return Field(hz, straight, first, one.vector(first.affine), quality)


def match_readout_times(one: Readout, other: Readout) -> tuple[Readout, Readout]:
    """Return both readouts, without times (assumed equal) if one of them is unknown."""
    if one.seconds is None or other.seconds is None:
        return replace(one, seconds=None), replace(other, seconds=None)
    return one, other


def estimate_pair(
    first: Image, second: Image, axis: int, ratio: float = -1.0, pose: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Estimate displacement and head motion between two EPIs of opposite phase encoding.

    Motion along the phase-encoding axis cannot be separated from a constant field, and is attributed to the field.

    Parameters
    ----------
    first, second : Image
    axis : int
        Stored axis of phase encoding of the first.
    ratio : float
        Displacement in the second over that in the first.
    pose : numpy.ndarray, (4, 4), optional
        Initial rigid transform, first to second.

    Returns
    -------
    tuple
        Displacement (X, Y, Z) in mm along the axis, on the first image's grid; the pose; correlations of the two
        images in the head before and after correction.
    """
    affine, shape = first.affine, first.data.shape
    along = index_vector(affine, axis)
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    to_second = np.eye(4) if pose is None else pose

    def resample_second() -> np.ndarray:
        return np.maximum(resample_to(second.data, second.affine, shape, affine, linear(to_second), order=3), 0)

    moved = resample_second()
    head = head_mask(first.data + moved, affine)
    before = correlation(first.data[head], moved[head])
    displacement = estimate_displacement(first.data, moved, sizes, axis, ratio)
    for _ in range(PAIR_ROUNDS):
        corrected = apply_correction(first.data, affine, displacement, axis)
        aligner = Aligner(corrected, affine, head, PASSES[1], "cpu")
        step = aligner.align(apply_correction(moved, affine, ratio * displacement, axis)[None], np.eye(4)[None])[0]
        shift = step[:3, :3] @ aligner.centre + step[:3, 3] - aligner.centre
        step[:3, 3] -= (shift @ along) * along
        to_second = to_second @ step
        moved = resample_second()
        displacement = estimate_displacement(first.data, moved, sizes, axis, ratio, displacement, LEVELS[2:])
    both = (apply_correction(i, affine, r * displacement, axis)[head] for i, r in ((first.data, 1.0), (moved, ratio)))
    quality = {"sdc_pair_correlation_before": before, "sdc_pair_correlation_after": correlation(*both)}
    return displacement, to_second, quality
