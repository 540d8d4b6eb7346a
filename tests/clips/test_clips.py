"""Images come onto the model grid by their affine, and runs are cut as published, piece by piece."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch.nn import functional as F

from bids_app.clips import (
    MODEL_GRID_AFFINE,
    MODEL_GRID_SHAPE,
    NORMALISATIONS,
    ClipReader,
    GridSeries,
    GridSeriesWriter,
    iter_clips,
    labels_to_model_grid,
    series_from_image,
    to_model_grid,
)
from bids_app.clips.cut import TimeGrid
from bids_app.errors import BadDataError, NoInputError, UsageError

TEMPLATE_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
ORIENTATIONS = [codes for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)]


def make_image(n_vols: int = 4, tr: float = 0.8, seed: int = 0, affine=TEMPLATE_AFFINE, shape=(91, 109, 91)):
    """A ball of noise in the template's field of view, 0 outside."""
    random = np.random.default_rng(seed)
    centre = np.indices(shape).reshape(3, -1) - np.array(shape)[:, None] / 2
    brain = ((centre / (np.array(shape)[:, None] / 3)) ** 2).sum(0).reshape(shape) < 1
    data = np.where(brain[..., None], random.normal(1000, 100, (*shape, n_vols)), 0).astype(np.float32)
    img = nib.Nifti1Image(data, affine)
    img.header.set_xyzt_units("mm", "sec")
    img.header.set_zooms((*img.header.get_zooms()[:3], tr))
    return img


def stored_as(img, codes):
    """The same image with its axes in another order and direction."""
    return img.as_reoriented(ornt_transform(io_orientation(img.affine), axcodes2ornt(codes)))


@pytest.fixture
def series(tmp_path) -> GridSeries:
    """60 volumes at 2 s: 150 at 0.8 s."""
    mask = np.zeros(MODEL_GRID_SHAPE, dtype=bool)
    mask[40:50, 40:50, 40:50] = True
    random = np.random.default_rng(0)
    values = random.normal(500, 50, (60, 1000)) + random.normal(0, 100, 1000)
    with GridSeriesWriter(tmp_path / "series", mask, 2.0, 60, start=4.0) as writer:
        writer.append(values[:25])
        writer.append(values[25:])
    return GridSeries.open(tmp_path / "series")


def test_the_grid_is_the_template_padded_and_cropped():
    first = np.linalg.inv(TEMPLATE_AFFINE) @ MODEL_GRID_AFFINE @ [0, 0, 0, 1]
    assert first.tolist() == [-3, 6, -3, 1]
    assert nib.aff2axcodes(MODEL_GRID_AFFINE) == ("L", "A", "S")


def test_all_48_ways_to_store_an_image_give_the_same_clip():
    img = make_image(n_vols=2)
    brain = nib.Nifti1Image((np.asarray(img.dataobj)[..., 0] > 900).astype(np.uint8), img.affine)
    expected = to_model_grid(img, mask=brain)
    assert len(set(ORIENTATIONS)) == 48
    for codes in ORIENTATIONS:
        assert torch.equal(to_model_grid(stored_as(img, codes), mask=stored_as(brain, codes)), expected), codes


def test_all_48_ways_give_the_same_clip_off_the_lattice_too():
    img = make_image(
        n_vols=1, shape=(46, 55, 46), affine=np.diag([-4.0, 4, 4, 1]) + np.c_[np.zeros((4, 3)), [91.3, -127, -71, 0]]
    )
    expected = to_model_grid(img)
    for codes in ORIENTATIONS[::5]:
        assert torch.equal(to_model_grid(stored_as(img, codes)), expected), codes


def test_left_stays_left():
    data = np.zeros((91, 109, 91, 1), dtype=np.float32)
    data[20:70, 30:80, 20:70] = 100
    world = np.array([-30, 0, 20, 1])  # in the left hemisphere
    i, j, k, _ = np.rint(np.linalg.inv(TEMPLATE_AFFINE) @ world).astype(int)
    data[i, j, k] = 1000
    i, j, k, _ = np.rint(np.linalg.inv(MODEL_GRID_AFFINE) @ world).astype(int)
    for codes in ("LAS", "RAS", "PIR"):
        clip = to_model_grid(stored_as(nib.Nifti1Image(data, TEMPLATE_AFFINE), codes), tr=0.8)
        assert np.unravel_index(clip.argmax(), clip.shape)[:3] == (i, j, k)


