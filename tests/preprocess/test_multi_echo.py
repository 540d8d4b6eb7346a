"""Optimal combination of echoes on simulated decays."""

from dataclasses import replace

import numpy as np
import pytest

from bids_app.errors import BadDataError
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.io.images import Series, read_volume, save_image
from bids_app.preprocess.multi_echo import combine_echoes
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, rigid, sample

ECHO_TIMES = (0.012, 0.028, 0.044)
SHAPE, N_VOLUMES = (24, 26, 20), 30
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = -35.0


@pytest.fixture(scope="module")
def head():
    """S0 and T2* (s) of a head whose T2* falls from 60 ms at the back to 25 ms at the front."""
    points = grid_points(SHAPE, AFFINE).reshape(*SHAPE, 3)
    inside = np.linalg.norm(points / [27, 30, 22], axis=-1) < 1
    t2star = np.clip(0.0425 - 0.0175 * points[..., 1] / 30, 0.025, 0.06)
    return np.where(inside, 1000.0, 0.0), t2star


@pytest.fixture(scope="module")
def poses():
    rng = np.random.default_rng(5)
    return np.stack([rigid(rng.normal(0, 0.01, 3), rng.normal(0, 0.8, 3)) for _ in range(N_VOLUMES)])


@pytest.fixture(scope="module")
def echoes(tmp_path_factory, head, poses):
    """Three echoes of a moving head, with noise of 10; returns series and motion."""
    folder = tmp_path_factory.mktemp("echoes")
    s0, t2star = head
    rng = np.random.default_rng(6)
    points = grid_points(SHAPE, AFFINE)
    made = []
    for number, echo_time in enumerate(ECHO_TIMES, start=1):
        data = np.empty((*SHAPE, N_VOLUMES), np.float32)
        decayed = s0 * np.exp(-echo_time / t2star)
        for t, pose in enumerate(poses):
            at = apply_matrix(np.linalg.inv(pose), points)
            data[..., t] = sample(decayed, AFFINE, at).reshape(SHAPE) + rng.normal(0, 10, SHAPE)
        path = save_image(folder / f"sub-01_task-rest_echo-{number}_bold.nii", np.maximum(data, 1), AFFINE, tr=2.0)
        mask = save_image(folder / f"mask{number}.nii.gz", np.ones(SHAPE, np.uint8), AFFINE)
        made.append(Series(path, path, 2.0, N_VOLUMES, 0, mask))
    np.save(folder / "motion.npy", poses)
    boldref = save_image(folder / "boldref.nii.gz", np.ones(SHAPE, np.float32), AFFINE)
    return made, MotionEstimate(folder / "motion.npy", boldref, folder / "hmc.txt")


@pytest.fixture(scope="module")
def combined(echoes, tmp_path_factory):
    series, motion = echoes
    return combine_echoes(series, ECHO_TIMES, motion, tmp_path_factory.mktemp("combined"))


def inner(head) -> np.ndarray:
    points = grid_points(SHAPE, AFFINE).reshape(*SHAPE, 3)
    return np.linalg.norm(points / [20, 23, 15], axis=-1) < 1


def aligned(series, poses) -> np.ndarray:
    """The series at the head's own voxels, (T, V)."""
    source = series.open_raw()
    points = grid_points(SHAPE, AFFINE, inner(None))
    return np.stack([sample(source.read(t, t + 1)[0], AFFINE, apply_matrix(p, points)) for t, p in enumerate(poses)])


def test_t2star_is_that_of_the_head(combined, head):
    import nibabel as nib

    found = nib.load(combined.motion.t2star).get_fdata()[inner(head)]
    expected = head[1][inner(head)]
    assert np.median(np.abs(found / expected - 1)) < 0.03
    assert np.corrcoef(found, expected)[0, 1] > 0.95


def test_the_combined_series_has_less_noise_than_each_echo(combined, echoes, poses):
    def tsnr(series) -> float:
        values = aligned(series, poses)
        return float(np.median(values.mean(axis=0) / values.std(axis=0)))

    best = max(tsnr(series) for series in echoes[0])
    assert tsnr(combined.series) > 1.1 * best


def test_weights_follow_the_head(combined, head, poses):
    """The combined signal of a voxel of the head is the one that its own T2* gives, in every volume."""
    s0, t2star = head
    weights = np.array(ECHO_TIMES) * np.exp(-np.array(ECHO_TIMES) / t2star[..., None])
    decays = s0[..., None] * np.exp(-np.array(ECHO_TIMES) / t2star[..., None])
    expected = ((weights * decays).sum(axis=-1) / weights.sum(axis=-1))[inner(head)]
    found = aligned(combined.series, poses).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_the_boldref_is_made_of_the_combined_series(combined, echoes):
    assert combined.motion.boldref != echoes[1].boldref
    assert combined.motion.motion == echoes[1].motion


def test_voxels_without_signal_in_the_last_echo_are_kept(combined, echoes, tmp_path):
    series, motion = echoes
    lost = np.zeros(SHAPE, bool)
    lost[8:16, 16:22, 6:14] = True
    data, _ = read_volume(series[2].path)
    path = save_image(tmp_path / "echo-3.nii", np.where(lost[..., None], 0, data).astype(np.float32), AFFINE, tr=2.0)
    mask = save_image(tmp_path / "mask.nii.gz", (~lost).astype(np.uint8), AFFINE)
    damaged = replace(series[2], path=path, source=path, data_mask=mask)
    found = combine_echoes([*series[:2], damaged], ECHO_TIMES, motion, tmp_path)
    assert read_volume(found.series.data_mask)[0].all()
    change, before = (read_volume(one.series.path)[0].std(axis=3)[lost] for one in (found, combined))
    assert np.median(change) > 0.3 * np.median(before)


def test_an_echo_with_another_size_is_named(echoes, tmp_path):
    series, motion = echoes
    path = save_image(tmp_path / "sub-01_task-rest_echo-3_bold.nii", np.ones((*SHAPE, 12), np.float32), AFFINE, tr=2.0)
    with pytest.raises(BadDataError, match=r"echo-3_bold\.nii: its size \(24x26x20x12\)") as caught:
        combine_echoes([*series[:2], replace(series[2], path=path, source=path)], ECHO_TIMES, motion, tmp_path)
    assert "--echo-idx" in caught.value.hint
