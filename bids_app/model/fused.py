"""Fused layers for inference on a CPU: each layer is one native call.

A window's tokens pass norm, mixer and MLP while they are in the core's cache. The fused layers are used with the scan
backend `native`; gradients, other dtypes, other backends and layers with unmerged low-rank updates use the PyTorch
modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_int64

import torch
from torch import nn

from bids_app.model import native, scan
from bids_app.model.windows import WindowPlan

WRAPPED = "base_layer"
"""Attribute of the modules by which ``peft`` replaces layers."""


def applies(module: nn.Module, x: torch.Tensor) -> bool:
    """Tell whether a fused layer can replace a module for the input ``x``."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    parameters = list(module.parameters())
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    if any(hasattr(part, WRAPPED) for part in module.modules()):
        return False  # the fused layers read the weights, and would leave out the updates
    plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    return plain and scan.choose_backend(x.device, x.dtype).name == "native"


def block(
    x: torch.Tensor,
    plan: WindowPlan,
    weights: Mapping[str, torch.Tensor],
    prompts: torch.Tensor | None,
    overwrite: bool = False,
) -> torch.Tensor:
    """Run a block of the encoder in one call, without gradients.

    Parameters
    ----------
    x : torch.Tensor of float32, (B, X, Y, Z, T, C)
    plan : WindowPlan
    weights : mapping of str to torch.Tensor
        Weights under the names in `native.BLOCK_WEIGHTS`.
    prompts : torch.Tensor, optional
        (1, K, C).
    overwrite : bool
        Write the output into ``x``; this is safe because windows share no tokens.

    Returns
    -------
    torch.Tensor, (B, X, Y, Z, T, C)
    """
    x = x.detach().contiguous()
    y = x if overwrite else torch.empty_like(x)
    kept = [
        native.flat(weights[name]) for name in native.BLOCK_WEIGHTS
    ]  # references keep the memory alive until the call returns
    front = None if prompts is None else native.flat(prompts)
    inner, taps = weights["conv_weight"].shape[0], weights["conv_weight"].shape[-1]
    struct = native.Block(
        *((c_int64 * 4)(*sizes) for sizes in (plan.grid, plan.window, plan.shift, plan.padded)),
        *(x.shape[0], x.shape[-1], inner, weights["dt_proj"].shape[1], taps, weights["linear1"].shape[0]),
        0 if front is None else front.shape[-2],
        *map(native.data_of, (x, y, front, *kept)),
    )
    native.run_with_workspace("block", struct)
    return y


def patch_embed(clips: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, patch: tuple[int, ...]) -> torch.Tensor:
    """Compute the patch embedding directly from the clips, without gradients.

    Parameters
    ----------
    clips : torch.Tensor of float32, (B, 1, x, y, z, t)
    weight, bias : torch.Tensor, (C, voxels of a patch) and (C,)
    patch : (x, y, z)

    Returns
    -------
    torch.Tensor, (B, X, Y, Z, T, C)
    """
    clips, weight, bias = clips.detach().contiguous(), native.flat(weight), native.flat(bias)
    batch, _, *size = clips.shape
    grid = [n // step for n, step in zip(size[:3], patch, strict=True)]
    y = torch.empty(batch, *grid, size[3], len(bias))
    struct = native.Patch(
        (c_int64 * 4)(*size), (c_int64 * 3)(*patch), batch, len(bias), *map(native.data_of, (clips, y, weight, bias))
    )
    native.run_with_workspace("patch", struct)
    return y


def merge(x: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, reduction: torch.Tensor) -> torch.Tensor:
    """Merge spatial neighbours, normalise and reduce them, without gradients.

    Parameters
    ----------
    x : torch.Tensor of float32, (B, X, Y, Z, T, C)
        X, Y and Z must be even.
    norm_weight, norm_bias : torch.Tensor, (8 C,)
    reduction : torch.Tensor, (2 C, 8 C)

    Returns
    -------
    torch.Tensor, (B, X / 2, Y / 2, Z / 2, T, 2 C)
    """
    x, kept = x.detach().contiguous(), [native.flat(t) for t in (norm_weight, norm_bias, reduction)]
    batch, gx, gy, gz, gt, c = x.shape
    y = torch.empty(batch, gx // 2, gy // 2, gz // 2, gt, 2 * c)
    struct = native.Merge((c_int64 * 4)(gx, gy, gz, gt), batch, c, *map(native.data_of, (x, y, *kept)))
    native.run_with_workspace("merge", struct)
    return y


def add_position(x: torch.Tensor, space: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Add position embeddings in place, without gradients.

    Parameters
    ----------
    x : torch.Tensor of float32, (B, X, Y, Z, T, C)
        Contiguous; overwritten.
    space, time : torch.Tensor, (X, Y, Z, C) and (T, C)

    Returns
    -------
    torch.Tensor
        ``x``.
    """
    space, time = native.flat(space), native.flat(time)
    volumes, width = x.shape[-2:]
    arrays = map(native.data_of, (x, space, time))
    native.call("ns_add_position", *arrays, x.shape[0], space.numel() // width, volumes, width, torch.get_num_threads())
    return x
