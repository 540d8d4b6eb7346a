"""The `reference` backend: the published formulas in plain PyTorch, for any device and dtype, with autograd."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def reference_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
) -> torch.Tensor:
    """Scan in plain PyTorch, the reference for the other backends; see `selective_scan`."""
    dtype = u.dtype
    work = torch.promote_types(dtype, torch.float32)  # keep float64 for finite differences
    u, delta, B, C, z = (t.to(work) for t in (u, delta, B, C, z))
    A, D, delta_bias = A.to(work), D.to(work), delta_bias.to(work)
    step = F.softplus(delta + delta_bias)
    decay = torch.exp(step.unsqueeze(-1) * A)  # (N, L, D, S)
    drive = (step * u).unsqueeze(-1) * B.unsqueeze(2)  # (N, L, D, S)
    h = torch.zeros_like(decay[:, 0])
    ys = []
    # unbind once: the gradient of each indexing operation would be an array of the full size
    for decay_l, drive_l, C_l in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
        h = decay_l * h + drive_l
        ys.append(torch.einsum("nds,ns->nd", h, C_l))
    y = torch.stack(ys, dim=1) + u * D
    return (y * F.silu(z)).to(dtype)


def reference_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Apply the causal convolution and SiLU in plain PyTorch; see `causal_conv_silu`."""
    channels, _, taps = weight.shape
    y = F.conv1d(x.transpose(1, 2), weight.to(x.dtype), bias.to(x.dtype), padding=taps - 1, groups=channels)
    return F.silu(y[..., : x.shape[1]]).transpose(1, 2)
