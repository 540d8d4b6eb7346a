"""Susceptibility distortion of EPI scans: displacement along the phase-encoding axis, with intensity modulation.

The field (`Inhomogeneity`) moves with the head: it is high near the sinuses, low near the ear canals, and smooth
elsewhere. A point p is measured at p + d(p) e, with e the phase-encoding direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bids_app.phantom.activity import Focus
from bids_app.phantom.geometry import apply, grid_points, rng_for, rotation, sample
from bids_app.phantom.protocol import Protocol
from bids_app.phantom.tissues import template_tissues

LATTICE_MM = 4.0
SOURCES = (
    Focus((0.0, 40.0, -24.0), 16.0, 1.0),
    Focus((-50.0, -22.0, -30.0), 13.0, -0.55),
    Focus((50.0, -22.0, -30.0), 13.0, -0.55),
)
"""Air cavities near the brain, template mm."""
N_WAVES = 5


@dataclass(frozen=True)
class Inhomogeneity:
    """Magnetic field inhomogeneity of a head, in Hz.

    Attributes
    ----------
    peak_hz : float
        Largest value in the brain.
    waves : (N, 5)
        Smooth variation: wave vector (rad/mm), phase, and amplitude relative to `SOURCES`.
    """

    peak_hz: float
    waves: np.ndarray

    def hz(self, template: np.ndarray) -> np.ndarray:
        """Return the field at template points (..., 3), Hz."""
        return (self.peak_hz * _shape(template, self.waves)).astype(np.float32)


def random_inhomogeneity(peak_hz: float, *keys: int | str) -> Inhomogeneity:
    """Simulate a head's field; the same keys give the same field."""
    rng = rng_for(*keys, "field")
    waves = np.column_stack(
        [
            rng.normal(0, 1, (N_WAVES, 3)) * 2 * np.pi / 190.0,
            rng.uniform(0, 2 * np.pi, N_WAVES),
            rng.normal(0, 0.12, N_WAVES),
        ]
    )
    brain = template_tissues(2)
    points = apply(brain.affine, np.argwhere(brain.brain > 0.5)[::7].astype(np.float32))
    return Inhomogeneity(peak_hz / float(np.abs(_shape(points, waves)).max()), waves)


def _shape(template: np.ndarray, waves: np.ndarray) -> np.ndarray:
    total = np.zeros(template.shape[:-1])
    for source in SOURCES:
        squared = ((template - np.array(source.centre, np.float32)) ** 2).sum(axis=-1)
        total += source.gain * np.exp(-0.5 * squared / source.sigma_mm**2)
    for *vector, phase, size in waves:
        total += size * np.cos(template @ np.array(vector, np.float32) + phase)
    return total


@dataclass(frozen=True)
class Distortion:
    """Displacement and intensity modulation of a scan, on a lattice in boldref space.

    Attributes
    ----------
    direction : (3,)
        Phase-encoding direction, a unit vector.
    forward : (X, Y, Z) float32
        d at true positions: p is measured at p + d(p) direction, mm.
    backward : (X, Y, Z) float32
        b at measured positions: q shows the point q + b(q) direction, mm.
    brightness : (X, Y, Z) float32
        Intensity modulation (Jacobian determinant) at measured positions.
    affine : (4, 4)
        Of the lattice.
    """

    direction: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    brightness: np.ndarray
    affine: np.ndarray

    def measured(self, points: np.ndarray) -> np.ndarray:
        """Transform true positions (..., 3) to measured positions, mm."""
        return points + sample(self.forward, self.affine, points)[..., None] * self.direction


def phase_direction(protocol: Protocol, towards: str = "AP") -> np.ndarray:
    """Return the unit vector (3,) of phase encoding; ``AP`` is anterior to posterior along the slab's axis."""
    anterior = rotation(np.array(protocol.oblique_deg)) @ np.array([0.0, 1.0, 0.0])
    return -anterior if towards == "AP" else anterior


def phase_axis(affine: np.ndarray, direction: np.ndarray) -> str:
    """Return the BIDS code of a direction on a grid: ``i``, ``j`` or ``k``, with ``-`` against the index."""
    along = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T @ direction
    axis = int(np.abs(along).argmax())
    return "ijk"[axis] + ("-" if along[axis] < 0 else "")


def distort(
    field: Inhomogeneity,
    to_template: Callable[[np.ndarray], np.ndarray],
    protocol: Protocol,
    box_mm: tuple[np.ndarray, np.ndarray],
    towards: str = "AP",
) -> Distortion:
    """Compute the distortion of a head under a protocol.

    Parameters
    ----------
    field : Inhomogeneity
    to_template : callable
        Transforms points (..., 3) from scan space to the template.
    protocol : Protocol
    box_mm : tuple of (3,)
        Lowest and highest corner of the scanned volume.
    towards : str
        ``AP`` or ``PA``.
    """
    low, high = box_mm
    affine = np.diag([LATTICE_MM] * 3 + [1.0])
    affine[:3, 3] = low
    counts = np.ceil((high - low) / LATTICE_MM).astype(int) + 1
    positions = grid_points((counts[0], counts[1], counts[2]), affine)
    direction = phase_direction(protocol, towards)
    forward = field.hz(to_template(positions)) * np.float32(protocol.readout * protocol.voxel_mm[1])
    edge = apply(affine, counts - 1.0) - 1e-3

    def at(volume: np.ndarray, points: np.ndarray) -> np.ndarray:
        return sample(volume, affine, np.clip(points, low, edge))

    backward = -forward
    for _ in range(25):
        backward = -at(forward, positions + backward[..., None] * direction)
    step = LATTICE_MM / 2 * direction
    brightness = 1 + (at(backward, positions + step) - at(backward, positions - step)) / LATTICE_MM
    return Distortion(direction, forward, backward, brightness.astype(np.float32), affine)
