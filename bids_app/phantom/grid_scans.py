"""Scans of the phantom straight on the model grid, as preprocessing would bring them there, errors included.

The true transforms are followed, with a mistake on top of the size that registrations make; so a scan costs a second
instead of minutes. What a model learns here is tested on scans that went through the whole pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bids_app.catalog.templates import MODEL_SPACE, brain_on, space
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.phantom.anatomy import Anatomy, random_anatomy
from bids_app.phantom.bold import SimulatedRun, random_body, simulate_run
from bids_app.phantom.geometry import apply, grid_affine, rigid, rng_for, sample, smooth_noise
from bids_app.phantom.protocol import SCANNERS, Protocol
from bids_app.phantom.tissues import TEMPLATE
from bids_app.preprocess.io.volumes import ArrayVolumes
from bids_app.preprocess.resample import where_data_are

MARGIN_MM = 15.0


@dataclass(frozen=True)
class Mistakes:
    """How far preprocessing errs; standard deviations in mm (and degrees).

    Attributes
    ----------
    rigid : float
        Of the coregistration.
    warp : float
        Of the normalisation, smooth.
    motion : float
        Of each volume's alignment.
    """

    rigid: float = 0.7
    warp: float = 1.2
    motion: float = 0.1


WITH_T1W, WITHOUT_T1W = Mistakes(), Mistakes(rigid=1.0, warp=2.5)
NONE = Mistakes(0.0, 0.0, 0.0)


def random_protocol(*keys: int | str, seconds: float = 72.0) -> Protocol:
    """A BOLD protocol of any of the phantom's scanners, its numbers moved within what people use."""
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
        snr=float(
            np.round(rng.uniform(45, 95), 1)
        ),  # low, because `to_grid` interpolates linearly, which smooths noise
        motion_mm=float(np.round(np.exp(rng.normal(np.log(0.4), 0.6)), 3)),
    )


def simulated_series(
    state: str,
    *keys: int | str,
    person: tuple[int | str, ...] | None = None,
    protocol: Protocol | None = None,
    mistakes: Mistakes | None = None,
) -> GridSeries:
    """One scan on the model grid.

    Parameters
    ----------
    state : str
        See `bids_app.phantom.activity.STATES`.
    keys : int or str
        Name the scan; the same keys give the same scan.
    person : tuple, optional
        Names the participant, if several scans are of one; default: the scan's own.
    protocol : Protocol, optional
        Default: a random one.
    mistakes : Mistakes, optional
        Default: those with a T1w image twice as often as those without.
    """
    rng = rng_for(*keys, "mistakes")
    if mistakes is None:
        mistakes = WITHOUT_T1W if rng.random() < 1 / 3 else WITH_T1W
    person = person or keys
    anatomy: Anatomy = random_anatomy(*person)
    run = simulate_run(anatomy, protocol or random_protocol(*keys), state, keys, random_body(*person))
    return to_grid(run, mistakes, rng)


def to_grid(run: SimulatedRun, mistakes: Mistakes, rng: np.random.Generator) -> GridSeries:
    """Bring a simulated run onto the model grid in one interpolation a volume, as `resample_to_model_grid` does.

    Interpolated linearly, which takes a fifth of a spline's time.
    """
    mask = _brain().copy()
    template = _template_points() + _warp(mistakes.warp, rng)
    boldref = run.template_to_boldref(template)
    boldref = apply(rigid(rng.normal(0, mistakes.rigid, 3), rng.normal(0, mistakes.rigid, 3)), boldref)
    source = ArrayVolumes(run.bold, run.affine)
    seen = where_data_are(source, run.motion, boldref, np.ones(run.bold.shape[:3], np.uint8))
    mask[mask], boldref = seen, boldref[seen]
    values = np.empty((run.bold.shape[3] - run.reference, len(boldref)), np.float32)
    for row, t in zip(values, range(run.reference, run.bold.shape[3]), strict=True):
        error = rigid(rng.normal(0, mistakes.motion, 3), rng.normal(0, mistakes.motion, 3))
        row[:] = sample(run.bold[..., t], run.affine, apply(run.motion[t] @ error, boldref))
    tr = run.protocol.tr
    return GridSeries(values, mask, tr, start=run.reference * tr)


@lru_cache(maxsize=1)
def _brain() -> np.ndarray:
    """The template's brain on the model grid."""
    to_template = space(MODEL_SPACE).pull_to(space(TEMPLATE))
    return brain_on(TEMPLATE, MODEL_GRID_SHAPE, to_template @ MODEL_GRID_AFFINE)


@lru_cache(maxsize=1)
def _template_points() -> np.ndarray:
    """Voxels of the brain on the model grid as points of the phantom's template, (V, 3) mm."""
    to_template = space(MODEL_SPACE).pull_to(space(TEMPLATE))
    return apply(to_template @ MODEL_GRID_AFFINE, np.argwhere(_brain()).astype(np.float32))


def _warp(size_mm: float, rng: np.random.Generator) -> np.ndarray | float:
    """A smooth mistake (V, 3), mm."""
    if size_mm == 0:
        return 0.0
    shape, affine = grid_affine((48, 56, 46), (4.0, 4.0, 4.0), np.array([0.0, -18.0, 4.0]))
    points = _template_points()
    return np.stack([sample(size_mm * smooth_noise(shape, 4.0, 50.0, rng), affine, points) for _ in range(3)], axis=-1)
