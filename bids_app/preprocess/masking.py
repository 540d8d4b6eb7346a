"""Non-steady-state volumes, head masks and brain masks from image intensities."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage
from skimage.filters import threshold_otsu

from bids_app.preprocess.io.images import Series, examine_bold, set_dummies
from bids_app.preprocess.io.volumes import VolumeSource

MAX_DUMMY_SECONDS = 15.0
OUTLIER_MADS = 4.0
MIN_EXCESS = 0.01


def prepare_bold(
    bold: Path,
    metadata: dict[str, Any],
    out_dir: Path,
    dummy_scans: int | None = None,
    events_end_s: float | None = None,
    ignore: Container[str] = (),
) -> Series:
    """Check a BOLD file, and count its non-steady-state volumes.

    Parameters
    ----------
    bold : pathlib.Path
    metadata : dict
        Its sidecar.
    out_dir : pathlib.Path
    dummy_scans : int, optional
        Number of dummy volumes; estimated from the signal by default.
    events_end_s : float, optional
        Onset of the last event, s.
    ignore : container of str
        ``slicetiming``: skip slice timing correction.

    Raises
    ------
    BadDataError
        The file or its sidecar is invalid.
    """
    series = examine_bold(bold, metadata, out_dir, events_end_s=events_end_s, ignore=ignore)
    return set_dummies(series, count_dummies(series.open_raw(), series.tr) if dummy_scans is None else dummy_scans)


def head_mask(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Compute a liberal mask of the head, (X, Y, Z) bool.

    Parameters
    ----------
    volume : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
    """
    smooth = ndimage.gaussian_filter(volume.astype(np.float32), 2.5 / voxel_sizes(affine))
    top = np.percentile(smooth, 99)
    mask = smooth > 0.6 * float(threshold_otsu(np.clip(smooth, None, top).ravel()))
    mask = largest_part(ndimage.binary_opening(mask))
    return ndimage.binary_fill_holes(ndimage.binary_dilation(mask))


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask."""
    labels, n_parts = ndimage.label(mask)
    if n_parts < 2:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def ball(radius_mm: float, affine: np.ndarray) -> np.ndarray:
    """Return the structuring element of a ball on a grid, bool."""
    sizes = voxel_sizes(affine)
    reach = np.maximum(np.floor(radius_mm / sizes), 0).astype(int)
    axes = [np.arange(-r, r + 1) * s for r, s in zip(reach, sizes, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2 + 1e-6


def brain_mask(boldref: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Estimate the brain mask of a bias-corrected boldref from its intensities, (X, Y, Z) bool.

    Threshold, opening (which removes eyes and muscles), largest component, dilation within the threshold, closing.

    Parameters
    ----------
    boldref : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
    """
    values = boldref[boldref > 0]
    top = np.percentile(values, 98)
    clipped = np.clip(boldref, 0, top)
    bright = clipped > 0.75 * float(threshold_otsu(clipped[clipped > 0.02 * top]))
    bright = ndimage.binary_fill_holes(bright)
    core = largest_part(ndimage.binary_opening(_padded(bright, 3), ball(6.0, affine))[3:-3, 3:-3, 3:-3])
    grown = ndimage.binary_dilation(core, ball(4.0, affine)) & bright
    closed = ndimage.binary_closing(_padded(grown, 4), ball(8.0, affine))[4:-4, 4:-4, 4:-4]
    return largest_part(ndimage.binary_fill_holes(closed))


def _padded(mask: np.ndarray, n: int) -> np.ndarray:
    """Extrapolate a mask beyond the field of view."""
    return np.pad(mask, n, mode="edge")


def count_dummies(source: VolumeSource, tr: float) -> int:
    """Count the non-steady-state volumes at the start of a run.

    Before T1 saturation volumes are brighter; the mean over the head is compared with the following volumes.

    Parameters
    ----------
    source : VolumeSource
    tr : float
        Repetition time, s.
    """
    n_first = min(source.shape[3], 50)
    n_max = min(int(np.ceil(MAX_DUMMY_SECONDS / tr)), n_first // 3)
    volumes = source.read(0, n_first)
    head = head_mask(volumes[n_max:].mean(axis=0), source.affine)
    means = volumes[:, head].mean(axis=1)
    rest = means[n_max:]
    middle = float(np.median(rest))
    spread = 1.4826 * float(np.median(np.abs(rest - middle)))
    limit = max(OUTLIER_MADS * spread, MIN_EXCESS * abs(middle))
    n_dummy = 0
    while n_dummy < n_max and means[n_dummy] - middle > limit:
        n_dummy += 1
    return n_dummy


def volume_ml(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the volume of a mask, mL."""
    return float(mask.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1e3
