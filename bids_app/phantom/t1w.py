"""Simulated T1w images in memory: the template's head in a participant's shape, with bias field and noise.

Variants imitate common T1w images: skull-stripped, defaced, low-resolution, or with a large field of view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_app.errors import UsageError
from bids_app.phantom.geometry import apply, grid_points, rng_for, sample, smooth_noise
from bids_app.phantom.head_shape import HeadShape
from bids_app.phantom.protocol import AnatomicalProtocol
from bids_app.phantom.tissues import PHYSICS, TissueMaps, t1w_brightness, template_tissues

BRIGHTNESS = 1000.0
"""Image units of white matter."""
SLAB = 24
"""Sagittal planes computed at a time, to limit memory."""
VARIANTS = ("stripped", "defaced", "coarse", "neck")
"""Skull-stripped; defaced; 3 mm voxels and strong noise; a field of view down to the shoulders."""
COARSE_MM, COARSE_NOISE = 3.0, 0.06
NECK_MM = 110.0
"""Additional inferior extent of the field of view."""
FACE_MM = (25.0, -45.0)
"""Defacing removes voxels outside the brain that are anterior and inferior to these template coordinates (y, z)."""


@dataclass(frozen=True)
class SimulatedT1w:
    """A simulated T1w image and its brain mask.

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


def simulate_t1w(
    head_shape: HeadShape, protocol: AnatomicalProtocol, keys: tuple[int | str, ...] = (0,), variant: str = ""
) -> SimulatedT1w:
    """Simulate a T1w scan.

    Parameters
    ----------
    head_shape : HeadShape
    protocol : AnatomicalProtocol
    keys : tuple
        Seed the scan's random numbers.
    variant : str
        One of `VARIANTS`; empty for a standard image.

    Raises
    ------
    UsageError
        Unknown variant.
    """
    if variant and variant not in VARIANTS:
        raise UsageError(f"Unknown T1w variant {variant!r}.", f"Choose one of {', '.join(VARIANTS)}.")
    rng = rng_for(*keys, "t1w")
    protocol = protocol_of_variant(variant, protocol)
    shape, affine = protocol.grid()
    maps = template_tissues(1)
    brightness = t1w_brightness(maps)
    image = np.empty(shape, np.float32)
    brain = np.empty(shape, bool)
    face = np.zeros(shape, bool)
    for start in range(0, shape[0], SLAB):
        own = slice(start, min(start + SLAB, shape[0]))
        first = affine.copy()
        first[:3, 3] = apply(affine, np.array([start, 0.0, 0.0]))
        template = head_shape.t1w_to_template(grid_points((own.stop - start, *shape[1:]), first))
        image[own] = sample(brightness, maps.affine, template)
        brain[own] = sample(maps.brain, maps.affine, template) >= 0.5
        if variant == "neck":
            image[own] = np.maximum(image[own], _neck_and_shoulders(template, brightness, maps))
        if variant == "defaced":
            face[own] = (template[..., 1] > FACE_MM[0]) & (template[..., 2] < FACE_MM[1])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image *= np.exp(protocol.bias * smooth_noise(shape, spacing, 150.0, rng))
    for plane in image:  # Rician noise, plane by plane to save memory
        real, imaginary = rng.standard_normal((2, *plane.shape), dtype=np.float32) * np.float32(protocol.noise)
        plane[...] = np.hypot(plane + real, imaginary)
    if variant == "stripped":
        image *= brain
    image[face & ~brain] = 0
    return SimulatedT1w(image * np.float32(BRIGHTNESS), affine, brain)


def protocol_of_variant(variant: str, protocol: AnatomicalProtocol) -> AnatomicalProtocol:
    """Return the protocol of a variant; unchanged for variants without their own."""
    x, y, z = protocol.matrix
    sizes = protocol.voxel_mm
    if variant == "coarse":
        x, y, z = (round(n * size / COARSE_MM) for n, size in zip(protocol.matrix, sizes, strict=True))
        return replace(protocol, matrix=(x, y, z), voxel_mm=(COARSE_MM,) * 3, noise=COARSE_NOISE)
    if variant == "neck":
        more = round(NECK_MM / sizes[2])
        right, front, up = protocol.centre_mm
        centre = (right, front, up - more * sizes[2] / 2)
        return replace(protocol, matrix=(round(300 / sizes[0]), y, z + more), centre_mm=centre)
    return protocol


def _neck_and_shoulders(template: np.ndarray, brightness: np.ndarray, maps: TissueMaps) -> np.ndarray:
    """Return intensities below the template's box: its lowest plane continued, plus shoulders."""
    below = template.copy()
    lowest = float(maps.affine[2, 3]) + 1.0
    below[..., 2] = np.maximum(below[..., 2], lowest)
    neck = sample(brightness, maps.affine, below) * (template[..., 2] < lowest)
    x, y, z = np.moveaxis(template, -1, 0)
    distance = np.sqrt((x / 170.0) ** 2 + ((y + 30.0) / 75.0) ** 2 + ((z + 225.0) / 75.0) ** 2)
    shoulders = PHYSICS["muscle"].t1w * (distance < 0.92) + PHYSICS["fat"].t1w * ((distance >= 0.92) & (distance < 1))
    return np.maximum(neck, shoulders).astype(np.float32)
