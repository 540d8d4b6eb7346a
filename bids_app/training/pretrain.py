"""Pre-training: hide parts of clips and have the masked autoencoder fill them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings, draw_mask
from bids_app.model.strd import TokenDropout, set_token_dropout
from bids_app.training.data import Batch, ClipBatches
from bids_app.training.loop import LoopSettings, fit


@dataclass(frozen=True)
class PretrainSettings:
    """The published recipe by default.

    Attributes
    ----------
    mask : MaskSettings
    strd : tuple of int, optional
        Neighbourhoods (spatial, temporal) of redundancy dropout in the encoder; None: without.
    loop : LoopSettings
    """

    mask: MaskSettings = field(default_factory=MaskSettings)
    strd: tuple[int, int] | None = (5, 5)
    loop: LoopSettings = field(default_factory=LoopSettings)


def pretrain(
    model: MaskedAutoencoder,
    batches: ClipBatches,
    settings: PretrainSettings,
    folder: Path | None = None,
    atlas: AtlasPatches | None = None,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, float]]:
    """Pre-train an autoencoder in place; see `bids_app.training.loop.fit` for ``folder`` and the answer."""
    config = model.config
    device = next(model.parameters()).device
    set_token_dropout(model.encoder, TokenDropout(*settings.strd) if settings.strd else None)

    def loss_of(batch: Batch) -> torch.Tensor:
        clips = batch.to(device).clips
        grid = (*config.grid(0)[:3], clips.shape[-1])
        mask = draw_mask(settings.mask, len(clips), grid, config.first_window_size, atlas).to(device)
        return model.loss(model(clips, mask, settings.mask.spatial), clips, mask)

    try:
        return fit(model, batches, loss_of, settings.loop, folder, say=say)
    finally:
        set_token_dropout(model.encoder, None)
