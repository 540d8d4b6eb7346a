"""Simulated scans on the model grid whose information lies in their regional time series, not in the mean image.

Each scan is a head with its own folds, regional time series in its grey matter (`regional_series`), task activation,
and nuisances: residual head motion, pulsation near vessels, breathing, drift, slice timing, and the site's gain, noise
and smoothness. Foci of activation are those of `activity`; they are read as coordinates of MNI152NLin6Asym.

    V  voxels      T  volumes      N  samples of `FINE_S`      R  regions
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from bids_app.catalog.templates import MODEL_SPACE, brain_on, load_template
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.errors import UsageError
from bids_app.phantom.activity import STATES, Event, Focus, foci_of, response, rhythm, spread
from bids_app.phantom.geometry import apply, rng_for, sample, smooth_noise
from bids_app.phantom.motion import random_motion
from bids_app.phantom.regional_series import RegionalModel, regions, simulate_series

FINE_S = 0.1
"""Time between samples before slices are acquired, s; resolves the heartbeat."""
SIGNAL = 1000.0
"""Mean signal of grey matter at a gain of 1."""
CONTRAST = {"grey": 1.0, "white": 0.85, "fluid": 1.4}
"""Signal of pure tissue relative to grey matter."""
FOLD_FWHM_MM = 14.0
"""Smoothness of the displacement of an individual's folds, mm."""
HEAD_RADIUS_MM = 50.0
"""Radius that turns rotations into displacements (Power et al. 2012), mm."""
VESSELS = (
    Focus((0.0, -16.0, -32.0), 7.0),  # basilar artery
    Focus((0.0, 2.0, -20.0), 8.0),  # circle of Willis
    Focus((-40.0, 2.0, -4.0), 7.0),  # middle cerebral arteries
    Focus((40.0, 2.0, -4.0), 7.0),
    Focus((0.0, 30.0, 8.0), 7.0, 0.7),  # anterior cerebral arteries
    Focus((0.0, -92.0, 10.0), 8.0, 0.7),  # sagittal sinus
)


@dataclass(frozen=True)
class Site:
    """A scanner.

    Attributes
    ----------
    name : str
    gain : float
        Factor of all intensities.
    noise : float
        Standard deviation of thermal noise in voxels of 4 mm, relative to grey matter, before smoothing.
    fwhm_mm : float
        Smoothness of the images.
    """

    name: str
    gain: float
    noise: float
    fwhm_mm: float


SITES = (Site("north", 1.0, 0.016, 5.0), Site("south", 1.6, 0.02, 6.5), Site("west", 0.7, 0.024, 4.5))


@dataclass(frozen=True)
class Nuisances:
    """Strength of what carries no information.

    Attributes
    ----------
    folds_mm : float
        Standard deviation of the displacement of the folds, along each axis.
    motion_mm : float
        Median extent of head motion over scans.
    residual_motion : float
        Share of the motion's effect that head-motion correction leaves.
    cardiac, breathing, drift : float
        Amplitudes relative to the mean signal.
    slice_timing : float
        Share of the slices' time offsets that is left: 0 after a perfect correction, 1 without one.
    """

    folds_mm: float = 4.0
    motion_mm: float = 0.25
    residual_motion: float = 0.1
    cardiac: float = 0.01
    breathing: float = 0.003
    drift: float = 0.004
    slice_timing: float = 1.0


