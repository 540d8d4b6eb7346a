"""Simulated BOLD runs in memory: tissue contrast, brain activity, physiological noise, head motion, thermal noise.

The signal is a sum of fixed images times time courses, computed once at the head's position in the reference volume.
Each volume is therefore one weighted sum and one interpolation at the moved voxels. Spaces are those of `head_shape`,
and *boldref*: scanner mm at the reference volume.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from bids_app.phantom import activity, epi
from bids_app.phantom.distortion import Distortion, Inhomogeneity, distort, random_inhomogeneity
from bids_app.phantom.epi import EpiImperfections
from bids_app.phantom.geometry import apply, grid_points, rigid, rng_for, sample, smooth_noise
from bids_app.phantom.head_shape import HeadShape
from bids_app.phantom.motion import random_motion
from bids_app.phantom.protocol import Protocol
from bids_app.phantom.tissues import TISSUES, TissueMaps, epi_signal, template_tissues

BRIGHTNESS = 2400.0
"""Image units of a relative signal of 1; grey matter is at about 900."""
VOLUMES_PER_CHUNK = 16
BRAIN_SHARES = (0.5, 0.38, 0.12)
"""Fractions of grey matter, white matter and CSF in the brain."""


@dataclass(frozen=True)
class Body:
    """A participant's signal amplitudes, relative to the mean signal of pure tissue, and rates in Hz.

    Partial volume and blocks of about 12 s reduce the activation to about a third.

    Attributes
    ----------
    activation : float
        Response to a long block, at a focus.
    networks : dict of str to float
        Standard deviation of each network's fluctuation, at a focus.
    """

    activation: float = 0.085
    networks: dict[str, float] | None = None
    breathing_hz: float = 0.27
    breathing: float = 0.0025
    heart_hz: float = 1.1
    heart: float = 0.009
    drift: float = 0.0035

    def network(self, name: str) -> float:
        """Return the standard deviation of a network's fluctuation."""
        return 0.005 if self.networks is None else self.networks[name]


def random_body(*keys: int | str) -> Body:
    """Simulate a participant's signal amplitudes; the same keys give the same participant."""
    rng = rng_for(*keys, "body")
    return Body(
        activation=float(rng.uniform(0.07, 0.1)),
        networks={name: float(rng.uniform(0.003, 0.007)) for name in activity.NETWORKS},
        breathing_hz=float(rng.uniform(0.2, 0.33)),
        breathing=float(rng.uniform(0.0015, 0.0035)),
        heart_hz=float(rng.uniform(0.9, 1.3)),
        heart=float(rng.uniform(0.006, 0.012)),
        drift=float(rng.uniform(0.002, 0.005)),
    )


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run and its ground truth.

    Attributes
    ----------
    bold : (X, Y, Z, T) float32
        The acquired image.
    affine : (4, 4)
        Of the volumes, RAS mm.
    events : tuple of Event
        Task blocks.
    design : (T,)
        The state's time course: events convolved with the haemodynamic response.
    motion : (T, 4, 4)
        From a boldref point to its position in volume t, mm; identity at ``reference``.
    reference : int
        The first steady-state volume.
    boldref_to_t1w : (4, 4)
        Rigid, mm.
    brain_mask : (X, Y, Z) bool
        At the reference volume.
    activation : (X, Y, Z) float32
        Response to a long block over the mean signal, at the reference volume.
    distortion : Distortion, optional
        From true to distorted boldref positions; ``brain_mask``, ``activation`` and ``motion`` refer to true ones.
    """

    bold: np.ndarray
    affine: np.ndarray
    protocol: Protocol
    state: str
    events: tuple[activity.Event, ...]
    design: np.ndarray
    motion: np.ndarray
    reference: int
    boldref_to_t1w: np.ndarray
    head_shape: HeadShape
    brain_mask: np.ndarray
    activation: np.ndarray
    distortion: Distortion | None = None

    def template_to_boldref(self, points: np.ndarray) -> np.ndarray:
        """Transform points (..., 3) from the template (MNI152NLin2009aSym) to the reference volume, mm."""
        return apply(np.linalg.inv(self.boldref_to_t1w), self.head_shape.template_to_t1w(points))


@dataclass(frozen=True)
class StaticHead:
    """Images of the motionless head at the reference volume, in voxels inside the head.

    Attributes
    ----------
    tissues : (len(TISSUES), V) float32
        Fractions.
    template : (V, 3) float32
        Template position of each voxel, mm.
    inside : (X, Y, Z) bool
        The V voxels inside the head.
    brain : (X, Y, Z) float32
        Fraction of brain.
    affine : (4, 4)
        Voxel to boldref mm.
    """

    tissues: np.ndarray
    template: np.ndarray
    inside: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    def smooth(self, values: np.ndarray, sigma_mm: np.ndarray) -> np.ndarray:
        """Smooth images (K, V) on their grid, in place."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        volume = np.zeros(self.inside.shape, np.float32)
        for row in values:
            volume[...] = 0
            volume[self.inside] = row
            row[...] = ndimage.gaussian_filter(volume, sigma_mm / spacing, truncate=3.0)[self.inside]
        return values


