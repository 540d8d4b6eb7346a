"""The Mamba-1 mixer of the tokens of a window, channels-last.

N  windows    L  tokens of a window    C  width    D  inner width (expand * C)    S  states    R  rank of the time step
"""

from __future__ import annotations

import math

import torch
from torch import nn

from bids_app.model import scan
from bids_app.model.linear import Linear, linear

D_STATE, D_CONV, EXPAND = 16, 4, 2


class DepthwiseConv(nn.Module):
    """Parameters of the causal convolution along a window's tokens, with one filter per channel."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels))
        bound = 1 / math.sqrt(width)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class Mamba(nn.Module):
    """Mixes the tokens of each window in one direction; parameters have the names of the published files."""

    def __init__(self, width: int, d_state: int = D_STATE, d_conv: int = D_CONV, expand: int = EXPAND) -> None:
        super().__init__()
        inner = expand * width
        self.rank = math.ceil(width / 16)
        self.d_state = d_state
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.conv1d = DepthwiseConv(inner, d_conv)
        self.x_proj = Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, width, bias=False)
        if not self.A_log.is_meta:  # it has no values to compute; torch takes a second to import what would do so
            self._init_scan()

    @torch.no_grad()
    def _init_scan(self, low: float = 1e-3, high: float = 1e-1) -> None:
        """Initialise the states, and time steps log-uniformly between ``low`` and ``high``, as Mamba does."""
        self.A_log.copy_(torch.log(torch.arange(1, self.d_state + 1).float()))
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        step = torch.exp(torch.rand(self.D.shape[0]) * math.log(high / low) + math.log(low))
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse softplus

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix tokens.

        Parameters
        ----------
        x : torch.Tensor, (N, L, C)

        Returns
        -------
        torch.Tensor, (N, L, C)
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)  # (N, L, D) each
        u = scan.causal_conv_silu(u, self.conv1d.weight, self.conv1d.bias)
        low_rank, b, c = self.x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        delta = linear(low_rank, self.dt_proj.weight)  # (N, L, D); the bias is added inside the scan
        y = scan.selective_scan(u, delta, -torch.exp(self.A_log), b, c, self.D, z, self.dt_proj.bias)
        return self.out_proj(y)
