"""Masks of the masked autoencoder: spatial and temporal mask types, and atlas regions as patches.

A spatial mask samples the hidden positions in each time slot; a temporal mask sets the number and length of the time
slots. As in the published code, atlas masks hide the same regions in all volumes of a clip, whatever the temporal mask,
and the ratio counts regions; `MaskSettings.redraw` and ``count="patches"`` differ from it.

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
    """Fraction of each token's patch in each region of an atlas.

    Attributes
    ----------
    labels : torch.Tensor of int64, (R,)
    fractions : torch.Tensor of float32, (R, X, Y, Z)
        Fraction of the patch's voxels with the label.
    """

    labels: torch.Tensor
    fractions: torch.Tensor

    @classmethod
    def from_volume(cls, labels: torch.Tensor, patch: Size3) -> AtlasPatches:
        """Count labels in patches.

        Parameters
        ----------
        labels : torch.Tensor of int, (x, y, z)
            A label image on the model grid; 0 is background.
        patch : (x, y, z)
            Size of a patch, voxels.
        """
        if labels.is_floating_point() or labels.ndim != 3:
            raise BadDataError("The atlas is not a 3D image of integer labels.", "Resample it with nearest neighbours.")
        if any(size % step for size, step in zip(labels.shape, patch, strict=True)):
            raise BadDataError(
                f"The atlas has {tuple(labels.shape)} voxels, which is not divisible into patches of {patch}.",
                "Resample it to the model grid.",
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
        """Largest fraction in each patch and the index of its region, both (X, Y, Z)."""
        largest, owner = self.fractions.max(0)
        return largest, owner

    def hidden(self, chosen: torch.Tensor, rule: str) -> torch.Tensor:
        """Return the patches that are hidden with the chosen regions.

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
        return _look_up(ATLAS_RULES, rule, "atlas rule")(self, chosen)

    def patches_of_regions(self, rule: str) -> torch.Tensor:
        """Count the patches (rule ``soft``: sum their fractions) that each region hides alone, (R,)."""
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
"""Rules to assign patches to regions. ``any``: patches with any voxel of the region; ``majority``: patches in which it
is the largest region; ``pure``: patches completely inside it; ``soft``: weighted by the region's fraction."""


REGIONS, PATCHES = "regions", "patches"


@dataclass(frozen=True)
class MaskSettings:
    """Settings of a mask.

    Attributes
    ----------
    spatial, temporal, rule : str
        Entries of `SPATIAL_MASKS`, `TEMPORAL_MASKS` and `ATLAS_RULES`.
    ratio : float
        Hidden fraction, between 0 and 1, of tokens, of windows, or of the atlas's regions.
    redraw : bool
        Draw other regions in each volume, with the temporal mask ``random``; not the published method. A hidden token
        is then mostly visible in the next volume.
    count : str
        What the ratio of an atlas mask counts: ``regions``, as published, or ``patches``, those that the atlas covers.
    """

    spatial: str = "window"
    temporal: str = "random"
    ratio: float = 0.5
    rule: str = "majority"
    redraw: bool = False
    count: str = REGIONS

    def __post_init__(self) -> None:
        _look_up(SPATIAL_MASKS, self.spatial, "spatial mask")
        _look_up(TEMPORAL_MASKS, self.temporal, "temporal mask")
        _look_up(ATLAS_RULES, self.rule, "atlas rule")
        if self.count not in (REGIONS, PATCHES):
            raise UsageError(f"Unknown count {self.count!r}.", f"Choose {REGIONS} or {PATCHES}.")
        if not 0 < self.ratio < 1:
            raise UsageError(f"Invalid mask ratio: {self.ratio}.", "Give a number between 0 and 1.")


def sample_mask(
    settings: MaskSettings,
    batch: int,
    grid: Size4,
    window: Size4,
    atlas: AtlasPatches | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample an independent mask for each clip of a batch.

    Parameters
    ----------
    settings : MaskSettings
    grid : (X, Y, Z, T)
        Token grid of the first stage.
    window : (X, Y, Z, T)
        Window size of the first stage, tokens.
    atlas : AtlasPatches, optional
        Required for the spatial mask ``atlas``; its grid is (X, Y, Z).
    generator : torch.Generator, optional
        Generator on the CPU.

    Returns
    -------
    torch.Tensor of float32, (B, X, Y, Z, T)
        1 where hidden, between 0 and 1 for partly hidden patches (rule ``soft``).
    """
    if settings.spatial == "atlas" and (atlas is None or atlas.fractions.shape[1:] != grid[:3]):
        have = "none" if atlas is None else f"one on {tuple(atlas.fractions.shape[1:])} patches"
        raise UsageError(
            f"The atlas mask requires an atlas on {grid[:3]} patches, but has {have}.", "Give a label image."
        )
    length = window[3] if settings.spatial == "window" else 1
    is_constant = settings.spatial == "atlas" and not settings.redraw
    n_slots, repeats = TEMPORAL_MASKS["tube" if is_constant else settings.temporal](grid[3], length)
    sample = SPATIAL_MASKS[settings.spatial]
    masks = [sample(settings, n_slots, grid, window, atlas, generator) for _ in range(batch)]  # (K, X, Y, Z) each
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
    """Hide regions in random order: a share of the regions, or the number that best matches a share of the patches.

    Regions that hide no patch are not counted: the published code draws from the labels of patches.
    """
    assert atlas is not None  # checked by sample_mask
    present = torch.nonzero(atlas.patches_of_regions(settings.rule) > 0).flatten()
    if not len(present):
        raise BadDataError("No region of the atlas hides a patch.", "Use another atlas rule, e.g. majority.")
    everything = torch.ones(len(atlas.labels), dtype=torch.bool)
    target = settings.ratio * atlas.hidden(everything, settings.rule).sum()
    slots = []
    for _ in range(n_slots):
        order = present[torch.randperm(len(present), generator=generator)]

        def hidden(count: int, order: torch.Tensor = order) -> torch.Tensor:
            chosen = torch.zeros_like(everything)
            chosen[order[:count]] = True
            return atlas.hidden(chosen, settings.rule)

        if settings.count == REGIONS:
            slots.append(hidden(max(1, int(len(order) * settings.ratio))))
            continue
        # the hidden fraction increases with the number of regions, so the target can be found by bisection
        enough = bisect_left(range(1, len(order) + 1), target, key=lambda count: hidden(count).sum()) + 1
        enough = min(enough, len(order))
        mask, fewer = hidden(enough), hidden(max(enough - 1, 1))
        slots.append(fewer if (fewer.sum() - target).abs() < (mask.sum() - target).abs() else mask)
    return torch.stack(slots)


def _choose(shape: tuple[int, ...], ratio: float, generator: torch.Generator | None) -> torch.Tensor:
    """Sample a binary mask with a fraction ``ratio`` of ones; at least one element is hidden and one visible."""
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
"""Spatial masks: single tokens, whole windows, whole regions."""

TEMPORAL_MASKS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "random": lambda n_vols, length: (-(-n_vols // min(length, n_vols)), min(length, n_vols)),
    "tube": lambda n_vols, length: (1, n_vols),
}
"""Temporal masks: functions from the clip's volumes and the length of a unit to (time slots, volumes per slot).
``random`` samples each unit of time, ``tube`` samples once per clip."""


def _look_up(table: dict[str, _Entry], name: str, what: str) -> _Entry:
    if name not in table:
        raise UsageError(f"Unknown {what} {name!r}.", f"Choose one of {', '.join(table)}.")
    return table[name]
