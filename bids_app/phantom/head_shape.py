"""A simulated participant's head shape: a smooth random warp and an affine between the template and the head.

Spaces, all RAS mm: *template* (MNI152NLin2009aSym), *head* (the participant's native head, upright), *T1w* (the head's
position during the T1w scan). Points are transformed T1w -> head -> template.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.phantom.geometry import apply, rigid, rng_for, sample, smooth_noise

FIELD_SPACING_MM = 4.0
FIELD_LOW_MM, FIELD_HIGH_MM = np.array([-112.0, -148.0, -148.0]), np.array([112.0, 132.0, 132.0])
BRAIN_CENTRE_MM = np.array([0.0, -18.0, 8.0])
"""Centre of the template's brain, mm; simulated scanners position the head's centre here."""


@dataclass(frozen=True)
class HeadShape:
    """The transform between a participant's T1w scan and the template.

    Attributes
    ----------
    affine : (4, 4)
        Head to template, the linear part.
    field : (3, X, Y, Z) float32
        Displacement added after the affine, at head positions, mm.
    field_affine : (4, 4)
        Voxel of ``field`` to head mm.
    t1w_to_head : (4, 4)
        Rigid: position of the head in the scanner.
    """

    affine: np.ndarray
    field: np.ndarray
    field_affine: np.ndarray
    t1w_to_head: np.ndarray

    def t1w_to_template(self, points: np.ndarray) -> np.ndarray:
        """Transform points (..., 3) from the T1w scan to the template, mm."""
        return self.head_to_template(apply(self.t1w_to_head, points))

    def template_to_t1w(self, points: np.ndarray) -> np.ndarray:
        """Transform points (..., 3) from the template to the T1w scan, mm."""
        return apply(np.linalg.inv(self.t1w_to_head), self.template_to_head(points))

    def head_to_template(self, points: np.ndarray) -> np.ndarray:
        """Transform points (..., 3) from the head to the template, mm."""
        return apply(self.affine, points) + self.displacement(points)

    def template_to_head(self, points: np.ndarray, tolerance_mm: float = 1e-3) -> np.ndarray:
        """Transform points (..., 3) from the template to the head, by fixed-point iteration down to a tolerance."""
        back = np.linalg.inv(self.affine)
        head = apply(back, points)
        for _ in range(50):
            update = apply(back, points - self.displacement(head))
            step = float(np.abs(update - head).max(initial=0.0))
            head = update
            if step < tolerance_mm:
                return head
        raise ArithmeticError(f"Inversion of the simulated warp did not converge: the last step was {step:.3f} mm.")

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """Interpolate the displacement (..., 3) at head positions, mm."""
        inside = np.clip(points, FIELD_LOW_MM + 1e-3, FIELD_HIGH_MM - 1e-3).astype(points.dtype)
        return np.stack([sample(f, self.field_affine, inside) for f in self.field], axis=-1).astype(points.dtype)


def random_head_shape(*keys: int | str, warp_mm: float = 3.0) -> HeadShape:
    """Simulate a participant's head shape.

    Parameters
    ----------
    keys : int or str
        The seed and the participant's name; the same keys give the same head.
    warp_mm : float
        Standard deviation of the displacements, mm.
    """
    rng = rng_for(*keys, "anatomy")
    size = rng.uniform(0.88, 1.0) * rng.uniform(0.97, 1.03, 3)  # most brains are smaller than the template
    shear = np.eye(3) + np.triu(rng.normal(0, 0.015, (3, 3)), 1)
    affine = np.eye(4)
    affine[:3, :3] = shear @ np.diag(1 / size)
    affine[:3, 3] = BRAIN_CENTRE_MM - affine[:3, :3] @ BRAIN_CENTRE_MM
    shape = tuple(int(n) for n in (FIELD_HIGH_MM - FIELD_LOW_MM) / FIELD_SPACING_MM + 1)
    field = np.stack([_component(shape, warp_mm, rng) for _ in range(3)])
    field_affine = np.diag([FIELD_SPACING_MM] * 3 + [1.0])
    field_affine[:3, 3] = FIELD_LOW_MM
    return HeadShape(affine, field, field_affine, random_pose(rng))


def _component(shape: tuple[int, ...], warp_mm: float, rng: np.random.Generator) -> np.ndarray:
    x, y, z = shape
    broad = smooth_noise((x, y, z), FIELD_SPACING_MM, 64.0, rng)
    fine = smooth_noise((x, y, z), FIELD_SPACING_MM, 32.0, rng)
    return warp_mm * (0.95 * broad + 0.31 * fine)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    """Simulate the position of a head in the scanner: scanner mm to head mm, rigid (4, 4)."""
    degrees = rng.normal(0, 1, 3) * [5.0, 2.5, 2.5]
    offset = rng.normal(0, 1, 3) * [2.0, 5.0, 5.0]
    centred = np.eye(4)
    centred[:3, 3] = BRAIN_CENTRE_MM + offset
    return centred @ rigid(np.zeros(3), degrees)
