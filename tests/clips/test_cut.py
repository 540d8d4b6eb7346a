"""Clips as in the published code, read in chunks."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch
from torch.nn import functional as F

from bids_app.clips import (
    MODEL_GRID_SHAPE,
    NORMALISATIONS,
    ClipReader,
    GridSeries,
    GridSeriesWriter,
    iter_clips,
)
from bids_app.clips.cut import TimeGrid
from bids_app.errors import BadDataError, UsageError


@pytest.mark.parametrize(("n_vols", "tr"), [(4, 2.0), (33, 0.72), (7, 3.1), (20, 0.8), (300, 1.35), (5, 0.3)])
def test_time_interpolation_equals_torch(n_vols, tr):
    rows = np.random.default_rng(0).normal(size=(n_vols, 5)).astype(np.float32)
    time = TimeGrid.of(n_vols, tr)
    assert time.n_out == round(n_vols * tr / 0.8)
    expected = F.interpolate(
        torch.from_numpy(rows.T.copy())[None], size=time.n_out, mode="linear", align_corners=False
    )[0].T
    pieces = [time.sample(lambda a, b: rows[a:b], s, min(s + 3, time.n_out)) for s in range(0, time.n_out, 3)]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(pieces)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_clips_read_in_chunks_equal_clips_of_the_whole_run(series, normalisation):
    clips = list(iter_clips(series, normalisation))
    assert [c.shape for c in clips] == [(1, 96, 96, 96, 20)] * 7
    whole = F.interpolate(torch.from_numpy(np.array(series.values).T)[None], size=150, mode="linear")[0].T.clamp(min=0)
    dims = None if normalisation == "global" else 0
    mean = whole.mean() if dims is None else whole.mean(dims)
    std = whole.std(unbiased=False) if dims is None else whole.std(dims, unbiased=False)
    z = (whole - mean) / std
    outside_of_brain = torch.from_numpy(~series.mask)
    for index, clip in enumerate(clips):
        part = clip[0][torch.from_numpy(series.mask)].T
        torch.testing.assert_close(part, z[index * 20 : index * 20 + 20], rtol=1e-4, atol=1e-4)
        outside = clip[0][outside_of_brain]
        low, high = outside.aminmax()
        assert low == high == pytest.approx(z.min().item(), rel=1e-4, abs=1e-4)


def test_incomplete_last_clip_is_dropped_and_reported(series):
    reader = ClipReader(series)
    assert (len(reader), reader.dropped, reader.duration) == (7, pytest.approx(8.0), pytest.approx(16.0))
    assert [reader.onset(i) for i in range(2)] == [4.0, 20.0]


def test_run_shorter_than_a_clip_raises(series):
    with pytest.raises(BadDataError, match=r"14\.0 s.*16\.0 s"):
        ClipReader(GridSeries(series.values[:7], series.mask, 2.0))


def test_voxels_without_signal_are_background(series):
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


def test_voxel_normalisation_sets_constant_voxels_to_zero(series):
    values = np.array(series.values)
    values[:, 0] = 700
    clip = ClipReader(GridSeries(values, series.mask, 2.0)).clip(0, "voxel")
    assert clip[0][torch.from_numpy(series.mask)][0].abs().max() == 0


def test_unknown_normalisation_lists_the_options(series):
    with pytest.raises(UsageError, match="global, voxel"):
        ClipReader(series).clip(0, "run")


def test_memory_is_independent_of_the_length_of_a_run(tmp_path):
    """Reading clips of a 300 MB run needs far less memory than the run."""
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
