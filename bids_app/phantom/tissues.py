"""Tissue maps of a head in the space of nilearn's embedded template, and their T1w and T2* contrast.

The template (ICBM 2009a symmetric, here MNI152NLin2009aSym) is skull-stripped, so bone, scalp, neck, face and eyes
are added as simple solids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn import datasets as nilearn_datasets
from scipy import ndimage

from bids_app.phantom.geometry import grid_points

TEMPLATE = "MNI152NLin2009aSym"
TISSUES = ("gm", "wm", "csf", "bone", "fat", "muscle", "fluid")
PADDING = ((0, 0), (0, 20), (60, 0))
"""Padding of the template's box along x, y, z for face and neck, mm."""


@dataclass(frozen=True)
class TissueMaps:
    """Tissue fractions in template space.

    Attributes
    ----------
    fractions : dict of str to (X, Y, Z) float32
        One map per tissue of `TISSUES`; the maps sum to 1 or less, the remainder is air.
    brain : (X, Y, Z) float32
        The template's brain mask (fractions at 2 mm and above).
    affine : (4, 4)
        Voxel to template mm.
    """

    fractions: dict[str, np.ndarray]
    brain: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class TissuePhysics:
    """Relative proton density, T1 (s) and T2* (s) at 3 T, and relative intensity in a T1w image."""

    density: float
    t1: float
    t2star: float
    t1w: float


PHYSICS = {
    "gm": TissuePhysics(0.82, 1.33, 0.050, 0.62),
    "wm": TissuePhysics(0.60, 0.83, 0.044, 0.95),
    "csf": TissuePhysics(1.00, 2.50, 0.250, 0.22),  # shortened T1, for inflow
    "bone": TissuePhysics(0.08, 1.00, 0.010, 0.08),
    "fat": TissuePhysics(0.12, 0.37, 0.040, 0.90),  # density after fat suppression
    "muscle": TissuePhysics(0.60, 1.40, 0.020, 0.42),
    "fluid": TissuePhysics(0.90, 3.00, 0.120, 0.20),
}


@lru_cache(maxsize=2)
def template_tissues(resolution_mm: int = 1) -> TissueMaps:
    """Return the tissue maps of the template at 1 or 2 mm; cached per process."""
    if resolution_mm == 1:
        return _at_1mm()
    return halved(_at_1mm())


def _halve(volume: np.ndarray) -> np.ndarray:
    x, y, z = (n // 2 for n in volume.shape)
    return volume[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5), dtype=np.float32)


def _at_1mm() -> TissueMaps:
    own = template_brain()
    fractions = {name: np.pad(values, PADDING) for name, values in own.fractions.items()}
    brain = np.pad(own.brain > 0, PADDING)
    affine = own.affine.copy()
    affine[:3, 3] -= [before for before, _ in PADDING]
    fractions |= _around_the_brain(brain, affine)
    return TissueMaps(fractions, brain.astype(np.float32), affine)


def template_brain(resolution_mm: int = 1) -> TissueMaps:
    """Return grey matter, white matter and CSF of the template's brain, in the template's own box, at 1 or 2 mm."""
    mask_img = nilearn_datasets.load_mni152_brain_mask(resolution=1)
    brain = ndimage.binary_fill_holes(np.asarray(mask_img.dataobj) > 0)
    gm, wm = (
        np.asarray(load(resolution=1).dataobj, dtype=np.float32) * brain
        for load in (nilearn_datasets.load_mni152_gm_template, nilearn_datasets.load_mni152_wm_template)
    )
    total = np.maximum(gm + wm, 1.0)
    fractions = {"gm": gm / total, "wm": wm / total}
    fractions["csf"] = np.clip(brain - fractions["gm"] - fractions["wm"], 0.0, 1.0).astype(np.float32)
    maps = TissueMaps(fractions, brain.astype(np.float32), mask_img.affine.copy())
    return maps if resolution_mm == 1 else halved(maps)


def halved(maps: TissueMaps) -> TissueMaps:
    """Return maps at twice the voxel size."""
    affine = maps.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = maps.affine[:3, 3] + 0.5
    return TissueMaps({name: _halve(values) for name, values in maps.fractions.items()}, _halve(maps.brain), affine)


