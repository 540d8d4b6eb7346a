"""The `native` backend: fused scan and convolution for CPUs, a shared library called through ctypes.

The library (csrc/) is compiled when the package is installed, where there is a compiler. It takes float32; other
dtypes are converted on the way in and out. Each instruction set has kernels of its own, chosen by the processor;
`NEUROSTORM_SCAN_ISA` (``baseline``, ``avx2``, ``avx512``) forces a lesser one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int64
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bids_app.errors import UsageError
from bids_app.model.windows import WindowPlan

ABI_VERSION = 2
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""Fastest first."""
STATES, CHUNK, MAX_TAPS = 16, 16, 16
"""As in csrc/kernels.h."""
_Floats = POINTER(c_float)
_BLOCK_WEIGHTS = (
    *("norm1_weight", "norm1_bias", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "delta_bias", "a"),
    *("skip", "out_proj", "norm2_weight", "norm2_bias", "linear1", "bias1", "linear2", "bias2"),
)


class _View(Structure):
    _fields_ = (("data", _Floats), ("window_stride", c_int64), ("token_stride", c_int64))


class _Scan(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n_windows", "n_tokens", "n_channels")),
        *((name, _View) for name in ("u", "delta", "b", "c", "z", "y")),
        *((name, _Floats) for name in ("a", "skip", "delta_bias", "saved")),
    )


class _ScanGrad(Structure):
    _fields_ = (
        *((name, _View) for name in ("dy", "du", "ddelta", "db", "dc", "dz")),
        *((name, _Floats) for name in ("da", "dskip", "ddelta_bias", "scratch")),
    )


class _Conv(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n_windows", "n_tokens", "n_channels", "taps")),
        *((name, _View) for name in ("x", "y")),
        *((name, _Floats) for name in ("weight", "bias")),
    )


class _ConvGrad(Structure):
    _fields_ = (
        *((name, _View) for name in ("dy", "dx")),
        *((name, _Floats) for name in ("dweight", "dbias", "scratch")),
    )


class _Block(Structure):
    _fields_ = (
        *((name, c_int64 * 4) for name in ("grid", "window", "shift", "padded")),
        *((name, c_int64) for name in ("batch", "width", "inner", "rank", "taps", "hidden", "n_prompts")),
        *((name, _Floats) for name in ("x", "y", "prompts", *_BLOCK_WEIGHTS)),
    )


class _Patch(Structure):
    _fields_ = (
        ("size", c_int64 * 4),
        ("patch", c_int64 * 3),
        *((name, c_int64) for name in ("batch", "width")),
        *((name, _Floats) for name in ("x", "y", "weight", "bias")),
    )


