"""The `native` backend of the scan and of the preceding convolution: fused CPU kernels with gradients.

Half-precision inputs are converted to float32 and back; states are float32.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch

from bids_app.model import native

STATES, CHUNK = native.STATES, native.CHUNK


def obstacle(device: torch.device, dtype: torch.dtype, n_states: int) -> str:
    """Return the reason why the kernels are unavailable, or an empty string."""
    if native.library() is None:
        return "it was not compiled when this package was installed"
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not support {dtype} on {device.type}"
    return "" if n_states == STATES else f"it supports {STATES} states, not {n_states}"


def native_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    z: torch.Tensor,
    delta_bias: torch.Tensor,
) -> torch.Tensor:
    """Scan with the native kernels; see `selective_scan`."""
    return _NativeScan.apply(u, delta, A, B, C, D, z, delta_bias).to(u.dtype)


def native_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Apply the causal convolution and SiLU with the native kernels; see `causal_conv_silu`."""
    return _NativeConv.apply(x, weight, bias).to(x.dtype)


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        u, delta, b, c, z = (native.rows(inputs[i]) for i in (0, 1, 3, 4, 6))
        a, skip, bias = (native.flat(inputs[i]) for i in (2, 5, 7))
        n, tokens, channels = u.shape
        y = torch.empty(n, tokens, channels)
        saved = torch.empty(n, -(-tokens // CHUNK), channels * STATES) if any(ctx.needs_input_grad) else None
        ctx.isa, ctx.dtypes = native.instruction_set(), [t.dtype for t in inputs]
        scan = _scan_struct(u, delta, a, b, c, skip, z, bias, y, saved)
        native.call("ns_scan_forward", byref(scan), torch.get_num_threads(), isa=ctx.isa)
        if saved is not None:
            ctx.save_for_backward(u, delta, a, b, c, skip, z, bias, saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        u, delta, a, b, c, skip, z, bias, saved = ctx.saved_tensors
        channels, threads = u.shape[2], torch.get_num_threads()
        dy = native.rows(grads[0])
        du, ddelta, dz = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, z))
        db, dc = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (b, c))
        da, dskip, dbias = (torch.zeros(threads, *t.shape) for t in (a, skip, bias))
        scratch = torch.empty(threads, native.require().ns_scan_scratch_floats(channels))
        scan = _scan_struct(u, delta, a, b, c, skip, z, bias, None, saved)
        grad = native.ScanGrad(
            *map(native.view_of, (dy, du, ddelta, db, dc, dz)), *map(native.data_of, (da, dskip, dbias, scratch))
        )
        native.call("ns_scan_backward", byref(scan), byref(grad), threads, isa=ctx.isa)
        found = (du, ddelta, da.sum(0), db, dc, dskip.sum(0), dz, dbias.sum(0))
        return tuple(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))


class _NativeConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        x, weight, bias = native.rows(inputs[0]), native.flat(inputs[1]), native.flat(inputs[2])
        y = torch.empty(x.shape)
        ctx.isa, ctx.dtypes = native.instruction_set(), [t.dtype for t in inputs]
        conv = native.Conv(
            *x.shape,
            weight.shape[-1],
            native.view_of(x),
            native.view_of(y),
            native.data_of(weight),
            native.data_of(bias),
        )
        native.call("ns_conv_forward", byref(conv), torch.get_num_threads(), isa=ctx.isa)
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        threads, dy, dx = torch.get_num_threads(), native.rows(grads[0]), torch.empty(x.shape)
        dweight, dbias = torch.zeros(threads, *weight.shape), torch.zeros(threads, *bias.shape)
        scratch = torch.empty(threads, x.shape[1] * 16)
        conv = native.Conv(
            *x.shape, weight.shape[-1], native.view_of(x), native.View(), native.data_of(weight), native.data_of(bias)
        )
        grad = native.ConvGrad(
            native.view_of(dy),
            native.view_of(dx),
            native.data_of(dweight),
            native.data_of(dbias),
            native.data_of(scratch),
        )
        native.call("ns_conv_backward", byref(conv), byref(grad), threads, isa=ctx.isa)
        found = (dx, dweight.sum(0), dbias.sum(0))
        return tuple(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))


def _scan_struct(
    u: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *rest: Any
) -> native.Scan:
    skip, z, bias, y, saved = rest
    views = map(native.view_of, (u, delta, b, c, z, y))
    return native.Scan(*u.shape, *views, *map(native.data_of, (a, skip, bias, saved)))
