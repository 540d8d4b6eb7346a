"""Pre-training of a masked autoencoder on clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bids_app.model.encoder import Stage
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings, sample_mask
from bids_app.model.strd import TokenDropout, set_token_dropout
from bids_app.training.data.augmentation import Augmentation
from bids_app.training.data.batches import Batch, ClipSource, QuantisedBatch
from bids_app.training.data.loader import ClipBatches
from bids_app.training.held_out import HeldOutClips
from bids_app.training.loop import fit
from bids_app.training.optimiser import LoopSettings, matmul_precision
from bids_app.training.state import Checkpoints

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TOKENS = {"random": "mask_token", "window": "window_mask_token", "atlas": "atlas_mask_token"}
"""Mask token of each spatial mask."""


@dataclass(frozen=True)
class PretrainSettings:
    """Pre-training settings; the defaults are those of the recipe ``ours``.

    Attributes
    ----------
    mask : MaskSettings
    strd : tuple of int, optional
        Neighbourhoods (spatial, temporal) of spatio-temporal redundancy dropout; None: no dropout.
    loop : LoopSettings
    augment : Augmentation, optional
        None: no augmentation.
    checkpointing : bool
        Recompute activations in the backward pass: less memory, more time, same results.
    matmul : str
        Precision of float32 products on a GPU, see `bids_app.training.recipes.Recipe`.
    """

    mask: MaskSettings = field(default_factory=MaskSettings)
    strd: tuple[int, int] | None = (5, 5)
    loop: LoopSettings = field(default_factory=LoopSettings)
    augment: Augmentation | None = field(default_factory=Augmentation)
    checkpointing: bool = False
    matmul: str = "highest"

    def facts(self, batch_size: int, aligned_starts: bool, **more: Any) -> dict[str, Any]:
        """Return what determines the results beside the loop; the batch size is that of all processes together."""
        own = {name: value for name, value in asdict(self).items() if name not in ("loop", "checkpointing")}
        return own | {"batch_size": batch_size, "aligned_starts": aligned_starts} | more


def pretrain(
    model: MaskedAutoencoder,
    batches: ClipBatches,
    settings: PretrainSettings,
    folder: Path | None = None,
    atlas: AtlasPatches | None = None,
    report: Callable[[str], None] | None = None,
    fabric: Fabric | None = None,
    weights: torch.Tensor | None = None,
    facts: Mapping[str, Any] | None = None,
    held_out: tuple[ClipSource, ...] = (),
    checkpoints: Checkpoints | None = None,
    loggers: Callable[[int], Sequence[Any]] | None = None,
) -> list[dict[str, float]]:
    """Pre-train an autoencoder in place.

    Parameters
    ----------
    model : MaskedAutoencoder
    batches : ClipBatches
        Batches of this process.
    settings : PretrainSettings
    atlas : AtlasPatches, optional
        Required by the mask ``atlas``.
    weights : torch.Tensor, optional, (X, Y, Z)
        Weight of each patch in the reconstruction loss, see `region_weights`.
    folder, report, fabric, checkpoints, loggers
        See `bids_app.training.loop.fit`.
    facts : mapping, optional
        What determines the results, see `bids_app.training.loop.fit`; default: `PretrainSettings.facts`.
    held_out : tuple of ClipSource
        Scans whose reconstruction loss is measured after each epoch, without augmentation and dropout.

    Returns
    -------
    list of dict
        Training log of `bids_app.training.loop.fit`.
    """
    config = model.config
    window = config.window_size

    def losses_of(batch: Batch | QuantisedBatch, augment: Augmentation | None = None) -> torch.Tensor:
        device = next(model.parameters()).device
        clips = batch.to(device).clips
        if augment is not None:
            clips = augment(clips, batch.seeds)
        grid = (*config.grid(0)[:3], clips.shape[-1])
        generators = [torch.Generator().manual_seed(int(seed)) for seed in batch.seeds]
        masks = [sample_mask(settings.mask, 1, grid, window, atlas, generator) for generator in generators]
        mask = torch.cat(masks).to(device)
        patch_weights = None if weights is None else weights.to(device)[None, ..., None]
        # per clip, so that the loss does not depend on the batch size and number of processes
        return model.losses(clips, mask, settings.mask.spatial, patch_weights)

    def loss_of(batch: Batch) -> torch.Tensor:
        return losses_of(batch, settings.augment).mean()

    rank = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    if facts is None:
        facts = settings.facts(batches.batch_size * batches.shard[1], batches.aligned_starts)
    with _configured(model, settings, rank), matmul_precision(settings.matmul):
        return fit(
            model,
            batches,
            loss_of,
            settings.loop,
            folder,
            report=report,
            fabric=fabric,
            facts=facts,
            held_out=HeldOutClips(held_out, batches.batch_size, losses_of, batches.seed) if held_out else None,
            checkpoints=checkpoints,
            loggers=loggers,
        )


@contextmanager
def _configured(model: MaskedAutoencoder, settings: PretrainSettings, rank: tuple[int, int]) -> Iterator[None]:
    """Configure dropout, checkpointing and mask tokens for pre-training, and restore them afterwards."""
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
    """Switch activation checkpointing of all stages on or off."""
    for stage in module.modules():
        if isinstance(stage, Stage):
            stage.checkpointing = on


def region_weights(atlas: AtlasPatches, label_weights: dict[int, float] | None = None) -> torch.Tensor:
    """Compute the weight of each patch in the reconstruction loss from its regions.

    Parameters
    ----------
    atlas : AtlasPatches
    label_weights : dict of int to float, optional
        Weights by region label; other regions and voxels outside all regions have weight 1. None: all regions have the
        same total weight, and voxels outside all regions have weight 0.

    Returns
    -------
    torch.Tensor, (X, Y, Z)
        Mean 1 over the patches that overlap a region.
    """
    covered = atlas.fractions.sum(0)
    if label_weights is None:
        size = atlas.fractions.sum(dim=(1, 2, 3)).clamp(min=1e-6)
        weights = (atlas.fractions / size[:, None, None, None]).sum(0)
    else:
        more = torch.tensor([label_weights.get(int(label), 1.0) - 1 for label in atlas.labels])
        weights = 1 + (atlas.fractions * more[:, None, None, None]).sum(0)
    return weights / weights[covered > 0].mean()


def count_region_patches(atlas: AtlasPatches, rule: str, names: dict[int, str]) -> list[dict[str, object]]:
    """Count the patches of each region under a rule: ``index``, ``name``, ``patches``, ``resolved``."""
    patches = atlas.patches_of_regions(rule).tolist()
    return [
        {"index": int(label), "name": names.get(int(label), ""), "patches": round(n, 2), "resolved": n > 0}
        for label, n in zip(atlas.labels, patches, strict=True)
    ]
