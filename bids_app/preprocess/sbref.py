"""Single-band reference (SBRef) of a multiband run as its reference image, for better contrast in registrations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_app.errors import NeurostormError
from bids_app.preprocess.hmc import PASSES, Aligner, MotionEstimate
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.masking import head_mask
from bids_app.preprocess.registration.ants import correlation
from bids_app.preprocess.registration.transforms import apply_matrix

AFFINE_TOLERANCE_MM = 0.1
"""Maximum distance of corners of the field of view between the headers of SBRef and run."""
MIN_CORRELATION = 0.7
"""Minimum correlation of aligned SBRef and boldref in the head; their T1 weighting differs, so 1 is not reached."""
MAX_MOVED_MM = 20.0
"""Maximum displacement between SBRef and run at the corners of the field of view."""


def use_sbref(motion: MotionEstimate, sbref: Path, run_name: str, out_dir: Path) -> MotionEstimate:
    """Replace the boldref of a run by its SBRef, aligned with the run; leave it out with a warning if it does not fit.

    Parameters
    ----------
    motion : MotionEstimate
    sbref : pathlib.Path
        3D, or 4D of which the first volume is used; on the grid of the run.
    run_name : str
        Name of the run, for the warning.
    out_dir : pathlib.Path
    """
    try:
        found = align_sbref(motion, sbref)
    except NeurostormError as error:
        found = error.message
    if isinstance(found, str):
        warning = f"{run_name}: the SBRef was not used as reference image. {found}"
        return replace(motion, omitted=(*motion.omitted, warning))
    _, affine = read_volume(motion.boldref)
    return replace(motion, boldref=save_image(out_dir / "boldref.nii.gz", found, affine), sbref=sbref)


def align_sbref(motion: MotionEstimate, sbref: Path) -> np.ndarray | str:
    """Resample the SBRef in the position of the boldref, (X, Y, Z) float32; or return why it does not fit.

    Raises
    ------
    BadDataError
        The file is unreadable.
    """
    boldref, affine = read_volume(motion.boldref)
    image, own_affine = read_volume(sbref)
    image = image[..., 0] if image.ndim == 4 else image
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in boldref.shape])).reshape(3, -1).T
    apart = apply_matrix(own_affine, corners) - apply_matrix(affine, corners)
    if image.shape != boldref.shape or np.linalg.norm(apart, axis=1).max() > AFFINE_TOLERANCE_MM:
        return f"{sbref.name}: its header differs from that of the run in size or position."
    if not np.isfinite(image).all():
        return f"{sbref.name}: NaN or infinite values."
    head = head_mask(boldref, affine)
    brightness = float(np.median(image[head]))
    if not brightness > 0:
        return f"{sbref.name}: empty where the run has signal."
    scaled = image * np.float32(np.median(boldref[head]) / brightness)
    aligner = Aligner(boldref, affine, head, PASSES[1], "cpu")
    aligned, pose = move(aligner, scaled, np.eye(4))
    moved = np.linalg.norm(apply_matrix(pose @ affine, corners) - apply_matrix(affine, corners), axis=1).max()
    similarity = correlation(aligned[head], boldref[head])
    mirrored = np.flip(scaled, axis=int(np.argmax(np.abs(affine[0, :3]) / np.linalg.norm(affine[:3, :3], axis=0))))
    centres = apply_matrix(affine, np.array([ndimage.center_of_mass(image) for image in (mirrored, boldref)]))
    start = np.eye(4)
    start[:3, 3] = centres[0] - centres[1]
    as_mirrored = correlation(move(aligner, mirrored, start)[0][head], boldref[head])
    if as_mirrored > max(similarity, MIN_CORRELATION):
        return (
            f"{sbref.name}: left and right flipped, or in the run? Correlation {as_mirrored:.2f} mirrored, "
            f"{similarity:.2f} as stored."
        )
    if similarity < MIN_CORRELATION or moved > MAX_MOVED_MM:
        return f"{sbref.name}: not aligned with the run (correlation {similarity:.2f}, moved by {moved:.0f} mm)."
    return np.maximum(aligned, 0).astype(np.float32)


def move(aligner: Aligner, image: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Align an image (X, Y, Z) with the reference of an aligner, from a start (4, 4); return it and its pose."""
    pose = aligner.align(np.ascontiguousarray(image)[None], start[None])[0]
    pull = aligner.to_voxels @ pose @ aligner.affine
    return ndimage.affine_transform(image, pull[:3, :3], pull[:3, 3], order=3, mode="nearest"), pose
