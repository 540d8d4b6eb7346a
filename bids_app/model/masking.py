"""What is hidden from the masked autoencoder: spatial kinds times temporal kinds, and regions of an atlas as patches.

A spatial kind draws which places are hidden in a number of time slots; a temporal kind says how many slots there are
and how long each lasts. Every combination is therefore one entry of each table, and no code of its own.

    B  clips      X Y Z T  token grid      R  regions of an atlas      K  time slots of a mask
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from bids_app.errors import BadDataError, UsageError
from bids_app.model.windows import Size4

Size3 = tuple[int, int, int]
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class AtlasPatches:
    """How much of each token's patch each region of an atlas fills.

    Attributes
    ----------
    labels : torch.Tensor of int64, (R,)
    fractions : torch.Tensor of float32, (R, X, Y, Z)
        Share of the patch's voxels that carry the label.
    """

    labels: torch.Tensor
    fractions: torch.Tensor

    @classmethod
    def from_volume(cls, labels: torch.Tensor, patch: Size3) -> AtlasPatches:
        """Count labels in patches.

        Parameters
        ----------
        labels : torch.Tensor of int, (x, y, z)
            A label image on the model grid; 0 is no region.
        patch : (x, y, z)
            Voxels of a patch.
        """
        if labels.is_floating_point() or labels.ndim != 3:
            raise BadDataError("An atlas must be a 3D image of whole numbers.", "Resample it with nearest neighbours.")
        if any(size % step for size, step in zip(labels.shape, patch, strict=True)):
            raise BadDataError(
                f"An atlas of {tuple(labels.shape)} voxels does not divide into patches of {patch}.",
                "Resample it onto the model grid first.",
            )
        found = labels.unique()
        found = found[found != 0]
        if not len(found):
            raise BadDataError("The atlas has no label on the model grid.", "Check its affine and its space.")
        (x, y, z), (px, py, pz) = labels.shape, patch
        fractions = torch.empty(len(found), x // px, y // py, z // pz)
        for index, label in enumerate(found):
            blocks = (labels == label).float().reshape(x // px, px, y // py, py, z // pz, pz)
            fractions[index] = blocks.mean(dim=(1, 3, 5))
        return cls(found.long(), fractions)

    @cached_property
    def largest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each patch, the largest fraction and the index of its region; (X, Y, Z) both."""
        largest, owner = self.fractions.max(0)
        return largest, owner

    def hidden(self, chosen: torch.Tensor, rule: str) -> torch.Tensor:
        """Patches that hide when regions do.

        Parameters
        ----------
        chosen : torch.Tensor of bool, (R,)
        rule : str
            One of `ATLAS_RULES`.

        Returns
        -------
        torch.Tensor of float32, (X, Y, Z)
            In 0..1.
        """
        return _entry(ATLAS_RULES, rule, "atlas rule")(self, chosen)

    def patches_of_regions(self, rule: str) -> torch.Tensor:
        """Patches, or under ``soft`` fractions of patches, that each region hides alone; (R,)."""
        alone = torch.eye(len(self.labels), dtype=torch.bool)
        return torch.stack([self.hidden(one, rule).sum() for one in alone])


def _any(atlas: AtlasPatches, chosen: torch.Tensor) -> torch.Tensor:
    return (atlas.fractions[chosen].sum(0) > 0).float()


def _majority(atlas: AtlasPatches, chosen: torch.Tensor) -> torch.Tensor:
    largest, owner = atlas.largest
    return (chosen[owner] & (largest > 0)).float()


def _pure(atlas: AtlasPatches, chosen: torch.Tensor) -> torch.Tensor:
    largest, owner = atlas.largest
    return (chosen[owner] & (largest > 1 - 1e-6)).float()


def _soft(atlas: AtlasPatches, chosen: torch.Tensor) -> torch.Tensor:
    return atlas.fractions[chosen].sum(0).clamp(0, 1)


ATLAS_RULES: dict[str, Callable[[AtlasPatches, torch.Tensor], torch.Tensor]] = {
    "any": _any,
    "majority": _majority,
    "pure": _pure,
    "soft": _soft,
}
"""Which patches belong to a region: those with a voxel of it; those of whose labelled voxels it has the most; those it
fills; or each to the degree that it fills it."""


@dataclass(frozen=True)
class MaskSettings:
    """What to hide.

    Attributes
    ----------
    spatial, temporal, rule : str
        Entries of `SPATIAL_MASKS`, `TEMPORAL_MASKS` and `ATLAS_RULES`.
    ratio : float
        Share hidden, above 0 and below 1: of tokens, of windows, or of the patches that the atlas covers.
    """

    spatial: str = "window"
    temporal: str = "random"
    ratio: float = 0.5
    rule: str = "majority"

    def __post_init__(self) -> None:
        _entry(SPATIAL_MASKS, self.spatial, "spatial mask")
        _entry(TEMPORAL_MASKS, self.temporal, "temporal mask")
        _entry(ATLAS_RULES, self.rule, "atlas rule")
        if not 0 < self.ratio < 1:
            raise UsageError(f"A mask ratio of {self.ratio} was asked for.", "Give a share between 0 and 1.")


