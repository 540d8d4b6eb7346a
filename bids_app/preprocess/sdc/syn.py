"""Fieldmap-less distortion correction: SyN registration of boldref and T1w along the phase-encoding axis.

The T1w image's tissues are assigned their T2*-weighted intensities before registration. The method is less accurate
than a measured field, especially in regions of signal dropout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.masking import ball
from bids_app.preprocess.registration.ants import Image, Stage, correlation, register
from bids_app.preprocess.registration.bold_to_t1w import coregister
from bids_app.preprocess.registration.boldref import EPI_CONTRAST, mask_boldref
from bids_app.preprocess.registration.transforms import grid_points, linear, read_itk_text, resample_to
from bids_app.preprocess.sdc.apply import apply_correction, displacement_statistics, read_readout, save_correction

ALONG_AXIS = (
    Stage("SyN[0.3,3,0.5]", (60, 40, 20), (4, 2, 1), (2, 1, 0.5), "CC[{fixed},{moving},1,3]", "1e-6,8"),
)  # fmt: skip
NEAR_MM = 6.0
METHOD = "the T1w image, along the phase-encoding axis (SyN)"


def correct_by_anatomy(
    source: Path, metadata: dict[str, Any], motion: MotionEstimate, anatomy: Anatomy, out_dir: Path, seed: int = 1
) -> MotionEstimate:
    """Estimate a run's distortion from its T1w image, and correct its boldref.

    Parameters
    ----------
    source : pathlib.Path
        The run's file, for messages.
    metadata : dict
        Its sidecar: ``PhaseEncodingDirection``.
    motion : MotionEstimate
    anatomy : Anatomy
    out_dir : pathlib.Path
    seed : int

    Raises
    ------
    BadDataError
        The phase-encoding direction is missing.
    RegistrationError
        The run could not be aligned with the T1w image.
    """
    boldref, affine = read_volume(motion.boldref)
    readout = read_readout(metadata, boldref.shape, source.name)
    reference = mask_boldref(source, motion.boldref, out_dir)
    alignment = coregister(reference, anatomy, out_dir, seed)
    assert alignment.coreg_file is not None
    to_t1w = linear(np.linalg.inv(read_itk_text(alignment.coreg_file)))
    tissues = load_nifti(anatomy.tissues)
    maps = np.asarray(tissues.dataobj, dtype=np.float32) / 255
    like_epi = np.zeros(boldref.shape, np.float32)
    for i, intensity in enumerate(EPI_CONTRAST.values()):
        like_epi += intensity * resample_to(maps[..., i], tissues.affine, boldref.shape, affine, to_t1w)
    brain = read_volume(alignment.brain_mask)[0] > 0.5
    near = ndimage.binary_dilation(brain, ball(NEAR_MM, affine))
    corrected = read_volume(reference.corrected)[0] * near
    square = np.diag([*voxel_sizes(affine), 1.0])  # unrotated, so that its axes are those of the grid
    restrict = tuple(float(axis == readout.axis) for axis in range(3))
    found = register(
        Image(like_epi, square), Image(corrected, square), near, ALONG_AXIS, out_dir, seed=seed, name="along",
        restrict=restrict,
    )  # fmt: skip
    points = grid_points(boldref.shape, square)
    displacement = (found.chain(points) - points)[:, readout.axis].reshape(boldref.shape)
    straight = apply_correction(corrected, affine, displacement, readout.axis)
    quality = {
        **displacement_statistics(displacement[brain]),
        "sdc_anatomy_correlation_before": correlation(like_epi[brain], corrected[brain]),
        "sdc_anatomy_correlation_after": correlation(like_epi[brain], straight[brain]),
    }
    corrected_boldref, sdc = save_correction(
        out_dir,
        motion.boldref,
        displacement,
        readout.axis,
        METHOD,
        phase_encoding=metadata["PhaseEncodingDirection"],
        quality=quality,
    )
    return replace(motion, boldref=corrected_boldref, sdc=sdc)
