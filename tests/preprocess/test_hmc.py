"""Head-motion correction of simulated motion."""

import numpy as np
import pytest
from scipy import ndimage

from bids_app.preprocess.hmc import (
    aligned_volumes,
    correct_motion,
    estimate_motion,
    framewise_displacement,
    steady_volumes,
)
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.io.volumes import ArrayVolumes
from bids_app.preprocess.masking import head_mask, prepare_bold
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, rigid


def errors_mm(found: np.ndarray, true: np.ndarray, head) -> np.ndarray:
    """Mean error in the brain of each volume; both are relative to their own reference, so a common pose is removed."""
    between = np.mean([np.linalg.inv(a) @ b for a, b in zip(true, found, strict=True)], axis=0)
    left, _, right = np.linalg.svd(between[:3, :3])
    between[:3, :3] = left @ right
    points = grid_points(head.brain.shape, head.affine, head.brain)[::7]
    return np.array(
        [
            np.linalg.norm(apply_matrix(a @ between, points) - apply_matrix(b, points), axis=1).mean()
            for a, b in zip(true, found, strict=True)
        ]
    )


def estimate(head, series: np.ndarray) -> np.ndarray:
    source = ArrayVolumes(series, head.affine)
    return estimate_motion(source, head_mask(series.mean(axis=3), head.affine))


def test_motion_is_found_within_a_tenth_of_a_millimetre(head, poses):
    true = poses(24)
    errors = errors_mm(estimate(head, head.moved(true)), true, head)
    assert errors.mean() < 0.1
    assert errors.max() < 0.2


def test_sudden_motion_is_estimated(head, poses):
    true = poses(24, mm=0.5, degrees=0.5)
    true[15:] = true[15:] @ rigid(np.radians((6, 0, 4)), (3, -8, 5), (0, -20, 10))
    assert errors_mm(estimate(head, head.moved(true)), true, head).max() < 0.25


def test_intensity_changes_are_not_estimated_as_motion(head, poses):
    true = poses(16, mm=0.3, degrees=0.3)
    bright = np.linspace(1.3, 0.9, 16).astype(np.float32)
    assert errors_mm(estimate(head, head.moved(true) * bright), true, head).mean() < 0.1


def test_no_motion_is_estimated_for_a_still_head(head):
    still = np.tile(np.eye(4), (16, 1, 1))
    found = estimate(head, head.moved(still, noise=10.0))
    points = grid_points(head.brain.shape, head.affine, head.brain)[::7]
    assert max(np.abs(apply_matrix(pose, points) - points).max() for pose in found) < 0.1


def test_the_result_does_not_depend_on_threads(head, poses):
    series = head.moved(poses(10))
    source = ArrayVolumes(series, head.affine)
    made = [estimate_motion(source, head_mask(series.mean(axis=3), head.affine), threads=n) for n in (1, 1, 2)]
    assert made[0].tobytes() == made[1].tobytes() == made[2].tobytes()


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_the_result_does_not_depend_on_stored_orientation(head, flip, poses):
    true = poses(12)
    series = head.moved(true)[:: flip[0], :: flip[1], :: flip[2]]
    affine = head.affine @ np.diag([*flip, 1.0])
    affine[:3, 3] = apply_matrix(head.affine, np.where(np.array(flip) < 0, np.array(series.shape[:3]) - 1, 0))
    source = ArrayVolumes(series, affine)
    found = estimate_motion(source, head_mask(series.mean(axis=3), affine))
    assert errors_mm(found, true, head).mean() < 0.1


@pytest.mark.parametrize("order", [1, 3])
def test_volumes_are_interpolated_as_by_scipy_up_to_their_border(order) -> None:
    volume = np.random.default_rng(0).normal(1000, 200, (15, 14, 9, 1)).astype(np.float32)
    affine = np.diag([3.0, 3.0, 4.0, 1.0])
    pose = rigid(np.radians((3, -2, 4)), (4, -3, 2), (0, 0, 0))
    pull = np.linalg.inv(affine) @ pose @ affine
    expected = ndimage.affine_transform(volume[..., 0], pull[:3, :3], pull[:3, 3], order=order, mode="nearest")
    (found,) = aligned_volumes(ArrayVolumes(volume, affine), pose[None], np.arange(1), order=order)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def test_aligned_volumes_are_similar(head, poses):
    true = poses(12)
    series = head.moved(true, noise=0.0)
    source = ArrayVolumes(series, head.affine)
    motion = estimate_motion(source, head_mask(series.mean(axis=3), head.affine))
    aligned = aligned_volumes(source, motion, np.arange(12))
    before, after = (v[..., head.brain].std(axis=0).mean() for v in (np.moveaxis(series, 3, 0), aligned))
    assert after < 0.35 * before


def test_steady_volumes_exclude_dummies_and_motion():
    motion = np.tile(np.eye(4), (100, 1, 1))
    motion[40:45, 0, 3] = 8.0
    chosen = steady_volumes(motion, 20, n_dummy=3)
    assert chosen.min() >= 3
    assert not set(chosen) & set(range(40, 45))


def test_framewise_displacement_adds_shifts_and_arcs():
    parameters = np.array([[0, 0, 0, 0, 0, 0], [1, -2, 0, 0.01, 0, 0], [1, -2, 0, 0.01, 0, 0]], dtype=float)
    np.testing.assert_allclose(framewise_displacement(parameters), [0, 3.5, 0])


def test_a_run_on_a_device_has_the_motion_and_reference_of_the_cpu(head, tmp_path, write_nifti, poses, on_device):
    path = write_nifti(head.moved(poses(20)), affine=head.affine)
    series = prepare_bold(path, {"RepetitionTime": 2.0}, tmp_path, dummy_scans=0)
    found = []
    for device in ("cpu", on_device):
        (tmp_path / device).mkdir()
        found.append(correct_motion(series, tmp_path / device, device=device))
    on_cpu, other = ((np.load(run.motion), read_volume(run.boldref)[0]) for run in found)
    np.testing.assert_allclose(other[0], on_cpu[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(other[1], on_cpu[1], rtol=0, atol=1e-4 * on_cpu[1].max())


def test_files_of_a_run(head, tmp_path, write_nifti, poses):
    path = write_nifti(head.moved(poses(24)), affine=head.affine)
    found = correct_motion(prepare_bold(path, {"RepetitionTime": 2.0}, tmp_path, dummy_scans=0), tmp_path)
    assert np.load(found.motion).shape == (24, 4, 4)
    assert found.hmc_file.read_text().count("#Transform") == 24
    assert found.boldref.exists()