def simulate_run(
    head_shape: HeadShape,
    protocol: Protocol,
    state: str = "rest",
    keys: tuple[int | str, ...] = (0,),
    body: Body | None = None,
    boldref_to_t1w: np.ndarray | None = None,
    field: Inhomogeneity | None = None,
    maps: TissueMaps | None = None,
    imperfections: EpiImperfections | None = None,
) -> SimulatedRun:
    """Simulate one BOLD run.

    Parameters
    ----------
    head_shape : HeadShape
    protocol : Protocol
    state : str
        One of `activity.STATES`.
    keys : tuple of int or str
        Seed the run's random numbers, see `geometry.rng_for`.
    body : Body, optional
        Default: random amplitudes.
    boldref_to_t1w : (4, 4), optional
        Position of the head during this run, rigid; default: a few mm and degrees from the T1w scan.
    field : Inhomogeneity, optional
        Field of this head; default: a random one with the protocol's largest displacement.
    maps : TissueMaps, optional
        Tissues of the participant's whole head (`whole_head`); default: the template's.
    imperfections : EpiImperfections, optional
        Of the scanner; default: a weak bias and thermal noise only.
    """
    body = body or random_body(*keys)
    if boldref_to_t1w is None:
        boldref_to_t1w = random_boldref_to_t1w(rng_for(*keys, "coregistration"))
    rng = rng_for(*keys, "run")
    events = activity.random_events(state, protocol.seconds, rng)
    design = activity.response(events, protocol.tr, protocol.n_volumes)
    contrast, reference = _contrast(protocol)
    motion = random_motion(protocol.n_volumes, protocol.tr, protocol.motion_mm, rng, reference)
    head = build_static_head(head_shape, boldref_to_t1w, protocol, maps=maps)
    if imperfections is not None:
        kept = epi.remaining_signal(head.template, imperfections.signal_loss)
        head = replace(head, tissues=head.tissues * kept)
    images, courses = _parts(head, protocol, body, state, design, contrast, rng)
    shape, affine = protocol.grid()
    if protocol.distortion and field is None:
        field = random_inhomogeneity(protocol.peak_hz, *keys)
    distortion = distortion_of(head_shape, boldref_to_t1w, protocol, field)
    bold = _acquire(head, images, courses, motion, shape, affine, distortion)
    receive = np.exp(0.08 * smooth_noise(shape, np.array(protocol.voxel_mm), 120.0, rng))
    bold *= (BRIGHTNESS * receive)[..., None]
    sigma: float | np.ndarray = BRIGHTNESS * float(contrast[-1, 0]) / protocol.snr
    if imperfections is not None:
        own = rng_for(*keys, "imperfections")
        bold *= epi.receive_field(protocol, imperfections, own)[..., None]
        epi.add_physiological_noise(bold, protocol, imperfections, rng_for(*keys, "physiology"))
        epi.add_ghosts(bold, protocol, imperfections)
        sigma = epi.noise_level(protocol, imperfections, float(sigma), own)
    add_noise(bold, sigma, rng)
    if imperfections is not None and imperfections.spikes:
        epi.add_spikes(bold, imperfections, own)
    positions = grid_points(shape, affine)
    inside = sample(head.brain, head.affine, positions) >= 0.5
    template = head_shape.t1w_to_template(apply(boldref_to_t1w, positions[inside]))
    activation = np.zeros(shape, np.float32)
    activation[inside] = body.activation * activity.spread(activity.foci_of(state), template)
    return SimulatedRun(
        bold=bold,
        affine=affine,
        protocol=protocol,
        state=state,
        events=events,
        design=design,
        motion=motion,
        reference=reference,
        boldref_to_t1w=boldref_to_t1w,
        head_shape=head_shape,
        brain_mask=inside,
        activation=activation,
        distortion=distortion,
    )


