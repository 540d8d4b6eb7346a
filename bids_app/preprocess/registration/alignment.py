"""Alignment of a BOLD run with the template: the common result of registration with and without a T1w."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.catalog.templates import Template
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.masking import ball
from bids_app.preprocess.registration.ants import dice
from bids_app.preprocess.registration.boldref import EpiReference
from bids_app.preprocess.registration.transforms import Chain, resample_to

MIN_NOISE_VOXELS = 50


@dataclass(frozen=True)
class Alignment:
    """Alignment of a run. Masks are on the boldref's grid; ``chain`` maps template points to boldref points."""

    route: str
    """``t1w`` or ``direct``."""
    template: str
    chain: Path
    brain_mask: Path
    dseg: Path
    """1 grey matter, 2 white matter, 3 CSF."""
    csf_mask: Path
    wm_mask: Path
    boldref_in_template: Path
    boldref_in_t1w: Path | None = None
    """On the T1w's 2 mm grid."""
    coreg_file: Path | None = None
    """ITK transform that resamples the boldref to the T1w (route ``t1w``)."""
    to_template: Path | None = None
    from_template: Path | None = None
    """ITK transforms between boldref and template (route ``direct``)."""
    quality: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """Signs that the alignment is wrong, with the likely cause."""
    t1w_problem: str = ""
    """Reason why the T1w image was not used (route ``direct``); empty: there is none."""


@dataclass(frozen=True)
class Tissues:
    """Tissue probability maps, and the pull transform from boldref points to their space.

    Parameters
    ----------
    maps : numpy.ndarray, (X, Y, Z, 3)
        Grey matter, white matter, CSF.
    affine : numpy.ndarray, (4, 4)
    chain : Chain
    """

    maps: np.ndarray
    affine: np.ndarray
    chain: Chain


def finish_alignment(
    route: str,
    target: Template,
    reference: EpiReference,
    mask: np.ndarray,
    tissues: Tissues,
    chain: Chain,
    quality: dict[str, float],
    warnings: tuple[str, ...],
    out_dir: Path,
    **files: Any,
) -> Alignment:
    """Write masks on the boldref's grid, and the images for figures.

    Parameters
    ----------
    mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask on the boldref's grid.
    chain : Chain
        Template to boldref.
    **files
        Other fields of `Alignment`.
    """
    boldref, affine = read_volume(reference.boldref)
    maps = np.stack(
        [resample_to(tissues.maps[..., i], tissues.affine, boldref.shape, affine, tissues.chain) for i in range(3)],
        axis=-1,
    )
    dseg = ((maps.argmax(axis=-1) + 1) * (maps.sum(axis=-1) > 0.3) * mask).astype(np.uint8)
    wm, csf = noise_masks(maps, mask, affine)
    epi_mask = read_volume(reference.mask)[0] > 0.5

    def save(name: str, data: np.ndarray) -> Path:
        return save_image(out_dir / name, data.astype(np.uint8), affine)

    normalised = resample_to(boldref, affine, target.t1w.shape, target.affine, chain)
    return Alignment(
        route=route,
        template=target.name,
        chain=chain.save(out_dir / "template_to_boldref.npz"),
        brain_mask=save("brain_mask.nii.gz", mask),
        dseg=save("dseg.nii.gz", dseg),
        csf_mask=save("csf_mask.nii.gz", csf),
        wm_mask=save("wm_mask.nii.gz", wm),
        boldref_in_template=save_image(out_dir / "boldref_in_template.nii.gz", normalised, target.affine, space_code=4),
        quality=quality | {"epi_mask_dice": dice(mask, epi_mask)},
        warnings=warnings,
        **files,
    )


def noise_masks(maps: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute masks of white matter and of CSF without voxels adjacent to grey matter.

    Parameters
    ----------
    maps : numpy.ndarray, (X, Y, Z, 3)
        Probabilities of grey matter, white matter and CSF on the boldref's grid.
    mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask.
    affine : numpy.ndarray, (4, 4)

    Returns
    -------
    tuple of numpy.ndarray, (X, Y, Z) bool
        White matter, CSF. Voxels adjacent to grey matter are kept if fewer than `MIN_NOISE_VOXELS` would remain.
    """
    neighbourhood = ball(float(voxel_sizes(affine).max()) * 1.01, affine)
    grey = ndimage.binary_dilation(maps[..., 0] > 0.5, neighbourhood)
    inner = ndimage.binary_erosion(mask, neighbourhood)
    found = []
    for tissue in (1, 2):
        pure = (maps[..., tissue] > 0.9) & inner
        strict = pure & ~grey
        found.append(strict if strict.sum() >= MIN_NOISE_VOXELS else pure)
    return found[0], found[1]
