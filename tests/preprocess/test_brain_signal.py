"""Whether a series is the BOLD signal of a brain: series with networks pass the tests, noise and disorder fail them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import signal
from scipy.ndimage import binary_erosion, uniform_filter
from scipy.spatial import cKDTree

from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.preprocess.brain_signal import measure_signal, region_table
from bids_app.preprocess.registration.spaces import template_brain
from bids_app.preprocess.registration.transforms import grid_points

T, TR = 60, 2.0
TESTS = ("connectivity_p", "order_p")


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    return template_brain(MODEL_SPACE, MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)


def slow(n: int, rng: np.random.Generator) -> np.ndarray:
    """Autocorrelated time courses (T, n) of unit variance."""
    values = rng.standard_normal((T, n))
    for t in range(1, T):
        values[t] = 0.8 * values[t - 1] + 0.6 * values[t]
    return values


@pytest.fixture(scope="module")
def active(brain) -> GridSeries:
    """Networks, homologous regions and noise: each voxel follows the region next to it."""
    table = region_table()
    folded = table.centres * np.where(table.centres[:, :1] > 0, [-1, 1, 1], 1)  # one course for both hemispheres
    points = grid_points(MODEL_GRID_SHAPE, MODEL_GRID_AFFINE, brain)
    nearest = cKDTree(folded).query(points * np.where(points[:, :1] > 0, [-1, 1, 1], 1))[1]
    rng = np.random.default_rng(3)
    networks, index = np.unique(table.networks, return_inverse=True)
    courses = slow(len(networks), rng)[:, index] + slow(len(index), rng)  # (T, R)
    noise = rng.standard_normal((T, int(brain.sum())), dtype=np.float32)
    values = 1000 + 5 * courses[:, nearest].astype(np.float32) + 10 * noise
    return GridSeries(values.astype(np.float32), brain, TR)


def failed(series: GridSeries) -> set[str]:
    found = measure_signal(series)
    return {name for name in TESTS if found[name] > 0.01}


def test_a_series_with_networks_passes_all_tests(active) -> None:
    found = measure_signal(active)
    assert all(found[name] <= 0.01 for name in TESTS)
    assert found["homologue_r"] > 0.2
    assert found["network_r"] > 0.1
    assert found == measure_signal(active)


def noise(series: GridSeries, rng: np.random.Generator) -> np.ndarray:
    return 1000 + 10 * rng.standard_normal(series.values.shape, dtype=np.float32)


def shuffle_volumes(series: GridSeries, rng: np.random.Generator) -> np.ndarray:
    return series.values[rng.permutation(T)]


def permute_voxels(series: GridSeries, rng: np.random.Generator) -> np.ndarray:
    return series.values[:, rng.permutation(series.values.shape[1])]


def random_walks(series: GridSeries, rng: np.random.Generator) -> np.ndarray:
    return 1000 + np.cumsum(rng.standard_normal(series.values.shape, dtype=np.float32), axis=0)


def smooth_noise(series: GridSeries, rng: np.random.Generator) -> np.ndarray:
    volumes = np.zeros((T, *MODEL_GRID_SHAPE), np.float32)
    volumes[:, series.mask] = noise(series, rng) - 1000
    return 1000 + uniform_filter(volumes, (0, 7, 7, 7))[:, series.mask]


@pytest.mark.parametrize(
    ("spoil", "fails"),
    [
        (noise, set(TESTS)),
        (shuffle_volumes, {"order_p"}),
        (permute_voxels, {"connectivity_p"}),
        (random_walks, {"connectivity_p"}),
        (smooth_noise, set(TESTS)),
    ],
)
def test_what_is_no_signal_of_a_brain_fails_the_tests_of_what_it_lacks(active, spoil, fails) -> None:
    assert failed(replace(active, values=spoil(active, np.random.default_rng(5)))) >= fails


def test_noise_is_measured_as_noise(active) -> None:
    found = measure_signal(replace(active, values=noise(active, np.random.default_rng(4))))
    assert found["low_frequency"] == pytest.approx(1, abs=0.1)
    assert found["high_frequency"] == pytest.approx(1, abs=0.1)
    assert abs(found["neighbour_r"]) < 0.02
    assert found["gm_wm_mean"] == pytest.approx(1, abs=0.01)
    assert found["sd_percent"] == pytest.approx(1, abs=0.05)


def test_a_shorter_repetition_time_does_not_change_the_measures_of_the_spectrum(active) -> None:
    finer = signal.resample(active.values, 150).astype(np.float32)
    given, fast = measure_signal(active), measure_signal(replace(active, values=finer, tr=0.8))
    for name in ("low_frequency", "high_frequency", "drift"):
        assert fast[name] == pytest.approx(given[name], rel=0.1), name


def test_a_small_field_of_view_has_no_tests(active) -> None:
    part = active.mask.copy()
    part[:, :, 6:] = False
    kept = part[active.mask]
    found = measure_signal(GridSeries(active.values[:, kept], part, TR))
    assert "connectivity_p" not in found


def test_a_run_of_few_volumes_is_not_measured(active) -> None:
    assert measure_signal(replace(active, values=active.values[:11])) == {}


def test_constant_volumes_have_no_signal_and_no_nan(active) -> None:
    found = measure_signal(replace(active, values=np.repeat(active.values[:1], T, axis=0)))
    assert np.isfinite(list(found.values())).all()
    assert found["homologue_p"] > 0.01
    assert found["order_p"] > 0.01


def test_a_margin_of_the_brain_may_be_missing(active) -> None:
    smaller = binary_erosion(active.mask, iterations=3)
    found = measure_signal(GridSeries(active.values[:, smaller[active.mask]], smaller, TR))
    assert found["network_p"] <= 0.01
