"""Tissue maps of a whole head: an individual brain, cerebrospinal fluid, skull with diploe, scalp, face and neck.

The brain is that of nilearn's template with individual folds (`brain_anatomy`); everything else is geometry around it.
The maps have the tissues of `tissues.TISSUES`; other tissues are mixtures: marrow is fat and bone, skin is muscle and
fat, lesions are grey matter and fluid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from bids_app.phantom import face
from bids_app.phantom.brain_anatomy import individual_brain
from bids_app.phantom.face import along_tube, deepest, distance_from, edge
from bids_app.phantom.geometry import distance_from_zero, grid_axes, halve_spacing, rng_for, smooth_noise
from bids_app.phantom.tissues import TissueMaps, halved, template_brain

COARSE_MM = 2
MARGINS = ((4, 4), (6, 14), (62, 0))
"""Voxels of 2 mm added to the template's box along x, y, z, for scalp, face and neck."""


@dataclass(frozen=True)
class Person:
    """What differs between heads, besides their shape (`head_shape`).

    Attributes
    ----------
    skull_mm, scalp_mm : float
        Mean thickness of the skull, and of fat and skin above it.
    csf_mm : float
        Mean thickness of the fluid between the brain and the skull.
    marrow : float
        Fraction of marrow in the diploe.
    neck_mm : float
        Radius of the neck.
    face_size : float
        Relative to an adult's.
    brain_scale : float
        Factor of the size of brain and head.
    atrophy : float
        0: a young adult; 1: wide ventricles and sulci.
    lesions : int
        Number of lesions of white matter; every fifth is a large cavity.
    """

    skull_mm: float = 5.0
    scalp_mm: float = 5.0
    csf_mm: float = 1.0
    marrow: float = 0.75
    neck_mm: float = 58.0
    face_size: float = 1.0
    brain_scale: float = 1.0
    atrophy: float = 0.0
    lesions: int = 0


@lru_cache(maxsize=1)
def whole_head_tissues(person: Person, keys: tuple[int | str, ...], resolution_mm: int = 1) -> TissueMaps:
    """Build the tissue maps of a person's whole head.

    Parameters
    ----------
    person : Person
    keys : tuple of int or str
        Seed and name; the same keys give the same anatomy at any resolution, up to interpolation.
    resolution_mm : int
        1 or 2.

    Returns
    -------
    TissueMaps
        (X, Y, Z) of the box from `LOW_MM` to `HIGH_MM`.
    """
    brain = template_brain()
    template = halved(brain)
    low = [before for before, _ in MARGINS]
    shape = tuple(int(n) + sum(margin) for n, margin in zip(template.brain.shape, MARGINS, strict=True))
    affine = template.affine.copy()
    affine[:3, 3] -= COARSE_MM * np.array(low)
    coarse = _Coarse.build(person, keys, (shape[0], shape[1], shape[2]), affine, template.brain)
    if resolution_mm == COARSE_MM:
        return _compose(coarse, person, individual_brain(template, person.atrophy, person.lesions, keys), affine)
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] -= 0.5
    return _compose(coarse.refined(), person, individual_brain(brain, person.atrophy, person.lesions, keys), fine)