@dataclass(frozen=True)
class Head:
    """The anatomy of one participant on the model grid.

    Attributes
    ----------
    mask : np.ndarray of bool, (96, 96, 96)
        Voxels of the scan; every ``step``-th along each axis.
    step : int
        Voxels of the scan have an edge of ``step`` voxels of the model grid.
    points : np.ndarray, (V, 3)
        Template position of each voxel after the displacement of the folds, mm.
    grey, white, fluid : np.ndarray, (V,)
        Tissue fractions.
    """

    mask: np.ndarray
    step: int
    points: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    fluid: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the grid of the scan's voxels."""
        return (MODEL_GRID_SHAPE[0] // self.step, MODEL_GRID_SHAPE[1] // self.step, MODEL_GRID_SHAPE[2] // self.step)

    @property
    def inside(self) -> np.ndarray:
        """The scan's voxels on their own grid, `shape` bool."""
        return self.mask[:: self.step, :: self.step, :: self.step]

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Return values (V,) on the scan's own grid; 0 outside the brain."""
        found = np.zeros(self.shape, np.float32)
        found[self.inside] = values
        return found


@cache
def _brain() -> np.ndarray:
    """Return the template's brain mask on the model grid."""
    return brain_on(MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)


def simulate_head(*keys: int | str, folds_mm: float = 4.0, step: int = 2) -> Head:
    """Simulate a head with its own folds; the same keys give the same head.

    Parameters
    ----------
    keys : int or str
    folds_mm : float
        See `Nuisances`.
    step : int
        1: all voxels of the model grid (2 mm); 2: an eighth of them, as of a scan with voxels of 4 mm.
    """
    if step not in (1, 2, 3):
        raise UsageError(f"Invalid step: {step}.", "Use 1, 2 or 3; cubes of 12 mm must contain several voxels.")
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[::step, ::step, ::step] = _brain()[::step, ::step, ::step]
    points = apply(MODEL_GRID_AFFINE, np.argwhere(mask).astype(np.float32))
    own = mask[::step, ::step, ::step]
    for axis in range(3):
        rng = rng_for(*keys, "folds", axis)
        points[:, axis] += folds_mm * smooth_noise(own.shape, 2.0 * step, FOLD_FWHM_MM, rng)[own]
    template = load_template(MODEL_SPACE)
    grey, white = (sample(volume, template.affine, points) for volume in (template.gm, template.wm))
    return Head(mask, step, points, grey, white, np.clip(1 - grey - white, 0, 1))


@dataclass(frozen=True)
class DynamicScan:
    """A simulated scan.

    Attributes
    ----------
    series : GridSeries
    confounds : dict of str to float
        Summaries of the motion estimates, as in a store of clips.
    """

    series: GridSeries
    confounds: dict[str, float]


def simulate_scan(
    model: RegionalModel,
    head: Head,
    site: Site,
    nuisances: Nuisances,
    n_vols: int,
    tr: float,
    *keys: int | str,
    events: tuple[Event, ...] = (),
    activation: float = 0.0,
    extra_motion: float = 0.0,
) -> DynamicScan:
    """Simulate one scan; the same keys give the same scan.

    Parameters
    ----------
    model : RegionalModel
    head : Head
    site : Site
    nuisances : Nuisances
    n_vols : int
    tr : float
        Repetition time, s.
    keys : int or str
        Seed everything but the head.
    events : tuple of Event
        Blocks of the states of `activity.STATES`.
    activation : float
        Response to a long block at a focus, relative to the mean signal of grey matter.
    extra_motion : float
        Logarithm of the factor of the motion's extent.
    """
    rng = rng_for(*keys, "scan")
    n = int(np.ceil((n_vols + 1) * tr / FINE_S)) + 1
    mean = _mean_image(head, site, rng)
    images, courses = _parts(model, head, nuisances, events, activation, n, rng)
    motion = random_motion(n_vols, tr, nuisances.motion_mm * float(np.exp(rng.normal(extra_motion, 0.5))), rng)
    change = nuisances.residual_motion * _motion_effect(head, mean, motion)
    noise = site.noise * (2 / head.step) ** 1.5  # of voxels of 4 mm; thermal noise falls with their volume
    values = noise * rng.standard_normal((n_vols, len(mean)), dtype=np.float32)
    owners = regions().owners(head.points)
    grey = (head.grey / head.grey.mean()).astype(np.float32)
    series = simulate_series(model, n, FINE_S, rng).astype(np.float32)
    for voxels, offset in _slices(head, nuisances.slice_timing * tr):
        at = np.arange(n_vols) * tr + offset
        values[:, voxels] += _at(series, at)[:, owners[voxels]] * grey[voxels]
        values[:, voxels] += _at(courses, at) @ images[:, voxels]
    values *= mean
    values += change
    _smooth(values, head, site.fwhm_mm)
    values += mean
    return DynamicScan(GridSeries(np.maximum(values, 0), head.mask, tr), summarise_motion(motion))


def _mean_image(head: Head, site: Site, rng: np.random.Generator) -> np.ndarray:
    """Return the mean image (V,): tissue contrast, gain, and a smooth receive field."""
    contrast = sum(CONTRAST[name] * getattr(head, name) for name in CONTRAST)
    field = smooth_noise(head.shape, 2.0 * head.step, 120.0, rng)[head.inside]
    return (SIGNAL * site.gain * np.exp(0.08 * field) * contrast).astype(np.float32)


def _parts(
    model: RegionalModel,
    head: Head,
    nuisances: Nuisances,
    events: tuple[Event, ...],
    activation: float,
    n: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return activation and physiology as images (K, V) and courses (N, K), relative to the mean signal."""
    images, courses = [], []
    for state in STATES:
        own = tuple(event for event in events if event.trial_type == state)
        if own and activation and foci_of(state):
            images.append(activation * head.grey * spread(foci_of(state), head.points))
            courses.append(response(own, FINE_S, n))
    vessels = spread(VESSELS, head.points) + 0.2 * head.fluid
    for course in rhythm(n, FINE_S, float(rng.uniform(0.9, 1.3)), 0.5, rng).T:
        field = smooth_noise(head.shape, 2.0 * head.step, 50.0, rng)[head.inside]
        images.append(nuisances.cardiac * vessels * (1 + 0.5 * field))
        courses.append(course)
    for course in rhythm(n, FINE_S, float(rng.uniform(0.2, 0.33)), 0.3, rng).T:
        field = smooth_noise(head.shape, 2.0 * head.step, 70.0, rng)[head.inside]
        images.append(nuisances.breathing * (0.5 + 0.5 * field))
        courses.append(course)
    trend = np.linspace(-1, 1, n)
    for course in (trend, trend**2 - 1 / 3):
        images.append(nuisances.drift * smooth_noise(head.shape, 2.0 * head.step, 80.0, rng)[head.inside])
        courses.append(course)
    return np.stack(images).astype(np.float32), np.stack(courses, axis=1).astype(np.float32)


def _slices(head: Head, tr: float) -> list[tuple[np.ndarray, float]]:
    """Return the voxels (indices) of each slice and its time offset, s; interleaved, odd slices first."""
    heights = np.argwhere(head.mask)[:, 2]
    found = np.unique(heights)
    order = np.concatenate([found[::2], found[1::2]])
    return [(np.flatnonzero(heights == z), k * tr / len(order)) for k, z in enumerate(order)]


def _at(fine: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Interpolate courses (N, K) linearly at times (T,), s; (T, K)."""
    position = times / FINE_S
    before = position.astype(int)
    share = (position - before).astype(np.float32)[:, None]
    return (1 - share) * fine[before] + share * fine[before + 1]


def _motion_effect(head: Head, mean: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Return the signal change (T, V) by rigid motion (T, 4, 4), to first order: gradient times displacement."""
    edge = 2.0 * head.step
    slopes = np.gradient(head.volume(mean), edge)
    x, y, z = (part[head.inside] for part in slopes)
    gradient = np.stack([-x, y, z])  # the first axis of the model grid points to the left
    points = apply(MODEL_GRID_AFFINE, np.argwhere(head.mask).astype(np.float32))
    terms = np.concatenate([gradient[:, None] * points.T[None], gradient[:, None]], axis=1).reshape(12, -1)
    moved = (motion - np.eye(4))[:, :3].reshape(-1, 12)
    return moved.astype(np.float32) @ terms.astype(np.float32)


def _smooth(values: np.ndarray, head: Head, fwhm_mm: float) -> None:
    """Smooth volumes (T, V) within the brain, in place."""
    sigma = fwhm_mm / 2.355 / (2.0 * head.step)
    if sigma == 0:
        return
    inside = head.inside
    corner = [slice(int(a.min()), int(a.max()) + 1) for a in np.nonzero(inside)]
    box = inside[tuple(corner)]
    weight = gaussian_filter(box.astype(np.float32), sigma, truncate=3.0)[box]
    volume = np.zeros(box.shape, np.float32)
    for row in values:
        volume[box] = row
        row[:] = gaussian_filter(volume, sigma, truncate=3.0)[box] / weight


def summarise_motion(motion: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation and maximum of framewise displacement, and spreads of the motion parameters.

    Parameters
    ----------
    motion : np.ndarray, (T, 4, 4)
        Rigid, mm.
    """
    angles = Rotation.from_matrix(motion[:, :3, :3]).as_euler("xyz")
    parameters = np.hstack([motion[:, :3, 3], angles])
    steps = np.abs(np.diff(parameters, axis=0))
    fd = steps[:, :3].sum(axis=1) + HEAD_RADIUS_MM * steps[:, 3:].sum(axis=1)
    found = {"mean": fd.mean(), "std": fd.std(), "max": fd.max()}
    summaries = {f"framewise_displacement_{name}": float(value) for name, value in found.items()}
    names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    return summaries | {f"{name}_std": float(value) for name, value in zip(names, parameters.std(axis=0), strict=True)}
