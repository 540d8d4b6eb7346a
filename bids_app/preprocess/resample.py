"""Resampling of raw volumes in a single interpolation: motion, alignment and warps are combined before it.

    V  points of the target grid      T  volumes of the run

The chain maps the V points to the boldref once; each volume's motion maps them on to the volume, where a cubic spline
is evaluated. The series is processed in chunks of volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.clips.series import GridSeriesWriter
from bids_app.errors import BadDataError
from bids_app.preprocess import spline
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.io.series_writer import SeriesWriter
from bids_app.preprocess.io.volumes import VolumeSource, chunks
from bids_app.preprocess.output_space import find_output_space
from bids_app.preprocess.preprocessed import AlignedSeries
from bids_app.preprocess.registration.spaces import chain_between, template_brain
from bids_app.preprocess.registration.transforms import Chain, apply_matrix, grid_points, sample
from bids_app.preprocess.sdc.apply import distort_points

POSES_CHECKED = 60
ON_VOXEL = 1e-3
"""Largest distance (voxels) at which a point coincides with a voxel; headers store affines in 32 bits."""
SHARE_INSIDE = 0.9
"""Minimum share of volumes in which a point is in the field of view."""


def pull_volumes(
    source: VolumeSource,
    motion: np.ndarray | None,
    points: np.ndarray,
    first: int = 0,
    threads: int = 1,
    gain: np.ndarray | None = None,
    device: str = "cpu",
) -> Iterator[np.ndarray]:
    """Interpolate each volume at points of the boldref, chunk by chunk.

    Parameters
    ----------
    source : VolumeSource
        The raw series.
    motion : numpy.ndarray, (T, 4, 4), optional
        Boldref point to point of volume t, RAS mm; None: no motion, and points on voxels are copied.
    points : numpy.ndarray, (V, 3)
        In the boldref's space, RAS mm; distorted positions if the run has a distortion correction.
    first : int
        Index of the first volume.
    threads : int
    gain : numpy.ndarray, (V,), optional
        Factors of the values.
    device : str
        Torch device of the interpolation.

    Yields
    ------
    numpy.ndarray, (n, V) float32
    """
    to_voxels = np.linalg.inv(source.affine)
    if motion is None and gain is not None:
        motion = np.broadcast_to(np.eye(4), (source.shape[3], 4, 4))
    if motion is None:
        voxels = apply_matrix(to_voxels, points)
        if len(voxels) and np.abs(voxels - np.rint(voxels)).max() < ON_VOXEL:
            i, j, k = np.clip(np.rint(voxels).astype(int).T, 0, np.array([source.shape[:3]]).T - 1)
            yield from (volumes[:, i, j, k] for _, volumes in chunks(source, first))
        else:
            yield from _pull_without_motion(source, voxels, first, threads, device)
        return
    places = spline.points_on(device, points)

    def pull(volume: np.ndarray, pose: np.ndarray) -> np.ndarray:
        values = places.cubic(volume, to_voxels @ pose)
        return values if gain is None else values * gain

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start, volumes in chunks(source, first):
            yield np.stack(list(pool.map(pull, volumes, motion[start : start + len(volumes)])))


def _pull_without_motion(
    source: VolumeSource, voxels: np.ndarray, first: int, threads: int, device: str
) -> Iterator[np.ndarray]:
    """Interpolate all volumes at the same voxel positions (V, 3), within their bounding box."""
    low = np.clip(np.floor(voxels.min(axis=0)).astype(int) - spline.REACH, 0, None)
    high = np.ceil(voxels.max(axis=0)).astype(int) + spline.REACH + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    places = spline.points_on(device, voxels - low)

    def pull(volume: np.ndarray) -> np.ndarray:
        return places.cubic(volume[box], np.eye(4))

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _, volumes in chunks(source, first):
            yield np.stack(list(pool.map(pull, volumes)))


def find_covered_points(
    source: VolumeSource, motion: np.ndarray | None, points: np.ndarray, data_mask: np.ndarray
) -> np.ndarray:
    """Return the points of the boldref at which the run has data, (V,) bool.

    Parameters
    ----------
    source : VolumeSource
    motion : numpy.ndarray, (T, 4, 4), optional
    points : numpy.ndarray, (V, 3)
        RAS mm.
    data_mask : numpy.ndarray, (X, Y, Z) bool
        Voxels of the raw series that vary over time.
    """
    to_voxels = np.linalg.inv(source.affine)
    last = np.array(source.shape[:3]) - 1
    poses = np.eye(4)[None]
    if motion is not None:
        poses = motion[np.unique(np.linspace(0, len(motion) - 1, POSES_CHECKED).round().astype(int))]
    inside = np.zeros(len(points))
    for pose in poses:
        voxels = apply_matrix(to_voxels @ pose, points)
        inside += np.all((voxels >= -ON_VOXEL) & (voxels <= last + ON_VOXEL), axis=1)
    return (inside >= SHARE_INSIDE * len(poses)) & (sample(data_mask, source.affine, points) > 0.5)


def resample_to_model_grid(run: AlignedSeries, out_dir: Path, threads: int = 1, device: str = "cpu") -> GridSeries:
    """Resample a run to the model grid: the template's brain where the run has data, without dummy volumes.

    Parameters
    ----------
    run : AlignedSeries
    out_dir : pathlib.Path
        Folder of the `GridSeries`.
    threads : int
    device : str
        Torch device of the interpolation.

    Raises
    ------
    BadDataError
        The run has no data in the template's brain.
    """
    mask = template_brain(run.template, MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)
    chain = chain_between(MODEL_SPACE, run.template)
    if run.chain is not None:
        chain = chain.then(Chain.load(run.chain))
    source, motion, points, gain, seen = _locate_points(run, chain, mask, MODEL_GRID_AFFINE)
    mask[mask] = seen
    if not mask.any():
        raise BadDataError(
            f"{run.source.name}: no data in the brain on the model grid.",
            "Check the alignment with the template in the report, and the image's orientation.",
        )
    n_volumes = source.shape[3] - run.n_dummy
    with GridSeriesWriter(out_dir, mask, run.tr, n_volumes, start=run.n_dummy * run.tr) as writer:
        given = points[seen], run.n_dummy, threads, _of(gain, seen), device
        for values in pull_volumes(source, motion, *given):
            writer.append(values + np.float32(run.offset) if run.offset else values)
    return GridSeries.open(out_dir)


def resample_to_space(run: AlignedSeries, name: str, out_dir: Path, threads: int = 1) -> tuple[Path, Path]:
    """Write a run, dummy volumes included, on the grid of an output space.

    Parameters
    ----------
    run : AlignedSeries
    name : str
        A space of `find_output_space`.
    out_dir : pathlib.Path
    threads : int

    Returns
    -------
    tuple of pathlib.Path
        The 4D series (scaled int16, gzip), and the brain mask, 0 where the run has no data.
    """
    target = find_output_space(run, name)
    everywhere = np.ones(target.shape, dtype=bool)
    source, motion, points, gain, seen = _locate_points(run, target.chain, everywhere, target.affine)
    brain = target.brain & seen.reshape(target.shape)
    series = out_dir / f"space-{name}_bold.nii.gz"
    where = seen.reshape(target.shape)
    n_volumes = source.shape[3]
    with SeriesWriter(series, where, target.affine, target.code, run.tr, n_volumes, _value_range(source)) as writer:
        for values in pull_volumes(source, motion, points[seen], 0, threads, gain=_of(gain, seen)):
            writer.append(values)
    mask = save_image(
        out_dir / f"space-{name}_mask.nii.gz", brain.astype(np.uint8), target.affine, space_code=target.code
    )
    return series, mask


def _value_range(source: VolumeSource) -> tuple[float, float]:
    """Return the range of stored values with a margin, which interpolation may need; 0 is in the range."""
    ranges = [(float(v.min()), float(v.max())) for _, v in chunks(source)]
    low, high = min(0.0, *(low for low, _ in ranges)), max(high for _, high in ranges)
    margin = (high - low) * 0.05
    return low - margin, high + margin


def _locate_points(
    run: AlignedSeries, chain: Chain, where: np.ndarray, affine: np.ndarray
) -> tuple[VolumeSource, np.ndarray | None, np.ndarray, np.ndarray | None, np.ndarray]:
    """Return series, motion, positions of the grid's points in the boldref, their gain, and which have data.

    ``chain`` maps points of the grid to points of the boldref.
    """
    source = run.open()
    motion = np.load(run.motion) if run.motion else None
    points, gain = distort_points(run.sdc, chain(grid_points(where.shape, affine, where)))
    data_mask = read_volume(run.data_mask)[0] > 0.5
    return source, motion, points, gain, find_covered_points(source, motion, points, data_mask)


def _of(gain: np.ndarray | None, seen: np.ndarray) -> np.ndarray | None:
    return None if gain is None else gain[seen].astype(np.float32)


def model_grid_coverage(run: AlignedSeries, series: GridSeries) -> float:
    """Compute the share of the template's brain that a run covers on the model grid."""
    brain = template_brain(run.template, MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)
    return float(series.mask.sum() / brain.sum())