@dataclass(frozen=True)
class _Coarse:
    """Smooth fields (X, Y, Z) of a head, mm or fractions, from which layers of any thinness are computed.

    ``outside`` is the distance from the brain's envelope, ``depth`` the depth below the skin, ``inner`` and ``outer``
    the skull's surfaces as distances from the envelope; the rest are fractions.
    """

    outside: np.ndarray
    depth: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    fat_mm: np.ndarray
    air: np.ndarray
    bone: np.ndarray
    marrow: np.ndarray
    eye: np.ndarray
    lens: np.ndarray
    orbit: np.ndarray
    nerve: np.ndarray
    cord: np.ndarray
    canal: np.ndarray
    strands: np.ndarray

    @classmethod
    def build(
        cls,
        person: Person,
        keys: tuple[int | str, ...],
        shape: tuple[int, int, int],
        affine: np.ndarray,
        brain: np.ndarray,
    ) -> _Coarse:
        rng = rng_for(*keys, "whole head")
        points = x, y, z = grid_axes(shape, affine)
        outside = _distance_from_brain(brain)

        def noise(fwhm_mm: float) -> np.ndarray:
            return smooth_noise(shape, float(COARSE_MM), fwhm_mm, rng)

        inner = np.clip(person.csf_mm * (1 + 0.35 * noise(50.0)), 0.3, None) + 0.8 * person.atrophy
        base = np.clip((-20.0 - z) / 25.0, 0, 1)
        bulge = 0.12 * np.exp(-(((y + 105) / 25) ** 2)) + 0.2 * np.exp(-(((y - 70) / 20) ** 2))
        skull = person.skull_mm * np.clip(1 + bulge + 0.22 * noise(60.0) - 0.35 * base * (y < 20), 0.4, 1.8)
        outer = inner + skull
        scalp = np.clip(person.scalp_mm * (1 + 0.2 * noise(60.0)), 2.5, None)
        temple = 9.0 * np.exp(-(((y - 15) / 32) ** 2) - ((z + 22) / 26) ** 2) * np.clip((np.abs(x) - 45) / 15, 0, 1)
        of_face = face.scaled(points, person.face_size)
        solid = deepest(face.SURFACE, of_face) + 1.2 * noise(30.0)
        neck = face.neck_depth(points, person.neck_mm * (0.6 + 0.4 * person.face_size))
        depth = _smooth_union(_smooth_union(outer + scalp + temple - outside, solid, 16.0), neck, 20.0)
        eye = np.maximum(*(face.EYE_RADIUS_MM - distance_from(e, of_face) for e in face.EYES))
        lenses = (e + np.array([0, 9.0, 0]) for e in face.EYES)
        lens = np.maximum(*(3.0 - distance_from(e, of_face) for e in lenses))
        depth = np.maximum(depth, eye + 1.5)  # eyelids
        tubes = [along_tube(of_face, e - np.array([0, 10.0, 0]), face.CHIASM) for e in face.EYES]
        orbit = np.maximum(*((15.0 * (1 - share) ** 0.8 + 1.0) - d for d, share in tubes))
        nerve = np.maximum(*(2.2 - d for d, _ in tubes))
        cord_distance, share = along_tube(points, face.CORD_TOP, face.CORD_BOTTOM)
        below = edge(face.CORD_TOP[2] - z)
        vertebrae = 0.5 + 0.5 * np.cos(2 * np.pi * share * 7)
        front = y > face.CORD_TOP[1] + (face.CORD_BOTTOM - face.CORD_TOP)[1] * share
        column, _ = along_tube(points, face.CORD_TOP + np.array([0, 17, -6]), face.CORD_BOTTOM + np.array([0, 17, 0]))
        cells = np.where(np.abs(x) > 40, noise(5.0) > -0.3, True)  # mastoid air cells
        air = edge(deepest(face.AIR, of_face)) * cells
        bone = np.maximum(
            edge(deepest(face.BONE, of_face)),
            below * np.maximum(edge(11.0 - column), edge(11.0 - cord_distance) * (~front | (cord_distance < 8))),
        )
        marrow = np.maximum(
            edge(deepest(face.MARROW, of_face)), below * edge(9.0 - column) * np.clip(1.6 * vertebrae, 0, 1)
        )
        return cls(
            outside=outside,
            depth=depth,
            inner=inner,
            outer=outer,
            fat_mm=np.clip(
                person.scalp_mm * (0.75 + 0.3 * noise(40.0)) * (1 + 0.5 * np.clip((-50 - z) / 40, 0, 1)), 1, None
            ),
            air=air,
            bone=bone,
            marrow=marrow * 0.75 * np.clip(1 + 0.25 * noise(8.0), 0, 1.3),
            eye=edge(eye),
            lens=edge(lens),
            orbit=edge(orbit),
            nerve=edge(nerve),
            cord=below * edge(5.5 - cord_distance),
            canal=below * edge(8.5 - cord_distance),
            strands=np.clip(1.6 - distance_from_zero(noise(16.0), COARSE_MM), 0, 1)
            * np.clip(0.6 + 0.4 * noise(20.0), 0, 1),
        )

    def refined(self) -> _Coarse:
        """Return the fields interpolated to half of the spacing."""
        return _Coarse(**{name: halve_spacing(values) for name, values in vars(self).items()})


