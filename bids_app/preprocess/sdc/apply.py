"""The map that undoes a run's distortion, as later steps use it: where a place is measured, and how bright it must be.

Conventions of maps stand in `transforms.py`; how the displacement is found, in `estimate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from bids_app.bids.sidecars import read_direction
from bids_app.errors import BadDataError
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration.transforms import Chain, Warp, grid_points, sample


@dataclass(frozen=True)
class Readout:
    """How an EPI was read out.

    Parameters
    ----------
    axis : int
        Stored axis of phase encoding.
    sign : float
        1 along the index, -1 against it.
    seconds : float, optional
        Total readout time, s; None: not known.
    """

    axis: int
    sign: float
    seconds: float | None

    def vector(self, affine: np.ndarray) -> np.ndarray:
        """Unit vector (3,) of the direction, RAS."""
        return self.sign * index_vector(affine, self.axis)

    def mm_per_hz(self, affine: np.ndarray) -> float:
        """Displacement along the stored axis for a field of 1 Hz, mm."""
        return self.sign * (self.seconds or 1.0) * float(voxel_sizes(affine)[self.axis])


def read_readout(metadata: dict[str, Any], shape: tuple[int, ...], name: str) -> Readout:
    """Phase encoding of a sidecar.

    Parameters
    ----------
    metadata : dict
        ``PhaseEncodingDirection``; ``TotalReadoutTime``, or ``EffectiveEchoSpacing`` and ``ReconMatrixPE``.
    shape : tuple of int
        (X, Y, Z, ...).
    name : str
        Name of the file, for messages.

    Raises
    ------
    BadDataError
        No direction, or impossible numbers.
    """
    direction = read_direction(metadata.get("PhaseEncodingDirection"))
    if direction is None:
        raise BadDataError(
            f"{name}: its sidecar has no PhaseEncodingDirection (i, j or k, with or without -).",
            "Add it to the JSON file, or leave fieldmaps out with --ignore fieldmaps.",
        )
    axis, sign = direction
    seconds = metadata.get("TotalReadoutTime")
    spacing, lines = metadata.get("EffectiveEchoSpacing"), metadata.get("ReconMatrixPE", shape[axis])
    if seconds is None and spacing is not None:
        numbers = isinstance(spacing, int | float) and isinstance(lines, int | float)
        seconds = spacing * (lines - 1) if numbers else f"{spacing!r} x ({lines!r} - 1)"
    if seconds is not None and (not isinstance(seconds, int | float) or not 1e-4 < seconds < 2):
        raise BadDataError(
            f"{name}: a total readout time of {seconds!r} s cannot be.",
            "Mend TotalReadoutTime or EffectiveEchoSpacing (s) in the JSON file, or leave fieldmaps out with "
            "--ignore fieldmaps.",
        )
    return Readout(axis, sign, None if seconds is None else float(seconds))


def index_vector(affine: np.ndarray, axis: int) -> np.ndarray:
    """Unit vector (3,) along a stored axis, RAS."""
    column = np.asarray(affine)[:3, axis]
    return column / np.linalg.norm(column)


@dataclass(frozen=True)
class SdcField:
    """What undoes the distortion of a run."""

    method: str
    """In words, for report and sidecars."""
    warp: Path
    """`Chain` of one `Warp`: a boldref point to where the run measures it (before motion)."""
    gain: Path
    """On the boldref's grid: by how much signal was thinned out there, less 1."""
    distorted: Path
    """The boldref as it was measured."""
    phase_encoding: str
    """As the run's sidecar gives it: ``j-``."""
    readout_s: float | None = None
    """Total readout time, where it is known and was used."""
    quality: dict[str, float] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    """Files of the fieldmap that it was found from; empty where there was none."""

    def aim(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (V, 3) of the boldref are measured, mm; and by what their signal is to be multiplied, (V,)."""
        gain, affine = read_volume(self.gain)
        return Chain.load(self.warp)(points), np.float32(1) + sample(gain, affine, points)


def aim(sdc: SdcField | None, points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """`SdcField.aim`, or the points as they are."""
    return (points, None) if sdc is None else sdc.aim(points)


def jacobian_gain(displacement: np.ndarray, affine: np.ndarray, axis: int) -> np.ndarray:
    """How much signal is thinned out, less 1: the slope of the displacement (X, Y, Z) mm along its axis."""
    return np.gradient(displacement, float(voxel_sizes(affine)[axis]), axis=axis).astype(np.float32)


def displacement_warp(displacement: np.ndarray, affine: np.ndarray, axis: int) -> Warp:
    """A displacement (X, Y, Z) in mm along a stored axis as a `Warp`."""
    return Warp((displacement[..., None] * index_vector(affine, axis)).astype(np.float32), affine)


def apply_correction(image: np.ndarray, affine: np.ndarray, displacement: np.ndarray, axis: int) -> np.ndarray:
    """Draw an image back, with its brightness restored, (X, Y, Z) float32.

    Parameters
    ----------
    image, displacement : numpy.ndarray, (X, Y, Z)
        What is at p is seen at p + d(p) along ``axis``, mm.
    affine : numpy.ndarray, (4, 4)
    axis : int
    """
    points = displacement_warp(displacement, affine, axis)(grid_points(image.shape, affine))
    drawn = sample(image, affine, points, order=3).reshape(image.shape)
    return np.maximum(drawn * (1 + jacobian_gain(displacement, affine, axis)), 0)


def displacement_statistics(displacement: np.ndarray) -> dict[str, float]:
    """How long displacements (N,) are in the mean and at most (in 199 of 200 places), mm, for quality."""
    lengths = np.abs(displacement)
    return {"sdc_mean_mm": float(lengths.mean()), "sdc_max_mm": float(np.percentile(lengths, 99.5))}


def save_correction(
    out_dir: Path, boldref: Path, displacement: np.ndarray, axis: int, method: str, **more: Any
) -> tuple[Path, SdcField]:
    """Write an `SdcField` and the boldref without its distortion.

    Parameters
    ----------
    out_dir, boldref : pathlib.Path
    displacement : numpy.ndarray, (X, Y, Z)
        On the boldref's grid, mm along its stored ``axis``.
    axis : int
    method : str
    **more
        Further fields.

    Returns
    -------
    tuple
        The boldref, and the `SdcField`.
    """
    data, affine = read_volume(boldref)
    corrected = save_image(out_dir / "boldref.nii.gz", apply_correction(data, affine, displacement, axis), affine)
    chain = Chain((displacement_warp(displacement, affine, axis),)).save(out_dir / "warp.npz")
    gain = save_image(out_dir / "gain.nii.gz", jacobian_gain(displacement, affine, axis), affine)
    return corrected, SdcField(method, chain, gain, boldref, **more)


def write_itk_field(chain: Path, path: Path) -> Path:
    """Write a chain of one `Warp` as an ITK displacement field (NIfTI, vectors in LPS)."""
    (warp,) = Chain.load(chain).steps
    assert isinstance(warp, Warp)
    vectors = (warp.displacement * np.array([-1, -1, 1], np.float32))[:, :, :, None]
    image = nib.Nifti1Image(vectors, warp.affine)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path