def _around_the_brain(brain: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """Build bone, fat, muscle and fluid as solids around the brain, computed at 2 mm and resampled to 1 mm."""
    coarse_affine = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    coarse = brain[::2, ::2, ::2]
    points = grid_points(coarse.shape, coarse_affine)
    envelope = ndimage.binary_closing(np.pad(coarse, 6), iterations=5)[6:-6, 6:-6, 6:-6] | coarse
    distance = ndimage.distance_transform_edt(~envelope, sampling=2.0).astype(np.float32)
    depth_of_body = np.maximum(_neck(points), _face(points))  # mm, positive inside
    fat = _layer(distance, 6.0, 13.0)
    muscle = np.clip(depth_of_body / 2.0, 0, 1) * _layer(distance, 7.0, np.inf)
    fat = np.maximum(fat * (1 - muscle), muscle * np.clip(1 - depth_of_body / 8.0, 0, 1))
    muscle = np.clip(muscle - fat, 0, 1) * (1 - _airways(points))
    fluid = _eyes(points) * _layer(distance, 1.0, np.inf)
    muscle, fat = muscle * (1 - fluid), fat * (1 - fluid)
    fine = {
        name: _to_fine(values, brain.shape) * ~brain
        for name, values in {"fat": fat, "muscle": muscle, "fluid": fluid}.items()
    }
    bone = _to_fine(_layer(distance, -1.0, 6.0), brain.shape) * ~brain
    fine["bone"] = np.clip(bone - fine["fat"] - fine["muscle"] - fine["fluid"], 0, 1)
    return fine


def _layer(distance: np.ndarray, inner_mm: float, outer_mm: float) -> np.ndarray:
    return np.clip(distance - inner_mm + 0.5, 0, 1) * np.clip(outer_mm - distance + 0.5, 0, 1)


def _neck(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    return np.where(z < -40.0, 58.0 - np.hypot(x, y + 28.0), -10.0)


def _face(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    return 55.0 * (1 - np.sqrt((x / 62.0) ** 2 + ((y - 35.0) / 58.0) ** 2 + ((z + 62.0) / 62.0) ** 2))


def _airways(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    nose = ((x / 12.0) ** 2 + ((y - 55.0) / 30.0) ** 2 + ((z + 52.0) / 18.0) ** 2) < 1
    throat = ((x / 10.0) ** 2 + ((y - 12.0) / 9.0) ** 2 < 1) & (z < -50.0)
    return (nose | throat).astype(np.float32)


def _eyes(points: np.ndarray) -> np.ndarray:
    sides = (np.linalg.norm(points - np.array([side * 33.0, 66.0, -38.0], np.float32), axis=-1) for side in (-1, 1))
    return sum(np.clip(13.0 - distance, 0, 1) for distance in sides)


def _to_fine(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate a map from 2 mm to 1 mm; every second fine voxel centre is a coarse one."""
    fine = coarse.astype(np.float32)
    for axis, length in enumerate(shape):
        values = np.moveaxis(fine, axis, 0)
        doubled = np.repeat(values, 2, axis=0)
        doubled[1:-1:2] = (values[:-1] + values[1:]) / 2
        fine = np.moveaxis(doubled[:length], 0, axis)
    return fine


def t1w_brightness(maps: TissueMaps, contrast: Mapping[str, float] | None = None) -> np.ndarray:
    """Return the T1w intensity (X, Y, Z) of a head, with white matter near 1; ``contrast`` gives other intensities."""
    total = np.zeros_like(maps.brain)
    for name, values in maps.fractions.items():
        total += (PHYSICS[name].t1w if contrast is None else contrast[name]) * values
    return total


def epi_signal(tr: float, te: float, flip_deg: float, n_volumes: int) -> np.ndarray:
    """Compute the signal of each tissue in a gradient-echo series that starts from equilibrium magnetisation.

    Parameters
    ----------
    tr, te : float
        Repetition time and echo time, s.
    flip_deg : float
        Flip angle, degrees.
    n_volumes : int

    Returns
    -------
    (n_volumes + 1, len(TISSUES))
        Relative signal; the last row is the steady state.
    """
    sine, cosine = np.sin(np.deg2rad(flip_deg)), np.cos(np.deg2rad(flip_deg))
    table = np.empty((n_volumes + 1, len(TISSUES)))
    for column, name in enumerate(TISSUES):
        tissue = PHYSICS[name]
        e1 = np.exp(-tr / tissue.t1)
        steady = (1 - e1) / (1 - e1 * cosine)
        magnetisation = steady + (1 - steady) * (e1 * cosine) ** np.arange(n_volumes)
        table[:, column] = tissue.density * sine * np.exp(-te / tissue.t2star) * np.append(magnetisation, steady)
    return table
