"""An individual brain in template space: the template's tissue maps with random gyri and sulci, atrophy and lesions.

The template is an average, so its cortex is blurred. Here sulci are the zero surfaces of a smooth random field, lined
with cortex of 3 mm. Ventricles, midline, nuclei, brain stem and cerebellum come from the template.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_app.phantom.geometry import apply, distance_from_zero, grid_axes, halve_spacing, rng_for, smooth_noise
from bids_app.phantom.tissues import TissueMaps, halved

SULCUS_FWHM_MM = 10.0
FOLIA_FWHM_MM = 5.0
CORTEX_MM, FOLIA_MM = 3.0, 1.8
"""Thickness of the cortex of cerebrum and cerebellum."""
SULCAL_DEPTH_MM = 17.0
CEREBELLUM = ((0.0, -62.0, -42.0), (56.0, 36.0, 27.0))
"""Centre and half axes, mm."""
LATERAL_VENTRICLES = ((0.0, -16.0, 12.0), (40.0, 52.0, 30.0))
SHARPNESS = 2.5


def individual_brain(template: TissueMaps, atrophy: float, lesions: int, keys: tuple[int | str, ...]) -> TissueMaps:
    """Return a person's grey matter, white matter and fluid in template space.

    Parameters
    ----------
    template : TissueMaps
        Of `tissues.template_brain`, at 1 or 2 mm.
    atrophy : float
        0 to 1, see `whole_head.Person`.
    lesions : int
    keys : tuple of int or str
        Seed the random anatomy, which is the same at 1 and 2 mm.
    """
    even = tuple(slice(0, n // 2 * 2) for n in template.brain.shape) if template.affine[0, 0] < 1.5 else ...
    mask = template.brain[even]
    gm, wm, csf = (template.fractions[name][even] for name in ("gm", "wm", "csf"))
    gm, wm, csf = _fold(gm, wm, csf, mask, template.affine, atrophy, rng_for(*keys, "folds"))
    if lesions:
        coarse = template if even is ... else halved(template)
        centres = _lesion_centres(coarse, lesions, rng_for(*keys, "lesion centres"))
        gm, wm, csf = _add_lesions(gm, wm, csf, template.affine, centres, rng_for(*keys, "lesions"))
    return TissueMaps({"gm": gm * mask, "wm": wm * mask, "csf": csf * mask}, mask, template.affine)


def _fold(
    gm: np.ndarray,
    wm: np.ndarray,
    csf: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    atrophy: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return fractions (X, Y, Z) with gyri and sulci: the template where it is certain, folds in its blurred cortex."""
    step = float(affine[0, 0])
    axes = grid_axes((mask.shape[0], mask.shape[1], mask.shape[2]), affine)
    depth = ndimage.distance_transform_edt(np.pad(mask > 0.5, 1), sampling=step)[1:-1, 1:-1, 1:-1].astype(np.float32)
    in_cerebellum = _inside(axes, *CEREBELLUM)
    sulcus = distance_from_zero(_field(mask.shape, step, SULCUS_FWHM_MM, rng), step)
    sulcus = sulcus + np.clip(depth - SULCAL_DEPTH_MM, 0, None)
    folia = distance_from_zero(_field(mask.shape, step, FOLIA_FWHM_MM, rng), step) + np.clip(depth - 10.0, 0, None)
    open_mm = 0.5 + (1.2 + 1.2 * atrophy) * np.exp(-depth / 9.0)
    cortex = _ribbon(np.minimum(sulcus - open_mm, depth - 0.8 - atrophy), CORTEX_MM)
    of_cerebellum = _ribbon(np.minimum(folia - 0.2, depth - 1.0), FOLIA_MM)
    folded = [np.where(in_cerebellum, b, a) for a, b in zip(cortex, of_cerebellum, strict=True)]
    blurred = np.clip(3.0 * np.minimum(1 - wm, 1 - csf), 0, 1) * np.clip((26.0 - depth) / 8.0, 0, 1)
    blurred = np.where(in_cerebellum, 0.7 * blurred, blurred)
    central = _inside(axes, *LATERAL_VENTRICLES) & (depth > 18.0)
    wider = 1 + 60.0 * atrophy * ndimage.gaussian_filter(csf * central, 3.0 / step)
    logits = [
        SHARPNESS * np.log(p * scale + 0.02) + 2.5 * blurred * np.log(f + 0.03)
        for p, f, scale in ((csf, folded[0], wider), (gm, folded[1], 1.0), (wm, folded[2], 1.0))
    ]
    top = np.maximum.reduce(logits)
    shares = [np.exp(values - top) for values in logits]
    total = shares[0] + shares[1] + shares[2]
    return shares[1] / total, shares[2] / total, shares[0] / total


def _ribbon(pial: np.ndarray, thickness_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return fluid, cortex and white matter (X, Y, Z) by the distance below the pial surface, mm."""
    return _ramp(-pial), _ramp(pial) * _ramp(thickness_mm - pial), _ramp(pial - thickness_mm)


def _ramp(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 0.5, 0, 1)


def _inside(
    axes: tuple[np.ndarray, ...], centre: tuple[float, float, float], half: tuple[float, float, float]
) -> np.ndarray:
    """Return the voxels in an ellipsoid, (X, Y, Z) bool."""
    x, y, z = (((axis - c) / h) ** 2 for axis, c, h in zip(axes, centre, half, strict=True))
    return x + y + z < 1


def _field(shape: tuple[int, ...], step: float, fwhm_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Simulate a random field (X, Y, Z) that is the same at 1 and 2 mm."""
    x, y, z = shape
    if step > 1.5:
        return smooth_noise((x, y, z), step, fwhm_mm, rng)
    return halve_spacing(smooth_noise((x // 2, y // 2, z // 2), 2.0, fwhm_mm, rng))


def _lesion_centres(template: TissueMaps, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose positions (N, 3) in the white matter of the template at 2 mm, so that they are the same at 1 mm."""
    index = np.argwhere(template.fractions["wm"] > 0.85)
    return apply(template.affine, index[rng.integers(len(index), size=count)].astype(float))


def _add_lesions(
    gm: np.ndarray,
    wm: np.ndarray,
    csf: np.ndarray,
    affine: np.ndarray,
    centres: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace white matter by grey matter and fluid in ellipsoids; every fifth is a cavity."""
    axes = grid_axes((gm.shape[0], gm.shape[1], gm.shape[2]), affine)
    for number, centre in enumerate(centres):
        cavity = number % 5 == 4
        radius = rng.uniform(9, 16) if cavity else rng.uniform(2.5, 6)
        stretch = rng.uniform(0.7, 1.4, 3)
        x, y, z = (((axis - c) * s) ** 2 for axis, c, s in zip(axes, centre, stretch, strict=True))
        blob = np.clip((radius - np.sqrt(x + y + z)) / 2.0 + 0.5, 0, 1)
        fluid = 1.0 if cavity else 0.3
        gm, wm, csf = gm * (1 - blob) + blob * (1 - fluid), wm * (1 - blob), csf * (1 - blob) + blob * fluid
    return gm, wm, csf
