"""Head-motion correction: rigid registration of each volume with a reference by Gauss-Newton steps in torch.

The steps are inverse-compositional (Baker and Matthews, 2004): gradient, Jacobian and normal matrix depend on the
reference only and are computed once. There are six rigid parameters about the brain's centre, and one gain for the
volume's intensity. The first pass aligns volumes smoothed to 8 mm FWHM with the middle of the run, the second aligns
volumes smoothed to 4 mm with the mean of volumes aligned by the first.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import voxel_sizes

from bids_app.model.device import choose_device
from bids_app.preprocess import spline
from bids_app.preprocess.io.images import Series, save_image
from bids_app.preprocess.io.volumes import VolumeSource
from bids_app.preprocess.masking import head_mask
from bids_app.preprocess.registration.transforms import apply_matrix, write_itk_text
from bids_app.preprocess.sdc.apply import SdcField

FWHM_PER_SIGMA = 2.3548
BRAIN_RADIUS_MM = 60.0
STOP_MM = 1e-3
BATCH = 8


@dataclass(frozen=True)
class Pass:
    """One pass over the run: smoothing, number of voxels in the metric, maximum number of steps."""

    fwhm_mm: float
    n_points: int
    max_steps: int


PASSES = (Pass(8.0, 20_000, 40), Pass(4.0, 60_000, 20))
N_REFERENCE = 40
"""Number of volumes for the reference of the second pass (mean) and for the boldref (median)."""


@dataclass(frozen=True)
class MotionEstimate:
    """Files of a run's head motion.

    ``motion`` is (T, 4, 4) float64 in ``.npy``; ``boldref`` the run's reference image; ``hmc_file`` the same motion as
    ITK text. With an ``sdc``, the boldref is corrected for distortion, and motion applies to distorted positions.
    ``omitted`` are sentences on planned corrections that failed and were left out.
    """

    motion: Path
    boldref: Path
    hmc_file: Path
    sdc: SdcField | None = None
    t2star: Path | None = None
    """T2* map (s) on the grid of the boldref, of combined echoes."""
    omitted: tuple[str, ...] = ()
    sbref: Path | None = None
    """The single-band reference that the boldref was made from, if any."""


def correct_motion(series: Series, out_dir: Path, threads: int = 1, device: str = "cpu") -> MotionEstimate:
    """Estimate a run's head motion, and compute its boldref.

    Parameters
    ----------
    series : Series
    out_dir : pathlib.Path
    threads : int
        The result does not depend on it.
    device : str
        Torch device, or ``auto``.
    """
    device = choose_device(device)
    source = series.open_raw()  # slice timing correction would spread sudden motion over neighbouring volumes
    middle = series.n_dummy + (series.n_volumes - series.n_dummy) // 2
    head = head_mask(source.read(max(series.n_dummy, middle - 2), middle + 3).mean(axis=0), source.affine)
    motion = estimate_motion(source, head, series.n_dummy, device, threads)
    boldref = make_boldref(source, motion, series.n_dummy, threads, device)
    np.save(out_dir / "motion.npy", motion)
    return MotionEstimate(
        out_dir / "motion.npy",
        save_image(out_dir / "boldref.nii.gz", boldref, source.affine),
        write_itk_text(out_dir / "hmc.txt", motion),
    )


def estimate_motion(
    source: VolumeSource, mask: np.ndarray, n_dummy: int = 0, device: str = "cpu", threads: int = 1
) -> np.ndarray:
    """Align all volumes with a reference from the middle of the run.

    Parameters
    ----------
    source : VolumeSource
        The series, (X, Y, Z, T).
    mask : numpy.ndarray, (X, Y, Z) bool
        Mask of the head or brain in a middle volume.
    n_dummy : int
        Dummy volumes at the start, which are excluded from the reference.
    device : str
        Torch device.
    threads : int
        Number of concurrent batches, with one torch thread each, because the operations are short.

    Returns
    -------
    numpy.ndarray, (T, 4, 4) float64
        RAS mm: point of the reference to point of volume t.
    """
    n_volumes = source.shape[3]
    motion = np.tile(np.eye(4), (n_volumes, 1, 1))
    middle = n_dummy + (n_volumes - n_dummy) // 2
    reference = source.read(max(n_dummy, middle - 2), middle + 3).mean(axis=0)
    firsts = range(0, n_volumes, BATCH)
    with ThreadPoolExecutor(max(1, threads), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        coarse = Aligner(reference, source.affine, mask, PASSES[0], device)
        for first in firsts:  # sequentially: each batch starts from the last pose of the one before
            last = motion[first - 1] if first else np.eye(4)
            pool.submit(_align_batch, coarse, source, motion, first, last).result()
        chosen = steady_volumes(motion, N_REFERENCE, n_dummy)
        reference = aligned_volumes(source, motion, chosen, order=1, threads=threads).mean(axis=0)
        fine = Aligner(reference, source.affine, mask, PASSES[1], device)
        list(pool.map(lambda first: _align_batch(fine, source, motion, first), firsts))
    return motion


def _align_batch(
    aligner: Aligner, source: VolumeSource, motion: np.ndarray, first: int, start: np.ndarray | None = None
) -> None:
    """Align a batch of volumes, and write their poses to ``motion``, which also initialises them by default."""
    own = slice(first, min(first + BATCH, source.shape[3]))
    begin = motion[own] if start is None else np.repeat(start[None], own.stop - first, axis=0)
    motion[own] = aligner.align(source.read(first, own.stop), begin)


def framewise_displacement(parameters: np.ndarray, radius_mm: float = 50.0) -> np.ndarray:
    """Compute framewise displacement, with rotations as arcs on a sphere (Power et al., 2012).

    Parameters
    ----------
    parameters : numpy.ndarray, (T, 6)
        Translations in mm, rotations in rad.
    radius_mm : float

    Returns
    -------
    numpy.ndarray, (T,)
        mm; 0 for the first volume.
    """
    steps = np.abs(np.diff(parameters, axis=0))
    steps[:, 3:] *= radius_mm
    return np.concatenate([[0.0], steps.sum(axis=1)])


def steady_volumes(motion: np.ndarray, n_wanted: int, n_dummy: int = 0) -> np.ndarray:
    """Select volumes spread over the run with little motion and close to the median pose; return their indices."""
    poses = motion[n_dummy:]
    corners = BRAIN_RADIUS_MM * np.vstack([np.eye(3), -np.eye(3)])
    positions = np.stack([apply_matrix(pose, corners) for pose in poses])
    steps = np.linalg.norm(np.diff(positions, axis=0, prepend=positions[:1]), axis=2).mean(axis=1)
    distances = np.linalg.norm(positions - np.median(positions, axis=0), axis=2).mean(axis=1)
    displacement = steps + distances
    blocks = np.array_split(np.arange(len(poses)), min(n_wanted, len(poses)))
    picked = np.array([block[np.argmin(displacement[block])] for block in blocks])
    steady = displacement[picked] <= np.median(displacement[picked]) * 3 + 0.1
    return picked[steady] + n_dummy


def aligned_volumes(
    source: VolumeSource,
    motion: np.ndarray,
    chosen: np.ndarray,
    order: int = 3,
    threads: int = 1,
    device: str = "cpu",
) -> np.ndarray:
    """Resample volumes to the reference's grid.

    Parameters
    ----------
    source : VolumeSource
    motion : numpy.ndarray, (T, 4, 4)
    chosen : numpy.ndarray, (n,)
        Indices of the volumes.
    order : int
        Spline order, 1 or 3.
    threads : int
    device : str
        Torch device of the interpolation of order 3; that of order 1 takes less time than to send the volumes.

    Returns
    -------
    numpy.ndarray, (n, X, Y, Z) float32
        Beyond the border of a volume, the values of the border.
    """
    shape, to_voxels = source.shape[:3], np.linalg.inv(source.affine)
    points = np.indices(shape, dtype=np.float64).reshape(3, -1).T
    places = spline.points_on(device, points)

    def resample_one(t: int) -> np.ndarray:
        volume, pull = source.read(t, t + 1)[0], to_voxels @ motion[t] @ source.affine
        if order == 1:
            return spline.linear(volume[..., None], points, pull, nearest=True).reshape(shape)
        padded = np.pad(volume, spline.REACH, mode="edge")
        pull[:3, 3] += spline.REACH
        return places.cubic(padded, pull, nearest=True).reshape(shape)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return np.stack(list(pool.map(resample_one, chosen.tolist())))


def make_boldref(
    source: VolumeSource, motion: np.ndarray, n_dummy: int = 0, threads: int = 1, device: str = "cpu"
) -> np.ndarray:
    """Compute the boldref, the median of aligned volumes, (X, Y, Z) float32."""
    chosen = steady_volumes(motion, N_REFERENCE, n_dummy)
    boldref = np.median(aligned_volumes(source, motion, chosen, threads=threads, device=device), axis=0)
    return np.maximum(boldref, 0)  # cubic splines undershoot at bright edges


class Aligner:
    """Rigid registration of volumes with one reference; precomputes all terms that depend on the reference alone."""

    def __init__(
        self, reference: np.ndarray, affine: np.ndarray, mask: np.ndarray, settings: Pass, device: str
    ) -> None:
        self.affine, self.to_voxels = affine, np.linalg.inv(affine)
        self.max_steps = settings.max_steps
        self.shape = reference.shape
        self.device = torch.device(device)
        self.smoothers = [
            _smoothing_matrix(n, settings.fwhm_mm / FWHM_PER_SIGMA / size).to(self.device)
            for n, size in zip(reference.shape, voxel_sizes(affine), strict=True)
        ]
        smooth = self._smooth(torch.from_numpy(reference)[None].to(self.device))[0].cpu().numpy().astype(np.float64)
        voxels = np.argwhere(mask)
        step = max(1, len(voxels) // settings.n_points)
        voxels = np.random.default_rng(0).permutation(voxels)[: len(voxels) // step]
        points = apply_matrix(affine, voxels)
        self.centre = points.mean(axis=0)
        gradient = np.stack(np.gradient(smooth), axis=-1)[tuple(voxels.T)] @ self.to_voxels[:3, :3]  # per mm
        values = smooth[tuple(voxels.T)]
        self.scale = float(values.mean()) or 1.0
        jacobian = np.column_stack([np.cross(points - self.centre, gradient), gradient, values]) / self.scale
        normal = jacobian.T @ jacobian
        balance = np.diag(1 / np.sqrt(np.diag(normal)))
        solver = balance @ np.linalg.pinv(balance @ normal @ balance) @ balance @ jacobian.T  # (7, P)
        self.solver = torch.from_numpy(solver.T.astype(np.float32)).to(self.device)  # (P, 7)
        self.values = torch.from_numpy((values / self.scale).astype(np.float32)).to(self.device)
        homogeneous = np.column_stack([voxels, np.ones(len(voxels))]).astype(np.float32)
        self.voxels = torch.from_numpy(homogeneous).to(self.device)  # (P, 4)

    def _smooth(self, volumes: torch.Tensor) -> torch.Tensor:
        along_x, along_y, along_z = self.smoothers
        volumes = volumes @ along_z.T
        volumes = torch.matmul(along_y, volumes)
        n, x, y, z = volumes.shape
        return torch.matmul(along_x, volumes.reshape(n, x, y * z)).reshape(n, x, y, z)

    @torch.inference_mode()
    def align(self, volumes: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Estimate the poses of volumes (n, X, Y, Z), initialised by ``start`` (n, 4, 4)."""
        poses = start.astype(np.float64).copy()
        smooth = self._smooth(torch.from_numpy(volumes).to(self.device)) / self.scale
        moving = np.arange(len(poses))
        for _ in range(self.max_steps):
            increments = self._step(smooth[moving], poses[moving])
            for i, increment in zip(moving, increments, strict=True):
                poses[i] = poses[i] @ np.linalg.inv(_exponential(increment, self.centre))
            size = np.linalg.norm(increments[:, 3:], axis=1)
            size += BRAIN_RADIUS_MM * np.linalg.norm(increments[:, :3], axis=1)
            moving = moving[size > STOP_MM]
            if not len(moving):
                break
        return poses

    def _step(self, smooth: torch.Tensor, poses: np.ndarray) -> np.ndarray:
        """Compute the increments (n, 6): rotation in rad, translation in mm."""
        pulls = self.to_voxels @ poses @ self.affine
        last = np.array(self.shape) - 1
        to_unit = np.diag(2 / last) @ pulls[:, :3]  # grid_sample's coordinates are -1 to 1
        to_unit[:, :, 3] -= 1
        to_unit = torch.from_numpy(to_unit[:, ::-1].astype(np.float32).copy()).to(self.device)  # last axis first
        grid = self.voxels @ to_unit.transpose(1, 2)  # (n, P, 3)
        seen = torch.nn.functional.grid_sample(
            smooth[:, None], grid[:, :, None, None, :], mode="bilinear", padding_mode="border", align_corners=True
        )[:, 0, :, 0, 0]
        residual = (seen - self.values) * (grid.abs().amax(dim=2) <= 1)
        return (residual @ self.solver)[:, :6].cpu().double().numpy()


def _smoothing_matrix(n: int, sigma: float) -> torch.Tensor:
    """Return the matrix (n, n) of Gaussian smoothing along an axis; rows sum to 1."""
    index = torch.arange(n, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((index[:, None] - index) / max(sigma, 1e-3)) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _exponential(increment: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the rigid matrix of a rotation vector (rad) about a centre and a translation (mm)."""
    angle = float(np.linalg.norm(increment[:3]))
    x, y, z = increment[:3] / angle if angle > 0 else (0.0, 0.0, 0.0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre + increment[3:] - rotation @ centre
    return matrix
