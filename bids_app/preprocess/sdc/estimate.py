"""Susceptibility distortion correction by a fieldmap: alignment with the run, and displacement.

A point p appears at p + d(p) along the phase-encoding axis, d = field in Hz x total readout time x voxel size. Pairs of
opposite EPIs give d directly (`epi_pair`); phase images give the field (`phasediff`). The displacement is part of the
single interpolation; intensity is multiplied by the Jacobian.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bids_app.bids.fieldmaps import PAIR, Fieldmap
from bids_app.errors import BadDataError, RegistrationError
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.masking import ball, head_mask
from bids_app.preprocess.registration.ants import (
    Image,
    best_start,
    centre_of_mass,
    isotropic,
    optimum_margin,
    similarity,
)
from bids_app.preprocess.registration.bold_to_t1w import COARSE_STAGE, FINE_STAGE
from bids_app.preprocess.registration.checks import MIN_STANDS_OUT
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points
from bids_app.preprocess.sdc.apply import (
    Readout,
    apply_correction,
    displacement_statistics,
    read_readout,
    save_correction,
)
from bids_app.preprocess.sdc.choice import METHODS
from bids_app.preprocess.sdc.epi_pair import MAX_ANGLE_COS, estimate_pair, match_readout_times, pair_field
from bids_app.preprocess.sdc.field import Field, read_epi
from bids_app.preprocess.sdc.phasediff import phase_field


def correct_distortion(
    source: Path,
    metadata: dict[str, Any],
    motion: MotionEstimate,
    fieldmap: Fieldmap,
    out_dir: Path,
    seed: int = 1,
) -> MotionEstimate:
    """Estimate the distortion of a run from its fieldmap, and correct its boldref.

    Parameters
    ----------
    source : pathlib.Path
        The run's file, for messages.
    metadata : dict
        Its sidecar.
    motion : MotionEstimate
    fieldmap : Fieldmap
    out_dir : pathlib.Path
    seed : int

    Returns
    -------
    MotionEstimate
        With the corrected boldref and an `SdcField`.

    Raises
    ------
    BadDataError
        A file or sidecar is invalid.
    RegistrationError
        The fieldmap could not be aligned with the run.
    """
    data, affine = read_volume(motion.boldref)
    run = Image(data, affine)
    readout = read_readout(metadata, data.shape, source.name)
    if fieldmap.kind == PAIR and len(fieldmap.files) == 1:
        found = _estimate_from_single_epi(run, readout, fieldmap, out_dir, seed)
    else:
        measured = pair_field(fieldmap) if fieldmap.kind == PAIR else phase_field(fieldmap)
        found = _resample_to_run(measured, run, readout, source.name, fieldmap.files[0].name, out_dir, seed)
    displacement, quality = found
    quality |= displacement_statistics(displacement[head_mask(data, affine)])
    boldref, sdc = save_correction(
        out_dir,
        motion.boldref,
        displacement,
        readout.axis,
        METHODS[fieldmap.kind],
        phase_encoding=metadata["PhaseEncodingDirection"],
        readout_s=readout.seconds,
        quality=quality,
        sources=fieldmap.files,
    )
    return replace(motion, boldref=boldref, sdc=sdc)


def _resample_to_run(
    found: Field, run: Image, readout: Readout, run_name: str, name: str, out_dir: Path, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Compute the displacement on the boldref's grid, mm along its axis, and quality metrics."""
    if readout.seconds is None and found.direction is None:
        raise BadDataError(
            f"{run_name}: TotalReadoutTime is missing from the sidecar.",
            "Add it (s) to the JSON file, or skip fieldmaps with --ignore fieldmaps.",
        )
    points = grid_points(run.data.shape, run.affine)
    rate = readout.mm_per_hz(run.affine)

    def displacement(pose: np.ndarray) -> np.ndarray:
        return (rate * found.at(apply_matrix(pose, points))).reshape(run.data.shape)

    same_direction = found.direction is not None and readout.vector(run.affine) @ found.direction > MAX_ANGLE_COS
    if same_direction and found.measured is not None:
        pose, score = find_pose(run, found.measured, run_name, name, out_dir, seed)
        return displacement(pose), found.quality | {"sdc_stands_out": score}
    pose, _ = find_pose(run, found.image, run_name, name, out_dir, seed)
    straight = Image(apply_correction(run.data, run.affine, displacement(pose), readout.axis), run.affine)
    pose, score = find_pose(straight, found.image, run_name, name, out_dir, seed, pose)
    return displacement(pose), found.quality | {"sdc_stands_out": score}


def find_pose(
    run: Image,
    image: Image,
    run_name: str,
    name: str,
    out_dir: Path,
    seed: int,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Estimate the rigid transform from boldref to a fieldmap's image, (4, 4), and its optimum margin.

    Raises
    ------
    RegistrationError
        The optimum margin is too small, or ANTs failed.
    """
    size = float(np.clip(np.linalg.norm(run.affine[:3, :3], axis=0).min(), 2.0, 3.0))
    fixed, moving = isotropic(run, size), isotropic(image, size)
    head = head_mask(fixed.data, fixed.affine)
    near = ndimage.binary_dilation(head, ball(5.0, fixed.affine))
    centred = np.eye(4)
    centre = centre_of_mass(fixed, head)
    centred[:3, 3] = centre_of_mass(moving, head_mask(moving.data, moving.affine)) - centre

    def score(matrix: np.ndarray) -> float:
        return similarity(fixed, near, moving, matrix)

    starts = [np.eye(4), centred] if start is None else [start]
    try:
        pose = best_start(fixed, moving, near, (COARSE_STAGE, FINE_STAGE), starts, score, out_dir, seed)
    except RegistrationError as error:
        raise _alignment_error(run_name, name, error.message) from error
    left, _, right = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = left @ right
    margin = optimum_margin(score, pose, centre)
    if margin < MIN_STANDS_OUT:
        raise _alignment_error(
            run_name,
            name,
            f"similarity is only {margin:.1%} higher than at 8 mm or 8 degrees away (at least {MIN_STANDS_OUT:.0%} are "
            "required)",
        )
    return pose, margin


def _alignment_error(run_name: str, name: str, why: str) -> RegistrationError:
    return RegistrationError(
        f"{run_name}: the fieldmap {name} could not be aligned with it: {why}.",
        "Check that both are of the same session, or skip fieldmaps with --ignore fieldmaps.",
    )


def _estimate_from_single_epi(
    run: Image, readout: Readout, fieldmap: Fieldmap, out_dir: Path, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Estimate the displacement from the boldref and a single EPI of opposite phase encoding."""
    path = fieldmap.files[0]
    epi = read_epi(path)
    other = read_readout(fieldmap.metadata[0], epi.data.shape, path.name)
    if readout.vector(run.affine) @ other.vector(epi.affine) > -MAX_ANGLE_COS:
        raise BadDataError(
            f"{path.name}: its phase encoding ({fieldmap.metadata[0]['PhaseEncodingDirection']}) is not opposite to "
            "the run's.",
            "Check PhaseEncodingDirection and the images' orientation, or skip fieldmaps with --ignore fieldmaps.",
        )
    one, other = match_readout_times(readout, other)
    ratio = -abs(other.mm_per_hz(epi.affine) / one.mm_per_hz(run.affine))
    pose, score = find_pose(run, epi, path.name, path.name, out_dir, seed)
    displacement, _, quality = estimate_pair(run, epi, readout.axis, ratio, pose)
    return displacement, quality | {"sdc_stands_out": score}
