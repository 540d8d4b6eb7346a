"""Scans that tell how a BOLD run is distorted: two spin-echo EPIs of opposite phase encoding, or a phase difference.

The head lies a little otherwise in each than in the runs; the field is the head's own, as in `distortion`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_app.phantom.anatomy import Anatomy
from bids_app.phantom.bold import (
    BRIGHTNESS,
    Still,
    add_noise,
    distortion_of,
    lay_still,
    read_distorted,
)
from bids_app.phantom.distortion import Inhomogeneity
from bids_app.phantom.geometry import apply, grid_points, rigid, rng_for, sample, smooth_noise
from bids_app.phantom.protocol import Protocol
from bids_app.phantom.tissues import PHYSICS, TISSUES

SPIN_ECHO_TE = 0.05
T2_OVER_T2STAR = 1.6
PAIR_VOLUMES = 3
ECHO_TIMES = (0.00492, 0.0123)
"""Of a phase-difference scan, s; a turn is 135 Hz, less than strong fields span."""
PHASE_STEPS = 4096
"""A phase of -pi to pi as it is stored: -4096 to 4096."""


@dataclass(frozen=True)
class PhaseDifference:
    """A gradient-echo scan of two echoes: magnitudes (X, Y, Z), their phase difference as integers, and the affine."""

    magnitudes: tuple[np.ndarray, np.ndarray]
    phase: np.ndarray
    affine: np.ndarray


def simulate_epi_pair(
    anatomy: Anatomy, protocol: Protocol, field: Inhomogeneity, keys: tuple[int | str, ...], placed: np.ndarray
) -> dict[str, np.ndarray]:
    """Two short spin-echo EPI series with the BOLD protocol's grid and readout, by direction (``AP``, ``PA``).

    Parameters
    ----------
    anatomy, field
        Who is scanned.
    protocol : Protocol
        Of the BOLD runs.
    keys : tuple of int or str
        Names the scan for its random numbers.
    placed : numpy.ndarray, (4, 4)
        Where the head lies in the run beside it, as `SimulatedRun.boldref_to_t1w`; it moves a little in between.

    Returns
    -------
    dict of str to (X, Y, Z, T) float32
    """
    rng = rng_for(*keys, "epi pair")
    shift = near(placed, rng)
    shape, affine = protocol.grid()
    receive = np.exp(0.08 * smooth_noise(shape, np.array(protocol.voxel_mm), 120.0, rng))
    found = {}
    for towards in ("AP", "PA"):
        still = lay_still(anatomy, shift, protocol)
        volume = _head(still, protocol, spin_echo())
        distortion = distortion_of(anatomy, shift, protocol, field, towards)
        assert distortion is not None
        series = np.empty((*shape, PAIR_VOLUMES), np.float32)
        for t in range(PAIR_VOLUMES):
            series[..., t] = read_distorted(volume, still.affine, distortion, np.eye(4), shape, affine)
        series *= (BRIGHTNESS * receive)[..., None]
        add_noise(series, float(np.percentile(series, 95)) / protocol.snr, rng)
        found[towards] = series
        shift = shift @ rigid(rng.normal(0, 0.3, 3), rng.normal(0, 0.3, 3))  # the head moves between the two
    return found


def near(placed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A place of the head some moments from another, (4, 4)."""
    return placed @ rigid(rng.normal(0, 1.0, 3), rng.normal(0, 1.0, 3))


def spin_echo() -> np.ndarray:
    """Signal of each tissue in a spin echo after full relaxation, (len(TISSUES),), relative."""
    tissues = [PHYSICS[name] for name in TISSUES]
    return np.array([t.density * np.exp(-SPIN_ECHO_TE / (T2_OVER_T2STAR * t.t2star)) for t in tissues])


def simulate_phase_difference(
    anatomy: Anatomy, protocol: Protocol, field: Inhomogeneity, keys: tuple[int | str, ...], placed: np.ndarray
) -> PhaseDifference:
    """A gradient-echo scan of two echoes on the BOLD protocol's slab, voxels of 3 mm or the run's, if larger.

    Parameters as in `simulate_epi_pair`.
    """
    rng = rng_for(*keys, "phase difference")
    shift = near(placed, rng)
    size = max(3.0, *protocol.voxel_mm)
    matrix = [round(n * v / size) for n, v in zip(protocol.matrix, protocol.voxel_mm, strict=True)]
    own = replace(protocol, voxel_mm=(size,) * 3, matrix=(matrix[0], matrix[1], matrix[2]))
    shape, affine = own.grid()
    places = grid_points(shape, affine)
    still = lay_still(anatomy, shift, own)
    hz = field.hz(anatomy.t1w_to_template(apply(shift, places)))
    signals, brightness = [], 0.0
    for echo in ECHO_TIMES:
        contrast = np.array([PHYSICS[n].density * np.exp(-echo / PHYSICS[n].t2star) for n in TISSUES])
        clean = BRIGHTNESS * sample(_head(still, own, contrast), still.affine, places)
        brightness = brightness or float(np.percentile(clean, 95))
        noise = rng.standard_normal((2, *shape)) * brightness / 50.0
        signals.append(clean * np.exp(2j * np.pi * hz * echo) + noise[0] + 1j * noise[1])
    turned = np.angle(signals[1] * np.conj(signals[0]))
    phase = np.clip(np.round(turned / np.pi * PHASE_STEPS), -PHASE_STEPS, PHASE_STEPS - 1)
    magnitudes = tuple(np.abs(s).astype(np.float32) for s in signals)
    return PhaseDifference((magnitudes[0], magnitudes[1]), phase.astype(np.int16), affine)


def _head(still: Still, protocol: Protocol, contrast: np.ndarray) -> np.ndarray:
    """A head's signal on the fine grid, blurred as the scan's voxels blur it, (X, Y, Z) float32."""
    values = (contrast.astype(np.float32) @ still.tissues)[None]
    volume = np.zeros(still.inside.shape, np.float32)
    volume[still.inside] = still.smooth(values, 0.35 * np.array(protocol.voxel_mm))[0]
    return volume