class _Merge(Structure):
    _fields_ = (
        ("grid", c_int64 * 4),
        *((name, c_int64) for name in ("batch", "width")),
        *((name, _Floats) for name in ("x", "y", "norm_weight", "norm_bias", "reduction")),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where there is none that fits."""
    for path in sorted(Path(__file__).parent.glob("_scan.*")):
        if path.suffix not in (".so", ".pyd", ".dylib"):
            continue
        try:
            lib = ctypes.CDLL(str(path))
            if lib.ns_abi_version() != ABI_VERSION:
                continue
        except (OSError, AttributeError):
            continue
        lib.ns_scan_scratch_floats.restype = c_int64
        lib.ns_scan_scratch_floats.argtypes = (c_int64,)
        lib.ns_has.argtypes = (c_char_p,)
        lib.ns_scan_forward.argtypes = (c_char_p, POINTER(_Scan), c_int)
        lib.ns_scan_backward.argtypes = (c_char_p, POINTER(_Scan), POINTER(_ScanGrad), c_int)
        lib.ns_conv_forward.argtypes = (c_char_p, POINTER(_Conv), c_int)
        lib.ns_block_workspace_floats.restype = lib.ns_patch_workspace_floats.restype = c_int64
        lib.ns_block_workspace_floats.argtypes = (c_char_p, POINTER(_Block), c_int)
        lib.ns_block_forward.argtypes = (c_char_p, POINTER(_Block), _Floats, c_int)
        lib.ns_patch_workspace_floats.argtypes = (c_char_p, POINTER(_Patch))
        lib.ns_patch_forward.argtypes = (c_char_p, POINTER(_Patch), _Floats, c_int)
        lib.ns_merge_workspace_floats.restype = c_int64
        lib.ns_merge_workspace_floats.argtypes = (c_char_p, POINTER(_Merge), c_int)
        lib.ns_merge_forward.argtypes = (c_char_p, POINTER(_Merge), _Floats, c_int)
        lib.ns_add_position.argtypes = (c_char_p, _Floats, _Floats, _Floats, c_int64, c_int64, c_int64, c_int64, c_int)
        lib.ns_conv_backward.argtypes = (c_char_p, POINTER(_Conv), POINTER(_ConvGrad), c_int)
        return lib
    return None


def instruction_set() -> str:
    """The kernels in use: those that `NEUROSTORM_SCAN_ISA` names, or the fastest that the processor has."""
    lib = library()
    if lib is None:
        raise UsageError(
            "The native scan was not compiled when this package was installed.",
            "Install a C++ compiler and the package again, or set NEUROSTORM_SCAN=reference.",
        )
    asked = os.environ.get("NEUROSTORM_SCAN_ISA")
    usable = [name for name in INSTRUCTION_SETS if lib.ns_has(name.encode())]
    if asked and asked not in usable:
        raise UsageError(f"NEUROSTORM_SCAN_ISA is {asked!r}.", f"This processor has {', '.join(usable)}.")
    return asked or usable[0]


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
    """The scan by the native kernels; see `selective_scan` for arguments and result."""
    return _NativeScan.apply(u, delta, A, B, C, D, z, delta_bias).to(u.dtype)


def native_conv_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SiLU of the causal convolution by the native kernels; see `causal_conv_silu`."""
    return _NativeConv.apply(x, weight, bias).to(x.dtype)


def obstacle(device: torch.device, dtype: torch.dtype, n_states: int) -> str:
    """Why the kernels cannot be used, or an empty text."""
    if library() is None:
        return "it was not compiled when this package was installed"
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not know {dtype} on {device.type}"
    return "" if n_states == STATES else f"it knows {STATES} states, not {n_states}"


def native_block(
    x: torch.Tensor, plan: WindowPlan, weights: Mapping[str, torch.Tensor], prompts: torch.Tensor | None
) -> torch.Tensor:
    """A block of the encoder in one go, without gradients.

    Parameters
    ----------
    x : torch.Tensor of float32, (B, X, Y, Z, T, C)
    plan : WindowPlan
    weights : mapping of str to torch.Tensor
        Under the names of `_BLOCK_WEIGHTS`; ``a`` are the decay rates (D, 16).
    prompts : torch.Tensor, optional
        (1, K, C).

    Returns
    -------
    torch.Tensor, (B, X, Y, Z, T, C)
    """
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    kept = [_flat(weights[name]) for name in _BLOCK_WEIGHTS]  # alive until the call returns
    front = None if prompts is None else _flat(prompts)
    inner, taps = weights["conv_weight"].shape[0], weights["conv_weight"].shape[-1]
    block = _Block(
        *((c_int64 * 4)(*sizes) for sizes in (plan.grid, plan.window, plan.shift, plan.padded)),
        *(x.shape[0], x.shape[-1], inner, weights["dt_proj"].shape[1], taps, weights["linear1"].shape[0]),
        0 if front is None else front.shape[-2],
        *map(_data, (x, y, front, *kept)),
    )
    isa, threads, lib = instruction_set().encode(), torch.get_num_threads(), _library()
    workspace = torch.empty(lib.ns_block_workspace_floats(isa, byref(block), threads))
    _check(lib.ns_block_forward(isa, byref(block), _data(workspace), threads))
    return y


def native_patch_embed(
    clips: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, patch: tuple[int, ...]
) -> torch.Tensor:
    """The patch embedding straight from the clips, without gradients.

    Parameters
    ----------
    clips : torch.Tensor of float32, (B, 1, x, y, z, t)
    weight, bias : torch.Tensor, (C, voxels of a patch) and (C,)
    patch : (x, y, z)

    Returns
    -------
    torch.Tensor, (B, X, Y, Z, T, C)
    """
    clips, weight, bias = clips.detach().contiguous(), _flat(weight), _flat(bias)
    batch, _, *size = clips.shape
    grid = [n // step for n, step in zip(size[:3], patch, strict=True)]
    y = torch.empty(batch, *grid, size[3], len(bias))
    struct = _Patch(
        (c_int64 * 4)(*size), (c_int64 * 3)(*patch), batch, len(bias), *map(_data, (clips, y, weight, bias))
    )
    isa, lib = instruction_set().encode(), _library()
    workspace = torch.empty(lib.ns_patch_workspace_floats(isa, byref(struct)))
    _check(lib.ns_patch_forward(isa, byref(struct), _data(workspace), torch.get_num_threads()))
    return y


def native_merge(
    x: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, reduction: torch.Tensor
) -> torch.Tensor:
    """Merging of spatial neighbours, their norm and their reduction, without gradients.

    Parameters
    ----------
    x : torch.Tensor of float32, (B, X, Y, Z, T, C)
        With X, Y and Z even.
    norm_weight, norm_bias : torch.Tensor, (8 C,)
    reduction : torch.Tensor, (2 C, 8 C)

    Returns
    -------
    torch.Tensor, (B, X / 2, Y / 2, Z / 2, T, 2 C)
    """
    x, kept = x.detach().contiguous(), [_flat(t) for t in (norm_weight, norm_bias, reduction)]
    batch, gx, gy, gz, gt, c = x.shape
    y = torch.empty(batch, gx // 2, gy // 2, gz // 2, gt, 2 * c)
    merge = _Merge((c_int64 * 4)(gx, gy, gz, gt), batch, c, *map(_data, (x, y, *kept)))
    isa, threads, lib = instruction_set().encode(), torch.get_num_threads(), _library()
    workspace = torch.empty(lib.ns_merge_workspace_floats(isa, byref(merge), threads))
    _check(lib.ns_merge_forward(isa, byref(merge), _data(workspace), threads))
    return y


def native_add_position(x: torch.Tensor, space: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Add positions in place, without gradients.

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
    space, time = _flat(space), _flat(time)
    volumes, width = x.shape[-2:]
    sizes = (x.shape[0], space.numel() // width, volumes, width, torch.get_num_threads())
    _check(_library().ns_add_position(instruction_set().encode(), _data(x), _data(space), _data(time), *sizes))
    return x


class _NativeScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        u, delta, b, c, z = (_rows(inputs[i]) for i in (0, 1, 3, 4, 6))
        a, skip, bias = (_flat(inputs[i]) for i in (2, 5, 7))
        n, tokens, channels = u.shape
        y = torch.empty(n, tokens, channels)
        saved = torch.empty(n, -(-tokens // CHUNK), channels * STATES) if any(ctx.needs_input_grad) else None
        isa, threads = instruction_set(), torch.get_num_threads()
        ctx.isa, ctx.dtypes = isa, [t.dtype for t in inputs]
        scan = _scan_struct(u, delta, a, b, c, skip, z, bias, y, saved)
        _check(_library().ns_scan_forward(isa.encode(), byref(scan), threads))
        if saved is not None:
            ctx.save_for_backward(u, delta, a, b, c, skip, z, bias, saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        u, delta, a, b, c, skip, z, bias, saved = ctx.saved_tensors
        channels, threads, lib = u.shape[2], torch.get_num_threads(), _library()
        dy = _rows(grads[0])
        du, ddelta, dz = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, z))
        db, dc = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (b, c))
        da, dskip, dbias = (torch.zeros(threads, *t.shape) for t in (a, skip, bias))
        scratch = torch.empty(threads, lib.ns_scan_scratch_floats(channels))
        scan = _scan_struct(u, delta, a, b, c, skip, z, bias, None, saved)
        grad = _ScanGrad(*map(_view, (dy, du, ddelta, db, dc, dz)), *map(_data, (da, dskip, dbias, scratch)))
        _check(lib.ns_scan_backward(ctx.isa.encode(), byref(scan), byref(grad), threads))
        found = (du, ddelta, da.sum(0), db, dc, dskip.sum(0), dz, dbias.sum(0))
        return tuple(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))


class _NativeConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        x, weight, bias = _rows(inputs[0]), _flat(inputs[1]), _flat(inputs[2])
        y = torch.empty(x.shape)
        isa = instruction_set()
        ctx.isa, ctx.dtypes = isa, [t.dtype for t in inputs]
        conv = _Conv(*x.shape, weight.shape[-1], _view(x), _view(y), _data(weight), _data(bias))
        _check(_library().ns_conv_forward(isa.encode(), byref(conv), torch.get_num_threads()))
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        threads, dy, dx = torch.get_num_threads(), _rows(grads[0]), torch.empty(x.shape)
        dweight, dbias = torch.zeros(threads, *weight.shape), torch.zeros(threads, *bias.shape)
        scratch = torch.empty(threads, x.shape[1] * 16)
        conv = _Conv(*x.shape, weight.shape[-1], _view(x), _View(), _data(weight), _data(bias))
        grad = _ConvGrad(_view(dy), _view(dx), _data(dweight), _data(dbias), _data(scratch))
        _check(_library().ns_conv_backward(ctx.isa.encode(), byref(conv), byref(grad), threads))
        found = (dx, dweight.sum(0), dbias.sum(0))
        return tuple(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))


def _scan_struct(
    u: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *rest: Any
) -> _Scan:
    skip, z, bias, y, saved = rest
    views = map(_view, (u, delta, b, c, z, y))
    return _Scan(*u.shape, *views, *map(_data, (a, skip, bias, saved)))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Float32 with a contiguous last axis; a view where it is so already."""
    x = x.detach().float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.detach().float().contiguous()


def _data(x: torch.Tensor | None) -> Any:
    return None if x is None else ctypes.cast(x.data_ptr(), _Floats)


def _view(x: torch.Tensor | None) -> _View:
    return _View() if x is None else _View(_data(x), x.stride(0), x.stride(1))


def _library() -> ctypes.CDLL:
    lib = library()
    assert lib is not None  # instruction_set() has refused by now
    return lib


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the native scan refused its arguments ({status})")
