"""Reconstruction loss of the hidden patches of a clip; visible patches are neither predicted nor cut, to save memory.

M  hidden patches      C  width of a token      P  voxels of a patch
"""

from __future__ import annotations

from typing import Any

import torch

from bids_app.model.windows import Size4


def select_rows(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Select different rows (M,) of tokens (N, C) as (M, C); the gradient is copied to them, not added up."""
    return _Rows.apply(tokens, rows)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        tokens, rows = inputs
        ctx.save_for_backward(rows)
        ctx.shape = tokens.shape
        return tokens.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0].new_zeros(ctx.shape).index_copy_(0, ctx.saved_tensors[0], grads[0]), None


def select_patches(clip: torch.Tensor, patch_size: Size4, chosen: torch.Tensor) -> torch.Tensor:
    """Cut patches of a clip.

    Parameters
    ----------
    clip : torch.Tensor, (channel, x, y, z, t)
    patch_size : tuple of int
    chosen : torch.Tensor of bool, (X, Y, Z, T)

    Returns
    -------
    torch.Tensor, (M, P)
        Chosen rows of `bids_app.model.patches.to_patches`.
    """
    c, *sizes = clip.shape
    (x, y, z, t), (px, py, pz, pt) = sizes, patch_size
    patches = clip.reshape(c, x // px, px, y // py, py, z // pz, pz, t // pt, pt).permute(1, 3, 5, 7, 2, 4, 6, 8, 0)
    return patches[chosen].flatten(1)


def squared_error(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the weighted mean over patches of the mean squared error of their voxels.

    Parameters
    ----------
    prediction, target : torch.Tensor, (M, P)
        ``target`` has no gradient.
    weights : torch.Tensor, (M,)

    Returns
    -------
    torch.Tensor, ()
    """
    return _SquaredError.apply(prediction, target, weights / weights.sum().clamp(min=1e-8))


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        prediction, target, weights = inputs
        difference = prediction - target
        ctx.save_for_backward(difference, weights)
        errors = torch.linalg.vector_norm(difference, dim=-1).square() / difference.shape[-1]
        return (errors * weights).sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        difference, weights = ctx.saved_tensors
        return difference * (grads[0] * 2 / difference.shape[-1] * weights).unsqueeze(-1), None, None
