"""The NeuroSTORM encoder: patch embedding of a BOLD clip, then four stages of windowed Mamba blocks.

Parameters have the names of the published files, so that a state dict can be loaded directly.

    B  batch      x y z t  voxels and volumes of a clip      X Y Z T  token grid of a stage      C  width of a stage
    N  windows    L  tokens of a window (see windows.py)

Clips (B, 1, x, y, z, t) and output features (B, C, X, Y, Z, T) are channels-first; internal tensors are channels-last
(B, X, Y, Z, T, C).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bids_app.errors import BadDataError
from bids_app.model import fused
from bids_app.model.config import EncoderConfig
from bids_app.model.linear import Linear
from bids_app.model.mamba import Mamba
from bids_app.model.patches import PatchEmbed, PatchMerging, PositionEmbedding
from bids_app.model.windows import Size4, WindowPlan, cut_windows, join_windows, plan_windows

__all__ = ["Block", "Encoder", "EncoderConfig", "Stage"]


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., C) to (..., C)."""
        return self.linear2(F.gelu(self.linear1(x)))


class DropPath(nn.Module):
    """Stochastic depth: drops a block's contribution for whole clips during training, and rescales the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, ...) to the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class Block(nn.Module):
    """A block: x + Mamba(LayerNorm(x)) in windows, then x + MLP(LayerNorm(x))."""

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
        """Applied to the mixer's output tokens (N, L, C) during training, see strd.py."""
        self.prompt: nn.Parameter | None = None
        if prompt_len:
            self.set_prompt(nn.init.trunc_normal_(torch.empty(1, prompt_len, width), std=0.02))

    def set_prompt(self, tokens: torch.Tensor | None) -> None:
        """Set the prompts (1, K, C) in front of every window, or remove them."""
        self.prompt = None if tokens is None else nn.Parameter(tokens)

    def forward(self, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """Map (B, X, Y, Z, T, C) to the same shape; with ``overwrite``, ``x`` may be modified in place."""
        _, gx, gy, gz, gt, _ = x.shape
        plan = plan_windows((gx, gy, gz, gt), self.window, self.shifted)
        if fused.applies(self, x) and not (self.training and (self.token_dropout is not None or self.drop_path.rate)):
            return fused.block(x, plan, self._weights(), self.prompt, overwrite)
        x = x + self.drop_path(self._mix(self.norm1(x), plan))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return the parameters under the names of the fused block."""
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
            "a_log": m.A_log,
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


class Stage(nn.Module):
    """Blocks on one token grid, every second with shifted windows, followed by patch merging or expansion."""

    def __init__(
        self, blocks: list[Block], downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = False
        """Recompute the activations of blocks in the backward pass, to save memory."""
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    def forward(self, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """Map (B, X, Y, Z, T, C) to the next stage's grid and width; ``overwrite`` as in `Block`."""
        for index, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, overwrite or index > 0)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """The encoder, from clips to features; the published configuration has 5,173,020 parameters.

    Parameters
    ----------
    config : EncoderConfig
    drop_path : float
        Stochastic-depth rate of the last block; it increases linearly from 0 in the first.
    """

    def __init__(self, config: EncoderConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        last = config.n_stages - 1
        rates = torch.linspace(0, drop_path, sum(config.depths), device="cpu").tolist()
        self.pos_embeds = nn.ModuleList(PositionEmbedding(config.width(i), config.grid(i)) for i in range(last + 1))
        layers = []
        for i, depth in enumerate(config.depths):
            is_whole = config.whole_last_stage and i == last
            blocks = [
                Block(
                    config.width(i),
                    config.window(i),
                    j % 2 == 1 and not is_whole,
                    config.mlp_ratio,
                    config.prompt_len,
                    rates.pop(0),
                )
                for j in range(depth)
            ]
            layers.append(Stage(blocks, downsample=PatchMerging(config.width(i)) if i < last else None))
        self.layers = nn.ModuleList(layers)

    def check_clips(self, clips: torch.Tensor) -> None:
        """Raise a `BadDataError` if clips do not fit the configuration."""
        x, y, z, t = self.config.img_size
        expected = (self.config.in_chans, x, y, z)
        if clips.ndim != 6 or tuple(clips.shape[1:5]) != expected or not 1 <= clips.shape[5] <= t:
            raise BadDataError(
                f"The encoder received clips of shape {tuple(clips.shape)}.",
                f"Give clips of shape (batch, {', '.join(map(str, expected))}, 1 to {t} volumes).",
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
        """Encode patch tokens (B, X, Y, Z, T, C) to features of the last stage (B, X', Y', Z', T, C').

        With ``overwrite``, ``tokens`` may be modified in place.
        """
        for position, stage in zip(self.pos_embeds, self.layers, strict=True):
            tokens = stage(position(tokens, overwrite), overwrite=True)
            overwrite = True  # a stage's output has no other user
        return tokens
