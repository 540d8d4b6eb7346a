"""Pre-training: hide parts of clips and have the masked autoencoder fill them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bids_app.model.encoder import Stage
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings, sample_mask
from bids_app.model.strd import TokenDropout, set_token_dropout
from bids_app.training.data.augmentation import Augmentation
from bids_app.training.data.loader import Batch, ClipBatches
from bids_app.training.loop import LoopSettings, fit

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TOKENS = {"random": "mask_token", "window": "window_mask_token", "atlas": "atlas_mask_token"}
"""The learned token that stands for what each kind of mask hides."""


@dataclass(frozen=True)
class PretrainSettings:
    """The published recipe by default.

    Attributes
    ----------
    mask : MaskSettings
    strd : tuple of int, optional
        Neighbourhoods (spatial, temporal) of redundancy dropout in the encoder; None: without.
    loop : LoopSettings
    augment : Augmentation, optional
        None: clips as they are.
    checkpointing : bool
        Compute activations again in the backward pass: less memory, more time, the same numbers.
    """

    mask: MaskSettings = field(default_factory=MaskSettings)
    strd: tuple[int, int] | None = (5, 5)
    loop: LoopSettings = field(default_factory=LoopSettings)
    augment: Augmentation | None = field(default_factory=Augmentation)
    checkpointing: bool = False


def pretrain(
    model: MaskedAutoencoder,
    batches: ClipBatches,
    settings: PretrainSettings,
    folder: Path | None = None,
    atlas: AtlasPatches | None = None,
    say: Callable[[str], None] | None = None,
    fabric: Fabric | None = None,
    weights: torch.Tensor | None = None,
) -> list[dict[str, float]]:
    """Pre-train an autoencoder in place.

    Parameters
    ----------
    batches : ClipBatches
        Of this process.
    atlas : AtlasPatches, optional
        For the mask ``atlas``.
    weights : torch.Tensor, optional, (X, Y, Z)
        How much the reconstruction of each patch counts, see `region_weights`.
    folder, say, fabric
        As for `bids_app.training.loop.fit`, whose answer this is.
    """
    config = model.config
    window = config.first_window_size

    def loss_of(batch: Batch) -> torch.Tensor:
        device = next(model.parameters()).device
        clips = batch.to(device).clips
        if settings.augment is not None:
            clips = settings.augment(clips, batch.seeds)
        grid = (*config.grid(0)[:3], clips.shape[-1])
        drawn = [torch.Generator().manual_seed(int(seed)) for seed in batch.seeds]
        mask = torch.cat([sample_mask(settings.mask, 1, grid, window, atlas, own) for own in drawn]).to(device)
        share = None if weights is None else weights.to(device)[None, ..., None]
        prediction = model(clips, mask, settings.mask.spatial).float()
        # clip by clip, so that each counts alike however clips are dealt to batches and processes
        losses = [
            model.loss(prediction[i : i + 1], clips[i : i + 1], mask[i : i + 1], share) for i in range(len(clips))
        ]
        return torch.stack(losses).mean()

    rank = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    with _as_for(model, settings, rank):
        return fit(model, batches, loss_of, settings.loop, folder, say=say, fabric=fabric)


@contextmanager
def _as_for(model: MaskedAutoencoder, settings: PretrainSettings, rank: tuple[int, int]) -> Iterator[None]:
    """Set a model up for its pre-training, and leave it as it was."""
    dropout = TokenDropout(*settings.strd) if settings.strd else None
    if dropout is not None:
        dropout.share = rank
    unused = [getattr(model, name) for kind, name in TOKENS.items() if kind != settings.mask.spatial]
    set_token_dropout(model.encoder, dropout)
    set_checkpointing(model, settings.checkpointing)
    for token in unused:
        token.requires_grad_(False)
    try:
        yield
    finally:
        set_token_dropout(model.encoder, None)
        set_checkpointing(model, False)
        for token in unused:
            token.requires_grad_(True)


def set_checkpointing(module: nn.Module, on: bool) -> None:
    """Have every stage compute its activations again in the backward pass, or keep them."""
    for stage in module.modules():
        if isinstance(stage, Stage):
            stage.checkpointing = on


def region_weights(atlas: AtlasPatches, of_labels: dict[int, float] | None = None) -> torch.Tensor:
    """How much each patch's reconstruction counts by its regions.

    Parameters
    ----------
    atlas : AtlasPatches
    of_labels : dict of int to float, optional
        Weights of regions, of which those that are not named, and what belongs to none, count 1. None: all regions
        count alike, however large they are, and what belongs to none does not count.

    Returns
    -------
    torch.Tensor, (X, Y, Z)
        Their mean over the patches with any region is 1.
    """
    covered = atlas.fractions.sum(0)
    if of_labels is None:
        size = atlas.fractions.sum(dim=(1, 2, 3)).clamp(min=1e-6)
        weights = (atlas.fractions / size[:, None, None, None]).sum(0)
    else:
        more = torch.tensor([of_labels.get(int(label), 1.0) - 1 for label in atlas.labels])
        weights = 1 + (atlas.fractions * more[:, None, None, None]).sum(0)
    return weights / weights[covered > 0].mean()


def regions_report(atlas: AtlasPatches, rule: str, names: dict[int, str]) -> list[dict[str, object]]:
    """For each region, how many patches belong to it under a rule: ``index``, ``name``, ``patches``, ``resolved``."""
    patches = atlas.patches_of_regions(rule).tolist()
    return [
        {"index": int(label), "name": names.get(int(label), ""), "patches": round(n, 2), "resolved": n > 0}
        for label, n in zip(atlas.labels, patches, strict=True)
    ]
