"""Soft tissue, bone and air below and in front of the brain: face, neck, eyes and sinuses, as simple solids.

All positions are template mm; a depth is positive inside a solid, in mm. Sizes follow the atlas's own proportions, and
``size`` scales the face about the eyes, because children's faces are small relative to their brains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EYES = tuple(np.array([side * 32.0, 61.0, -37.0]) for side in (-1, 1))
EYE_RADIUS_MM = 12.0
CHIASM = np.array([0.0, 8.0, -19.0])
CORD_TOP = np.array([0.0, -40.0, -62.0])
CORD_BOTTOM = np.array([0.0, -62.0, -175.0])
FACE_ORIGIN = np.array([0.0, 40.0, -37.0])
"""The point about which a face is scaled."""


Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""x, y and z of the points of a grid, mm; arrays that broadcast to (X, Y, Z)."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid by its centre and its half axes, mm; ``mirrored`` adds its mirror image in x."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    mirrored: bool = False

    def depth(self, points: Coordinates) -> np.ndarray:
        """Return the approximate depth (X, Y, Z), mm; negative outside."""
        x, y, z = points
        x = np.abs(x) if self.mirrored else x
        own = [axis - np.float32(c) for axis, c in zip((x, y, z), self.centre, strict=True)]
        length = np.sqrt(sum((axis / np.float32(h)) ** 2 for axis, h in zip(own, self.half, strict=True)))
        slope = np.sqrt(sum((axis / np.float32(h**2)) ** 2 for axis, h in zip(own, self.half, strict=True)))
        return length * (1 - length) / np.maximum(slope, 1e-6)


SURFACE = (
    Ellipsoid((0, 42, -60), (64, 50, 62)),  # midface
    Ellipsoid((0, 48, -118), (46, 44, 30)),  # jaw and chin
    Ellipsoid((0, 92, -62), (13, 22, 20)),  # nose
    Ellipsoid((0, -28, -72), (69, 76, 60)),  # skull base and nape
    Ellipsoid((82, -22, -42), (7, 17, 28), mirrored=True),  # outer ears
)
AIR = (
    Ellipsoid((0, 72, -54), (7, 20, 20)),  # nasal cavity
    Ellipsoid((0, 48, -60), (8, 28, 10)),
    Ellipsoid((0, 20, -66), (11, 9, 20)),  # nasopharynx
    Ellipsoid((0, 6, -105), (9, 7, 34)),  # pharynx
    Ellipsoid((30, 50, -62), (13, 15, 15), mirrored=True),  # maxillary sinuses
    Ellipsoid((9, 58, -36), (6, 14, 9), mirrored=True),  # ethmoid cells
    Ellipsoid((7, 22, -36), (8, 11, 8), mirrored=True),  # sphenoid sinus
    Ellipsoid((12, 77, -14), (9, 4, 8), mirrored=True),  # frontal sinus
    Ellipsoid((56, -36, -52), (7, 10, 12), mirrored=True),  # mastoid cells
    Ellipsoid((66, -18, -44), (16, 3, 3), mirrored=True),  # ear canals
    Ellipsoid((0, 74, -96), (22, 16, 4)),  # mouth
)
BONE = (
    Ellipsoid((0, 62, -82), (34, 30, 8)),  # maxilla and palate
    Ellipsoid((45, 34, -112), (6, 28, 14), mirrored=True),  # mandible
    Ellipsoid((52, 5, -82), (5, 10, 32), mirrored=True),  # its rami
    Ellipsoid((0, 74, -120), (28, 10, 14)),  # chin
    Ellipsoid((44, 52, -58), (14, 12, 7), mirrored=True),  # cheekbones
    Ellipsoid((50, -24, -46), (22, 12, 12), mirrored=True),  # petrous bones
    Ellipsoid((0, 4, -46), (14, 14, 16)),  # clivus
)
MARROW = (
    Ellipsoid((0, 1, -46), (8, 7, 14)),
    Ellipsoid((45, 34, -112), (3, 22, 9), mirrored=True),
    Ellipsoid((0, 74, -120), (22, 5, 8)),
    Ellipsoid((40, 52, -58), (9, 7, 4), mirrored=True),
)


def scaled(points: Coordinates, size: float) -> Coordinates:
    """Transform points to the standard face; a smaller ``size`` gives a smaller face, mainly a shorter one."""
    below = np.clip((-20.0 - points[2]) / 20.0, 0, 1).astype(np.float32)  # the forehead belongs to the cranium
    scales = 1 / (0.5 + 0.5 * size), 1 / size, 1 / size
    moved = [
        axis + below * np.float32(scale - 1) * (axis - np.float32(origin))
        for axis, scale, origin in zip(points, scales, FACE_ORIGIN, strict=True)
    ]
    return moved[0], moved[1], moved[2]


def deepest(solids: tuple[Ellipsoid, ...], points: Coordinates) -> np.ndarray:
    """Return the depth (X, Y, Z) in the union of solids, mm."""
    total = solids[0].depth(points)
    for solid in solids[1:]:
        np.maximum(total, solid.depth(points), out=total)
    return total


def neck_depth(points: Coordinates, radius_mm: float) -> np.ndarray:
    """Return the depth (X, Y, Z) in the neck, whose shoulders widen below z = -165 mm."""
    x, y, z = points
    middle = -28.0 + 0.12 * (z + 90.0)
    sideways = np.maximum(np.abs(x) - 2.5 * np.clip(-165.0 - z, 0, None), 0.0)
    depth = radius_mm - np.sqrt(sideways**2 + (1.05 * (y - middle)) ** 2)
    return np.minimum(depth, -55.0 - z).astype(np.float32)


def distance_from(centre: np.ndarray, points: Coordinates) -> np.ndarray:
    """Return the distance (X, Y, Z) from a point, mm."""
    return np.sqrt(sum((axis - np.float32(c)) ** 2 for axis, c in zip(points, centre, strict=True)))


def along_tube(points: Coordinates, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance (X, Y, Z) from a line segment, mm, and the position along the segment (0 to 1)."""
    axis = (end - start).astype(np.float32)
    own = [values - np.float32(c) for values, c in zip(points, start, strict=True)]
    share = np.clip(sum(v * a for v, a in zip(own, axis, strict=True)) / np.float32(axis @ axis), 0, 1)
    return np.sqrt(sum((v - share * a) ** 2 for v, a in zip(own, axis, strict=True))), share


def edge(depth: np.ndarray, width_mm: float = 2.0) -> np.ndarray:
    """Return the filled fraction (0 to 1) of voxels at a depth."""
    return np.clip(depth / width_mm + 0.5, 0, 1).astype(np.float32)
