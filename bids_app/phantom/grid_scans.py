"""Simulated scans on the model grid, as preprocessing would resample them, with registration errors.

The true transforms are applied with random errors of realistic size, so that a scan takes a second instead of minutes.
Models trained on these scans are tested on scans that went through the whole pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bids_app.catalog.templates import MODEL_SPACE, brain_on, space
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.phantom.bold import SimulatedRun, random_body, simulate_run
from bids_app.phantom.geometry import apply, grid_affine, rigid, rng_for, sample, smooth_noise
from bids_app.phantom.head_shape import HeadShape, random_head_shape
from bids_app.phantom.protocol import SCANNERS, Protocol
from bids_app.phantom.tissues import TEMPLATE

POSES_CHECKED = 60
SHARE_IN_VIEW = 0.9
"""Share of the volumes in which a point must lie in the field of view."""
ON_VOXEL = 1e-3
"""Voxels by which a point may lie beyond the outermost voxels' centres and still be in the field of view."""


@dataclass(frozen=True)
class RegistrationErrors:
    """Simulated errors of preprocessing; standard deviations in mm (and degrees).

    Attributes
    ----------
    rigid : float
        Error of the coregistration.
    warp : float
        Error of the spatial normalisation, smooth.
    motion : float
        Error of each volume's head-motion correction.
    """

    rigid: float = 0.7
    warp: float = 1.2
    motion: float = 0.1


WITH_T1W, WITHOUT_T1W = RegistrationErrors(), RegistrationErrors(rigid=1.0, warp=2.5)
NO_ERRORS = RegistrationErrors(0.0, 0.0, 0.0)


def random_protocol(*keys: int | str, seconds: float = 72.0) -> Protocol:
    """Simulate a BOLD protocol: one of `SCANNERS` with its parameters varied within common ranges."""
    rng = rng_for(*keys, "protocol")
    base = SCANNERS[int(rng.integers(len(SCANNERS)))]
    tr = float(np.round(rng.uniform(0.8, 2.5), 2))
    voxel = float(np.round(rng.uniform(3.0, 4.0), 2))
    slices = round(base.matrix[2] * base.voxel_mm[2] / voxel)
    x, y, z = np.round(rng.normal(0, 1, 3) * [8.0, 2.5, 2.5], 2).tolist()
    return replace(
        base,
        tr=tr,
        te=float(np.round(rng.uniform(0.025, 0.035), 4)),
        voxel_mm=(voxel, voxel, voxel),
        matrix=(round(192 / voxel), round(216 / voxel), slices),
        n_volumes=int(np.ceil(seconds / tr)),
        oblique_deg=(x, y, z),
        slab_offset_mm=base.slab_offset_mm + float(np.round(rng.normal(0, 2.0), 2)),
        snr=float(np.round(rng.uniform(45, 95), 1)),  # low, because the linear interpolation of `to_grid` smooths noise
        motion_mm=float(np.round(np.exp(rng.normal(np.log(0.4), 0.6)), 3)),
    )


def simulated_series(
    state: str,
    *keys: int | str,
    participant: tuple[int | str, ...] | None = None,
    protocol: Protocol | None = None,
    errors: RegistrationErrors | None = None,
) -> GridSeries:
    """Simulate one scan on the model grid.

    Parameters
    ----------
    state : str
        See `bids_app.phantom.activity.STATES`.
    keys : int or str
        Seed the scan; the same keys give the same scan.
    participant : tuple, optional
        Keys of the participant, for several scans of one participant; default: ``keys``.
    protocol : Protocol, optional
        Default: a random protocol.
    errors : RegistrationErrors, optional
        Default: `WITH_T1W` in two of three scans, otherwise `WITHOUT_T1W`.
    """
    rng = rng_for(*keys, "mistakes")
    if errors is None:
        errors = WITHOUT_T1W if rng.random() < 1 / 3 else WITH_T1W
    participant = participant or keys
    head_shape: HeadShape = random_head_shape(*participant)
    run = simulate_run(head_shape, protocol or random_protocol(*keys), state, keys, random_body(*participant))
    return to_grid(run, errors, rng)


def to_grid(run: SimulatedRun, errors: RegistrationErrors, rng: np.random.Generator) -> GridSeries:
    """Resample a simulated run onto the model grid in one interpolation per volume, as `resample_to_model_grid` does.

    Uses linear interpolation, which takes a fifth of the time of a spline.
    """
    mask = _brain().copy()
    template = _template_points() + _warp(errors.warp, rng)
    boldref = run.template_to_boldref(template)
    boldref = apply(rigid(rng.normal(0, errors.rigid, 3), rng.normal(0, errors.rigid, 3)), boldref)
    visible = in_view(run, boldref)
    mask[mask], boldref = visible, boldref[visible]
    values = np.empty((run.bold.shape[3] - run.reference, len(boldref)), np.float32)
    for row, t in zip(values, range(run.reference, run.bold.shape[3]), strict=True):
        error = rigid(rng.normal(0, errors.motion, 3), rng.normal(0, errors.motion, 3))
        row[:] = sample(run.bold[..., t], run.affine, apply(run.motion[t] @ error, boldref))
    tr = run.protocol.tr
    return GridSeries(values, mask, tr, start=run.reference * tr)


def in_view(run: SimulatedRun, points: np.ndarray) -> np.ndarray:
    """Return which points of the boldref are in the field of view in nearly all volumes, (V,) bool.

    Parameters
    ----------
    run : SimulatedRun
    points : np.ndarray, (V, 3)
        RAS mm.
    """
    field = np.pad(np.ones(run.bold.shape[:3], np.float32), 1)  # falls from 1 to 0 within a voxel of the edge
    affine = run.affine.copy()
    affine[:3, 3] -= affine[:3, :3].sum(axis=1)
    points = points.astype(float)
    poses = run.motion[np.unique(np.linspace(0, len(run.motion) - 1, POSES_CHECKED).round().astype(int))]
    share = np.mean([sample(field, affine, apply(pose, points)) >= 1 - ON_VOXEL for pose in poses], axis=0)
    return (share >= SHARE_IN_VIEW) & (sample(field, affine, points) > 0.5)


@lru_cache(maxsize=1)
def _brain() -> np.ndarray:
    """Return the template's brain mask on the model grid."""
    to_template = space(MODEL_SPACE).pull_to(space(TEMPLATE))
    return brain_on(TEMPLATE, MODEL_GRID_SHAPE, to_template @ MODEL_GRID_AFFINE)


@lru_cache(maxsize=1)
def _template_points() -> np.ndarray:
    """Return the brain voxels of the model grid as points of the phantom's template, (V, 3) mm."""
    to_template = space(MODEL_SPACE).pull_to(space(TEMPLATE))
    return apply(to_template @ MODEL_GRID_AFFINE, np.argwhere(_brain()).astype(np.float32))


def _warp(size_mm: float, rng: np.random.Generator) -> np.ndarray | float:
    """Simulate a smooth normalisation error (V, 3), mm."""
    if size_mm == 0:
        return 0.0
    shape, affine = grid_affine((48, 56, 46), (4.0, 4.0, 4.0), np.array([0.0, -18.0, 4.0]))
    points = _template_points()
    return np.stack([sample(size_mm * smooth_noise(shape, 4.0, 50.0, rng), affine, points) for _ in range(3)], axis=-1)
