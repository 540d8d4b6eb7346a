"""Scans spoiled on purpose, to calibrate the checks of alignment: wrong headers, wrong persons, cut fields of view.

Each function takes data (X, Y, Z) or (X, Y, Z, T) and an affine (4, 4) and returns both, spoiled; the input is not
changed. `SPOILED` lists those that need no second scan, by name; they work on simulated and on real scans.
"""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np

from bids_app.errors import UsageError
from bids_app.phantom.artefacts import coil_sensitivity
from bids_app.phantom.geometry import apply, rng_for

Scan = tuple[np.ndarray, np.ndarray]
"""Data and affine."""
BIAS_RATIO = 5.6
LOST_GAP = 0.8
CUT = 0.3


def flip_left_right(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Mirror the data from left to right without the header."""
    return np.flip(data, axis_along("RL", affine)), affine.copy()


def turn_upside_down(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Turn the data by 180 degrees about the anterior-posterior axis without the header."""
    return np.flip(data, (axis_along("RL", affine), axis_along("SI", affine))), affine.copy()


def add_bias(data: np.ndarray, affine: np.ndarray, ratio: float = BIAS_RATIO) -> Scan:
    """Multiply by the sensitivity of an array coil, highest to lowest in the brain ``ratio``; data around scanner 0."""
    centre = apply(affine, (np.array(data.shape[:3]) - 1) / 2)
    centred = affine.copy()
    centred[:3, 3] -= centre
    shape = (data.shape[0], data.shape[1], data.shape[2])
    field = coil_sensitivity(shape, centred, ratio, rng_for(1, "bias"))
    return (data * field.reshape(*shape, *[1] * (data.ndim - 3))).astype(np.float32), affine.copy()


def lose_slice_gap(data: np.ndarray, affine: np.ndarray) -> Scan:
    """State the slice thickness instead of the distance of the slices: the size along z times 0.8."""
    return data.copy(), _resized(affine, axis_along("SI", affine), LOST_GAP)


def halve_voxels(data: np.ndarray, affine: np.ndarray) -> Scan:
    """State half of the voxel sizes."""
    return data.copy(), _resized(affine, slice(0, 3), 0.5)


def shrink_voxels(data: np.ndarray, affine: np.ndarray) -> Scan:
    """State 0.8 of the voxel sizes."""
    return data.copy(), _resized(affine, slice(0, 3), 0.8)


def cut_lower(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Remove the lowest 30 % of the slices."""
    return _cut(data, affine, from_below=True)


def cut_upper(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Remove the highest 30 % of the slices."""
    return _cut(data, affine, from_below=False)


def invert_contrast(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Invert the intensities of the head, as a T2w image labelled T1w; air stays dark.

    For simulated heads, `whole_head_t1w.T1wScan` with the sequence ``t2w`` is closer to a T2w image.
    """
    low, high = np.percentile(data, [5, 99.5])
    bright = np.clip((data - low) / max(float(high - low), 1e-6), 0, 1)
    head = np.clip(bright / 0.15, 0, 1)
    return ((high - low) * head * (1.15 - bright)).astype(np.float32), affine.copy()


def replace_by(data: np.ndarray, affine: np.ndarray, other: np.ndarray, other_affine: np.ndarray) -> Scan:
    """Return another person's scan, moved so that the centres of both fields of view agree."""
    moved = other_affine.copy()
    middle = apply(affine, (np.array(data.shape[:3]) - 1) / 2)
    moved[:3, 3] += middle - apply(other_affine, (np.array(other.shape[:3]) - 1) / 2)
    return other.copy(), moved


SPOILED: dict[str, Callable[[np.ndarray, np.ndarray], Scan]] = {
    "flipped": flip_left_right,
    "upside-down": turn_upside_down,
    "bias": add_bias,
    "gap-lost": lose_slice_gap,
    "half-voxels": halve_voxels,
    "small-voxels": shrink_voxels,
    "lower-cut": cut_lower,
    "upper-cut": cut_upper,
    "t2w": invert_contrast,
}
"""Ways to spoil a scan, by name."""


def spoil(name: str, data: np.ndarray, affine: np.ndarray) -> Scan:
    """Spoil a scan in a named way.

    Raises
    ------
    UsageError
        Unknown name.
    """
    if name not in SPOILED:
        raise UsageError(f"Unknown way to spoil a scan: {name!r}.", f"Choose one of {', '.join(SPOILED)}.")
    return SPOILED[name](data, affine)


def axis_along(codes: str, affine: np.ndarray) -> int:
    """Return the axis of the array along a direction: ``"RL"``, ``"AP"`` or ``"SI"``."""
    return next(axis for axis, code in enumerate(nib.orientations.aff2axcodes(affine)) if code in codes)


def _resized(affine: np.ndarray, axes: int | slice, factor: float) -> np.ndarray:
    resized = affine.copy()
    resized[:3, axes] *= factor
    return resized


def _cut(data: np.ndarray, affine: np.ndarray, from_below: bool) -> Scan:
    axis = axis_along("SI", affine)
    n_cut = round(CUT * data.shape[axis])
    at_start = from_below == (affine[2, axis] > 0)
    kept = slice(n_cut, None) if at_start else slice(0, data.shape[axis] - n_cut)
    moved = affine.copy()
    if at_start:
        moved[:3, 3] += n_cut * affine[:3, axis]
    return np.moveaxis(np.moveaxis(data, axis, 0)[kept], 0, axis), moved
