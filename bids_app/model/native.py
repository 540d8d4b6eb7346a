"""The native library: fused kernels for CPUs, in a shared library of C functions called through ctypes.

It is compiled from csrc/ during installation if there is a compiler. It depends on neither Python nor torch; arguments
are pointers to float32. The kernels are compiled for several instruction sets, and the fastest that the processor
supports is used; `NEUROSTORM_SCAN_ISA` (``baseline``, ``avx2``, ``avx512``) selects another. The structures mirror
csrc/kernels.h.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bids_app.errors import UsageError

ABI_VERSION = 6
NOT_COMPILED = (
    "The native scan was not compiled when this package was installed.",
    "Install a C++ compiler and reinstall the package, or set NEUROSTORM_SCAN=reference.",
)
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""Fastest first."""
STATES, CHUNK = 16, 16
"""As in csrc/kernels.h."""
Floats = POINTER(c_float)
BLOCK_WEIGHTS = (
    *("norm1_weight", "norm1_bias", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "delta_bias", "a_log"),
    *("skip", "out_proj", "norm2_weight", "norm2_bias", "linear1", "bias1", "linear2", "bias2"),
)


class View(Structure):
    _fields_ = (("data", Floats), ("window_stride", c_int64), ("token_stride", c_int64))


class Scan(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n_windows", "n_tokens", "n_channels")),
        *((name, View) for name in ("u", "delta", "b", "c", "z", "y")),
        *((name, Floats) for name in ("a", "skip", "delta_bias", "saved")),
    )


class ScanGrad(Structure):
    _fields_ = (
        *((name, View) for name in ("dy", "du", "ddelta", "db", "dc", "dz")),
        *((name, Floats) for name in ("da", "dskip", "ddelta_bias", "scratch")),
    )


class Conv(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n_windows", "n_tokens", "n_channels", "taps")),
        *((name, View) for name in ("x", "y")),
        *((name, Floats) for name in ("weight", "bias")),
    )


class ConvGrad(Structure):
    _fields_ = (
        *((name, View) for name in ("dy", "dx")),
        *((name, Floats) for name in ("dweight", "dbias", "scratch")),
    )


class Block(Structure):
    _fields_ = (
        *((name, c_int64 * 4) for name in ("grid", "window", "shift", "padded")),
        *((name, c_int64) for name in ("batch", "width", "inner", "rank", "taps", "hidden", "n_prompts")),
        *((name, Floats) for name in ("x", "y", "prompts", *BLOCK_WEIGHTS)),
    )


class Patch(Structure):
    _fields_ = (
        ("size", c_int64 * 4),
        ("patch", c_int64 * 3),
        *((name, c_int64) for name in ("batch", "width")),
        *((name, Floats) for name in ("x", "y", "weight", "bias")),
    )


class Merge(Structure):
    _fields_ = (
        ("grid", c_int64 * 4),
        *((name, c_int64) for name in ("batch", "width")),
        *((name, Floats) for name in ("x", "y", "norm_weight", "norm_bias", "reduction")),
    )


class Linear(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "n_in", "n_out", "x_stride", "y_stride")),
        *((name, Floats) for name in ("x", "weight", "bias", "y")),
    )


class LinearGrad(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "n_in", "n_out", "x_stride", "dy_stride")),
        *((name, Floats) for name in ("x", "dy", "dweight")),
    )


