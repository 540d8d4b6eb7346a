"""Confounds of a run under fMRIPrep's column names, and image quality metrics.

The brain voxels of the series are resampled to the boldref's grid once, into a file of the work folder, which is read
in blocks of voxels or volumes.

    T  volumes of the run, dummies included      V  voxels of the brain mask
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bids_app.preprocess.hmc import MotionEstimate, framewise_displacement
from bids_app.preprocess.io.arrays import create_array
from bids_app.preprocess.io.images import Series, read_volume
from bids_app.preprocess.iqms import compute_iqms
from bids_app.preprocess.registration.alignment import Alignment
from bids_app.preprocess.registration.transforms import apply_matrix, fsl_parameters, grid_points
from bids_app.preprocess.resample import pull_volumes
from bids_app.preprocess.sdc.apply import distort_points

MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
HIGH_PASS_S = 128.0
COMPCOR_VARIANCE = 0.5
TCOMPCOR_SHARE = 0.02
"""Share of the brain voxels that tCompCor uses: those with the highest variance (Behzadi et al., 2007)."""
DVARS_SPIKE = 1.5
"""Standardised DVARS above which a volume counts as a motion outlier, as in fMRIPrep."""
DVARS_MEDIAN = 1000.0
"""Median intensity to which series are scaled before DVARS."""
BLOCK = 8192


@dataclass(frozen=True)
class Confounds:
    """Confounds table and sidecar of a run; ``carpet`` is (T, V) float32, in-mask voxels on the boldref's grid."""

    table: Path
    sidecar: Path
    carpet: Path
    quality: dict[str, float] = field(default_factory=dict)


