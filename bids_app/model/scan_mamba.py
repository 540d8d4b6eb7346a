"""The `mamba_ssm` backend: the CUDA kernels of the mamba-ssm package (extra ``cuda``)."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def obstacle(device: torch.device, dtype: torch.dtype, n_states: int) -> str:
    """Return the reason why the kernels are unavailable, or an empty string."""
    if device.type != "cuda":
        return f"it does not support {device.type}"
    if find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed"
    return "" if dtype in (torch.float32, torch.bfloat16, torch.float16) else f"it does not support {dtype}"


def mamba_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
) -> torch.Tensor:
    """Scan with mamba-ssm; see `selective_scan`. Its layout is (N, D, L), so inputs are copied."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # an extra of the package

    u, delta, B, C, z = (t.transpose(1, 2).contiguous() for t in (u, delta, B, C, z))
    y = selective_scan_fn(u, delta, A.float(), B, C, D.float(), z, delta_bias.float(), delta_softplus=True)
    return y.transpose(1, 2)