def distortion_of(
    head_shape: HeadShape,
    boldref_to_t1w: np.ndarray,
    protocol: Protocol,
    field: Inhomogeneity | None,
    towards: str = "AP",
) -> Distortion | None:
    """Compute the distortion of a scan for the head's position in it; None without distortion."""
    if protocol.distortion == 0 or field is None:
        return None

    def to_template(points: np.ndarray) -> np.ndarray:
        return head_shape.t1w_to_template(apply(boldref_to_t1w, points))

    return distort(field, to_template, protocol, scanned_box(protocol, 15.0), towards)


def scanned_box(protocol: Protocol, margin_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest corner (3,) of a protocol's field of view plus a margin, mm."""
    shape, affine = protocol.grid()
    corners = apply(affine, np.array([[i, j, k] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])]))
    return corners.min(axis=0) - margin_mm, corners.max(axis=0) + margin_mm


def random_boldref_to_t1w(rng: np.random.Generator) -> np.ndarray:
    """Simulate the head's movement between the BOLD run and the T1w scan, rigid (4, 4)."""
    return rigid(rng.normal(0, 3.0, 3), rng.normal(0, 2.0, 3))


def _contrast(protocol: Protocol) -> tuple[np.ndarray, int]:
    """Compute each tissue's signal per volume, (T + 1, tissues), last row steady state; and the first steady volume."""
    contrast = epi_signal(protocol.tr, protocol.te, protocol.flip_deg, protocol.n_volumes)
    if not protocol.dummies_kept:
        contrast[:-1] = contrast[-1]
        return contrast, 0
    whole_brain = contrast[:, : len(BRAIN_SHARES)] @ np.array(BRAIN_SHARES)
    unsteady = np.abs(whole_brain / whole_brain[-1] - 1) > 0.01
    return contrast, int(np.flatnonzero(unsteady).max(initial=-1)) + 1


def build_static_head(
    head_shape: HeadShape,
    boldref_to_t1w: np.ndarray,
    protocol: Protocol,
    margin_mm: float = 9.0,
    maps: TissueMaps | None = None,
) -> StaticHead:
    """Resample the tissues of the template, or ``maps``, at the head's position on a fine grid that covers the scan."""
    step = min(protocol.voxel_mm) / 1.5
    low, high = scanned_box(protocol, margin_mm + protocol.distortion)
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = low
    counts = np.ceil((high - low) / step).astype(int)
    points = grid_points((counts[0], counts[1], counts[2]), affine)
    maps = maps or template_tissues(2)
    template = head_shape.t1w_to_template(apply(boldref_to_t1w, points))
    tissues = [sample(maps.fractions[name], maps.affine, template) for name in TISSUES]
    inside = np.sum(tissues, axis=0) > 0.02
    brain = sample(maps.brain, maps.affine, template)
    return StaticHead(np.stack([t[inside] for t in tissues]), template[inside], inside, brain, affine)


