"""The reference image of a run before it is aligned: bias field removed, brain masked by its own values."""

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
from bids_app.preprocess.masking import ball, brain_mask, head_mask
from bids_app.preprocess.registration.ants import (
    Image,
    centre_of_mass,
    isotropic,
    resample_mask,
)
from bids_app.preprocess.registration.transforms import Chain, resample_to

EPI_CONTRAST = {"gm": 1.0, "wm": 0.80, "csf": 1.25}
"""Brightness of tissues in a T2*-weighted image, relative to grey matter."""
MIN_EPI_BRAIN_ML = 150.0


@dataclass(frozen=True)
class EpiReference:
    """A boldref without its bias field, and the brain mask of its own values."""

    source: Path
    """The run's file, for messages."""
    boldref: Path
    corrected: Path
    mask: Path


@dataclass(frozen=True)
class EpiView:
    """A bias-corrected boldref on an isotropic grid with right angles, and its own brain mask there."""

    image: Image
    mask: np.ndarray

    @classmethod
    def of(cls, reference: EpiReference) -> EpiView:
        """Read it."""
        data, affine = read_volume(reference.corrected)
        mask, _ = read_volume(reference.mask)
        image = isotropic(Image(data, affine), float(np.clip(voxel_sizes(affine).min(), 2.0, 3.0)))
        return cls(image, resample_mask(mask > 0.5, affine, image.data.shape, image.affine, Chain()))

    @cached_property
    def near(self) -> np.ndarray:
        """The brain and 5 mm around it, bool."""
        return ndimage.binary_dilation(self.mask, ball(5.0, self.image.affine))

    @cached_property
    def centre(self) -> np.ndarray:
        """The brain's centre, (3,) mm."""
        return centre_of_mass(self.image, self.mask)

    def brain(self) -> Image:
        """The image without what lies farther than 5 mm from the brain."""
        return Image(self.image.data * self.near, self.image.affine)


def mask_boldref(source: Path, boldref: Path, out_dir: Path) -> EpiReference:
    """Remove the bias field of a boldref, and find the brain in it.

    Parameters
    ----------
    source, boldref : pathlib.Path
        The run's file (for messages), and its reference image.
    out_dir : pathlib.Path

    Raises
    ------
    BadDataError
        There is no brain in it.
    """
    data, affine = read_volume(boldref)
    iso = isotropic(Image(data, affine), max(3.0, float(voxel_sizes(affine).min())))
    bias = bias_field(iso, head_mask(iso.data, iso.affine), shrink=2)
    corrected = (data / (resample_to(bias - 1, iso.affine, data.shape, affine) + 1)).astype(np.float32)
    mask = brain_mask(corrected, affine)
    volume = float(mask.sum()) * abs(float(np.linalg.det(affine[:3, :3]))) / 1e3
    if volume < MIN_EPI_BRAIN_ML:
        raise BadDataError(
            f"{source.name}: no brain was found in it (the brightest connected part has {volume:.0f} mL).",
            "Look at the image; leave the run out if it is not a BOLD scan of a head.",
        )
    return EpiReference(
        source,
        boldref,
        save_image(out_dir / "boldref_corrected.nii.gz", corrected, affine),
        save_image(out_dir / "epi_mask.nii.gz", mask.astype(np.uint8), affine),
    )
