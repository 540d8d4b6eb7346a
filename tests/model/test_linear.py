"""The native linear layer agrees with PyTorch, including gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bids_app.model import linear as module
from bids_app.model import native
from bids_app.model.linear import Linear, linear

needs_native = pytest.mark.skipif(native.library() is None, reason="the native scan was not compiled")
SHAPES = ((7, 36, 144), (300, 144, 36), (130, 3, 72), (65, 72, 35), (3, 1, 1), (0, 8, 5), (129, 51, 67))
"""Rows, inputs and outputs: those of the encoder, and some that fill no vector."""


def results(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, function) -> list[torch.Tensor]:
    """Return the output and the gradients of all inputs."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*leaves)
    factor = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, factor)]


@needs_native
@pytest.mark.parametrize("isa", native.INSTRUCTION_SETS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("rows", "n_in", "n_out"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_output_and_gradients_agree_with_float64(rows, n_in, n_out, with_bias, threads, isa, monkeypatch):
    if not native.library().ns_has(isa.encode()):
        pytest.skip(f"this processor or build has no {isa}")
    monkeypatch.setenv("NEUROSTORM_SCAN_ISA", isa)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(rows)
    x = torch.randn(1, rows, n_in + 5)[..., 2 : n_in + 2]  # rows with gaps, as parts of a larger array have
    weight, bias = torch.randn(n_out, n_in), torch.randn(n_out) if with_bias else None
    found = results(x, weight, bias, linear)
    expected = results(x.double(), weight.double(), None if bias is None else bias.double(), F.linear)
    for one, other in zip(found, expected, strict=True):
        largest = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6 * largest)


@needs_native
def test_the_gradient_of_many_rows_is_as_accurate_as_that_of_pytorch():
    torch.manual_seed(0)
    x, dy = torch.randn(200_000, 8), torch.randn(200_000, 8)
    exact = dy.double().t() @ x.double()
    ours, theirs = ((found - exact).abs().max() for found in (module._weight_gradient(x, dy), dy.t() @ x))
    assert ours < 3 * theirs


@needs_native
def test_gradients_are_computed_for_what_is_trained_only(monkeypatch):
    layer, x = Linear(5, 6), torch.randn(4, 5)
    layer.weight.requires_grad_(False)
    monkeypatch.setattr(module, "_weight_gradient", lambda *_: pytest.fail("the weight is not trained"))
    layer(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 5))
    torch.testing.assert_close(layer.bias.grad, torch.full((6,), 4.0))


@pytest.mark.parametrize("case", ["float64", "autocast", "reference"])
def test_other_cases_use_pytorch(case, monkeypatch):
    monkeypatch.setattr(module, "_product", lambda *_: pytest.fail("the native product was used"))
    dtype = torch.float64 if case == "float64" else torch.float32
    layer, x = Linear(5, 6).to(dtype), torch.randn(4, 5, dtype=dtype)
    if case == "reference":
        monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert layer(x).dtype == (torch.bfloat16 if case == "autocast" else dtype)


@needs_native
def test_one_vector_is_mapped_to_one_vector():
    layer, x = Linear(5, 6), torch.randn(5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
