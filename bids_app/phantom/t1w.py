"""A T1w image in memory: the template's head in one person's shape, seen through a receive field, with noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.phantom.anatomy import Anatomy
from bids_app.phantom.geometry import apply, grid_points, rng_for, sample, smooth_noise
from bids_app.phantom.protocol import AnatomicalProtocol
from bids_app.phantom.tissues import t1w_brightness, template_tissues

BRIGHTNESS = 1000.0
"""Image units of white matter."""
SLAB = 24
"""Sagittal planes worked on at once, which bounds memory."""


@dataclass(frozen=True)
class SimulatedT1w:
    """A T1w image and its brain mask.

    Attributes
    ----------
    image : (X, Y, Z) float32
    affine : (4, 4)
        RAS mm.
    brain_mask : (X, Y, Z) bool
    """

    image: np.ndarray
    affine: np.ndarray
    brain_mask: np.ndarray


def simulate_t1w(anatomy: Anatomy, protocol: AnatomicalProtocol, keys: tuple[int | str, ...] = (0,)) -> SimulatedT1w:
    """Simulate a T1w scan of a person; ``keys`` name it for its random numbers."""
    rng = rng_for(*keys, "t1w")
    shape, affine = protocol.grid()
    maps = template_tissues(1)
    brightness = t1w_brightness(maps)
    image = np.empty(shape, np.float32)
    brain = np.empty(shape, bool)
    for start in range(0, shape[0], SLAB):
        stop = min(start + SLAB, shape[0])
        first = affine.copy()
        first[:3, 3] = apply(affine, np.array([start, 0.0, 0.0]))
        template = anatomy.t1w_to_template(grid_points((stop - start, *shape[1:]), first))
        image[start:stop] = sample(brightness, maps.affine, template)
        brain[start:stop] = sample(maps.brain, maps.affine, template) >= 0.5
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image *= np.exp(protocol.bias * smooth_noise(shape, spacing, 150.0, rng))
    for plane in image:  # noise of a magnitude image, plane by plane to save memory
        real, imaginary = rng.standard_normal((2, *plane.shape), dtype=np.float32) * np.float32(protocol.noise)
        plane[...] = np.hypot(plane + real, imaginary)
    return SimulatedT1w(image * np.float32(BRIGHTNESS), affine, brain)