def test_a_coarser_image_lands_where_it_was():
    """A smooth image sampled at 3 mm comes back close to the same image sampled at 2 mm."""

    def smooth(affine, shape):
        x, y, z, _ = affine @ np.vstack([np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
        values = 1000 + 200 * np.sin(x / 15) + 100 * np.cos(y / 12) + z
        return nib.Nifti1Image(values.reshape(*shape, 1).astype(np.float32), affine)

    coarse_affine = np.array([[3.0, 0, 0, -89], [0, 3, 0, -125], [0, 0, 3, -71], [0, 0, 0, 1]])
    box = nib.Nifti1Image(
        np.ones((30, 40, 30), np.uint8), np.array([[4.0, 0, 0, -60], [0, 4, 0, -90], [0, 0, 4, -40], [0, 0, 0, 1]])
    )
    fine = to_model_grid(smooth(TEMPLATE_AFFINE, (91, 109, 91)), tr=0.8, mask=box)
    coarse = to_model_grid(smooth(coarse_affine, (60, 73, 60)), tr=0.8, mask=box)
    assert (fine - coarse).abs().max() < 0.06


@pytest.mark.parametrize(("n_vols", "tr"), [(4, 2.0), (33, 0.72), (7, 3.1), (20, 0.8), (300, 1.35), (5, 0.3)])
def test_time_is_interpolated_as_torch_does(n_vols, tr):
    rows = np.random.default_rng(0).normal(size=(n_vols, 5)).astype(np.float32)
    time = TimeGrid.of(n_vols, tr)
    assert time.n_out == round(n_vols * tr / 0.8)
    expected = F.interpolate(
        torch.from_numpy(rows.T.copy())[None], size=time.n_out, mode="linear", align_corners=False
    )[0].T
    pieces = [time.sample(lambda a, b: rows[a:b], s, min(s + 3, time.n_out)) for s in range(0, time.n_out, 3)]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(pieces)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_clips_cut_piece_by_piece_equal_the_run_cut_as_a_whole(series, normalisation):
    clips = list(iter_clips(series, normalisation))
    assert [c.shape for c in clips] == [(1, 96, 96, 96, 20)] * 7
    whole = F.interpolate(torch.from_numpy(np.array(series.values).T)[None], size=150, mode="linear")[0].T.clamp(min=0)
    dims = None if normalisation == "global" else 0
    mean = whole.mean() if dims is None else whole.mean(dims)
    std = whole.std(unbiased=False) if dims is None else whole.std(dims, unbiased=False)
    z = (whole - mean) / std
    for index, clip in enumerate(clips):
        part = clip[0][torch.from_numpy(series.mask)].T
        torch.testing.assert_close(part, z[index * 20 : index * 20 + 20], rtol=1e-4, atol=1e-4)
        outside = clip[0][torch.from_numpy(~series.mask)]
        torch.testing.assert_close(outside, torch.full_like(outside, z.min().item()), rtol=1e-4, atol=1e-4)


def test_the_rest_of_a_run_is_dropped_and_reported(series):
    reader = ClipReader(series)
    assert (len(reader), reader.dropped, reader.duration) == (7, pytest.approx(8.0), pytest.approx(16.0))
    assert [reader.onset(i) for i in range(2)] == [4.0, 20.0]


def test_a_run_shorter_than_a_clip_is_refused_with_its_length(series):
    with pytest.raises(BadDataError, match=r"14\.0 s.*16\.0 s"):
        ClipReader(GridSeries(series.values[:7], series.mask, 2.0))


def test_voxels_without_signal_are_background_and_do_not_count(series):
    values = np.array(series.values)
    values[:, :300] = 0  # outside of the field of view
    values[:, 300:310] = -5
    clip = ClipReader(GridSeries(values, series.mask, 2.0)).clip(0)[0]
    inside = clip[torch.from_numpy(series.mask)]
    mask = series.mask.copy()
    mask[np.unravel_index(np.flatnonzero(series.mask)[:310], mask.shape)] = False
    expected = ClipReader(GridSeries(values[:, 310:], mask, 2.0)).clip(0)[0]
    torch.testing.assert_close(clip, expected)
    assert inside[:310].unique().numel() == 1


def test_constant_voxels_are_zero_under_the_voxel_normalisation(series):
    values = np.array(series.values)
    values[:, 0] = 700
    clip = ClipReader(GridSeries(values, series.mask, 2.0)).clip(0, "voxel")
    assert clip[0][torch.from_numpy(series.mask)][0].abs().max() == 0


def test_an_unknown_normalisation_lists_those_there_are(series):
    with pytest.raises(UsageError, match="global, voxel"):
        ClipReader(series).clip(0, "run")


@pytest.mark.parametrize("mask", [False, True])
def test_an_image_written_as_a_series_gives_the_same_clips(tmp_path, mask):
    img = make_image(n_vols=25)
    brain = nib.Nifti1Image((np.asarray(img.dataobj)[..., 0] > 0).astype(np.uint8), img.affine) if mask else None
    series = series_from_image(img, tmp_path / "s", mask=brain, skip=5, start=4.0)
    assert (series.n_vols, series.start, series.tr) == (20, 4.0, pytest.approx(0.8))
    expected = to_model_grid(img.slicer[..., 5:], mask=brain)
    torch.testing.assert_close(ClipReader(series).clip(0)[0], expected, rtol=1e-5, atol=1e-5)


def test_milliseconds_in_the_header_are_understood():
    img = make_image(n_vols=2, tr=2000)
    img.header.set_xyzt_units("mm", "msec")
    assert to_model_grid(img).shape[-1] == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda img: img.slicer[..., 0], "shape"),
        (lambda img: nib.Nifti1Image(np.zeros(img.shape, np.float32), img.affine), "0 all over"),
        (
            lambda img: nib.Nifti1Image(img.dataobj, np.diag([2.0, 2, 2, 1]) + np.c_[np.zeros((4, 3)), [900, 0, 0, 0]]),
            "outside",
        ),
        (lambda img: nib.Nifti1Image(np.asarray(img.dataobj) * np.array([1, np.nan]), img.affine), "no numbers"),
        (lambda img: nib.Nifti1Image((np.asarray(img.dataobj) > 0).astype(np.float32), img.affine), "same value"),
    ],
)
def test_images_that_cannot_be_used_say_why(change, named):
    with pytest.raises(BadDataError, match=named):
        to_model_grid(change(make_image(n_vols=2)), tr=0.8)


