"""The selective scan: one contract, several backends.

The recurrence of Mamba-1, for each window n, channel d and state s, over the tokens l = 0, 1, ... of the window:

    step[l]   = softplus(delta[n, l, d] + delta_bias[d])
    h[l, s]   = exp(step[l] * A[d, s]) * h[l - 1, s] + step[l] * B[n, l, s] * u[n, l, d]        h[-1] = 0
    y[n, l, d] = (sum_s C[n, l, s] * h[l, s] + D[d] * u[n, l, d]) * silu(z[n, l, d])

Every backend takes and returns the same things; see `selective_scan`. Glossary: N windows, L tokens of a window,
D channels (inner width), S states.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.nn import functional as F

from bids_app.errors import UsageError

ScanBackend = Callable[..., torch.Tensor]


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
    """The published formula in plain PyTorch; what the others are measured against. See `selective_scan`."""
    dtype = u.dtype
    work = torch.promote_types(dtype, torch.float32)  # float64 stays, for finite differences
    u, delta, B, C, z = (t.to(work) for t in (u, delta, B, C, z))
    A, D, delta_bias = A.to(work), D.to(work), delta_bias.to(work)
    step = F.softplus(delta + delta_bias)
    decay = torch.exp(step.unsqueeze(-1) * A)  # (N, L, D, S)
    drive = (step * u).unsqueeze(-1) * B.unsqueeze(2)  # (N, L, D, S)
    h = torch.zeros_like(decay[:, 0])
    ys = []
    for token in range(u.shape[1]):
        h = decay[:, token] * h + drive[:, token]
        ys.append(torch.einsum("nds,ns->nd", h, C[:, token]))
    y = torch.stack(ys, dim=1) + u * D
    return (y * F.silu(z)).to(dtype)


BACKENDS: dict[str, ScanBackend] = {"reference": reference_scan}


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
    backend: str | None = None,
) -> torch.Tensor:
    """Scan each window, with step activation, skip and gate in one go.

    Parameters
    ----------
    u : torch.Tensor, (N, L, D)
        Input, after convolution and SiLU.
    delta : torch.Tensor, (N, L, D)
        Steps before bias and softplus.
    A : torch.Tensor, (D, S)
        Decay rates, negative.
    B, C : torch.Tensor, (N, L, S)
        What each token writes into and reads from the states.
    D : torch.Tensor, (D,)
        Skip.
    z : torch.Tensor, (N, L, D)
        Gate, before SiLU.
    delta_bias : torch.Tensor, (D,)
    backend : str, optional
        One of `BACKENDS`; None takes what `NEUROSTORM_SCAN` names, or the fastest that the device and dtype allow.

    Returns
    -------
    torch.Tensor, (N, L, D)
        In ``u``'s dtype. The states are float32 (float64 for float64 input). Gradients reach all eight inputs.
        Any strides are accepted; the last axis contiguous is fastest.
    """
    name = backend or os.environ.get("NEUROSTORM_SCAN") or "reference"
    if name not in BACKENDS:
        raise UsageError(f"There is no scan backend {name!r}.", f"Choose one of {', '.join(BACKENDS)}.")
    return BACKENDS[name](u, delta, A, B, C, D, z, delta_bias)


def causal_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SiLU of a causal depthwise convolution along a window's tokens.

    Parameters
    ----------
    x : torch.Tensor, (N, L, D)
    weight : torch.Tensor, (D, 1, K)
        Tap K - 1 meets the token itself, tap 0 the one K - 1 before it.
    bias : torch.Tensor, (D,)

    Returns
    -------
    torch.Tensor, (N, L, D)
    """
    channels, _, taps = weight.shape
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=taps - 1, groups=channels)
    return F.silu(y[..., : x.shape[1]]).transpose(1, 2)
