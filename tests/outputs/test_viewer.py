"""Data of the viewer: time courses of regions, and the T1w image that belongs to a run."""

from pathlib import Path

import numpy as np
import pytest

from bids_app.clips import MODEL_GRID_SHAPE, GridSeries
from bids_app.outputs.names import RunName
from bids_app.outputs.viewer import ARBITRARY, PERCENT, regional_series, viewer_path

N_VOLS = 70
"""More than one chunk."""


@pytest.fixture
def labels() -> np.ndarray:
    """Region 1 of 8 voxels, region 2 of 1 voxel, region 3 outside the brain."""
    found = np.zeros(MODEL_GRID_SHAPE, np.int32)
    found[10:12, 10:12, 10:12], found[20, 20, 20], found[30, 30, 30] = 1, 2, 3
    return found


def series_of(labels: np.ndarray, mean: float) -> tuple[GridSeries, np.ndarray]:
    mask = (labels == 1) | (labels == 2)
    mask[40:43, 40, 40] = True  # brain without a region
    waves = np.sin(np.arange(N_VOLS) / 4)[:, None] * np.arange(1, mask.sum() + 1)
    return GridSeries((mean + waves).astype(np.float32), mask, 2.0), waves[:, labels[mask] == 1].mean(axis=1)


def test_time_courses_are_relative_to_the_mean_of_their_region(labels):
    series, wave = series_of(labels, 1000.0)
    courses, unit = regional_series(series, labels, 3)
    expected = (1000 + wave) / (1000 + wave).mean() - 1
    assert unit == PERCENT
    assert courses.shape == (3, N_VOLS)
    assert courses[0] == pytest.approx(100 * expected, abs=1e-4)
    assert np.isnan(courses[2]).all()


def test_time_courses_of_a_series_without_mean_image_keep_their_unit(labels):
    series, wave = series_of(labels, 0.0)
    courses, unit = regional_series(series, labels, 3)
    assert unit == ARBITRARY
    assert courses[0] == pytest.approx(wave - wave.mean(), abs=1e-5)


def test_the_name_of_the_data_of_an_adapter_has_its_name(tmp_path: Path):
    names = RunName(tmp_path, {"sub": "01", "ses": "a", "task": "rest"}, ())
    found = viewer_path(names, "bold", "state").relative_to(tmp_path).as_posix()
    assert found == "sub-01/figures/sub-01_ses-a_task-rest_desc-stateviewer_bold.js"
