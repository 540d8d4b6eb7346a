"""Bias correction and brain mask of a boldref, before registration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.errors import BadDataError
from bids_app.preprocess.anatomical import bias_field
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.masking import ball, brain_mask, head_mask, volume_ml
from bids_app.preprocess.registration.ants import (
    Image,
    centre_of_mass,
    isotropic,
    resample_mask,
)
from bids_app.preprocess.registration.transforms import Chain, resample_to

EPI_CONTRAST = {"gm": 1.0, "wm": 0.80, "csf": 1.25}
"""Intensity of tissues in a T2*-weighted image, relative to grey matter."""
MIN_EPI_BRAIN_ML = 150.0
CUT_AREA = 0.6
"""Cross-section of the brain in the outermost slices, relative to the largest, above which the slices cut the brain. In
an ellipsoid, 18 % of the height is then missing. Five real whole brains have up to 0.50 (the slices end
in the cerebellum); without the lowest or highest 30 % of the slices, they have 0.66 and more."""


@dataclass(frozen=True)
class EpiReference:
    """A boldref, its bias-corrected copy, and a brain mask from its own intensities."""

    source: Path
    """The run's file, for messages."""
    boldref: Path
    corrected: Path
    mask: Path


@dataclass(frozen=True)
class EpiView:
    """A bias-corrected boldref and its brain mask on an isotropic, orthogonal grid."""

    image: Image
    mask: np.ndarray

    @classmethod
    def of(cls, reference: EpiReference) -> EpiView:
        """Read a boldref and resample it to an isotropic grid."""
        data, affine = read_volume(reference.corrected)
        mask, _ = read_volume(reference.mask)
        image = isotropic(Image(data, affine), float(np.clip(voxel_sizes(affine).min(), 2.0, 3.0)))
        return cls(image, resample_mask(mask > 0.5, affine, image.data.shape, image.affine, Chain()))

    @cached_property
    def near(self) -> np.ndarray:
        """Brain mask dilated by 5 mm, bool."""
        return ndimage.binary_dilation(self.mask, ball(5.0, self.image.affine))

    @cached_property
    def centre(self) -> np.ndarray:
        """Centre of the brain, (3,) mm."""
        return centre_of_mass(self.image, self.mask)

    def brain(self) -> Image:
        """Return the image, set to 0 farther than 5 mm from the brain."""
        return Image(self.image.data * self.near, self.image.affine)


def mask_boldref(source: Path, boldref: Path, out_dir: Path) -> EpiReference:
    """Remove the bias field of a boldref and estimate its brain mask.

    Parameters
    ----------
    source, boldref : pathlib.Path
        The run's file (for messages), and its reference image.
    out_dir : pathlib.Path

    Raises
    ------
    BadDataError
        No brain was found.
    """
    data, affine = read_volume(boldref)
    iso = isotropic(Image(data, affine), max(3.0, float(voxel_sizes(affine).min())))
    bias = bias_field(iso, head_mask(iso.data, iso.affine), out_dir, shrink=3)
    corrected = (data / (resample_to(bias - 1, iso.affine, data.shape, affine) + 1)).astype(np.float32)
    mask = brain_mask(corrected, affine)
    volume = volume_ml(mask, affine)
    if volume < MIN_EPI_BRAIN_ML:
        raise BadDataError(
            f"{source.name}: no brain was found; the largest bright component has {volume:.0f} mL (at least "
            f"{MIN_EPI_BRAIN_ML:.0f} mL are required).",
            "Inspect the image and the voxel sizes in its header (half the size is an eighth of the volume); exclude "
            "the run if it does not show a head.",
        )
    return EpiReference(
        source,
        boldref,
        save_image(out_dir / "boldref_corrected.nii.gz", corrected, affine),
        save_image(out_dir / "epi_mask.nii.gz", mask.astype(np.uint8), affine),
    )


def cut_ends(mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Return which ends of a field of view cut the brain, ``lowest`` or ``highest``, and its cross-section there.

    Parameters
    ----------
    mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask.
    affine : numpy.ndarray, (4, 4)

    Returns
    -------
    dict
        Mean area of the brain in the last two slices, relative to the largest of all slices; empty: none is above
        `CUT_AREA`.
    """
    axis = int(np.argmax(np.abs(affine[2, :3]) / voxel_sizes(affine)))
    areas = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    first, last = (float(end.mean()) / max(float(areas.max()), 1.0) for end in (areas[:2], areas[-2:]))
    lowest, highest = (first, last) if affine[2, axis] > 0 else (last, first)
    return {end: area for end, area in (("lowest", lowest), ("highest", highest)) if area > CUT_AREA}
