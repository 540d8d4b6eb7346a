"""The selective scan: one contract, several backends.

The recurrence of Mamba-1, for each window n, channel d and state s, over the tokens l = 0, 1, ... of the window:

    step[l]    = softplus(delta[n, l, d] + delta_bias[d])
    h[l, s]    = exp(step[l] * A[d, s]) * h[l - 1, s] + step[l] * B[n, l, s] * u[n, l, d]        h[-1] = 0
    y[n, l, d] = (sum_s C[n, l, s] * h[l, s] + D[d] * u[n, l, d]) * silu(z[n, l, d])

Every backend takes and returns the same things; see `selective_scan`. The fastest that is installed and that knows the
device, the dtype and the number of states is taken; the environment variable `NEUROSTORM_SCAN` names another.

Glossary: N windows, L tokens of a window, D channels (inner width), S states.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bids_app.errors import UsageError
from bids_app.model import native, scan_mamba, scan_native, scan_triton
from bids_app.model.scan_reference import reference_conv_silu, reference_scan

ENVIRONMENT_VARIABLE = "NEUROSTORM_SCAN"


@dataclass(frozen=True)
class Backend:
    """One way to scan.

    Attributes
    ----------
    scan, conv_silu : callable
        With the contracts of `selective_scan` and `causal_conv_silu`.
    obstacle : callable
        From device, dtype and number of states to why it cannot be used here, or an empty text.
    detail : callable
        What to add to the name in logs.
    """

    name: str
    scan: Callable[..., torch.Tensor]
    conv_silu: Callable[..., torch.Tensor]
    obstacle: Callable[[torch.device, torch.dtype, int], str]
    detail: Callable[[], str] = str


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("mamba_ssm", scan_mamba.mamba_scan, reference_conv_silu, scan_mamba.obstacle),
        Backend("triton", scan_triton.triton_scan, reference_conv_silu, scan_triton.obstacle),
        Backend(
            "native",
            scan_native.native_scan,
            scan_native.native_conv_silu,
            scan_native.obstacle,
            native.instruction_set,
        ),
        Backend("reference", reference_scan, reference_conv_silu, lambda device, dtype, states: ""),
    )
}
"""In the order in which they are tried."""


def choose_backend(
    device: torch.device, dtype: torch.dtype = torch.float32, n_states: int = 16, name: str | None = None
) -> Backend:
    """The backend that is asked for by name or by the environment variable, or else the first that can be used.

    Raises
    ------
    UsageError
        The one asked for is unknown, or cannot be used here: another is never taken in its place.
    """
    name = name or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        return next(b for b in BACKENDS.values() if not b.obstacle(device, dtype, n_states))
    if name not in BACKENDS:
        raise UsageError(f"There is no scan backend {name!r}.", f"Choose one of {', '.join(BACKENDS)}.")
    obstacle = BACKENDS[name].obstacle(device, dtype, n_states)
    if obstacle:
        raise UsageError(
            f"The scan backend {name} cannot be used here: {obstacle}.", "Leave the choice to the program."
        )
    return BACKENDS[name]


def backend_in_use(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The backend that scans on a device, for logs and sidecars; ``native (avx512)`` for one."""
    backend = choose_backend(torch.device(device), dtype)
    detail = backend.detail()
    return f"{backend.name} ({detail})" if detail else backend.name


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
    chosen = choose_backend(u.device, u.dtype, A.shape[1], backend)
    return chosen.scan(u, delta, A, B, C, D, z, delta_bias)


def causal_conv_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, backend: str | None = None
) -> torch.Tensor:
    """SiLU of a causal depthwise convolution along a window's tokens.

    Parameters
    ----------
    x : torch.Tensor, (N, L, D)
    weight : torch.Tensor, (D, 1, K)
        Tap K - 1 meets the token itself, tap 0 the one K - 1 before it.
    bias : torch.Tensor, (D,)
    backend : str, optional
        As in `selective_scan`.

    Returns
    -------
    torch.Tensor, (N, L, D)
        In ``x``'s dtype; gradients reach all three inputs.
    """
    return choose_backend(x.device, x.dtype, name=backend).conv_silu(x, weight, bias)
