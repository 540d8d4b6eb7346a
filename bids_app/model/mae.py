"""The masked autoencoder for pre-training: it reconstructs the voxels of masked tokens.

The decoder mirrors the encoder without skip connections: it expands the last stage's tokens in space stage by stage,
with windowed Mamba blocks on each grid, and maps them to voxels. Parameters have the names of the published files.

    B  batch      X Y Z T  token grid of the first stage      C  its width      P  voxels of a patch

A mask is (B, X, Y, Z, T): 1 for hidden tokens, between 0 and 1 for partly hidden ones; see masking.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from bids_app.errors import BadDataError, UsageError
from bids_app.model.checkpoint import MASKING_KEYS, Checkpoint
from bids_app.model.config import EncoderConfig
from bids_app.model.encoder import Block, Encoder, Stage
from bids_app.model.heads import build_and_load
from bids_app.model.linear import Linear
from bids_app.model.masking import SPATIAL_MASKS
from bids_app.model.patch_loss import select_patches, select_rows, squared_error
from bids_app.model.patches import to_patches


class PatchExpanding(nn.Module):
    """Patch expansion: doubles the spatial grid and halves the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = Linear(width, 4 * width, bias=False)
        self.norm = nn.LayerNorm(width // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, X, Y, Z, T, C) to (B, 2 X, 2 Y, 2 Z, T, C / 2)."""
        b, gx, gy, gz, gt, c = x.shape
        x = self.expand(x).reshape(b, gx, gy, gz, gt, 2, 2, 2, c // 2).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        return self.norm(x.reshape(b, 2 * gx, 2 * gy, 2 * gz, gt, c // 2))


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder, and learned mask tokens.

    Parameters
    ----------
    config : EncoderConfig
    drop_path : float
        Stochastic-depth rate of the encoder during training.

    Attributes
    ----------
    mask_token, atlas_mask_token : nn.Parameter, (C,)
    window_mask_token : nn.Parameter, (tokens of a window, C)
        One for each position in a window of mask tokens, which has ``window_size``, never ``first_window_size``.
    """

    def __init__(self, config: EncoderConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, drop_path)
        wx, wy, wz, wt = config.window_size
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.embed_dim))
        self.window_mask_token = nn.Parameter(0.02 * torch.randn(wx * wy * wz * wt, config.embed_dim))
        self.atlas_mask_token = nn.Parameter(0.02 * torch.randn(config.embed_dim))
        last = config.n_stages - 1
        self.first_patch_expanding = PatchExpanding(config.width(last)) if last else nn.Identity()
        self.layers_up = nn.ModuleList(_decoder_stage(config, stage) for stage in reversed(range(last)))
        self.norm_up = nn.LayerNorm(config.embed_dim)
        self.decoder_pred = Linear(config.embed_dim, self.encoder.patch_embed.fc.in_features)

    def forward(self, clips: torch.Tensor, mask: torch.Tensor, spatial: str = "window") -> torch.Tensor:
        """Predict the voxels of all patches from the visible ones.

        Parameters
        ----------
        clips : torch.Tensor, (B, 1, x, y, z, t)
        mask : torch.Tensor, (B, X, Y, Z, T)
        spatial : str
            Type of mask token; an entry of `SPATIAL_MASKS`.

        Returns
        -------
        torch.Tensor, (B, X, Y, Z, T, P)
            Patches in the order of `to_patches`; `from_patches` converts them to clips.
        """
        return self.decode(self._encode_visible(clips, mask, spatial))

    def _encode_visible(self, clips: torch.Tensor, mask: torch.Tensor, spatial: str) -> torch.Tensor:
        """Return the features of clips whose hidden tokens are replaced by mask tokens."""
        self.encoder.check_clips(clips)
        tokens = self.encoder.patch_embed(clips)
        if mask.shape != tokens.shape[:-1]:
            raise BadDataError(
                f"The mask has shape {tuple(mask.shape)}, but the tokens have {tuple(tokens.shape[:-1])}.",
                "Sample the mask on the clips' token grid.",
            )
        hidden = mask.unsqueeze(-1).to(tokens.dtype)
        tokens = tokens * (1 - hidden) + self._mask_tokens(spatial, tuple(tokens.shape[1:5])) * hidden
        return self.encoder.encode_tokens(tokens)

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        """Decode features of the last stage (B, X', Y', Z', T, C') to patches (B, X, Y, Z, T, P)."""
        return self.decoder_pred(self._decode_tokens(features))

    def _decode_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Decode features of the last stage to tokens (B, X, Y, Z, T, C)."""
        x = self.first_patch_expanding(features)
        for stage in self.layers_up:
            x = stage(x)
        return self.norm_up(x)

    def _mask_tokens(self, spatial: str, grid: tuple[int, ...]) -> torch.Tensor:
        """Return the mask tokens, broadcastable to (B, X, Y, Z, T, C)."""
        if spatial in ("random", "atlas"):
            return self.mask_token if spatial == "random" else self.atlas_mask_token
        if spatial != "window":
            raise UsageError(f"Unknown spatial mask {spatial!r}.", "Choose random, window or atlas.")
        window = self.config.window_size
        tiles = self.window_mask_token.reshape(1, *window, -1)
        tiles = tiles.repeat(1, *(-(-size // step) for size, step in zip(grid, window, strict=True)), 1)
        gx, gy, gz, gt = grid
        return tiles[:, :gx, :gy, :gz, :gt]

    def loss(
        self, prediction: torch.Tensor, clips: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the mean squared error over hidden patches.

        Parameters
        ----------
        prediction : torch.Tensor, (B, X, Y, Z, T, P)
        clips : torch.Tensor, (B, 1, x, y, z, t)
        mask : torch.Tensor, (B, X, Y, Z, T)
            Partly hidden patches are weighted by their hidden fraction.
        weights : torch.Tensor, optional
            Additional weights of patches, broadcastable to the mask.

        Returns
        -------
        torch.Tensor, ()
        """
        error = (prediction - to_patches(clips, self.config.patch_size)).square().mean(-1)  # (B, X, Y, Z, T)
        share = mask if weights is None else mask * weights
        return (error * share).sum() / share.sum().clamp(min=1e-8)

    def losses(
        self,
        clips: torch.Tensor,
        mask: torch.Tensor,
        spatial: str = "window",
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the mean squared error over the hidden patches of each clip; only these are predicted.

        Parameters
        ----------
        clips, mask, spatial
            As in `forward`.
        weights
            As in `loss`.

        Returns
        -------
        torch.Tensor, (B,)
            `loss` of each clip alone.
        """
        tokens = self._decode_tokens(self._encode_visible(clips, mask, spatial))
        share = (mask if weights is None else mask * weights).expand(mask.shape)
        found = []
        for own, clip, wanted in zip(tokens, clips, share, strict=True):
            hidden = wanted.flatten().nonzero().squeeze(1)
            prediction = self.decoder_pred(select_rows(own.flatten(0, -2), hidden)).float()
            target = select_patches(clip, self.config.patch_size, wanted != 0)
            found.append(squared_error(prediction, target.to(prediction.dtype), wanted.flatten()[hidden]))
        return torch.stack(found)

    def decoder_state(self) -> dict[str, torch.Tensor]:
        """Return all parameters except the encoder's, for `save_encoder`."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}


def _decoder_stage(config: EncoderConfig, stage: int) -> Stage:
    width = config.width(stage)
    blocks = [Block(width, config.window_size, j % 2 == 1, config.mlp_ratio) for j in range(config.depths[stage])]
    return Stage(blocks, upsample=PatchExpanding(width) if stage else None)


def autoencoder_from(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """Build the autoencoder of a pre-training file; all keys must match.

    Files of 2025 have only window mask tokens; the other mask tokens are initialised with their mean.
    """
    checkpoint.require_decoder()
    decoder = {k: v for k, v in checkpoint.decoder.items() if k != "atlas_map"}
    if decoder.get("mask_token", torch.zeros(1)).ndim == 2:
        decoder = decoder | _tokens_of_2025(decoder)
    encoder: Mapping[str, torch.Tensor] = {f"encoder.{k}": v for k, v in checkpoint.encoder.items()}
    return build_and_load(
        lambda: MaskedAutoencoder(checkpoint.config), {**encoder, **decoder}, f"autoencoder in {checkpoint.path}"
    )


def _tokens_of_2025(decoder: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tokens = decoder["mask_token"]  # (tokens of a window, C)
    return {name: tokens if name == "window_mask_token" else tokens.mean(0) for name in MASKING_KEYS[:3]}


def trained_mask(checkpoint: Checkpoint) -> str:
    """Return the spatial mask of a pre-training file's training, whose mask token is the only trained one.

    Published files have it in their hyperparameters (``spatial_mask``), ours in ``info``. Files of 2025 have tokens of
    window masks only.

    Raises
    ------
    BadDataError
        The file does not name its mask, or names an unknown one.
    """
    checkpoint.require_decoder()
    if checkpoint.decoder.get("mask_token", torch.zeros(1)).ndim == 2:
        return "window"
    own = checkpoint.info.get("mask")
    found = own.get("spatial") if isinstance(own, Mapping) else checkpoint.info.get("spatial_mask")
    if found not in SPATIAL_MASKS:
        raise BadDataError(
            f"{checkpoint.path}: the file does not name the masks of its training (spatial_mask: {str(found)[:50]!a}), "
            "so that its trained mask token is unknown.",
            "Use another file, or another --attribution.",
        )
    return str(found)