@pytest.mark.parametrize("tr", [0.0, -1.0, float("nan")])
def test_a_repetition_time_that_cannot_be_is_refused(tr):
    with pytest.raises(BadDataError, match="repetition time"):
        to_model_grid(make_image(n_vols=1), tr=tr)


def test_nan_outside_of_the_brain_is_background():
    img = make_image(n_vols=2)
    data = np.asarray(img.dataobj).copy()
    data[data == 0] = np.nan
    assert torch.equal(to_model_grid(nib.Nifti1Image(data, img.affine), tr=0.8), to_model_grid(img, tr=0.8))


def test_a_series_that_was_not_finished_is_not_opened(tmp_path, series):
    writer = GridSeriesWriter(tmp_path / "half", series.mask, 2.0, 10)
    writer.append(np.zeros((3, 1000)))
    writer.__exit__(KeyboardInterrupt, None, None)
    with pytest.raises(NoInputError, match="half"):
        GridSeries.open(tmp_path / "half")


def test_a_series_of_another_length_than_announced_is_refused(tmp_path, series):
    with (
        pytest.raises(BadDataError, match="3 volumes came instead of 10"),
        GridSeriesWriter(tmp_path / "s", series.mask, 2.0, 10) as w,
    ):
        w.append(np.zeros((3, 1000)))


def test_volumes_of_the_whole_grid_are_masked_by_the_writer(tmp_path, series):
    grid = np.random.default_rng(0).random((*MODEL_GRID_SHAPE, 2), dtype=np.float32)
    with GridSeriesWriter(tmp_path / "s", series.mask, 2.0, 2) as writer:
        writer.append(grid)
    assert np.array_equal(GridSeries.open(tmp_path / "s").values, grid[series.mask].T)


def test_labels_stay_whole_numbers_on_the_grid():
    data = np.zeros((91, 109, 91), dtype=np.int16)
    data[45, 60, 40] = 7
    labels = labels_to_model_grid(stored_as(nib.Nifti1Image(data, TEMPLATE_AFFINE), "RAS"))
    assert labels.shape == MODEL_GRID_SHAPE
    assert np.argwhere(labels).tolist() == [[48, 54, 43]]
    with pytest.raises(BadDataError, match="whole numbers"):
        labels_to_model_grid(nib.Nifti1Image(data + 0.5, TEMPLATE_AFFINE))


def test_memory_does_not_grow_with_the_length_of_a_run(tmp_path):
    """Reading ten clips of a run of 300 MB needs far less than the run."""
    mask = np.zeros(MODEL_GRID_SHAPE, dtype=bool)
    mask[20:76, 20:76, 20:76] = True
    n_voxels, n_vols = int(mask.sum()), 430
    with GridSeriesWriter(tmp_path / "s", mask, 0.8, n_vols) as writer:
        for seed in range(n_vols // 43):
            writer.append(np.random.default_rng(seed).random((43, n_voxels), dtype=np.float32))
    reader = ClipReader(GridSeries.open(tmp_path / "s"))
    reader.clip(0)
    resident = psutil.Process().memory_info
    before = resident().rss
    grown = [resident().rss - before for _ in reader.clips()]
    assert max(grown) < 150 * 2**20
