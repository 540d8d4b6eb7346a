"""Windows: cut in raster order, shifted, padded, and back in their place."""

from __future__ import annotations

import pytest
import torch

from bids_app.model.windows import cut_windows, join_windows, plan_windows


@pytest.mark.parametrize("grid", [(8, 8, 8, 8), (8, 4, 6, 10), (2, 2, 2, 20), (16, 5, 4, 3)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_return_to_their_place(grid, shifted):
    x = torch.randn(2, *grid, 3)
    plan = plan_windows(grid, (4, 4, 4, 4), shifted)
    assert torch.equal(join_windows(cut_windows(x, plan), plan, 2), x)


def test_an_axis_no_longer_than_the_window_is_neither_padded_nor_shifted():
    plan = plan_windows((2, 4, 8, 10), (4, 4, 4, 4), shifted=True)
    assert plan.window == (2, 4, 4, 4)
    assert plan.shift == (0, 0, 2, 2)
    assert plan.padded == (2, 4, 8, 12)


def test_tokens_of_a_window_come_in_raster_order_time_fastest():
    x = torch.arange(4**4).reshape(1, 4, 4, 4, 4, 1)
    windows = cut_windows(x, plan_windows((4, 4, 4, 4), (2, 2, 2, 2), shifted=False))
    assert windows.shape == (16, 16, 1)
    assert windows[1].flatten()[:4].tolist() == [2, 3, 6, 7]  # second window: time 2 and 3; time first, then z


def test_shifted_windows_begin_half_a_window_in():
    x = torch.arange(8).reshape(1, 8, 1, 1, 1, 1)
    windows = cut_windows(x, plan_windows((8, 1, 1, 1), (4, 1, 1, 1), shifted=True))
    assert windows[..., 0].tolist() == [[2, 3, 4, 5], [6, 7, 0, 1]]