class HeadMotion(NamedTuple):
    """Head motion of a run in the convention of FSL, which fMRIPrep's tables use.

    ``parameters`` are translations (mm) and rotations (rad) from volume to reference, (T, 6), in voxel axes about the
    centre of the field of view. ``rmsd`` is the root mean square displacement between volumes, (T,) mm.
    """

    parameters: np.ndarray
    rmsd: np.ndarray

    @classmethod
    def of(cls, poses: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> HeadMotion:
        """Convert poses (T, 4, 4), reference point to point of volume t, RAS mm, on the grid of the reference."""
        centre = apply_matrix(affine, (np.array(shape[:3]) - 1) / 2)
        return cls(fsl_parameters(poses, shape, affine), compute_rmsd(poses, centre))


def measure_confounds(
    series: Series,
    motion: MotionEstimate,
    alignment: Alignment,
    out_dir: Path,
    fd_threshold: float = 0.5,
    threads: int = 1,
) -> Confounds:
    """Resample the run to the boldref's grid, and compute confounds and image quality metrics.

    Parameters
    ----------
    series : Series
    motion : MotionEstimate
    alignment : Alignment
    out_dir : pathlib.Path
    fd_threshold : float
        Framewise displacement above which a volume is a motion outlier, mm.
    threads : int
    """
    brain, affine = read_volume(alignment.brain_mask)
    mask = brain > 0.5
    tissues = {
        "csf": read_volume(alignment.csf_mask)[0][mask] > 0.5,
        "white_matter": read_volume(alignment.wm_mask)[0][mask] > 0.5,
    }
    points = grid_points(mask.shape, affine, mask)
    poses = np.load(motion.motion)
    measured, gain = distort_points(motion.sdc, points)
    carpet = out_dir / "carpet.npy"
    values = create_array(carpet, (series.n_volumes, len(points)))
    row = 0
    for chunk in pull_volumes(series.open(), poses, measured, threads=threads, gain=gain):
        values[row : row + len(chunk)] = chunk
        row += len(chunk)
    values.flush()
    dvars = compute_dvars(values, series.n_dummy)
    head = HeadMotion.of(poses, mask.shape, affine)
    table, meta = confounds_table(values, head, tissues, series.tr, series.n_dummy, fd_threshold, dvars)
    boldref, _ = read_volume(motion.boldref)
    fd = table["framewise_displacement"].to_numpy()
    quality = compute_iqms(values, mask, boldref, affine, fd, series.n_dummy) | dvars.means(series.n_dummy)
    quality["n_motion_outliers"] = float(sum(name.startswith("motion_outlier") for name in table.columns))
    quality |= {f"{name}_voxels": float(where.sum()) for name, where in tissues.items()}
    table_file, sidecar = out_dir / "confounds.tsv", out_dir / "confounds.json"
    table.to_csv(table_file, sep="\t", index=False, na_rep="n/a", float_format="%.8g")
    sidecar.write_text(json.dumps(meta, indent=2) + "\n")
    return Confounds(table_file, sidecar, carpet, quality)


def confounds_table(
    values: np.ndarray,
    motion: HeadMotion,
    tissues: dict[str, np.ndarray],
    tr: float,
    n_dummy: int = 0,
    fd_threshold: float = 0.5,
    dvars: Dvars | None = None,
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Compute the confounds of a run.

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
        Motion-corrected series in the brain mask.
    motion : HeadMotion
    tissues : dict
        Masks ``csf`` and ``white_matter`` over the voxels, (V,) bool.
    tr : float
        s.
    n_dummy : int
        Number of non-steady-state volumes at the start.
    fd_threshold : float
        mm.
    dvars : Dvars, optional
        Computed from the series by default.

    Returns
    -------
    tuple
        The table, one row per volume; and its sidecar, one entry per column.
    """
    n_volumes = len(values)
    columns: dict[str, np.ndarray] = {}
    meta: dict[str, dict[str, Any]] = {}
    signals = {name: _mean_over(values, where) for name, where in tissues.items()}
    signals["csf_wm"] = _mean_over(values, np.logical_or.reduce(list(tissues.values())))
    signals = {"global_signal": _mean_over(values, np.ones(values.shape[1], dtype=bool))} | signals
    for name, signal in signals.items():
        expanded = {name: signal} if name == "csf_wm" else expand(name, signal)
        columns |= expanded
        meta |= {key: {"Description": _SIGNALS[name] + _expansion(key)} for key in expanded}
    dvars = dvars or compute_dvars(values, n_dummy)
    fd = np.concatenate([[np.nan], framewise_displacement(motion.parameters)[1:]])
    columns |= {"std_dvars": dvars.std, "dvars": dvars.nstd}
    columns |= {"framewise_displacement": fd, "rmsd": motion.rmsd}
    meta |= _MEASURES
    for name, parameter in zip(MOTION_COLUMNS, motion.parameters.T, strict=True):
        expanded = expand(name, parameter)
        columns |= expanded
        unit = "mm" if name.startswith("trans") else "rad"
        meta |= {key: _motion_entry(name, key, unit) for key in expanded}
    components, component_meta = compcor_columns(values, tissues, tr, n_dummy)
    columns |= components
    meta |= component_meta
    for k, cosine in enumerate(cosine_basis(n_volumes - n_dummy, tr).T):
        columns[f"cosine{k:02d}"] = np.concatenate([np.zeros(n_dummy), cosine])
        meta[f"cosine{k:02d}"] = {"Description": f"Discrete cosine for a high-pass filter of {HIGH_PASS_S:g} s."}
    for k in range(n_dummy):
        columns[f"non_steady_state_outlier{k:02d}"] = _spike(n_volumes, k)
        meta[f"non_steady_state_outlier{k:02d}"] = {"Description": "A volume before the signal was steady."}
    outliers = motion_outliers(fd, dvars.std, n_dummy, fd_threshold)
    threshold = f"framewise_displacement > {fd_threshold:g} mm or std_dvars > {DVARS_SPIKE:g}"
    meta |= {str(name): {"Description": "A volume with much motion.", "Threshold": threshold} for name in outliers}
    return pd.concat([pd.DataFrame(columns), outliers], axis=1), meta


def motion_outliers(fd_mm: np.ndarray, std_dvars: np.ndarray, n_dummy: int, fd_threshold_mm: float) -> pd.DataFrame:
    """Compute one column ``motion_outlierXX`` per volume above a threshold, 1 at that volume and 0 elsewhere.

    Parameters
    ----------
    fd_mm, std_dvars : numpy.ndarray, (T,)
        Framewise displacement and standardised DVARS; NaN is no outlier.
    n_dummy : int
        Non-steady-state volumes at the start, which are excluded.
    fd_threshold_mm : float
    """
    from niworkflows.interfaces.confounds import spike_regressors

    steady = pd.DataFrame({"framewise_displacement": fd_mm, "std_dvars": std_dvars})
    steady.iloc[:n_dummy] = np.nan
    limits = {"framewise_displacement": (">", fd_threshold_mm), "std_dvars": (">", DVARS_SPIKE)}
    return spike_regressors(steady, limits, concatenate=False).astype(int)


_SIGNALS = {
    "global_signal": "Mean signal of the brain mask",
    "csf": "Mean signal of cerebrospinal fluid away from grey matter",
    "white_matter": "Mean signal of white matter away from grey matter",
    "csf_wm": "Mean signal of cerebrospinal fluid and white matter",
}
_MEASURES: dict[str, dict[str, Any]] = {
    "std_dvars": {"Description": "DVARS over what is expected of a series with the same variance and autocorrelation."},
    "dvars": {
        "Description": "Root mean square over the brain of the change since the volume before; "
        f"brightness scaled to a median of {DVARS_MEDIAN:g}."
    },
    "framewise_displacement": {
        "Description": "Sum of the absolute changes of the six motion parameters, rotations on a sphere of 50 mm.",
        "Units": "mm",
    },
    "rmsd": {
        "Description": "Root mean square displacement since the volume before, in a sphere of 80 mm.",
        "Units": "mm",
    },
}


def expand(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return a column, its temporal derivative, and the squares of both, under fMRIPrep's names."""
    derivative = np.concatenate([[np.nan], np.diff(values)])
    return {
        name: values,
        f"{name}_derivative1": derivative,
        f"{name}_power2": values**2,
        f"{name}_derivative1_power2": derivative**2,
    }


def _expansion(key: str) -> str:
    text = ", change since the volume before" if "_derivative1" in key else ""
    return text + (", squared." if key.endswith("_power2") else ".")


def _motion_entry(name: str, key: str, unit: str) -> dict[str, str]:
    kind, axis = name.split("_")
    what = "Translation along" if kind == "trans" else "Rotation about"
    if key.endswith("_power2"):
        unit += "^2"
    return {
        "Description": f"{what} {axis} of the transform from the volume to the reference, in FSL's convention: voxel "
        f"axes, about the centre of the field of view{_expansion(key)}",
        "Units": unit,
    }


def _mean_over(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Compute the mean of each volume over a mask, (T,) float64; NaN if the mask is empty."""
    if not where.any():
        return np.full(len(values), np.nan)
    return np.array([np.mean(row[where], dtype=np.float64) for row in values])


def _spike(n_volumes: int, volume: int) -> np.ndarray:
    spike = np.zeros(n_volumes, dtype=int)
    spike[volume] = 1
    return spike


def blocks(values: np.ndarray, where: np.ndarray | None = None, start: int = 0):
    """Iterate over a series in blocks of voxels, (T - start, n) float64 each."""
    chosen = np.arange(values.shape[1]) if where is None else np.flatnonzero(where)
    for first in range(0, len(chosen), BLOCK):
        columns = chosen[first : first + BLOCK]
        if where is None:
            yield np.asarray(values[start:, columns[0] : columns[-1] + 1], dtype=np.float64)
        else:
            yield np.asarray(values[start:, columns], dtype=np.float64)


class Dvars(NamedTuple):
    """DVARS and its standardised forms, (T,) each; NaN for the first volume.

    Names as in MRIQC: ``nstd`` is the root mean square change of the series scaled to a median of 1000; ``std`` is
    divided by the mean over voxels of the change expected of a first-order autoregressive series with the voxel's
    robust standard deviation; ``vstd`` is divided by it in each voxel, before the mean over voxels.
    """

    nstd: np.ndarray
    std: np.ndarray
    vstd: np.ndarray

    def means(self, n_dummy: int = 0) -> dict[str, float]:
        """Compute means over the steady-state volumes: ``dvars_nstd``, ``dvars_std``, ``dvars_vstd``."""
        return {f"dvars_{name}": float(np.nanmean(values[n_dummy + 1 :])) for name, values in self._asdict().items()}


def compute_dvars(values: np.ndarray, n_dummy: int = 0) -> Dvars:
    """Compute DVARS and its standardised forms (Power et al., 2012; Nichols, 2013).

    Parameters
    ----------
    values : numpy.ndarray, (T, V)
    n_dummy : int
        Dummy volumes at the start, which are excluded from the standardisation.
    """
    n_volumes, n_voxels = values.shape
    squares = np.zeros(n_volumes - 1)
    voxelwise = np.zeros(n_volumes - 1)
    expected = 0.0
    n_alive = 0
    step = max(1, n_volumes // 20)
    scale = DVARS_MEDIAN / float(np.median(values[n_dummy::step]))
    for block in blocks(values):
        change = np.diff(block, axis=0) ** 2
        squares += change.sum(axis=1)
        steady = block[n_dummy:]
        low, high = np.percentile(steady, [25, 75], axis=0, method="lower")
        spread = (high - low) / 1.349
        alive = spread > 0
        centred = steady[:, alive] - steady[:, alive].mean(axis=0)
        autocorrelation = (centred[1:] * centred[:-1]).sum(axis=0) / (centred**2).sum(axis=0)
        expected_square = 2 * (1 - autocorrelation) * spread[alive] ** 2
        expected += float(np.sqrt(expected_square).sum())
        voxelwise += (change[:, alive] / expected_square).sum(axis=1)
        n_alive += int(alive.sum())
    dvars = np.sqrt(squares / n_voxels)
    mean_expected = expected / max(n_alive, 1)
    std = dvars / mean_expected if mean_expected else np.full_like(dvars, np.nan)
    vstd = np.sqrt(voxelwise / n_alive) if n_alive else np.full_like(dvars, np.nan)
    return Dvars(*(np.concatenate([[np.nan], values]) for values in (dvars * scale, std, vstd)))


def compute_rmsd(poses: np.ndarray, centre: np.ndarray, radius_mm: float = 80.0) -> np.ndarray:
    """Compute the root mean square displacement between volumes (Jenkinson, 1999), (T,) mm; NaN for the first.

    Parameters
    ----------
    poses : numpy.ndarray, (T, 4, 4)
        Reference point to point of volume t, RAS mm.
    centre : numpy.ndarray, (3,)
        Centre of the sphere, mm.
    radius_mm : float
    """
    to_reference = np.linalg.inv(poses)
    moved = to_reference[1:] @ poses[:-1] - np.eye(4)
    turn = moved[:, :3, :3]
    shift = moved[:, :3, 3] + turn @ centre
    mean_square = radius_mm**2 / 5 * (turn**2).sum(axis=(1, 2)) + (shift**2).sum(axis=1)
    return np.concatenate([[np.nan], np.sqrt(mean_square)])


def cosine_basis(n_volumes: int, tr: float, period_s: float = HIGH_PASS_S) -> np.ndarray:
    """Compute discrete cosines with periods above ``period_s``, without the constant, (T, K)."""
    order = int(np.floor(2 * n_volumes * tr / period_s))
    at = np.arange(n_volumes) + 0.5
    return np.sqrt(2 / n_volumes) * np.cos(np.pi / n_volumes * np.outer(at, np.arange(1, order)))


def compcor_columns(
    values: np.ndarray, tissues: dict[str, np.ndarray], tr: float, n_dummy: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Compute CompCor components (Behzadi et al., 2007), those that explain half of the variance.

    Anatomical: of CSF (``c_``), white matter (``w_``) and both combined (``a_comp_cor``). Temporal: of the voxels with
    the highest variance (``t_comp_cor``).
    """
    masks = {
        "t": ("high variance", high_variance_voxels(values, tr, n_dummy)),
        "c": ("CSF", tissues["csf"]),
        "w": ("WM", tissues["white_matter"]),
        "a": ("combined", tissues["csf"] | tissues["white_matter"]),
    }
    columns: dict[str, np.ndarray] = {}
    meta: dict[str, dict[str, Any]] = {}
    for letter, (mask_name, where) in masks.items():
        if where.sum() < 10:
            continue
        components, singular, share = principal_components(values, where, tr, n_dummy)
        n_kept = min(int(np.searchsorted(np.cumsum(share), COMPCOR_VARIANCE)) + 1, len(share))
        for k in range(n_kept):
            name = f"{letter}_comp_cor_{k:02d}"
            columns[name] = np.concatenate([np.zeros(n_dummy), components[:, k]])
            meta[name] = {
                "Description": f"Component {k} of the {mask_name} voxels, high-pass filtered.",
                "Method": "tCompCor" if letter == "t" else "aCompCor",
                "Mask": mask_name,
                "Retained": True,
                "SingularValue": float(singular[k]),
                "VarianceExplained": float(share[k]),
                "CumulativeVarianceExplained": float(share[: k + 1].sum()),
            }
    return columns, meta


def slow_basis(n_volumes: int, tr: float) -> np.ndarray:
    """Compute an orthonormal basis of the constant and the slow cosines, (T, K)."""
    return np.linalg.qr(np.column_stack([np.ones(n_volumes), cosine_basis(n_volumes, tr)]))[0]


def high_variance_voxels(values: np.ndarray, tr: float, n_dummy: int = 0) -> np.ndarray:
    """Return the `TCOMPCOR_SHARE` of voxels with the highest variance after high-pass filtering, (V,) bool."""
    slow = slow_basis(len(values) - n_dummy, tr)
    variance = np.concatenate(
        [(block**2).sum(axis=0) - ((slow.T @ block) ** 2).sum(axis=0) for block in blocks(values, start=n_dummy)]
    )
    return variance > np.quantile(variance, 1 - TCOMPCOR_SHARE)


def principal_components(
    values: np.ndarray, where: np.ndarray, tr: float, n_dummy: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute temporal principal components of voxels in a mask, high-pass filtered and scaled to variance 1.

    Returns
    -------
    tuple of numpy.ndarray
        Components (T - n_dummy, K) of length 1, the largest entry of each positive; singular values (K,); shares of the
        variance (K,).
    """
    n_volumes = len(values) - n_dummy
    slow = slow_basis(n_volumes, tr)
    covariance = np.zeros((n_volumes, n_volumes))
    for block in blocks(values, where, n_dummy):
        block = block - slow @ (slow.T @ block)
        spread = block.std(axis=0)
        block = block[:, spread > 0] / spread[spread > 0]
        covariance += block @ block.T
    size, vectors = np.linalg.eigh(covariance)
    size, vectors = np.maximum(size[::-1], 0), vectors[:, ::-1]
    alive = size > size[0] * 1e-9 if len(size) and size[0] > 0 else size > 0
    size, vectors = size[alive], vectors[:, alive]
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return vectors * np.sign(peaks), np.sqrt(size), size / max(size.sum(), 1e-30)
