"""Simulated fieldmaps: two spin-echo EPI series of opposite phase encoding, or a phase difference.

The head moves slightly between each fieldmap and the BOLD runs; the field is that of `distortion`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_app.phantom.bold import (
    BRIGHTNESS,
    StaticHead,
    add_noise,
    build_static_head,
    distortion_of,
    read_distorted,
)
from bids_app.phantom.distortion import Inhomogeneity
from bids_app.phantom.geometry import apply, grid_points, rigid, rng_for, sample, smooth_noise
from bids_app.phantom.head_shape import HeadShape
from bids_app.phantom.protocol import Protocol
from bids_app.phantom.tissues import PHYSICS, TISSUES

SPIN_ECHO_TE = 0.05
T2_OVER_T2STAR = 1.6
PAIR_VOLUMES = 3
ECHO_TIMES = (0.00492, 0.0123)
"""Echo times of a phase-difference scan, s; the phase wraps every 135 Hz, so strong fields need unwrapping."""
PHASE_STEPS = 4096
"""Phases of -pi to pi are stored as -4096 to 4096."""


@dataclass(frozen=True)
class PhaseDifference:
    """A gradient-echo scan of two echoes: magnitudes (X, Y, Z), their phase difference as integers, and the affine."""

    magnitudes: tuple[np.ndarray, np.ndarray]
    phase: np.ndarray
    affine: np.ndarray


def simulate_epi_pair(
    head_shape: HeadShape,
    protocol: Protocol,
    field: Inhomogeneity,
    keys: tuple[int | str, ...],
    boldref_to_t1w: np.ndarray,
) -> dict[str, np.ndarray]:
    """Simulate two short spin-echo EPI series on the BOLD protocol's grid, by direction (``AP``, ``PA``).

    Parameters
    ----------
    head_shape : HeadShape
    protocol : Protocol
        Protocol of the BOLD runs.
    field : Inhomogeneity
    keys : tuple of int or str
        Seed the scan's random numbers.
    boldref_to_t1w : numpy.ndarray, (4, 4)
        Position of the head in the BOLD run, as in `SimulatedRun`; the head moves slightly in between.

    Returns
    -------
    dict of str to (X, Y, Z, T) float32
    """
    rng = rng_for(*keys, "epi pair")
    shift = move_slightly(boldref_to_t1w, rng)
    shape, affine = protocol.grid()
    receive = np.exp(0.08 * smooth_noise(shape, np.array(protocol.voxel_mm), 120.0, rng))
    found = {}
    for towards in ("AP", "PA"):
        head = build_static_head(head_shape, shift, protocol)
        volume = _head_signal(head, protocol, spin_echo())
        distortion = distortion_of(head_shape, shift, protocol, field, towards)
        assert distortion is not None
        series = np.empty((*shape, PAIR_VOLUMES), np.float32)
        for t in range(PAIR_VOLUMES):
            series[..., t] = read_distorted(volume, head.affine, distortion, np.eye(4), shape, affine)
        series *= (BRIGHTNESS * receive)[..., None]
        add_noise(series, float(np.percentile(series, 95)) / protocol.snr, rng)
        found[towards] = series
        shift = shift @ rigid(rng.normal(0, 0.3, 3), rng.normal(0, 0.3, 3))  # the head moves between the two
    return found


def move_slightly(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a head position close to another, (4, 4)."""
    return pose @ rigid(rng.normal(0, 1.0, 3), rng.normal(0, 1.0, 3))


def spin_echo() -> np.ndarray:
    """Return the relative signal of each tissue in a spin echo after full relaxation, (len(TISSUES),)."""
    tissues = [PHYSICS[name] for name in TISSUES]
    return np.array([t.density * np.exp(-SPIN_ECHO_TE / (T2_OVER_T2STAR * t.t2star)) for t in tissues])


def simulate_phase_difference(
    head_shape: HeadShape,
    protocol: Protocol,
    field: Inhomogeneity,
    keys: tuple[int | str, ...],
    boldref_to_t1w: np.ndarray,
) -> PhaseDifference:
    """Simulate a dual-echo gradient-echo scan of the BOLD protocol's slab, with voxels of at least 3 mm.

    Parameters as in `simulate_epi_pair`.
    """
    rng = rng_for(*keys, "phase difference")
    shift = move_slightly(boldref_to_t1w, rng)
    size = max(3.0, *protocol.voxel_mm)
    matrix = [round(n * v / size) for n, v in zip(protocol.matrix, protocol.voxel_mm, strict=True)]
    own = replace(protocol, voxel_mm=(size,) * 3, matrix=(matrix[0], matrix[1], matrix[2]))
    shape, affine = own.grid()
    positions = grid_points(shape, affine)
    head = build_static_head(head_shape, shift, own)
    hz = field.hz(head_shape.t1w_to_template(apply(shift, positions)))
    signals, brightness = [], 0.0
    for echo in ECHO_TIMES:
        contrast = np.array([PHYSICS[n].density * np.exp(-echo / PHYSICS[n].t2star) for n in TISSUES])
        clean = BRIGHTNESS * sample(_head_signal(head, own, contrast), head.affine, positions)
        brightness = brightness or float(np.percentile(clean, 95))
        noise = rng.standard_normal((2, *shape)) * brightness / 50.0
        signals.append(clean * np.exp(2j * np.pi * hz * echo) + noise[0] + 1j * noise[1])
    turned = np.angle(signals[1] * np.conj(signals[0]))
    phase = np.clip(np.round(turned / np.pi * PHASE_STEPS), -PHASE_STEPS, PHASE_STEPS - 1)
    magnitudes = tuple(np.abs(s).astype(np.float32) for s in signals)
    return PhaseDifference((magnitudes[0], magnitudes[1]), phase.astype(np.int16), affine)


def _head_signal(head: StaticHead, protocol: Protocol, contrast: np.ndarray) -> np.ndarray:
    """Compute a head's signal on the fine grid, smoothed to the scan's voxel size, (X, Y, Z) float32."""
    values = (contrast.astype(np.float32) @ head.tissues)[None]
    volume = np.zeros(head.inside.shape, np.float32)
    volume[head.inside] = head.smooth(values, 0.35 * np.array(protocol.voxel_mm))[0]
    return volume
