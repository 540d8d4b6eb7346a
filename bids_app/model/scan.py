"""The selective scan: one interface, several backends.

The recurrence of Mamba-1, for each window n, channel d and state s, over the tokens l = 0, 1, ... of the window:

    step[l]    = softplus(delta[n, l, d] + delta_bias[d])
    h[l, s]    = exp(step[l] * A[d, s]) * h[l - 1, s] + step[l] * B[n, l, s] * u[n, l, d]        h[-1] = 0
    y[n, l, d] = (sum_s C[n, l, s] * h[l, s] + D[d] * u[n, l, d]) * silu(z[n, l, d])

All backends have the interface of `selective_scan`. The fastest installed one that supports the device, dtype and
number of states is used, unless the environment variable `NEUROSTORM_SCAN` names another. A backend of another package
is tried on a few tokens first, because an installed package may lack kernels for this GPU.

Glossary: N windows, L tokens of a window, D channels (inner width), S states.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from bids_app.errors import UsageError
from bids_app.model import native, scan_mamba, scan_native, scan_triton
from bids_app.model.scan_reference import reference_conv_silu, reference_scan

ENVIRONMENT_VARIABLE = "NEUROSTORM_SCAN"
TRIAL_SHAPE = (2, 5, 16)
"""Windows, tokens and channels of a trial scan."""
TRIAL_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest error of a trial scan, relative to the largest value; wrong kernels are far above it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """An implementation of the scan.

    Attributes
    ----------
    scan, conv_silu : callable
        With the interfaces of `selective_scan` and `causal_conv_silu`.
    obstacle : callable
        Maps device, dtype and number of states to the reason why the backend is unavailable, or an empty string.
    detail : callable
        Detail added to the name in logs.
    on_trial : bool
        The kernels are tried before they are used.
    """

    name: str
    scan: Callable[..., torch.Tensor]
    conv_silu: Callable[..., torch.Tensor]
    obstacle: Callable[[torch.device, torch.dtype, int], str]
    detail: Callable[[], str] = str
    on_trial: bool = False

    def unavailable(self, device: torch.device, dtype: torch.dtype, n_states: int) -> str:
        """Return the reason why the backend cannot be used, or an empty string; tries the kernels once."""
        obstacle = self.obstacle(device, dtype, n_states)
        return obstacle or (_trial(self, device, dtype, n_states) if self.on_trial else "")


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("mamba_ssm", scan_mamba.mamba_scan, reference_conv_silu, scan_mamba.obstacle, on_trial=True),
        Backend("triton", scan_triton.triton_scan, reference_conv_silu, scan_triton.obstacle, on_trial=True),
        Backend(
            "native",
            scan_native.native_scan,
            scan_native.native_conv_silu,
            scan_native.obstacle,
            native.instruction_set,
        ),
        Backend("reference", reference_scan, reference_conv_silu, lambda device, dtype, states: "", lambda: "slow"),
    )
}
"""In order of preference."""


def choose_backend(
    device: torch.device, dtype: torch.dtype = torch.float32, n_states: int = 16, name: str | None = None
) -> Backend:
    """Return the backend requested by name or by the environment variable, or else the first available one.

    Raises
    ------
    UsageError
        The requested backend is unknown or unavailable; it is never replaced by another.
    """
    name = name or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        return next(b for b in BACKENDS.values() if not b.unavailable(device, dtype, n_states))
    if name not in BACKENDS:
        raise UsageError(f"Unknown scan backend {name!r}.", f"Choose one of {', '.join(BACKENDS)}.")
    obstacle = BACKENDS[name].unavailable(device, dtype, n_states)
    if obstacle:
        raise UsageError(f"The scan backend {name} is unavailable: {obstacle}.", f"Unset {ENVIRONMENT_VARIABLE}.")
    return BACKENDS[name]


@cache
def _trial(backend: Backend, device: torch.device, dtype: torch.dtype, n_states: int) -> str:
    """Scan a few tokens forward and backward; return why the kernels fail, or an empty string.

    A failure is logged once, whatever the kernels raise.
    """
    generator = torch.Generator().manual_seed(0)
    n, tokens, channels = TRIAL_SHAPE
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        of_tokens, of_states = (n, tokens, channels), (n, tokens, n_states)
        shapes = (of_tokens, of_tokens, (channels, n_states), of_states, of_states, (channels,), of_tokens, (channels,))
        inputs = [torch.randn(shape, generator=generator) for shape in shapes]
        inputs[2] = -inputs[2].exp()  # decay rates
        try:
            found = _outputs(backend.scan, [t.to(device, dtype if t.ndim == 3 else torch.float32) for t in inputs])
            expected = _outputs(reference_scan, inputs)
            limit = TRIAL_TOLERANCE[dtype]
            failed = any((a - b).abs().max() > limit * b.abs().max() for a, b in zip(found, expected, strict=True))
            problem = "it computes wrong values" if failed else ""
        except Exception as error:  # whatever compilers, drivers and packages raise
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        log.warning("The scan backend %s is not used on %s: a trial scan failed (%s).", backend.name, device, problem)
    return problem and f"a trial scan failed ({problem})"


def _outputs(scan: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return output and gradients of a scan, on the CPU in float32; NaN counts as infinite."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = scan(*leaves)
    gradients = torch.autograd.grad(y.float().square().sum(), leaves)
    return [t.detach().float().cpu().nan_to_num(torch.inf) for t in (y, *gradients)]


def backend_in_use(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Return the backend of a device for logs and sidecars, for example ``native (avx512)``."""
    backend = choose_backend(torch.device(device), dtype)
    detail = backend.detail()
    return f"{backend.name} ({detail})" if detail else backend.name


def uses_reference(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> bool:
    """Return whether a device has no backend but plain PyTorch, which is slow."""
    return choose_backend(torch.device(device), dtype).name == "reference"


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
    """Scan each window, with step activation, skip and gate.

    Parameters
    ----------
    u : torch.Tensor, (N, L, D)
        Input, after convolution and SiLU.
    delta : torch.Tensor, (N, L, D)
        Steps before bias and softplus.
    A : torch.Tensor, (D, S)
        Decay rates, negative.
    B, C : torch.Tensor, (N, L, S)
        Input and output projections of the states.
    D : torch.Tensor, (D,)
        Skip connection.
    z : torch.Tensor, (N, L, D)
        Gate, before SiLU.
    delta_bias : torch.Tensor, (D,)
    backend : str, optional
        One of `BACKENDS`; default: that of `NEUROSTORM_SCAN`, or the fastest for the device and dtype.

    Returns
    -------
    torch.Tensor, (N, L, D)
        In ``u``'s dtype. The states are float32 (float64 for float64 input). All eight inputs receive gradients.
        Any strides are accepted; a contiguous last axis is fastest.
    """
    chosen = choose_backend(u.device, u.dtype, A.shape[1], backend)
    return chosen.scan(u, delta, A, B, C, D, z, delta_bias)


def causal_conv_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, backend: str | None = None
) -> torch.Tensor:
    """Apply a causal depthwise convolution along a window's tokens, then SiLU.

    Parameters
    ----------
    x : torch.Tensor, (N, L, D)
    weight : torch.Tensor, (D, 1, K)
        Tap K - 1 is applied to the token itself, tap 0 to the token K - 1 before it.
    bias : torch.Tensor, (D,)
    backend : str, optional
        As in `selective_scan`.

    Returns
    -------
    torch.Tensor, (N, L, D)
        In ``x``'s dtype; all three inputs receive gradients.
    """
    return choose_backend(x.device, x.dtype, name=backend).conv_silu(x, weight, bias)