def sample_mask(
    settings: MaskSettings,
    batch: int,
    grid: Size4,
    window: Size4,
    atlas: AtlasPatches | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw what is hidden, for each clip of a batch anew.

    Parameters
    ----------
    settings : MaskSettings
    grid : (X, Y, Z, T)
        Tokens of the first stage.
    window : (X, Y, Z, T)
        Tokens of a window of the first stage.
    atlas : AtlasPatches, optional
        Needed for the spatial kind ``atlas``; its grid is (X, Y, Z).
    generator : torch.Generator, optional
        On the CPU, where the draw is made.

    Returns
    -------
    torch.Tensor of float32, (B, X, Y, Z, T)
        1 where hidden, between 0 and 1 for partly hidden patches (rule ``soft``).
    """
    if settings.spatial == "atlas" and (atlas is None or atlas.fractions.shape[1:] != grid[:3]):
        have = "none" if atlas is None else f"one on {tuple(atlas.fractions.shape[1:])} patches"
        raise UsageError(f"The atlas mask needs an atlas on {grid[:3]} patches, and has {have}.", "Give a label image.")
    length = window[3] if settings.spatial == "window" else 1
    n_slots, repeats = TEMPORAL_MASKS[settings.temporal](grid[3], length)
    draw = SPATIAL_MASKS[settings.spatial]
    masks = [draw(settings, n_slots, grid, window, atlas, generator) for _ in range(batch)]  # (K, X, Y, Z) each
    mask = torch.stack(masks).permute(0, 2, 3, 4, 1)  # (B, X, Y, Z, K)
    return mask.repeat_interleave(repeats, dim=-1)[..., : grid[3]].contiguous()


def _sample_random(
    settings: MaskSettings,
    n_slots: int,
    grid: Size4,
    window: Size4,
    atlas: AtlasPatches | None,
    generator: torch.Generator | None,
) -> torch.Tensor:
    return _choose((n_slots, *grid[:3]), settings.ratio, generator)


def _sample_windows(
    settings: MaskSettings,
    n_slots: int,
    grid: Size4,
    window: Size4,
    atlas: AtlasPatches | None,
    generator: torch.Generator | None,
) -> torch.Tensor:
    counts = [-(-size // min(step, size)) for size, step in zip(grid[:3], window[:3], strict=True)]
    mask = _choose((n_slots, *counts), settings.ratio, generator)
    for axis, (size, step) in enumerate(zip(grid[:3], window[:3], strict=True), start=1):
        mask = mask.repeat_interleave(min(step, size), dim=axis).narrow(axis, 0, size)
    return mask


def _sample_regions(
    settings: MaskSettings,
    n_slots: int,
    grid: Size4,
    window: Size4,
    atlas: AtlasPatches | None,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Regions in random order, as many as come nearest to the share of the covered patches that is asked for."""
    assert atlas is not None  # sample_mask has seen to it
    everything = torch.ones(len(atlas.labels), dtype=torch.bool)
    target = settings.ratio * atlas.hidden(everything, settings.rule).sum()
    slots = []
    for _ in range(n_slots):
        order = torch.randperm(len(atlas.labels), generator=generator)

        def hidden(count: int, order: torch.Tensor = order) -> torch.Tensor:
            chosen = torch.zeros_like(everything)
            chosen[order[:count]] = True
            return atlas.hidden(chosen, settings.rule)

        # what is hidden grows with the number of regions, so where it reaches the target can be bisected
        enough = bisect_left(range(1, len(order) + 1), target, key=lambda count: hidden(count).sum()) + 1
        enough = min(enough, len(order))
        mask, fewer = hidden(enough), hidden(max(enough - 1, 1))
        slots.append(fewer if (fewer.sum() - target).abs() < (mask.sum() - target).abs() else mask)
    return torch.stack(slots)


def _choose(shape: tuple[int, ...], ratio: float, generator: torch.Generator | None) -> torch.Tensor:
    """Ones at a share ``ratio`` of the places, drawn without replacement, zeros elsewhere; at least one of each."""
    total = int(torch.tensor(shape).prod())
    count = min(max(round(ratio * total), 1), max(total - 1, 1))
    mask = torch.zeros(total)
    mask[torch.randperm(total, generator=generator)[:count]] = 1.0
    return mask.reshape(shape)


SPATIAL_MASKS: dict[str, Callable[..., torch.Tensor]] = {
    "random": _sample_random,
    "window": _sample_windows,
    "atlas": _sample_regions,
}
"""Kinds of places: single tokens, whole windows, whole regions."""

TEMPORAL_MASKS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "random": lambda n_vols, length: (-(-n_vols // min(length, n_vols)), min(length, n_vols)),
    "tube": lambda n_vols, length: (1, n_vols),
}
"""From the clip's volumes and the length of a unit to (time slots, volumes of a slot): drawn anew for each unit of
time, or once for all of the clip."""


def _entry(table: dict[str, _Entry], name: str, what: str) -> _Entry:
    if name not in table:
        raise UsageError(f"There is no {what} {name!r}.", f"Choose one of {', '.join(table)}.")
    return table[name]