class Spline(Structure):
    _fields_ = (
        ("size", c_int64 * 3),
        *((name, c_int64) for name in ("channels", "order", "nearest", "n_points", "point_stride", "axis_stride")),
        ("matrix", c_double * 12),
        ("values", Floats),
        ("points", POINTER(c_double)),
        ("out", Floats),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the compiled library; None if there is none of this version."""
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
        lib.ns_scan_forward.argtypes = (c_char_p, POINTER(Scan), c_int)
        lib.ns_scan_backward.argtypes = (c_char_p, POINTER(Scan), POINTER(ScanGrad), c_int)
        lib.ns_conv_forward.argtypes = (c_char_p, POINTER(Conv), c_int)
        lib.ns_block_workspace_floats.restype = lib.ns_patch_workspace_floats.restype = c_int64
        lib.ns_block_workspace_floats.argtypes = (c_char_p, POINTER(Block), c_int)
        lib.ns_block_forward.argtypes = (c_char_p, POINTER(Block), Floats, c_int)
        lib.ns_patch_workspace_floats.argtypes = (c_char_p, POINTER(Patch), c_int)
        lib.ns_patch_forward.argtypes = (c_char_p, POINTER(Patch), Floats, c_int)
        lib.ns_merge_workspace_floats.restype = c_int64
        lib.ns_merge_workspace_floats.argtypes = (c_char_p, POINTER(Merge), c_int)
        lib.ns_merge_forward.argtypes = (c_char_p, POINTER(Merge), Floats, c_int)
        lib.ns_linear_workspace_floats.restype = c_int64
        lib.ns_linear_workspace_floats.argtypes = (c_char_p, POINTER(Linear), c_int)
        lib.ns_linear_forward.argtypes = (c_char_p, POINTER(Linear), Floats, c_int)
        lib.ns_linear_weight_grad.argtypes = (c_char_p, POINTER(LinearGrad), c_int)
        lib.ns_spline_sample.argtypes = (c_char_p, POINTER(Spline), c_int)
        lib.ns_add_position.argtypes = (c_char_p, Floats, Floats, Floats, c_int64, c_int64, c_int64, c_int64, c_int)
        lib.ns_conv_backward.argtypes = (c_char_p, POINTER(Conv), POINTER(ConvGrad), c_int)
        lib.ns_use_gomp.argtypes = (c_void_p,)
        lib.ns_use_gomp(_gomp_parallel())
        return lib
    return None


def _gomp_parallel() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP runtime loaded by torch; None with another runtime."""
    try:
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        for path in sorted(loaded):
            runtime = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return ctypes.cast(runtime.GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        pass
    return None


def instruction_set() -> str:
    """Return the instruction set in use: that of `NEUROSTORM_SCAN_ISA`, or the fastest of the processor."""
    lib = require()
    requested = os.environ.get("NEUROSTORM_SCAN_ISA")
    usable = [name for name in INSTRUCTION_SETS if lib.ns_has(name.encode())]
    if requested and requested not in usable:
        raise UsageError(
            f"Invalid NEUROSTORM_SCAN_ISA: {requested!r}.", f"This processor supports {', '.join(usable)}."
        )
    return requested or usable[0]


def require() -> ctypes.CDLL:
    """Return the library, or raise a `UsageError` if it was not compiled."""
    lib = library()
    if lib is None:
        raise UsageError(*NOT_COMPILED)
    return lib


def call(name: str, *arguments: Any, isa: str | None = None) -> None:
    """Call a function of the library with the kernels of an instruction set (None: the one in use)."""
    status = getattr(require(), name)((isa or instruction_set()).encode(), *arguments)
    if status:
        raise RuntimeError(f"{name}: invalid arguments (status {status})")


def run_with_workspace(kind: str, struct: Structure) -> None:
    """Call ``ns_<kind>_forward`` with a workspace of the required size for packed weights and scratch arrays."""
    isa, threads = instruction_set(), torch.get_num_threads()
    floats = getattr(require(), f"ns_{kind}_workspace_floats")(isa.encode(), byref(struct), threads)
    workspace = torch.empty(floats)
    call(f"ns_{kind}_forward", byref(struct), data_of(workspace), threads, isa=isa)


def rows(x: torch.Tensor) -> torch.Tensor:
    """Convert to float32 with a contiguous last axis; a view if possible."""
    x = x.detach().float()
    return x if x.stride(-1) == 1 else x.contiguous()


def flat(x: torch.Tensor) -> torch.Tensor:
    """Convert to contiguous float32."""
    return x.detach().float().contiguous()


def data_of(x: torch.Tensor | None) -> Any:
    """Return a pointer to a tensor's data; the caller must keep the tensor alive."""
    return None if x is None else ctypes.cast(x.data_ptr(), Floats)


def view_of(x: torch.Tensor | None) -> View:
    """Return the library's view of a tensor (windows, tokens, channels)."""
    return View() if x is None else View(data_of(x), x.stride(0), x.stride(1))
