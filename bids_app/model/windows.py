"""Windows over a 4D grid of tokens: size, shift, padding, partition and its inverse.

Pure functions of shapes and tensors. Token grids are channels-last here and in the encoder:

    B  batch        X Y Z T  token grid (three spatial axes, time)     C  channels
    N  windows of all clips of the batch, clip by clip, raster order (x, y, z, t), time fastest
    L  tokens of one window, raster order (x, y, z, t), time fastest
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

Size4 = tuple[int, int, int, int]


@dataclass(frozen=True)
class WindowPlan:
    """Partition of a token grid into windows, with shift and padding."""

    grid: Size4
    window: Size4
    shift: Size4
    padded: Size4

    @property
    def n_tokens(self) -> int:
        """Tokens of one window."""
        return self.window[0] * self.window[1] * self.window[2] * self.window[3]

    @property
    def counts(self) -> Size4:
        """Number of windows along each axis."""
        px, py, pz, pt = self.padded
        wx, wy, wz, wt = self.window
        return px // wx, py // wy, pz // wz, pt // wt


def plan_windows(grid: Size4, window: Size4, shifted: bool) -> WindowPlan:
    """Compute window size, shift and padding of each axis.

    An axis that is not longer than the window has one window of its own length without shift; other axes are padded to
    a multiple of the window, and shifted by half of it if ``shifted``.

    Parameters
    ----------
    grid : tuple of int, (X, Y, Z, T)
        Token grid.
    window : tuple of int
        Configured window size.
    shifted : bool
        Shift the windows.
    """
    sizes, shifts, padded = [], [], []
    for length, size in zip(grid, window, strict=True):
        whole = length <= size
        size = length if whole else size
        sizes.append(size)
        shifts.append(0 if whole or not shifted else size // 2)
        padded.append(-(-length // size) * size)
    return WindowPlan(grid, _size4(sizes), _size4(shifts), _size4(padded))


def _size4(values: list[int]) -> Size4:
    x, y, z, t = values
    return x, y, z, t


def cut_windows(x: torch.Tensor, plan: WindowPlan) -> torch.Tensor:
    """Pad and shift a token grid, and partition it into windows.

    Parameters
    ----------
    x : torch.Tensor, (B, X, Y, Z, T, C)
        Tokens on ``plan.grid``.

    Returns
    -------
    torch.Tensor, (N, L, C)
        Tokens of each window; a view of ``x`` if one window covers the grid.
    """
    if plan.padded != plan.grid:
        pads: list[int] = [0, 0]
        for length, full in zip(reversed(plan.grid), reversed(plan.padded), strict=True):
            pads += [0, full - length]
        x = F.pad(x, pads)  # (B, PX, PY, PZ, PT, C)
    if any(plan.shift):
        x = torch.roll(x, [-s for s in plan.shift], dims=(1, 2, 3, 4))
    b, c = x.shape[0], x.shape[-1]
    (nx, ny, nz, nt), (wx, wy, wz, wt) = plan.counts, plan.window
    x = x.reshape(b, nx, wx, ny, wy, nz, wz, nt, wt, c).permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9)
    return x.reshape(b * nx * ny * nz * nt, plan.n_tokens, c)


def join_windows(windows: torch.Tensor, plan: WindowPlan, batch: int) -> torch.Tensor:
    """Join windows to a token grid: the inverse of `cut_windows`.

    Parameters
    ----------
    windows : torch.Tensor, (N, L, C)
    batch : int
        B, the number of clips.

    Returns
    -------
    torch.Tensor, (B, X, Y, Z, T, C)
    """
    c = windows.shape[-1]
    (nx, ny, nz, nt), (wx, wy, wz, wt) = plan.counts, plan.window
    x = windows.reshape(batch, nx, ny, nz, nt, wx, wy, wz, wt, c).permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9)
    x = x.reshape(batch, *plan.padded, c)
    if any(plan.shift):
        x = torch.roll(x, list(plan.shift), dims=(1, 2, 3, 4))
    if plan.padded != plan.grid:
        gx, gy, gz, gt = plan.grid
        x = x[:, :gx, :gy, :gz, :gt]
    return x
