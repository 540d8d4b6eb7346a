"""Field maps in Hz from phase images.

The phase difference of two echoes is unwrapped in the head (Herráez et al., 2002, in scikit-image), divided by the
echo time difference, cleaned of outlier voxels, smoothed with weights from the magnitude, and extrapolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.bids.fieldmaps import DIRECT, TWO_PHASES, Fieldmap
from bids_app.errors import BadDataError
from bids_app.preprocess.masking import head_mask, largest_part
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.transforms import resample_to
from bids_app.preprocess.sdc.field import Field, read_epi

SMOOTHING_MM = 2.0
"""Standard deviation of the smoothing kernel."""
GYROMAGNETIC_HZ_PER_T = 42.577478e6
HZ_PER_UNIT = {"Hz": 1.0, "rad/s": 1 / (2 * np.pi), "T": GYROMAGNETIC_HZ_PER_T}
OUTLIER_MADS = 6.0


def phase_as_radians(phase: np.ndarray, units: Any, name: str) -> np.ndarray:
    """Convert a stored phase to radians.

    Parameters
    ----------
    phase : numpy.ndarray, (X, Y, Z)
    units : str or None
        Units of the sidecar. Without ``rad``, a range of about 2 pi is assumed to be radians, and any other range is
        scaled to 2 pi.
    name : str
        Name of the file, for messages.
    """
    low, high = float(phase.min()), float(phase.max())
    if not np.isfinite([low, high]).all() or high <= low:
        raise BadDataError(
            f"{name}: constant, or with NaN or infinite values.",
            "Convert it again from DICOM, or skip fieldmaps with --ignore fieldmaps.",
        )
    if units == "rad" or (low >= -3.2 and high <= 6.4 and 5.5 < high - low < 6.4):
        return phase
    steps = 2 ** round(np.log2(high - low + 1))  # scanners store 2 pi as a power of two
    turn = steps if abs(high - low + 1 - steps) < 0.05 * steps else high - low
    return phase * (2 * np.pi / turn)


def phase_difference_hz(phase: np.ndarray, seconds: float, magnitude: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Compute the field from the phase difference of two echoes, (X, Y, Z) float32 Hz.

    Parameters
    ----------
    phase : numpy.ndarray, (X, Y, Z)
        Radians, wrapped or unwrapped.
    seconds : float
        Echo time difference.
    magnitude : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
    """
    from skimage.restoration import unwrap_phase

    head = head_mask(magnitude, affine)
    inner = largest_part(ndimage.binary_erosion(head) & (magnitude > 0.1 * np.percentile(magnitude[head], 90)))
    wrapped = np.angle(np.exp(1j * phase.astype(np.float64)))
    unwrapped = np.ma.filled(unwrap_phase(np.ma.masked_array(wrapped, ~inner), rng=0), 0.0)
    unwrapped -= 2 * np.pi * np.round(np.median(unwrapped[inner]) / (2 * np.pi))
    return smooth_field(unwrapped / (2 * np.pi * seconds), inner, magnitude, affine)


