"""Figures of a run's quality, under MRIQC's names where MRIQC has the same figure (Esteban et al., 2017).

All are of the motion-corrected series in the brain mask, without the non-steady-state volumes, and of the boldref. The
series is read in blocks of voxels, or volume by volume, and never as a whole in float.

    T  volumes of the run, dummies included      V  voxels of the brain mask
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import stats

FD_LIMIT_MM = 0.5
"""Framewise displacement above which `fd_num` and `fd_perc` count a volume; MRIQC's own default is 0.2 mm."""
BLOCK_BYTES = 32 * 2**20
N_SMOOTHNESS = 32
"""Volumes whose smoothness is measured."""
N_OUTLIER_VOXELS = 20_000
"""Voxels, spread over the brain, that `aor` and `aqi` look at."""
AXES = ("x", "y", "z")
GHOST_AXES = ("x", "y")
EMPTY = 1e-6
"""A background with less than this share of the brain's energy was set to 0 by the scanner."""


def compute_iqms(
    values: np.ndarray, mask: np.ndarray, boldref: np.ndarray, affine: np.ndarray, fd_mm: np.ndarray, n_dummy: int = 0
) -> dict[str, float]:
    """All figures that come from a run's own signal.

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
        Motion-corrected series, voxels in the order of ``mask``; may be mapped from a file.
    mask : numpy.ndarray, (X, Y, Z) bool
        The brain on the boldref's grid, V voxels.
    boldref : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    fd_mm : numpy.ndarray, (T,)
        Framewise displacement; NaN for the first volume.
    n_dummy : int
        Volumes at the start that are left out.

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
    """Mean and largest framewise displacement (mm), and how many volumes are above a limit (number, percent).

    Parameters
    ----------
    fd_mm : numpy.ndarray, (T,)
        As by Power et al. (2012), rotations on a sphere of 50 mm; NaN where there is no volume before.
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
    """Temporal SNR, global correlation and smoothness, from one pass over the series.

    - ``tsnr``: median over the brain of mean over standard deviation in time (Krueger and Glover, 2001).
    - ``gcor``: mean of the correlations of all pairs of voxels, which is the squared length of the mean of all unit
      series (Saad et al., 2013).
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
    """Smoothness of noise as the FWHM of a Gaussian, mm along right, anterior and superior, and their geometric mean.

    From the variance of the differences of neighbours (Forman et al., 1995): with ``r = 1 - var(difference) / (2 var)``
    the FWHM is ``voxel size * sqrt(-2 ln 2 / ln r)``; the geometric mean over volumes. Volumes whose neighbours are not
    alike (``r`` at most 0) count as not smooth along that axis and are left out.

    Parameters
    ----------
    residuals : iterator of numpy.ndarray, (V,)
        Volumes without their slow trends, voxels in the order of ``mask``.
    mask : numpy.ndarray, (X, Y, Z) bool
    affine : numpy.ndarray, (4, 4)
    """
    pairs = [_neighbours(mask, axis) for axis in range(3)]
    found: list[list[float]] = [[], [], []]
    for noise in residuals:
        variance = float(noise.var(dtype=np.float64))
        for axis, (one, other) in enumerate(pairs):
            if variance > 0 and len(one):
                alike = 1 - float((noise[one] - noise[other]).var(dtype=np.float64)) / (2 * variance)
                if 0 < alike < 1:
                    found[axis].append(math.log(alike))
    sizes = voxel_sizes(affine)
    fwhm = {}
    for axis, logs in enumerate(found):
        name = AXES[int(nib.orientations.io_orientation(affine)[axis, 0])]
        widths = sizes[axis] * np.sqrt(-2 * math.log(2) / np.array(logs)) if logs else np.array([math.nan])
        fwhm[f"fwhm_{name}"] = float(np.exp(np.log(widths).mean()))
    fwhm["fwhm_avg"] = float(np.exp(np.mean([math.log(width) for width in fwhm.values()])))
    return {name: fwhm[name] for name in ("fwhm_avg", "fwhm_x", "fwhm_y", "fwhm_z")}


def outlier_iqms(values: np.ndarray, n_dummy: int = 0) -> dict[str, float]:
    """Outlier ratio and quality index of AFNI, on voxels spread over the brain.

    - ``aor``: share of values farther from their voxel's median than ``a * sqrt(pi / 2) * MAD``, where a normal value
      lies beyond ``a`` with probability ``0.001 / T`` (AFNI's ``3dToutcount``); the mean over volumes.
    - ``aqi``: mean over volumes of 1 less Spearman's correlation of the volume with the median volume (``3dTqual``).

    Both are of the series after motion correction; MRIQC's are of the raw one.

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
    n_dummy : int
    """
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
    unlike = [1 - float(ranks @ _ranks(row)) for row in few]
    return {"aor": outliers / (n_volumes * n_voxels), "aqi": float(np.mean(unlike))}


def image_iqms(boldref: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Figures of the reference image; NaN where it has no background to compare with.

    - ``snr``: median over the brain divided by the standard deviation there (with ``n - 1``); this counts the brain's
      own contrast as noise, as MRIQC's does (Dietrich et al., 2007).
    - ``efc``: entropy of the image's brightness over that of an image of one brightness (Atkinson et al., 1997); ghosts
      and blur raise it.
    - ``fber``: median energy in the brain over that of the background (Shehzad et al., 2015).
    - ``gsr_x``, ``gsr_y``: mean of the background where a ghost of half the field of view falls, less that of the rest
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
    """Polynomials in time up to one order for each 30 volumes, orthonormal, (T, K); AFNI's rule for slow trends."""
    order = 1 + n_volumes // 30
    return np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, n_volumes), order))[0]


def _blocks(n_voxels: int, n_volumes: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (8 * n_volumes))
    for first in range(0, n_voxels, step):
        yield slice(first, min(first + step, n_voxels))


def _neighbours(mask: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, within the mask, of voxels and of their neighbours along an axis."""
    number = np.full(mask.shape, -1, dtype=np.int64)
    number[mask] = np.arange(int(mask.sum()))
    one = np.take(number, range(mask.shape[axis] - 1), axis).ravel()
    other = np.take(number, range(1, mask.shape[axis]), axis).ravel()
    both = (one >= 0) & (other >= 0)
    return one[both], other[both]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values, centred and of length 1; 0 where all are alike."""
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
