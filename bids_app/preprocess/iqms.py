"""Image quality metrics (IQMs) of a run, under MRIQC's names where MRIQC has the metric (Esteban et al., 2017).

They are computed from the motion-corrected series in the brain mask, without non-steady-state volumes, and from the
boldref. The series is read in blocks of voxels or volume by volume.

    T  volumes of the run, dummies included      V  voxels of the brain mask
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

FD_LIMIT_MM = 0.5
"""Threshold of framewise displacement for `fd_num` and `fd_perc`; MRIQC's default is 0.2 mm."""
BLOCK_BYTES = 32 * 2**20
N_SMOOTHNESS = 32
"""Number of volumes for smoothness."""
N_OUTLIER_VOXELS = 20_000
"""Number of voxels, spread over the brain, for `aor` and `aqi`."""
AXES = ("x", "y", "z")
GHOST_AXES = ("x", "y")
EMPTY = 1e-6
"""A background with less than this share of the brain's energy counts as set to 0 by the scanner."""


def compute_iqms(
    values: np.ndarray, mask: np.ndarray, boldref: np.ndarray, affine: np.ndarray, fd_mm: np.ndarray, n_dummy: int = 0
) -> dict[str, float]:
    """Compute all image quality metrics of a run.

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
        Motion-corrected series, voxels in the order of ``mask``; may be memory-mapped.
    mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask on the boldref's grid, V voxels.
    boldref : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    fd_mm : numpy.ndarray, (T,)
        Framewise displacement; NaN for the first volume.
    n_dummy : int
        Dummy volumes at the start, which are excluded.

    Returns
    -------
    dict of str to float
        See `motion_iqms`, `series_iqms`, `outlier_iqms` and `image_iqms`.
    """
    return {
        **motion_iqms(fd_mm[n_dummy + 1 :]),
        **series_iqms(values, mask, affine, n_dummy),
        **outlier_iqms(values, n_dummy),
        **image_iqms(boldref, mask, affine),
    }


def motion_iqms(fd_mm: np.ndarray, limit_mm: float = FD_LIMIT_MM) -> dict[str, float]:
    """Compute mean and maximum framewise displacement (mm), and the volumes above a limit (number, percent).

    Parameters
    ----------
    fd_mm : numpy.ndarray, (T,)
        By Power et al. (2012), rotations on a sphere of 50 mm; NaN for the first volume.
    limit_mm : float
    """
    known = fd_mm[np.isfinite(fd_mm)]
    above = float((known > limit_mm).sum())
    return {
        "fd_mean": float(known.mean()) if len(known) else math.nan,
        "fd_max": float(known.max()) if len(known) else math.nan,
        "fd_num": above,
        "fd_perc": 100 * above / max(len(known), 1),
    }


def series_iqms(values: np.ndarray, mask: np.ndarray, affine: np.ndarray, n_dummy: int = 0) -> dict[str, float]:
    """Compute temporal SNR, global correlation and smoothness in one pass over the series.

    - ``tsnr``: median over the brain of temporal mean over temporal standard deviation (Krueger and Glover, 2001).
    - ``gcor``: mean correlation of all pairs of voxels, equal to the squared norm of the mean of all unit series
      (Saad et al., 2013).
    - ``fwhm_x``, ``_y``, ``_z``, ``_avg``: see `smoothness`.

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
    mask : numpy.ndarray, (X, Y, Z) bool
    affine : numpy.ndarray, (4, 4)
    n_dummy : int
    """
    n_volumes, n_voxels = len(values) - n_dummy, values.shape[1]
    trends = trend_basis(n_volumes)
    weights = np.zeros((trends.shape[1], n_voxels), dtype=np.float32)
    ratios = np.zeros(n_voxels)
    direction = np.zeros(n_volumes)
    for own in _blocks(n_voxels, n_volumes):
        block = np.asarray(values[n_dummy:, own], dtype=np.float64)
        weights[:, own] = trends.T @ block
        mean = block.mean(axis=0)
        block -= mean
        spread = np.sqrt((block**2).mean(axis=0))
        alive = spread > 0
        ratios[own] = np.divide(mean, spread, out=np.zeros_like(mean), where=alive)
        direction += (block[:, alive] / (spread[alive] * math.sqrt(n_volumes))).sum(axis=1)
    direction /= n_voxels
    chosen = np.unique(np.linspace(0, n_volumes - 1, min(N_SMOOTHNESS, n_volumes)).round().astype(int))
    residuals = (values[n_dummy + t] - trends[t].astype(np.float32) @ weights for t in chosen)
    return {
        "tsnr": float(np.median(ratios)),
        "gcor": float(direction @ direction),
        **smoothness(residuals, mask, affine),
    }


