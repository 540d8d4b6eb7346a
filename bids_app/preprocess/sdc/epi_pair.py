"""The field of two EPIs of opposite phase encoding, while the head may have moved between them; `pepolar` solves it."""

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
"""How often the second EPI is aligned with the first, once both are drawn back."""
MAX_ANGLE_COS = 0.985
"""Two phase-encoding axes are one when they are within 10 degrees."""


def pair_field(fieldmap: Fieldmap) -> Field:
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
    one, other = match_readout_times(one, other)
    ratio = -abs(other.mm_per_hz(second.affine) / one.mm_per_hz(first.affine))
    displacement, _, quality = estimate_pair(first, second, one.axis, ratio)
    hz = displacement / one.mm_per_hz(first.affine)
    straight = Image(apply_correction(first.data, first.affine, displacement, one.axis), first.affine)
    return Field(hz, straight, first, one.vector(first.affine), quality)


def match_readout_times(one: Readout, other: Readout) -> tuple[Readout, Readout]:
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
        return np.maximum(resample_to(second.data, second.affine, shape, affine, linear(where), order=3), 0)

    moved = drawn()
    head = head_mask(first.data + moved, affine)
    before = correlation(first.data[head], moved[head])
    displacement = estimate_displacement(first.data, moved, sizes, axis, ratio)
    for _ in range(PAIR_ROUNDS):
        true = apply_correction(first.data, affine, displacement, axis)
        aligner = Aligner(true, affine, head, PASSES[1], "cpu")
        step = aligner.align(apply_correction(moved, affine, ratio * displacement, axis)[None], np.eye(4)[None])[0]
        shift = step[:3, :3] @ aligner.centre + step[:3, 3] - aligner.centre
        step[:3, 3] -= (shift @ along) * along
        where = where @ step
        moved = drawn()
        displacement = estimate_displacement(first.data, moved, sizes, axis, ratio, displacement, LEVELS[2:])
    both = (apply_correction(i, affine, r * displacement, axis)[head] for i, r in ((first.data, 1.0), (moved, ratio)))
    quality = {"sdc_pair_correlation_before": before, "sdc_pair_correlation_after": correlation(*both)}
    return displacement, where, quality
