"""Application of susceptibility distortion correction: displacement field and Jacobian intensity modulation.

See `transforms.py` for conventions, and `estimate.py` for the estimation of the displacement.
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
from bids_app.preprocess.io.images import NATIVE_CODE, read_volume, save_image, stamp_header
from bids_app.preprocess.registration.transforms import Chain, Warp, grid_points, sample

MAX_LINES = 1e6
"""Numbers of a sidecar above this are no number of lines and no time, s."""


@dataclass(frozen=True)
class Readout:
    """Phase-encoding direction and readout time of an EPI.

    Parameters
    ----------
    axis : int
        Stored axis of phase encoding.
    sign : float
        1 for increasing indices, -1 for decreasing.
    seconds : float, optional
        Total readout time, s; None: unknown.
    """

    axis: int
    sign: float
    seconds: float | None

    def vector(self, affine: np.ndarray) -> np.ndarray:
        """Return the unit vector (3,) of the direction, RAS."""
        return self.sign * index_vector(affine, self.axis)

    def mm_per_hz(self, affine: np.ndarray) -> float:
        """Return the displacement along the stored axis for a field of 1 Hz, mm."""
        return self.sign * (self.seconds or 1.0) * float(voxel_sizes(affine)[self.axis])


def read_readout(metadata: dict[str, Any], shape: tuple[int, ...], name: str) -> Readout:
    """Read phase-encoding direction and readout time of a sidecar.

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
        The direction is missing, or the readout time is implausible.
    """
    direction = read_direction(metadata.get("PhaseEncodingDirection"))
    if direction is None:
        raise BadDataError(
            f"{name}: the sidecar has no PhaseEncodingDirection or an invalid one "
            f"({metadata.get('PhaseEncodingDirection')!r}).",
            "Set it to i, j, k, i-, j- or k- in the JSON file, or skip fieldmaps with --ignore fieldmaps.",
        )
    axis, sign = direction
    seconds = metadata.get("TotalReadoutTime")
    spacing, lines = metadata.get("EffectiveEchoSpacing"), metadata.get("ReconMatrixPE", shape[axis])
    if seconds is None and spacing is not None:
        numbers = all(isinstance(value, int | float) and abs(value) < MAX_LINES for value in (spacing, lines))
        seconds = spacing * (lines - 1) if numbers else f"{spacing!r} x ({lines!r} - 1)"
    if seconds is not None and (not isinstance(seconds, int | float) or not 1e-4 < seconds < 2):
        raise BadDataError(
            f"{name}: invalid total readout time of {seconds!r} s (expected 0.0001 to 2 s).",
            "Correct TotalReadoutTime or EffectiveEchoSpacing (s) in the JSON file, or skip fieldmaps with "
            "--ignore fieldmaps.",
        )
    return Readout(axis, sign, None if seconds is None else float(seconds))


def index_vector(affine: np.ndarray, axis: int) -> np.ndarray:
    """Return the unit vector (3,) along a stored axis, RAS."""
    column = np.asarray(affine)[:3, axis]
    return column / np.linalg.norm(column)


@dataclass(frozen=True)
class SdcField:
    """Susceptibility distortion correction of a run."""

    method: str
    """Description for report and sidecars."""
    warp: Path
    """`Chain` of one `Warp`: boldref point to its distorted position (before motion)."""
    gain: Path
    """Intensity modulation minus 1, on the boldref's grid."""
    distorted: Path
    """The uncorrected boldref."""
    phase_encoding: str
    """As in the run's sidecar: ``j-``."""
    readout_s: float | None = None
    """Total readout time, if it is known and was used."""
    quality: dict[str, float] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    """Files of the fieldmap; empty without a fieldmap."""

    def distort_points(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return distorted positions (mm) of boldref points (V, 3), and the gain of their signal, (V,)."""
        gain, affine = read_volume(self.gain)
        return Chain.load(self.warp)(points), np.float32(1) + sample(gain, affine, points)


def distort_points(sdc: SdcField | None, points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Apply `SdcField.distort_points`; without a correction, return the points unchanged."""
    return (points, None) if sdc is None else sdc.distort_points(points)


def jacobian_gain(displacement: np.ndarray, affine: np.ndarray, axis: int) -> np.ndarray:
    """Compute the intensity modulation minus 1: the gradient of the displacement (X, Y, Z) mm along its axis."""
    return np.gradient(displacement, float(voxel_sizes(affine)[axis]), axis=axis).astype(np.float32)


def displacement_warp(displacement: np.ndarray, affine: np.ndarray, axis: int) -> Warp:
    """Convert a displacement (X, Y, Z) in mm along a stored axis to a `Warp`."""
    return Warp((displacement[..., None] * index_vector(affine, axis)).astype(np.float32), affine)


def apply_correction(image: np.ndarray, affine: np.ndarray, displacement: np.ndarray, axis: int) -> np.ndarray:
    """Correct the distortion of an image, with intensity modulation, (X, Y, Z) float32.

    Parameters
    ----------
    image, displacement : numpy.ndarray, (X, Y, Z)
        A point p appears at p + d(p) along ``axis``, mm.
    affine : numpy.ndarray, (4, 4)
    axis : int
    """
    points = displacement_warp(displacement, affine, axis)(grid_points(image.shape, affine))
    resampled = sample(image, affine, points, order=3).reshape(image.shape)
    return np.maximum(resampled * (1 + jacobian_gain(displacement, affine, axis)), 0)


def displacement_statistics(displacement: np.ndarray) -> dict[str, float]:
    """Compute mean and 99.5th percentile of absolute displacements (N,), mm."""
    lengths = np.abs(displacement)
    return {"sdc_mean_mm": float(lengths.mean()), "sdc_max_mm": float(np.percentile(lengths, 99.5))}


def save_correction(
    out_dir: Path, boldref: Path, displacement: np.ndarray, axis: int, method: str, **more: Any
) -> tuple[Path, SdcField]:
    """Write an `SdcField` and the corrected boldref.

    Parameters
    ----------
    out_dir, boldref : pathlib.Path
    displacement : numpy.ndarray, (X, Y, Z)
        On the boldref's grid, mm along its stored ``axis``.
    axis : int
    method : str
    **more
        Other fields of `SdcField`.

    Returns
    -------
    tuple
        The corrected boldref, and the `SdcField`.
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
    stamp_header(image.header, warp.affine, NATIVE_CODE, None)
    image.to_filename(path)
    return path
