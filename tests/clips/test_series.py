"""Series of brain voxels, and errors for invalid images."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.clips import (
    MODEL_GRID_SHAPE,
    ClipReader,
    GridSeries,
    GridSeriesWriter,
    series_from_image,
    to_model_grid,
)
from bids_app.errors import BadDataError, NoInputError
from tests.helpers.images import ball_of_noise


@pytest.mark.parametrize("mask", [False, True])
def test_series_of_an_image_gives_the_same_clips(tmp_path, mask):
    img = ball_of_noise(n_vols=25)
    brain = nib.Nifti1Image((np.asarray(img.dataobj)[..., 0] > 0).astype(np.uint8), img.affine) if mask else None
    series = series_from_image(img, tmp_path / "s", mask=brain, skip=5, start=4.0)
    assert (series.n_vols, series.start, series.tr) == (20, 4.0, pytest.approx(0.8))
    expected = to_model_grid(img.slicer[..., 5:], mask=brain)
    torch.testing.assert_close(ClipReader(series).clip(0)[0], expected, rtol=1e-5, atol=1e-5)


def test_milliseconds_in_the_header_are_converted():
    img = ball_of_noise(n_vols=2, tr=2000)
    img.header.set_xyzt_units("mm", "msec")
    assert to_model_grid(img).shape[-1] == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda img: img.slicer[..., 0], "shape"),
        (lambda img: nib.Nifti1Image(np.zeros(img.shape, np.float32), img.affine), "on the model grid are 0"),
        (
            lambda img: nib.Nifti1Image(img.dataobj, np.diag([2.0, 2, 2, 1]) + np.c_[np.zeros((4, 3)), [900, 0, 0, 0]]),
            "does not overlap",
        ),
        (lambda img: nib.Nifti1Image(np.asarray(img.dataobj) * np.array([1, np.nan]), img.affine), "NaN or infinite"),
        (lambda img: nib.Nifti1Image((np.asarray(img.dataobj) > 0).astype(np.float32), img.affine), "same value"),
        (lambda img: nib.Nifti1Image(np.asarray(img.dataobj).astype(np.complex64), img.affine), "complex voxels"),
    ],
)
def test_invalid_images_raise(change, named):
    with pytest.raises(BadDataError, match=named):
        to_model_grid(change(ball_of_noise(n_vols=2)), tr=0.8)


@pytest.mark.parametrize("tr", [0.0, -1.0, float("nan")])
def test_invalid_repetition_time_raises(tr):
    with pytest.raises(BadDataError, match="repetition time"):
        to_model_grid(ball_of_noise(n_vols=1), tr=tr)


def test_nan_outside_of_the_brain_is_background():
    img = ball_of_noise(n_vols=2)
    data = np.asarray(img.dataobj).copy()
    data[data == 0] = np.nan
    assert torch.equal(to_model_grid(nib.Nifti1Image(data, img.affine), tr=0.8), to_model_grid(img, tr=0.8))


def test_incomplete_series_raises(tmp_path, series):
    writer = GridSeriesWriter(tmp_path / "half", series.mask, 2.0, 10)
    writer.append(np.zeros((3, 1000)))
    writer.__exit__(KeyboardInterrupt, None, None)
    with pytest.raises(NoInputError, match="half"):
        GridSeries.open(tmp_path / "half")


def test_wrong_number_of_volumes_raises(tmp_path, series):
    with (
        pytest.raises(BadDataError, match="3 volumes were written instead of 10"),
        GridSeriesWriter(tmp_path / "s", series.mask, 2.0, 10) as w,
    ):
        w.append(np.zeros((3, 1000)))


def test_writer_masks_volumes_of_the_whole_grid(tmp_path, series):
    grid = np.random.default_rng(0).random((*MODEL_GRID_SHAPE, 2), dtype=np.float32)
    with GridSeriesWriter(tmp_path / "s", series.mask, 2.0, 2) as writer:
        writer.append(grid)
    assert np.array_equal(GridSeries.open(tmp_path / "s").values, grid[series.mask].T)
