"""Spatio-temporal redundancy dropout (STRD): drops tokens that are redundant with their neighbours, during training.

For the tokens h_i of a window, with A = softmax(h h^T / sqrt(C)) over the window:

    S(i)     tokens at the same time within Chebyshev distance floor(l_spat / 2), without i
    T(i)     tokens at the same position within floor(l_temp / 2) volumes, without i
    f_s(i)   max of A(i, j) over j in S(i);   f_t(i)  the same over T(i);   0 where the neighbourhood is empty
    W(i, j)  clamp(0.5 (f_t(i) A(i, j) / sum A(i, S(i)) + f_s(i) A(i, j) / sum A(i, T(i))), 0, 1), over all j
    p(i)     clamp(sum_j W(i, j) / max(|S(i)| + |T(i)|, 1), 0, 1), the probability that token i is set to 0

N windows, L tokens of a window in raster order (x, y, z, t), C width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from bids_app.errors import UsageError
from bids_app.model.windows import Size4

EPSILON = 1e-8
WINDOWS_PER_CHUNK = 8
"""Windows processed at a time on a CPU, so that their affinity matrices fit into its cache."""


@lru_cache(maxsize=64)
def neighbourhoods(window: Size4, l_spat: int, l_temp: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the spatial and temporal neighbours of each token.

    Returns
    -------
    spatial, temporal : torch.Tensor of bool, (L, L)
    """
    axes = torch.meshgrid(*(torch.arange(size) for size in window), indexing="ij")
    position = torch.stack(axes, dim=-1).reshape(-1, 4)
    distance = (position[:, None] - position[None]).abs()
    in_space, in_time = distance[..., :3].amax(-1), distance[..., 3]
    spatial = (in_time == 0) & (in_space > 0) & (in_space <= l_spat // 2)
    temporal = (in_space == 0) & (in_time > 0) & (in_time <= l_temp // 2)
    return spatial, temporal


def drop_probability(tokens: torch.Tensor, window: Size4, l_spat: int = 5, l_temp: int = 5) -> torch.Tensor:
    """Compute the drop probability of each token from its redundancy.

    Parameters
    ----------
    tokens : torch.Tensor, (N, L, C)
        Output tokens of the mixer, without prompts.
    window : tuple of int
        Window size along (x, y, z, t), tokens; the product is L.
    l_spat, l_temp : int
        Extent of the neighbourhoods, in tokens and volumes.

    Returns
    -------
    torch.Tensor, (N, L)
        In 0..1, without gradients.
    """
    with torch.no_grad():
        h = tokens.detach().float()
        spatial, temporal = (m.to(h.device) for m in neighbourhoods(window, l_spat, l_temp))
        chunk = WINDOWS_PER_CHUNK if h.device.type == "cpu" else len(h)
        return torch.cat([_drop_probability(part, spatial, temporal) for part in h.split(max(chunk, 1))])


def _drop_probability(h: torch.Tensor, spatial: torch.Tensor, temporal: torch.Tensor) -> torch.Tensor:
    """Compute the drop probability (n, L) of windows (n, L, C) with neighbourhoods (L, L)."""
    affinity = torch.softmax((h / h.shape[-1] ** 0.5) @ h.transpose(1, 2), dim=-1)  # (n, L, L)
    in_space, in_time = affinity * spatial, affinity * temporal
    terms = []
    for own, other, mask in ((in_space, in_time, spatial), (in_time, in_space, temporal)):
        # sum_j A(i, j) is 1, but W(i, j) must be clamped before the sum
        terms.append(other.amax(-1) / (own.sum(-1) + EPSILON) * mask.any(-1))
    weight = (0.5 * (terms[0] + terms[1])).unsqueeze(-1)
    total = affinity.mul_(weight).clamp_(0, 1).sum(-1)  # (n, L)
    neighbours = spatial.sum(-1) + temporal.sum(-1)
    return (total / neighbours.clamp(min=1)).clamp_(0, 1)


class TokenDropout(nn.Module):
    """Drops redundant tokens during training; the identity otherwise.

    Parameters
    ----------
    l_spat, l_temp : int
        Extent of the neighbourhoods, in tokens and volumes; 1 or more.
    """

    def __init__(self, l_spat: int = 5, l_temp: int = 5) -> None:
        super().__init__()
        if l_spat < 1 or l_temp < 1:
            raise UsageError(f"Invalid STRD neighbourhoods: {l_spat} and {l_temp}.", "Give sizes of 1 or more.")
        self.l_spat, self.l_temp = l_spat, l_temp
        self.share = (0, 1)
        """Rank and number of processes. Each process samples for all clips, so that the result equals that of one."""

    def forward(self, tokens: torch.Tensor, window: Size4) -> torch.Tensor:
        """Map (N, L, C) to the same shape."""
        if not self.training:
            return tokens
        probability = drop_probability(tokens, window, self.l_spat, self.l_temp)
        rank, processes = self.share
        threshold = torch.rand(processes, *probability.shape, device=probability.device)[rank]
        keep = threshold >= probability
        return tokens * keep.unsqueeze(-1).to(tokens.dtype)


def set_token_dropout(module: nn.Module, dropout: TokenDropout | None) -> None:
    """Set the dropout of all blocks of an encoder or autoencoder; None removes it."""
    from bids_app.model.encoder import Block  # imported late: the other functions do not need the encoder

    for block in module.modules():
        if isinstance(block, Block):
            block.token_dropout = dropout
