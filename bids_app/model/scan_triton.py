"""The `triton` backend: fused scan for GPUs, forward and backward.

For tests without a GPU, Triton's interpreter (``TRITON_INTERPRET=1``) runs it on a CPU, slowly.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

BLOCK, CHUNK = 32, 16
"""Channels per program, and tokens between two saved states."""


@cache
def installed() -> bool:
    """Tell whether Triton is installed."""
    return find_spec("triton") is not None


def obstacle(device: torch.device, dtype: torch.dtype, n_states: int) -> str:
    """Return the reason why the kernels are unavailable, or an empty string."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it does not support {device.type}"
    if not installed():
        return "triton is not installed"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not support {dtype}"
    return "" if n_states & (n_states - 1) == 0 else f"the number of states must be a power of two, not {n_states}"


def triton_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
) -> torch.Tensor:
    """Scan with the Triton kernels; see `selective_scan`."""
    return _TritonScan.apply(u, delta, A, B, C, D, z, delta_bias)


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        from bids_app.model.scan_triton_kernels import scan_forward

        u, delta, b, c, z = (_rows(inputs[i]) for i in (0, 1, 3, 4, 6))
        a, skip, bias = (inputs[i].detach().float().contiguous() for i in (2, 5, 7))
        (n, tokens, channels), states = u.shape, a.shape[1]
        y = torch.empty(n, tokens, channels, dtype=u.dtype, device=u.device)
        save, n_chunks = any(ctx.needs_input_grad), -(-tokens // CHUNK)
        saved = torch.empty(n if save else 1, n_chunks, channels, states, device=u.device)
        scan_forward[(n, -(-channels // BLOCK))](
            *(u, delta, a, b, c, skip, z, bias, y, saved),
            *(tokens, channels, n_chunks),
            *_strides(u, delta, b, c, z),
            BLOCK=BLOCK,
            STATES=states,
            CHUNK=CHUNK,
            SAVE=save,
            num_warps=1,
        )
        ctx.dtypes = [t.dtype for t in inputs]
        if save:
            ctx.save_for_backward(u, delta, a, b, c, skip, z, bias, saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        from bids_app.model.scan_triton_kernels import scan_backward

        u, delta, a, b, c, skip, z, bias, saved = ctx.saved_tensors
        (n, tokens, channels), states = u.shape, a.shape[1]
        dy, n_blocks = _rows(grads[0]), -(-channels // BLOCK)

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(*shape, device=u.device)

        du, ddelta, dz = (empty(n, tokens, channels) for _ in range(3))
        db, dc = (empty(n, n_blocks, tokens, states) for _ in range(2))
        da, dskip, dbias = empty(n, channels, states), empty(n, channels), empty(n, channels)
        scan_backward[(n, n_blocks)](
            *(u, delta, a, b, c, skip, z, bias, saved),
            *(dy, du, ddelta, db, dc, dz, da, dskip, dbias, empty(n * n_blocks, CHUNK, BLOCK, states)),
            *(tokens, channels, saved.shape[1]),
            *_strides(u, delta, b, c, z, dy),
            BLOCK=BLOCK,
            STATES=states,
            CHUNK=CHUNK,
            num_warps=1,
        )
        found = (du, ddelta, da.sum(0), db.sum(1), dc.sum(1), dskip.sum(0), dz, dbias.sum(0))
        return tuple(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))


def _rows(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [t.stride(axis) for t in tensors for axis in (0, 1)]
