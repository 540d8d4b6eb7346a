"""Linear layers whose products of many rows and few columns are fast on a CPU, forward and backward.

At the widths of the encoder, the products of PyTorch reach half of the rate of the native ones (`benchmarks/encoder.py
products`). These are used with the scan backend `native` for float32; anything else uses the PyTorch function.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bids_app.model import native, scan

LANES = 16
"""Floats of the widest vector."""


class Linear(nn.Linear):
    """`torch.nn.Linear` with the product of `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``x @ weight.T + bias``.

    Parameters
    ----------
    x : torch.Tensor, (..., n_in)
    weight : torch.Tensor, (n_out, n_in)
    bias : torch.Tensor, optional, (n_out,)

    Returns
    -------
    torch.Tensor, (..., n_out)
        Its rows may have gaps between them. All inputs receive gradients.
    """
    plain = all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in (x, weight, bias))
    if not plain or torch.is_autocast_enabled("cpu") or scan.choose_backend(x.device, x.dtype).name != "native":
        return F.linear(x, weight, bias)
    return _NativeLinear.apply(x, weight, bias)


class _NativeLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.leading, ctx.has_bias = x.shape[:-1], bias is not None
        rows = native.rows(x).reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias, ctx.leading)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        dy = native.rows(grads[0]).reshape(-1, len(weight))
        dx = _product(dy, weight.t(), None, ctx.leading) if of_input else None
        return dx, _weight_gradient(rows, dy) if of_weight else None, dy.sum(0) if of_bias and ctx.has_bias else None


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, leading: torch.Size) -> torch.Tensor:
    """Compute ``x @ weight.T + bias`` of matrices, in the shape (*leading, n_out).

    Rows of the output begin at multiples of four floats.
    """
    n_rows, n_in = x.shape
    weight, kept = native.flat(weight), None if bias is None else native.flat(bias)
    n_out = len(weight)
    y = torch.empty(*leading, -(-n_out // 4) * 4)
    sizes = (n_rows, n_in, n_out, x.stride(0), y.shape[-1])
    struct = native.Linear(*sizes, *map(native.data_of, (x, weight, kept, y)))
    native.run_with_workspace("linear", struct)
    return y if y.shape[-1] == n_out else y[..., :n_out]  # a view would not be added to in place


def _weight_gradient(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Compute ``dy.T @ x``, (n_out, n_in)."""
    if x.shape[1] < min(LANES, dy.shape[1]):
        return _weight_gradient(dy, x).t()  # vectors run along the columns of the first
    threads = torch.get_num_threads()
    found = torch.zeros(threads, dy.shape[1], x.shape[1])
    sizes = (len(x), x.shape[1], dy.shape[1], x.stride(0), dy.stride(0))
    grad = native.LinearGrad(*sizes, *map(native.data_of, (x, dy, found)))
    native.call("ns_linear_weight_grad", byref(grad), threads)
    return found.sum(0)