def _parts(
    head: StaticHead,
    protocol: Protocol,
    body: Body,
    state: str,
    design: np.ndarray,
    contrast: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the run as fixed images (K, V) and time courses (T, K); the first image is the steady-state signal."""
    n, tr = protocol.n_volumes, protocol.tr
    steady = contrast[-1].astype(np.float32) @ head.tissues
    steady *= _dropout(head.template)
    grey, fluid = head.tissues[0] * steady, head.tissues[2] * steady
    images, courses = [steady], [np.ones(n)]
    for tissue in np.flatnonzero(np.abs(contrast[:-1] - contrast[-1]).max(axis=0) > 0):
        images.append(head.tissues[tissue] * _dropout(head.template))
        courses.append(contrast[:-1, tissue] - contrast[-1, tissue])
    if state != "rest":
        images.append(grey * activity.spread(activity.foci_of(state), head.template))
        courses.append(body.activation * design)
    for name, foci in activity.NETWORKS.items():
        images.append(grey * activity.spread(foci, head.template))
        courses.append(body.network(name) * activity.slow_fluctuation(n, tr, rng))
    spacing = np.linalg.norm(head.affine[:3, :3], axis=0)

    def field(fwhm_mm: float) -> np.ndarray:
        return smooth_noise(head.inside.shape, spacing, fwhm_mm, rng)[head.inside]

    trend = np.linspace(-1, 1, n)
    for course in (
        trend,
        trend**2 - 1 / 3,
        np.cos(np.pi * np.arange(n) * tr / rng.uniform(40, 80) + rng.uniform(0, 6)),
    ):
        images.append(steady * field(80.0))
        courses.append(body.drift * course)
    for course in activity.rhythm(n, tr, body.breathing_hz, 0.3, rng).T:
        images.append(steady * (0.5 + field(70.0)))
        courses.append(body.breathing * course)
    for course in activity.rhythm(n, tr, body.heart_hz, 0.5, rng).T:
        images.append(fluid * (0.7 + field(50.0)))
        courses.append(body.heart * course)
    stack = np.stack(images).astype(np.float32)
    return head.smooth(stack, 0.35 * np.array(protocol.voxel_mm)), np.stack(courses, axis=1).astype(np.float32)


def _dropout(template: np.ndarray) -> np.ndarray:
    """Return the fraction of signal (V,) that susceptibility dropout leaves near the sinuses and ear canals."""
    lost = 0.55 * activity.spread((activity.Focus((0.0, 38.0, -22.0), 9.0),), template)
    ears = tuple(activity.Focus((side * 48.0, -22.0, -30.0), 8.0) for side in (-1, 1))
    return (1.0 - lost - 0.35 * activity.spread(ears, template)).astype(np.float32)


def _acquire(
    head: StaticHead,
    images: np.ndarray,
    courses: np.ndarray,
    motion: np.ndarray,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    distortion: Distortion | None = None,
) -> np.ndarray:
    """Sum the images of each volume and resample them at the scan's voxels, with head motion; (X, Y, Z, T)."""
    to_index = np.linalg.inv(head.affine)
    bold = np.empty((*shape, len(motion)), np.float32, order="F")
    volume = np.zeros(head.inside.shape, np.float32)
    for start in range(0, len(motion), VOLUMES_PER_CHUNK):
        sums = courses[start : start + VOLUMES_PER_CHUNK] @ images
        for t, values in enumerate(sums, start):
            volume[head.inside] = values
            if distortion is not None:
                bold[..., t] = read_distorted(volume, head.affine, distortion, motion[t], shape, affine)
                continue
            pull = to_index @ np.linalg.inv(motion[t]) @ affine
            ndimage.affine_transform(
                volume, pull[:3, :3], pull[:3, 3], output_shape=shape, output=bold[..., t], order=1, prefilter=False
            )
    return bold


def read_distorted(
    volume: np.ndarray,
    volume_affine: np.ndarray,
    distortion: Distortion,
    pose: np.ndarray,
    shape: tuple[int, int, int],
    affine: np.ndarray,
) -> np.ndarray:
    """Resample a head at the voxels of a distorted scan; (X, Y, Z) float32.

    The field moves with the head (``pose``), the phase-encoding direction stays with the scanner.
    """
    voxels = grid_points(shape, affine)
    back = np.linalg.inv(pose)
    at_reference = apply(back, voxels)
    move = sample(distortion.backward, distortion.affine, at_reference)[..., None]
    true = apply(back, voxels + move * distortion.direction.astype(np.float32))
    return sample(volume, volume_affine, true) * sample(distortion.brightness, distortion.affine, at_reference)


def add_noise(bold: np.ndarray, sigma: float | np.ndarray, rng: np.random.Generator) -> None:
    """Add thermal noise of a magnitude image (Rician), in place."""
    for t in range(bold.shape[-1]):
        real, imaginary = rng.standard_normal((2, *bold.shape[:3]), dtype=np.float32) * np.float32(sigma)
        bold[..., t] = np.hypot(bold[..., t] + real, imaginary)
