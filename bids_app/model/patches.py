"""Patch embedding, position embeddings and patch merging.

B batch; x y z t voxels and volumes of a clip; X Y Z T token grid; C width; P voxels of a patch.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import nn

from bids_app.model import fused
from bids_app.model.config import EncoderConfig
from bids_app.model.linear import Linear
from bids_app.model.windows import Size4


class PatchEmbed(nn.Module):
    """Patch embedding: flattens each patch and maps it to a token."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        px, py, pz, pt = config.patch_size
        self.fc = Linear(px * py * pz * pt * config.in_chans, config.embed_dim)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Map (B, 1, x, y, z, t) to (B, X, Y, Z, T, C)."""
        if clips.shape[1] == 1 and self.patch_size[3] == 1 and fused.applies(self, clips):
            return fused.patch_embed(clips, self.fc.weight, self.fc.bias, self.patch_size[:3])
        return self.fc(to_patches(clips, self.patch_size))


def to_patches(clips: torch.Tensor, patch_size: Size4) -> torch.Tensor:
    """Split clips into non-overlapping patches.

    Parameters
    ----------
    clips : torch.Tensor, (B, channel, x, y, z, t)

    Returns
    -------
    torch.Tensor, (B, X, Y, Z, T, P)
        P voxels of a patch in the order (x, y, z, t, channel), channel fastest.
    """
    b, c, *sizes = clips.shape
    (x, y, z, t), (px, py, pz, pt) = sizes, patch_size
    v = clips.reshape(b, c, x // px, px, y // py, py, z // pz, pz, t // pt, pt)
    v = v.permute(0, 2, 4, 6, 8, 3, 5, 7, 9, 1)  # (B, X, Y, Z, T, px, py, pz, pt, channel)
    return v.reshape(b, x // px, y // py, z // pz, t // pt, px * py * pz * pt * c)


def from_patches(patches: torch.Tensor, patch_size: Size4, channels: int = 1) -> torch.Tensor:
    """Join patches to clips: the inverse of `to_patches`."""
    b, x, y, z, t, _ = patches.shape
    px, py, pz, pt = patch_size
    v = patches.reshape(b, x, y, z, t, px, py, pz, pt, channels).permute(0, 9, 1, 5, 2, 6, 3, 7, 4, 8)
    return v.reshape(b, channels, x * px, y * py, z * pz, t * pt)


class PositionEmbedding(nn.Module):
    """Learned spatial and temporal position embeddings, added to the tokens before a stage."""

    def __init__(self, width: int, grid: Size4) -> None:
        super().__init__()
        x, y, z, t = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, width, x, y, z, 1))
        self.time_embed = nn.Parameter(torch.zeros(1, width, 1, 1, 1, t))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.time_embed, std=0.02)

    def forward(self, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """Map (B, X, Y, Z, T, C) to the same shape; the temporal part is cropped to the clip's length.

        With ``overwrite``, ``x`` may be modified in place.
        """
        space = self.pos_embed.permute(0, 2, 3, 4, 5, 1)
        time = self.time_embed.permute(0, 2, 3, 4, 5, 1)[:, :, :, :, : x.shape[4]]
        if overwrite and x.is_contiguous() and fused.applies(self, x):
            return fused.add_position(x, space[0, :, :, :, 0], time[0, 0, 0, 0])
        return x + (space + time)


class PatchMerging(nn.Module):
    """Patch merging: halves the spatial grid and doubles the width; time is unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, X, Y, Z, T, C) to (B, X / 2, Y / 2, Z / 2, T, 2 C)."""
        if fused.applies(self, x):
            return fused.merge(x, self.norm.weight, self.norm.bias, self.reduction.weight)
        neighbours = [x[:, i::2, j::2, k::2] for i, j, k in product((0, 1), repeat=3)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
