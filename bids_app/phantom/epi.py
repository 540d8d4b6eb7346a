"""Imperfections of EPI series: array coil, signal loss near air, ghosts, spikes, and the noise of multiband imaging."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.phantom import artefacts
from bids_app.phantom.activity import Focus, spread
from bids_app.phantom.distortion import phase_axis, phase_direction
from bids_app.phantom.geometry import smooth_noise
from bids_app.phantom.protocol import Protocol

SOURCES = (
    Focus((0.0, 44.0, -26.0), 15.0),
    *(Focus((side * 52.0, -20.0, -36.0), 12.0, 0.8) for side in (-1, 1)),
    *(Focus((side * 30.0, 52.0, -28.0), 10.0, 0.6) for side in (-1, 1)),
)
"""Air of the sinuses and of the ear canals, template mm."""
PHYSIOLOGICAL_FWHM_MM = 2.5
"""Smoothness of the physiological noise."""
PHYSIOLOGICAL_SECONDS = 2.2
"""Time after which its autocorrelation has fallen to 1/e."""


@dataclass(frozen=True)
class EpiImperfections:
    """What a real scanner does to an EPI series.

    Attributes
    ----------
    coil : float
        Bias of the receive coil over the brain, highest to lowest.
    signal_loss : float
        Loss of signal above the sinuses, 0 to 1.
    ghost : float
        Level of the ghost, relative to the signal.
    spikes : int
        Number of volumes with stripes.
    acceleration : float
        Slices excited at once; more amplify the noise and leak signal between slices.
    physiological : float
        Standard deviation of the noise that is proportional to the signal (Krueger and Glover 2001), relative to it.
    """

    coil: float = 1.5
    signal_loss: float = 0.7
    ghost: float = 0.02
    spikes: int = 0
    acceleration: float = 1.0
    physiological: float = 0.008


def remaining_signal(template: np.ndarray, loss: float) -> np.ndarray:
    """Return the fraction of signal (V,) left by dephasing near air, at template positions (V, 3)."""
    return np.clip(1 - 1.6 * loss * spread(SOURCES, template), 0.03, 1).astype(np.float32)


def receive_field(protocol: Protocol, what: EpiImperfections, rng: np.random.Generator) -> np.ndarray:
    """Return the sensitivity of the coil on the series' grid, (X, Y, Z)."""
    shape, affine = protocol.grid()
    return artefacts.coil_sensitivity(shape, affine, what.coil, rng)


def add_ghosts(bold: np.ndarray, protocol: Protocol, what: EpiImperfections) -> None:
    """Add the ghost along the phase-encoding axis and the leakage between slices excited at once, in place."""
    _, affine = protocol.grid()
    phase = "ijk".index(phase_axis(affine, phase_direction(protocol))[0])
    slices = protocol.slice_axis
    leak = 0.004 * (what.acceleration - 1)
    for t in range(bold.shape[-1]):
        volume = artefacts.half_ghost(bold[..., t], phase, what.ghost)
        if what.acceleration > 1:
            apart = round(volume.shape[slices] / what.acceleration)
            shifted = np.roll(np.roll(volume, apart, axis=slices), volume.shape[phase] // 3, axis=phase)
            volume = volume + np.float32(leak) * shifted
        bold[..., t] = volume


def add_physiological_noise(
    bold: np.ndarray, protocol: Protocol, what: EpiImperfections, rng: np.random.Generator
) -> None:
    """Add noise in proportion to the signal, smooth in space and autocorrelated in time, in place."""
    shape, spacing = bold.shape[:3], np.linalg.norm(protocol.grid()[1][:3, :3], axis=0)
    kept = float(np.exp(-protocol.tr / PHYSIOLOGICAL_SECONDS))
    state = smooth_noise(shape, spacing, PHYSIOLOGICAL_FWHM_MM, rng)
    for t in range(bold.shape[-1]):
        bold[..., t] *= 1 + np.float32(what.physiological) * state
        fresh = smooth_noise(shape, spacing, PHYSIOLOGICAL_FWHM_MM, rng)
        state = np.float32(kept) * state + np.float32(np.sqrt(1 - kept**2)) * fresh


def noise_level(protocol: Protocol, what: EpiImperfections, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the standard deviation of the noise, (X, Y, Z)."""
    shape, affine = protocol.grid()
    return np.float32(sigma) * artefacts.g_factor(shape, affine, what.acceleration, rng)


def add_spikes(bold: np.ndarray, what: EpiImperfections, rng: np.random.Generator) -> None:
    """Add stripes to some volumes, in place."""
    for t in rng.choice(bold.shape[-1], min(what.spikes, bold.shape[-1]), replace=False):
        bold[..., t] = artefacts.spike(bold[..., t], rng.uniform(0.02, 0.08), rng)
