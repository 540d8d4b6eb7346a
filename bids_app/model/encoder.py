"""The NeuroSTORM encoder: patches of a BOLD clip to tokens, four stages of windowed Mamba blocks.

Modules carry the parameter names of the published files, so that a state dict needs no translation. Nothing here
reads a file.

    B  batch      x y z t  voxels and volumes of a clip      X Y Z T  token grid of a stage      C  width of a stage
    N  windows    L  tokens of a window (see windows.py)

Clips come channel-first (B, 1, x, y, z, t), features go out channel-first (B, C, X, Y, Z, T), and everything between
is channels-last (B, X, Y, Z, T, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bids_app.errors import BadDataError
from bids_app.model import fused
from bids_app.model.mamba import Mamba
from bids_app.model.windows import Size4, WindowPlan, cut_windows, join_windows, plan_windows


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; enough to build it again, and to check that weights fit it.

    Attributes
    ----------
    img_size : (x, y, z, t)
        Voxels and volumes of the largest clip.
    patch_size : (x, y, z, t)
        Voxels and volumes of one token.
    embed_dim : int
        Width of the first stage; each later stage is twice as wide.
    depths : tuple of int
        Blocks of each stage.
    first_window_size, window_size : (X, Y, Z, T)
        Tokens of a window in the first stage and in the others.
    whole_last_stage : bool
        Whether the last stage's windows cover all of space and never shift (``last_layer_full_MSA``).
    prompt_len : int
        Learned tokens in front of each window, in every block; 0 for none.
    """

    img_size: Size4 = (96, 96, 96, 20)
    in_chans: int = 1
    patch_size: Size4 = (6, 6, 6, 1)
    embed_dim: int = 36
    depths: tuple[int, ...] = (2, 2, 6, 2)
    first_window_size: Size4 = (4, 4, 4, 4)
    window_size: Size4 = (4, 4, 4, 4)
    whole_last_stage: bool = True
    mlp_ratio: int = 4
    prompt_len: int = 0

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size", "first_window_size", "window_size", "depths"):
            value = tuple(int(v) for v in getattr(self, name))
            object.__setattr__(self, name, value)
            if not value or min(value) < 1 or (name != "depths" and len(value) != 4):
                raise BadDataError(f"Encoder configuration: {name} is {value}.", "Four sizes of 1 or more are needed.")
        for name in ("in_chans", "embed_dim", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise BadDataError(f"Encoder configuration: {name} is {getattr(self, name)}.", "It must be 1 or more.")
        if self.prompt_len < 0:
            raise BadDataError(f"Encoder configuration: prompt_len is {self.prompt_len}.", "It must be 0 or more.")
        if self.patch_size[3] != 1:
            raise BadDataError(
                f"Encoder configuration: patch_size is {self.patch_size}.", "Time is never merged: its patch is 1."
            )
        for axis, (size, patch) in enumerate(zip(self.img_size[:3], self.patch_size[:3], strict=True)):
            step = patch * 2 ** (len(self.depths) - 1)
            if size % step:
                raise BadDataError(
                    f"Encoder configuration: axis {axis} of img_size {self.img_size} does not divide into "
                    f"{len(self.depths)} stages of patches of {patch}.",
                    f"Its length must be a multiple of {step}.",
                )

    @property
    def n_stages(self) -> int:
        """Number of stages."""
        return len(self.depths)

    def width(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    def grid(self, stage: int) -> Size4:
        """Token grid of a stage for a clip of full size."""
        x, y, z = (s // p // 2**stage for s, p in zip(self.img_size[:3], self.patch_size[:3], strict=True))
        return x, y, z, self.img_size[3]

    def window(self, stage: int) -> Size4:
        """The window asked for in a stage."""
        if self.whole_last_stage and stage == self.n_stages - 1:
            x, y, z, _ = self.grid(stage)
            return x, y, z, self.window_size[3]
        return self.first_window_size if stage == 0 else self.window_size

    @property
    def n_features(self) -> int:
        """Channels of the output."""
        return self.width(self.n_stages - 1)

    def as_dict(self) -> dict[str, Any]:
        """Fields as JSON holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """The configuration that `as_dict` wrote; unknown fields are refused."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BadDataError(
                f"Encoder configuration: unknown fields {', '.join(unknown)}.",
                "The file was written by another version, or is no encoder.",
            )
        return cls(**values)


class PatchEmbed(nn.Module):
    """Flattens patches and maps each to a token."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        px, py, pz, pt = config.patch_size
        self.fc = nn.Linear(px * py * pz * pt * config.in_chans, config.embed_dim)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, 1, x, y, z, t) to (B, X, Y, Z, T, C)."""
        if clips.shape[1] == 1 and self.patch_size[3] == 1 and fused.applies(self, clips):
            return fused.patch_embed(clips, self.fc.weight, self.fc.bias, self.patch_size[:3])
        return self.fc(to_patches(clips, self.patch_size))


def to_patches(clips: torch.Tensor, patch_size: Size4) -> torch.Tensor:
    """Cut clips into patches that do not overlap.

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
    """Put patches back into clips: the inverse of `to_patches`."""
    b, x, y, z, t, _ = patches.shape
    px, py, pz, pt = patch_size
    v = patches.reshape(b, x, y, z, t, px, py, pz, pt, channels).permute(0, 9, 1, 5, 2, 6, 3, 7, 4, 8)
    return v.reshape(b, channels, x * px, y * py, z * pz, t * pt)


class PositionEmbedding(nn.Module):
    """A learned spatial and a learned temporal part, added to the tokens in front of a stage."""

    def __init__(self, width: int, grid: Size4) -> None:
        super().__init__()
        x, y, z, t = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, width, x, y, z, 1))
        self.time_embed = nn.Parameter(torch.zeros(1, width, 1, 1, 1, t))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.time_embed, std=0.02)

    def forward(self, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """(B, X, Y, Z, T, C) to the same; the temporal part is cut to the clip's length.

        With ``overwrite``, ``x`` is nobody else's and may be taken for the answer.
        """
        space = self.pos_embed.permute(0, 2, 3, 4, 5, 1)
        time = self.time_embed.permute(0, 2, 3, 4, 5, 1)[:, :, :, :, : x.shape[4]]
        if overwrite and x.is_contiguous() and fused.applies(self, x):
            return fused.add_position(x, space[0, :, :, :, 0], time[0, 0, 0, 0])
        return x + (space + time)


class Mlp(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) to (..., C)."""
        return self.linear2(F.gelu(self.linear1(x)))


class DropPath(nn.Module):
    """Drops a block's contribution for whole clips while training, and scales the rest up."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) to the same."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class Block(nn.Module):
    """x + Mamba(LayerNorm(x)) in windows, then x + MLP(LayerNorm(x))."""

    def __init__(
        self, width: int, window: Size4, shifted: bool, mlp_ratio: int, prompt_len: int = 0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1 = nn.LayerNorm(width)
        self.mamba = Mamba(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)
        self.token_dropout: nn.Module | None = None
        """Applied to the mixer's output tokens while training, see strd.py: called with (N, L, C) and the plan."""
        self.prompt: nn.Parameter | None = None
        if prompt_len:
            self.set_prompt(torch.empty(1, prompt_len, width).uniform_(-1, 1) * (6 / (prompt_len + width)) ** 0.5)

    def set_prompt(self, tokens: torch.Tensor | None) -> None:
        """Put prompts (1, K, C) in front of every window, or take them away."""
        self.prompt = None if tokens is None else nn.Parameter(tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, X, Y, Z, T, C) to the same."""
        _, gx, gy, gz, gt, _ = x.shape
        plan = plan_windows((gx, gy, gz, gt), self.window, self.shifted)
        if fused.applies(self, x) and not (self.training and (self.token_dropout is not None or self.drop_path.rate)):
            return fused.block(x, plan, self._weights(), self.prompt)
        x = x + self.drop_path(self._mix(self.norm1(x), plan))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _weights(self) -> dict[str, torch.Tensor]:
        """The parameters by the names that the fused block knows them by."""
        m = self.mamba
        return {
            "norm1_weight": self.norm1.weight,
            "norm1_bias": self.norm1.bias,
            "in_proj": m.in_proj.weight,
            "conv_weight": m.conv1d.weight,
            "conv_bias": m.conv1d.bias,
            "x_proj": m.x_proj.weight,
            "dt_proj": m.dt_proj.weight,
            "delta_bias": m.dt_proj.bias,
            "a": -torch.exp(m.A_log),
            "skip": m.D,
            "out_proj": m.out_proj.weight,
            "norm2_weight": self.norm2.weight,
            "norm2_bias": self.norm2.bias,
            "linear1": self.mlp.linear1.weight,
            "bias1": self.mlp.linear1.bias,
            "linear2": self.mlp.linear2.weight,
            "bias2": self.mlp.linear2.bias,
        }

    def _mix(self, x: torch.Tensor, plan: WindowPlan) -> torch.Tensor:
        tokens = cut_windows(x, plan)  # (N, L, C)
        if self.prompt is None:
            tokens = self.mamba(tokens)
        else:
            prompts = self.prompt.expand(tokens.shape[0], -1, -1)
            tokens = self.mamba(torch.cat([prompts, tokens], dim=1))[:, prompts.shape[1] :]
        if self.token_dropout is not None:
            tokens = self.token_dropout(tokens, plan.window)
        return join_windows(tokens, plan, x.shape[0])


class PatchMerging(nn.Module):
    """Halves the spatial grid and doubles the width; time is left alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, X, Y, Z, T, C) to (B, X / 2, Y / 2, Z / 2, T, 2 C)."""
        if fused.applies(self, x):
            return fused.merge(x, self.norm.weight, self.norm.bias, self.reduction.weight)
        neighbours = [x[:, i::2, j::2, k::2] for i, j, k in product((0, 1), repeat=3)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class Stage(nn.Module):
    """Blocks on one grid; every second one shifts its windows; merging or expansion at the end."""

    def __init__(
        self, blocks: list[Block], downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, X, Y, Z, T, C) to the next stage's grid and width."""
        for block in self.blocks:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """A clip to features; the published configuration has 5,173,020 parameters.

    Parameters
    ----------
    config : EncoderConfig
    drop_path : float
        Rate of the last block while training; it grows linearly from 0 at the first.
    """

    def __init__(self, config: EncoderConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        last = config.n_stages - 1
        rates = torch.linspace(0, drop_path, sum(config.depths)).tolist()
        self.pos_embeds = nn.ModuleList(PositionEmbedding(config.width(i), config.grid(i)) for i in range(last + 1))
        layers = []
        for i, depth in enumerate(config.depths):
            never = config.whole_last_stage and i == last
            blocks = [
                Block(
                    config.width(i),
                    config.window(i),
                    j % 2 == 1 and not never,
                    config.mlp_ratio,
                    config.prompt_len,
                    rates.pop(0),
                )
                for j in range(depth)
            ]
            layers.append(Stage(blocks, downsample=PatchMerging(config.width(i)) if i < last else None))
        self.layers = nn.ModuleList(layers)

    def check_clips(self, clips: torch.Tensor) -> None:
        """Refuse clips that do not fit the configuration."""
        x, y, z, t = self.config.img_size
        expected = (self.config.in_chans, x, y, z)
        if clips.ndim != 6 or tuple(clips.shape[1:5]) != expected or not 1 <= clips.shape[5] <= t:
            raise BadDataError(
                f"The encoder was given clips of shape {tuple(clips.shape)}.",
                f"It takes (batch, {', '.join(map(str, expected))}, 1 to {t} volumes).",
            )

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Parameters
        ----------
        clips : torch.Tensor, (B, 1, x, y, z, t)
            Normalised BOLD on the model grid.

        Returns
        -------
        torch.Tensor, (B, C, X, Y, Z, T)
            A permuted view of channels-last features.
        """
        self.check_clips(clips)
        return self.encode_tokens(self.patch_embed(clips), overwrite=True).permute(0, 5, 1, 2, 3, 4)

    def encode_tokens(self, tokens: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """(B, X, Y, Z, T, C) of patch tokens to the last stage's (B, X', Y', Z', T, C').

        With ``overwrite``, ``tokens`` are nobody else's and may be lost.
        """
        for position, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(position(tokens, overwrite))
            overwrite = True  # what a stage returns is its own
        return tokens