def smooth_field(hz: np.ndarray, inner: np.ndarray, magnitude: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Smooth a field inside a mask and extrapolate it, (X, Y, Z) float32.

    Parameters
    ----------
    hz, magnitude : numpy.ndarray, (X, Y, Z)
    inner : numpy.ndarray, (X, Y, Z) bool
        Voxels with a valid field.
    affine : numpy.ndarray, (4, 4)
    """
    sizes = voxel_sizes(affine)
    typical = float(np.median(magnitude[inner])) or 1.0
    weights = np.where(inner, np.clip(magnitude / typical, 0.05, 2.0) ** 2, 0.0)
    around = _weighted_mean(hz, weights, 2 * SMOOTHING_MM / sizes)
    away = np.abs(hz - around)
    spread = 1.4826 * float(np.median(away[inner]))
    weights[away > OUTLIER_MADS * max(spread, 1e-6)] = 0
    found = _weighted_mean(hz, weights, SMOOTHING_MM / sizes)
    known = ndimage.gaussian_filter(weights, SMOOTHING_MM / sizes) > 0.02
    for sigma_mm in (4.0, 8.0, 16.0, 32.0, 64.0):
        if known.all():
            break
        sigma = sigma_mm / sizes
        reach = ndimage.gaussian_filter(weights, sigma) > 1e-3
        found = np.where(known | ~reach, found, _weighted_mean(hz, weights, sigma))
        known |= reach
    return np.where(known, found, np.median(hz[inner])).astype(np.float32)


def _weighted_mean(values: np.ndarray, weights: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    total = ndimage.gaussian_filter(weights, sigma)
    return ndimage.gaussian_filter(values * weights, sigma) / np.maximum(total, 1e-6)


def measured_hz(field: np.ndarray, units: Any, magnitude: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    """Convert a field computed by the scanner to Hz and smooth it, (X, Y, Z) float32.

    Raises
    ------
    BadDataError
        Units are not Hz, rad/s or T.
    """
    if units not in HZ_PER_UNIT:
        raise BadDataError(
            f"{name}: unsupported Units {units!r} in the sidecar.",
            f"Set Units to {', '.join(HZ_PER_UNIT)} in the JSON file, or skip fieldmaps with --ignore fieldmaps.",
        )
    head = head_mask(magnitude, affine)
    return smooth_field(np.nan_to_num(field) * HZ_PER_UNIT[units], head, magnitude, affine)


def phase_field(fieldmap: Fieldmap) -> Field:
    """Compute the field from phase images or from a direct field map."""
    images = [read_epi(path) for path in fieldmap.files]
    first, name = images[0], fieldmap.files[0].name
    magnitudes = [
        image
        for image, path in zip(images, fieldmap.files, strict=True)
        if "_magnitude" in path.name
    ]  # fmt: skip
    on_grid = [resample_to(m.data, m.affine, first.data.shape, first.affine) for m in magnitudes]
    magnitude = on_grid[0]
    units = fieldmap.metadata[0].get("Units")
    if fieldmap.kind == DIRECT:
        hz = measured_hz(first.data, units, magnitude, first.affine, name)
        return Field(hz, Image(magnitude, first.affine))
    if fieldmap.kind == TWO_PHASES:
        echoes = [fieldmap.metadata[i].get("EchoTime") for i in (0, 1)]
        second = images[1]
        if second.data.shape != first.data.shape or not np.allclose(second.affine, first.affine, atol=1e-3):
            raise BadDataError(
                f"{name}: grid differs from that of {fieldmap.files[1].name}.",
                "Convert both images again from DICOM, or skip fieldmaps with --ignore fieldmaps.",
            )
        phases = [
            phase_as_radians(image.data, fieldmap.metadata[i].get("Units"), name) for i, image in enumerate(images[:2])
        ]
        phase = phases[1] - phases[0]
    else:
        echoes = [fieldmap.metadata[0].get(key) for key in ("EchoTime1", "EchoTime2")]
        phase = phase_as_radians(first.data, units, name)
    seconds = _time_between(echoes, name)
    return Field(phase_difference_hz(phase, seconds, magnitude, first.affine), Image(magnitude, first.affine))


def _time_between(echoes: Sequence[Any], name: str) -> float:
    """Compute the time between two echoes, s."""
    first, second = echoes
    known = all(isinstance(echo, int | float) for echo in (first, second))
    if not known or not 1e-4 < second - first < 0.1:
        raise BadDataError(
            f"{name}: invalid echo times of {first!r} and {second!r} s in the sidecar.",
            "Set EchoTime1 and EchoTime2 (phasediff) or the EchoTime of both images (phase1, phase2) in s, or skip "
            "fieldmaps with --ignore fieldmaps.",
        )
    return float(second - first)
