"""Images for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

TEMPLATE_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""Of MNI152NLin6Asym at 2 mm, 91 x 109 x 91 voxels, L-A-S."""


def noise(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Make values around 1000, always the same for a shape."""
    return np.random.default_rng(0).normal(1000, 50, shape).astype(dtype)


def ball_of_noise(n_vols: int = 4, tr: float = 0.8, seed: int = 0, affine=TEMPLATE_AFFINE, shape=(91, 109, 91)):
    """Make a ball of noise in the field of view of the template, 0 outside."""
    random = np.random.default_rng(seed)
    centre = np.indices(shape).reshape(3, -1) - np.array(shape)[:, None] / 2
    brain = ((centre / (np.array(shape)[:, None] / 3)) ** 2).sum(0).reshape(shape) < 1
    data = np.where(brain[..., None], random.normal(1000, 100, (*shape, n_vols)), 0).astype(np.float32)
    img = nib.Nifti1Image(data, affine)
    img.header.set_xyzt_units("mm", "sec")
    img.header.set_zooms((*img.header.get_zooms()[:3], tr))
    return img


def stored_as(img, codes):
    """Reorient an image to other axis codes."""
    return img.as_reoriented(ornt_transform(io_orientation(img.affine), axcodes2ornt(codes)))


@dataclass(frozen=True)
class StandardBrain:
    """A participant's brain in MNI152NLin6Asym at 4 mm, as a mean BOLD image, and its mask; axes R, A, S."""

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    def series(self, n_volumes: int = 40, mean: float = 1.0, seed: int = 0) -> np.ndarray:
        """Make a BOLD series (X, Y, Z, T) int16 with noise; ``mean`` 0 removes the mean image, as denoising does."""
        draws = np.random.default_rng(seed)
        noise = draws.normal(0, 15, (*self.image.shape, n_volumes)) * (self.image > 0)[..., None]
        return np.round(mean * self.image[..., None] + noise).astype(np.int16)
