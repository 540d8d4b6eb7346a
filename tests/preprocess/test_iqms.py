"""Image quality metrics against their definitions and simulated artefacts."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage, stats

from bids_app.preprocess import iqms as quality
from bids_app.preprocess.iqms import compute_iqms, image_iqms, motion_iqms, outlier_iqms, series_iqms

AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])


@pytest.fixture
def brain() -> np.ndarray:
    mask = np.zeros((24, 26, 20), bool)
    mask[6:18, 6:20, 5:15] = True
    return mask


@pytest.fixture
def values(brain) -> np.ndarray:
    """Noise with a common wave, which drifts, about a mean that differs from voxel to voxel."""
    rng = np.random.default_rng(0)
    time = np.arange(60)[:, None]
    n_voxels = int(brain.sum())
    made = rng.uniform(500, 1500, n_voxels) + rng.normal(0, 10, (60, n_voxels)) + 5 * np.sin(time) + 0.2 * time
    return made.astype(np.float32)


def test_motion_above_the_limit_is_counted_and_the_first_volume_is_not():
    found = motion_iqms(np.array([np.nan, 0.1, 0.7, 0.2, 1.0]))
    assert found == {"fd_mean": 0.5, "fd_max": 1.0, "fd_num": 2.0, "fd_perc": 50.0}


def test_temporal_snr_and_global_correlation_by_their_definitions(values, brain):
    found = series_iqms(values, brain, AFFINE)
    double = values.astype(np.float64)
    assert found["tsnr"] == pytest.approx(np.median(double.mean(axis=0) / double.std(axis=0)), rel=1e-6)
    assert found["gcor"] == pytest.approx(np.corrcoef(double.T).mean(), rel=1e-6)


def test_smoothness_is_found_along_each_axis_of_the_body_through_slow_trends():
    shape, true_mm = (40, 44, 36), np.array([7.0, 9.0, 11.0])
    affine = np.zeros((4, 4))  # stored superior, left, anterior
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 2.5, -3.0, 3.0, 1.0
    sigma = (true_mm[[2, 0, 1]] / [2.5, 3.0, 3.0]) / 2.3548
    rng = np.random.default_rng(0)
    mask = np.ones(shape, bool)
    volumes = [ndimage.gaussian_filter(rng.normal(size=shape), sigma, mode="wrap").ravel() for _ in range(12)]
    drift = rng.normal(size=mask.sum())
    series = np.stack([v + t * drift for t, v in enumerate(volumes)]).astype(np.float32)
    found = series_iqms(series, mask, affine)
    widths = np.array([found[f"fwhm_{axis}"] for axis in "xyz"])
    np.testing.assert_allclose(widths, true_mm, rtol=0.05)
    assert found["fwhm_avg"] == pytest.approx(np.prod(widths) ** (1 / 3))


def test_outlier_ratio_counts_simulated_spikes(values):
    clean = outlier_iqms(values)["aor"]
    spiked = values.copy()
    spiked[20, ::2] += 500
    assert clean < 0.003
    assert outlier_iqms(spiked)["aor"] - clean == pytest.approx(0.5 / 60, abs=0.0005)


def test_quality_index_is_the_rank_distance_from_the_median_volume(values):
    middle = np.median(values, axis=0)
    expected = np.mean([1 - stats.spearmanr(row, middle).statistic for row in values])
    assert outlier_iqms(values)["aqi"] == pytest.approx(expected, rel=1e-6)


def test_spatial_snr_by_its_definition(brain):
    image = np.random.default_rng(0).normal(1000, 50, brain.shape) * brain
    found = image_iqms(image, brain, AFFINE)
    assert found["snr"] == pytest.approx(np.median(image[brain]) / image[brain].std(ddof=1))
    assert np.isnan(found["fber"])  # its background is empty


def test_entropy_focus_is_highest_for_a_uniform_image_and_lowest_for_one_voxel(brain):
    point = np.zeros(brain.shape)
    point[12, 12, 10] = 7.0
    assert image_iqms(np.full(brain.shape, 3.0), brain, AFFINE)["efc"] == pytest.approx(1.0)
    assert image_iqms(point, brain, AFFINE)["efc"] == pytest.approx(0.0)


@pytest.mark.parametrize(("flip", "ghosted", "axis"), [(False, "y", 1), (True, "y", 0)])
def test_a_ghost_is_detected_along_its_own_axis(brain, flip, ghosted, axis):
    affine = AFFINE.copy()
    if flip:  # the first axis of the array runs from back to front
        affine[:2, :2] = [[0, 3], [3, 0]]
    rng = np.random.default_rng(0)
    image = 1000.0 * brain + np.abs(rng.normal(0, 5, brain.shape))
    image += 0.1 * np.roll(1000.0 * brain, brain.shape[axis] // 2, axis)
    found = image_iqms(image, brain, affine)
    assert found[f"gsr_{ghosted}"] == pytest.approx(0.1, abs=0.02)
    assert abs(found["gsr_x"]) < 0.05


def test_dummy_volumes_are_excluded(values, brain):
    fd = np.concatenate([[np.nan], np.full(59, 0.1)])
    expected = compute_iqms(values[3:], brain, brain * 100.0, AFFINE, fd[:57])
    disturbed = values.copy()
    disturbed[:3] *= 2
    fd[:3] = 3.0
    found = compute_iqms(disturbed, brain, brain * 100.0, AFFINE, fd, n_dummy=3)
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_long_series_is_never_loaded_as_a_whole(tmp_path, monkeypatch):
    mask = np.ones((40, 40, 40), bool)
    values = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, (200, mask.sum()))  # 51 MB
    values[:] = np.random.default_rng(0).normal(1000, 10, values.shape)
    monkeypatch.setattr(quality, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(quality, "N_OUTLIER_VOXELS", 2000)
    tracemalloc.start()
    series_iqms(values, mask, AFFINE)
    outlier_iqms(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
