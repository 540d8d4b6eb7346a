"""Optimal combination of the echoes of a run by T2* (Posse et al., 1999), with tedana's fit and weights.

Head motion comes from the first echo. The T2* map is fitted to the mean of aligned volumes. For each volume, it is
interpolated at the positions of the volume's voxels, so that the combined series itself needs no interpolation.

    V  voxels      E  echoes
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_app.errors import BadDataError
from bids_app.preprocess.hmc import N_REFERENCE, MotionEstimate, aligned_volumes, make_boldref, steady_volumes
from bids_app.preprocess.io.images import Series, read_volume, save_image, stamp_header
from bids_app.preprocess.io.series_writer import write_header
from bids_app.preprocess.io.volumes import VolumeSource, chunks
from bids_app.preprocess.masking import head_mask
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, sample

MAX_T2STAR_S = 0.5
"""Maximum T2*, s, as in fMRIPrep; noise makes it arbitrarily large in fluid."""
AFFINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CombinedEchoes:
    """The combined series, and the motion with the boldref of the combined series and its T2* map."""

    series: Series
    motion: MotionEstimate


@dataclass(frozen=True)
class DecayMap:
    """T2* on the grid of the boldref.

    Attributes
    ----------
    t2star : numpy.ndarray, (X, Y, Z)
        s; the median outside the head.
    n_good : numpy.ndarray, (X, Y, Z) int
        Number of echoes with signal, counted from the first; tedana's adaptive mask. All echoes outside the head.
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    """

    t2star: np.ndarray
    n_good: np.ndarray
    affine: np.ndarray


def combine_echoes(
    echoes: Sequence[Series], echo_times: Sequence[float], motion: MotionEstimate, out_dir: Path, threads: int = 1
) -> CombinedEchoes:
    """Combine the echoes of a run.

    Parameters
    ----------
    echoes : sequence of Series
        In order of echo time; the first is the one from which the motion was estimated.
    echo_times : sequence of float
        s.
    motion : MotionEstimate
    out_dir : pathlib.Path
    threads : int
        The result does not depend on it.

    Raises
    ------
    BadDataError
        An echo has another grid or number of volumes than the first.
    """
    first = echoes[0]
    sources = [echo.open_raw() for echo in echoes]
    check_same_grid([echo.source for echo in echoes], sources)
    poses = np.load(motion.motion)
    chosen = steady_volumes(poses, N_REFERENCE, first.n_dummy)
    means = np.stack(
        [aligned_volumes(source, poses, chosen, order=1, threads=threads).mean(axis=0) for source in sources], axis=-1
    )
    decay = fit_decay(means, echo_times, sources[0].affine)
    path = write_combined(sources, poses, decay, echo_times, first.tr, out_dir / "combined.nii")
    # scanners set late echoes to 0 where their signal is lost
    varies = np.any([read_volume(echo.data_mask)[0] > 0.5 for echo in echoes], axis=0)
    series = replace(
        first,
        path=path,
        data_mask=save_image(out_dir / "data_mask.nii.gz", varies.astype(np.uint8), decay.affine),
        warnings=tuple(dict.fromkeys(text for echo in echoes for text in echo.warnings)),
        omitted=tuple(dict.fromkeys(text for echo in echoes for text in echo.omitted)),
    )
    boldref = make_boldref(series.open_raw(), poses, first.n_dummy, threads)
    found = replace(
        motion,
        boldref=save_image(out_dir / "boldref.nii.gz", boldref, decay.affine),
        t2star=save_image(out_dir / "t2star.nii.gz", decay.t2star.astype(np.float32), decay.affine),
    )
    return CombinedEchoes(series, found)


def check_same_grid(paths: Sequence[Path], images: Sequence[Any]) -> None:
    """Check that all echoes have the grid and the number of volumes of the first.

    Parameters
    ----------
    paths : sequence of pathlib.Path
    images : sequence of VolumeSource or nibabel image
        The same echoes, with ``shape`` and ``affine``.

    Raises
    ------
    BadDataError
        An echo differs.
    """
    first = images[0]
    for path, image in zip(paths[1:], images[1:], strict=True):
        same_shape = tuple(image.shape) == tuple(first.shape)
        if not same_shape or not np.allclose(image.affine, first.affine, atol=AFFINE_TOLERANCE):
            what = "orientation" if same_shape else f"size ({'x'.join(map(str, image.shape))})"
            raise BadDataError(
                f"{path.name}: its {what} differs from that of {paths[0].name}.",
                "Convert the run again from DICOM, or process a single echo with --echo-idx.",
            )


def fit_decay(means: np.ndarray, echo_times: Sequence[float], affine: np.ndarray) -> DecayMap:
    """Fit T2* to mean images by tedana's log-linear fit.

    Parameters
    ----------
    means : numpy.ndarray, (X, Y, Z, E)
        Mean of the aligned volumes of each echo.
    echo_times : sequence of float
        s.
    affine : numpy.ndarray, (4, 4)
    """
    decay, _, utils = tedana_modules()
    head = head_mask(means[..., 0], affine)
    signal = np.maximum(means[head], 0).astype(np.float64)[..., None]  # (V, E, 1)
    milliseconds = 1000 * np.asarray(echo_times)
    _, n_good = utils.make_adaptive_mask(signal, threshold=1)
    fitted = n_good > 0
    t2star_ms = np.full(len(signal), np.nan)
    t2star_ms[fitted] = decay.fit_decay(signal[fitted], milliseconds, n_good[fitted], "loglin", report=False)[0]
    valid = np.isfinite(t2star_ms) & (t2star_ms > 0)
    middle = float(np.median(t2star_ms[valid])) if valid.any() else float(milliseconds.mean())
    t2star = np.full(head.shape, middle / 1000)
    t2star[head] = np.clip(np.where(valid, t2star_ms, middle) / 1000, 1e-3, MAX_T2STAR_S)
    good = np.full(head.shape, len(milliseconds))
    good[head] = np.where(valid, np.maximum(n_good, 2), len(milliseconds))  # tedana fits two echoes at least
    return DecayMap(t2star, good, affine)


def write_combined(
    sources: Sequence[VolumeSource],
    poses: np.ndarray,
    decay: DecayMap,
    echo_times: Sequence[float],
    tr: float,
    path: Path,
) -> Path:
    """Write the weighted mean of the echoes, volume by volume, as uncompressed float32.

    Parameters
    ----------
    sources : sequence of VolumeSource
        The raw series of the echoes.
    poses : numpy.ndarray, (T, 4, 4)
        Boldref point to point of volume t, RAS mm.
    decay : DecayMap
    echo_times : sequence of float
        s.
    tr : float
        s.
    path : pathlib.Path
    """
    _, combine, _ = tedana_modules()
    *grid, n_volumes = sources[0].shape
    points = grid_points(tuple(grid), decay.affine)
    milliseconds = 1000 * np.asarray(echo_times)
    header = nib.Nifti1Header()
    header.set_data_shape((*grid, n_volumes))
    header.set_data_dtype(np.float32)
    stamp_header(header, decay.affine, 1, tr)
    outside = float(np.median(decay.t2star))
    with path.open("wb") as file:
        write_header(file, header)
        for start, volumes in chunks(sources[0]):
            stop = start + len(volumes)
            signals = np.stack([volumes, *(source.read(start, stop) for source in sources[1:])], axis=-1)
            for pose, signal in zip(poses[start:stop], signals, strict=True):
                at = apply_matrix(np.linalg.inv(pose), points)
                t2star_ms = 1000 * np.maximum(sample(decay.t2star, decay.affine, at, cval=outside), 1e-3)
                n_good = sample(decay.n_good, decay.affine, at, order=0, cval=len(milliseconds)).round().astype(int)
                flat = signal.reshape(-1, len(milliseconds), 1)
                combined = combine.make_optcom(flat, milliseconds, np.maximum(n_good, 2), t2s=t2star_ms)
                file.write(combined.reshape(grid).astype(np.float32).tobytes(order="F"))
    return path


def tedana_modules():
    """Import tedana's fit, combination and utilities, without their log messages."""
    for name in ("GENERAL", "REPORT"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from tedana import combine, decay, utils

    return decay, combine, utils