def smoothness(residuals: Iterator[np.ndarray], mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Estimate the smoothness of noise as FWHM, mm along x, y and z (RAS), and their geometric mean.

    From the variance of the differences of neighbours (Forman et al., 1995): with ``r = 1 - var(difference) / (2 var)``
    the FWHM is ``voxel size * sqrt(-2 ln 2 / ln r)``; the geometric mean over volumes. Volumes with uncorrelated
    neighbours (``r <= 0``) are excluded for that axis.

    Parameters
    ----------
    residuals : iterator of numpy.ndarray, (V,)
        Detrended volumes, voxels in the order of ``mask``.
    mask : numpy.ndarray, (X, Y, Z) bool
    affine : numpy.ndarray, (4, 4)
    """
    pairs = [_neighbours(mask, axis) for axis in range(3)]
    found: list[list[float]] = [[], [], []]
    for noise in residuals:
        variance = float(noise.var(dtype=np.float64))
        for axis, (one, other) in enumerate(pairs):
            if variance > 0 and len(one):
                r = 1 - float((noise[one] - noise[other]).var(dtype=np.float64)) / (2 * variance)
                if 0 < r < 1:
                    found[axis].append(math.log(r))
    sizes = voxel_sizes(affine)
    fwhm = {}
    for axis, logs in enumerate(found):
        name = AXES[int(nib.orientations.io_orientation(affine)[axis, 0])]
        widths = sizes[axis] * np.sqrt(-2 * math.log(2) / np.array(logs)) if logs else np.array([math.nan])
        fwhm[f"fwhm_{name}"] = float(np.exp(np.log(widths).mean()))
    fwhm["fwhm_avg"] = float(np.exp(np.mean([math.log(width) for width in fwhm.values()])))
    return {name: fwhm[name] for name in ("fwhm_avg", "fwhm_x", "fwhm_y", "fwhm_z")}


def outlier_iqms(values: np.ndarray, n_dummy: int = 0) -> dict[str, float]:
    """Compute AFNI's outlier ratio and quality index on voxels spread over the brain.

    - ``aor``: share of values farther from their voxel's median than ``a * sqrt(pi / 2) * MAD``, where a normal value
      exceeds ``a`` with probability ``0.001 / T`` (AFNI's ``3dToutcount``); the mean over volumes.
    - ``aqi``: mean over volumes of 1 minus Spearman's correlation of the volume with the median volume (``3dTqual``).

    Both are computed after head-motion correction; MRIQC computes them from the raw series.

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
    n_dummy : int
    """
    from scipy import stats  # takes a quarter of a second to import

    step = max(1, -(-values.shape[1] // N_OUTLIER_VOXELS))
    few = np.stack([np.asarray(row[::step]) for row in values[n_dummy:]])  # (T, at most N_OUTLIER_VOXELS)
    n_volumes, n_voxels = few.shape
    middle = np.empty(n_voxels, dtype=few.dtype)
    outliers = 0
    far = float(stats.norm.isf(0.001 / n_volumes)) * math.sqrt(math.pi / 2)
    for own in _blocks(n_voxels, n_volumes):
        block = few[:, own]
        middle[own] = np.median(block, axis=0)
        away = np.abs(block - middle[own])
        limit = far * np.median(away, axis=0)
        outliers += int((away > limit)[:, limit > 0].sum())
    ranks = _ranks(middle)
    distances = [1 - float(ranks @ _ranks(row)) for row in few]
    return {"aor": outliers / (n_volumes * n_voxels), "aqi": float(np.mean(distances))}


def image_iqms(boldref: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Compute image quality metrics of the boldref; NaN where they require a background and there is none.

    - ``snr``: median over the brain divided by the standard deviation there (with ``n - 1``); as in MRIQC, the brain's
      own contrast counts as noise (Dietrich et al., 2007).
    - ``efc``: entropy focus criterion, the image's entropy over that of a uniform image (Atkinson et al., 1997);
      ghosting and blurring increase it.
    - ``fber``: median energy in the brain over that of the background (Shehzad et al., 2015).
    - ``gsr_x``, ``gsr_y``: ghost-to-signal ratio, the mean of the background at the N/2 ghost minus that of the rest
      of the background, over the median of the brain (Giannelli et al., 2010).

    Parameters
    ----------
    boldref : numpy.ndarray, (X, Y, Z)
    mask : numpy.ndarray, (X, Y, Z) bool
    affine : numpy.ndarray, (4, 4)
    """
    image = np.maximum(boldref, 0).astype(np.float64)
    brain = image[mask]
    spread = float(brain.std(ddof=1))
    energy = float(np.median(image[~mask] ** 2)) if not mask.all() else 0.0
    middle = float(np.median(brain))
    found = {
        "snr": middle / spread if spread > 0 else math.nan,
        "efc": _entropy_focus(image),
        "fber": float(np.median(brain**2)) / energy if energy > EMPTY * middle**2 else math.nan,
    }
    to_axis = nib.orientations.io_orientation(affine)[:, 0].astype(int)
    for name in GHOST_AXES:
        axis = int(np.flatnonzero(to_axis == AXES.index(name))[0])
        ghost = np.roll(mask, mask.shape[axis] // 2, axis) & ~mask
        rest = ~mask & ~ghost
        usable = ghost.any() and rest.any() and middle > 0
        found[f"gsr_{name}"] = float(image[ghost].mean() - image[rest].mean()) / middle if usable else math.nan
    return found


def trend_basis(n_volumes: int) -> np.ndarray:
    """Return orthonormal polynomials in time with order 1 + T / 30, (T, K), by AFNI's rule for detrending."""
    order = 1 + n_volumes // 30
    return np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, n_volumes), order))[0]


def _blocks(n_voxels: int, n_volumes: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (8 * n_volumes))
    for first in range(0, n_voxels, step):
        yield slice(first, min(first + step, n_voxels))


def _neighbours(mask: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return in-mask indices of voxels and of their neighbours along an axis."""
    number = np.full(mask.shape, -1, dtype=np.int64)
    number[mask] = np.arange(int(mask.sum()))
    one = np.take(number, range(mask.shape[axis] - 1), axis).ravel()
    other = np.take(number, range(1, mask.shape[axis]), axis).ravel()
    both = (one >= 0) & (other >= 0)
    return one[both], other[both]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank values, centre the ranks and scale them to norm 1; 0 if all values are equal."""
    from scipy import stats  # takes a quarter of a second to import

    ranks = stats.rankdata(values)
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks


def _entropy_focus(image: np.ndarray) -> float:
    flat = image.ravel()
    length = float(np.linalg.norm(flat))
    if not length:
        return math.nan
    share = flat[flat > 0] / length
    most = math.sqrt(flat.size) * math.log(1 / math.sqrt(flat.size))
    return float((share * np.log(share)).sum()) / most