def _distance_from_brain(brain: np.ndarray) -> np.ndarray:
    """Compute the signed distance from the smooth envelope of the template's brain, mm; negative inside."""
    brain = np.pad(brain > 0.5, MARGINS)
    near = ndimage.distance_transform_edt(~brain, sampling=COARSE_MM) < 12.0
    envelope = ndimage.distance_transform_edt(near, sampling=COARSE_MM) > 12.0
    outside, inside = (ndimage.distance_transform_edt(part, sampling=COARSE_MM) for part in (~envelope, envelope))
    return ndimage.gaussian_filter((outside - inside).astype(np.float32), 1.0)


def _smooth_union(first: np.ndarray, second: np.ndarray, width_mm: float) -> np.ndarray:
    """Return the depth in the union of two solids, with a fillet of the given width."""
    blend = np.clip(0.5 + 0.5 * (first - second) / width_mm, 0, 1)
    return (second + (first - second) * blend + width_mm * blend * (1 - blend)).astype(np.float32)


def _compose(field: _Coarse, person: Person, brain: TissueMaps, affine: np.ndarray) -> TissueMaps:
    """Fill the head from the inside out: each tissue takes what those before it left of a voxel."""
    width = float(affine[0, 0])
    margins = [tuple(round(COARSE_MM / width) * n for n in margin) for margin in MARGINS]
    padding = [
        (low, total - low - n)
        for (low, _), total, n in zip(margins, field.outside.shape, brain.brain.shape, strict=True)
    ]
    envelope = np.pad(brain.brain, padding)
    free = 1 - envelope
    maps = {name: np.pad(values, padding) for name, values in brain.fractions.items()}
    maps |= {name: np.zeros_like(free) for name in ("bone", "fat", "muscle", "fluid")}

    def fill(wanted: np.ndarray, **shares: float | np.ndarray) -> None:
        nonlocal free
        taken = np.minimum(free, wanted)
        for name, share in shares.items():
            maps[name] += taken * share
        free = free - taken

    fill(field.cord, wm=0.75, gm=0.25)
    fill(field.canal, csf=1.0)
    fill(field.nerve * edge(field.outer - field.outside + 40.0), wm=0.6, muscle=0.4)
    fill(edge(field.inner - field.outside, width), csf=1.0)
    inside_body = edge(field.depth, width)
    air = np.minimum(field.air * (field.outside > 3.0), edge(field.depth + 1.0, width))
    free = np.minimum(free, 1 - air * (field.outside > 0.5))
    fill(field.lens, muscle=0.5, fluid=0.5)
    fill(field.eye, fluid=1.0)
    fill(field.orbit * edge(field.outside - field.inner - 2.5, width) * inside_body, fat=0.95, muscle=0.05)
    skull = edge(field.outer - field.outside, width)
    table = 0.6 + 0.1 * (field.outer - field.inner)
    in_diploe = edge(np.minimum(field.outside - field.inner, field.outer - field.outside) - table, width)
    marrow = in_diploe * person.marrow
    fill(skull * edge(field.depth - 3.0, width), bone=1 - marrow, fat=marrow)
    fill(field.bone * edge(field.depth - 4.0, width), bone=1 - field.marrow, fat=field.marrow)
    skin = edge(1.8 - field.depth, width)
    fill(inside_body * skin, muscle=0.75, fat=0.1)
    fill(inside_body * edge(field.fat_mm + 1.8 - field.depth, width), fat=0.93, muscle=0.07)
    fill(inside_body, muscle=1 - field.strands, fat=field.strands)
    return TissueMaps({name: maps[name].astype(np.float32) for name in maps}, envelope, affine)
