"""How much an answer, or a reconstruction, depends on each region of an atlas.

Three methods. `occlude` holds a region still (each voxel at its mean over the clip) and looks how far the answer moves;
`integrate_gradients` follows the answer from the still clip to the clip as it is (Sundararajan et al. 2017, with
captum); `reconstruction_errors` hides a region from the masked autoencoder and measures how badly it is guessed. None
of them says what a region does: they say what this model reads.

    B  batch      V  voxels of a clip, 96 x 96 x 96      R  regions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bids_app.adapters.file import CLASSIFICATION, REGRESSION, AdaptedModel, AdapterCard
from bids_app.catalog.atlases import Atlas
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader
from bids_app.errors import BadDataError, UsageError
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches
from bids_app.model.patches import from_patches, to_patches
from bids_app.model.windows import Size4

ANSWER_METHODS = ("occlusion", "gradients")
STEPS = 16
"""Points on the way from the still clip at which gradients are taken."""


@dataclass(frozen=True)
class Regions:
    """An atlas on the model grid.

    Attributes
    ----------
    name : str
    labels : np.ndarray of int, (96, 96, 96)
        0 where there is no region.
    names : dict of int to str
        Of regions, by label.
    """

    name: str
    labels: np.ndarray
    names: dict[int, str]

    def __post_init__(self) -> None:
        if self.labels.shape != MODEL_GRID_SHAPE or not self.labels.any():
            raise BadDataError(f"The atlas {self.name} has no region on the model grid.", "Check its space.")

    @cached_property
    def index(self) -> np.ndarray:
        """Labels that occur, in order, (R,)."""
        found = np.unique(self.labels)
        return found[found != 0]

    @cached_property
    def of_voxel(self) -> np.ndarray:
        """The row of each voxel's region, (V,); R where there is none."""
        rows = np.searchsorted(self.index, self.labels.reshape(-1))
        return np.where(self.labels.reshape(-1) != 0, rows, len(self.index))

    def patches(self, patch: Size4) -> AtlasPatches:
        """How much of each token's patch each region fills."""
        return AtlasPatches.from_volume(torch.from_numpy(self.labels).long(), patch[:3])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of a value of each voxel, (96, 96, 96), over each region, (R,)."""
        totals = np.bincount(self.of_voxel, values.reshape(-1).astype(np.float64), len(self.index) + 1)
        return totals[: len(self.index)]


@dataclass(frozen=True)
class Attribution:
    """What each region contributes.

    Attributes
    ----------
    method : str
        An entry of `ANSWER_METHODS`, or ``reconstruction``.
    measure : str
        What a value is: log-odds of ``answer``, the unit of a regression, or an error.
    answer : str
        The label whose log-odds were followed, or the target; empty for a reconstruction.
    index : np.ndarray of int, (R,)
    names : tuple of str
    n_voxels, n_tokens : np.ndarray of int, (R,)
        Size: voxels on the model grid with signal, and tokens of which the region fills most. Where there are none, the
        encoder cannot tell the region from its neighbours.
    clips : np.ndarray, (n_clips, R)
        Of each clip that was looked at.
    clip_numbers : tuple of int
    image : np.ndarray of float32, (96, 96, 96)
        The mean over clips of each voxel (gradients), or of its region.
    """

    method: str
    measure: str
    answer: str
    index: np.ndarray
    names: tuple[str, ...]
    n_voxels: np.ndarray
    n_tokens: np.ndarray
    clips: np.ndarray
    clip_numbers: tuple[int, ...]
    image: np.ndarray

    def columns(self) -> dict[str, list[Any]]:
        """The table: a row a region, the largest contribution first."""
        mean, spread = self.clips.mean(axis=0), self.clips.std(axis=0)
        order = np.argsort(-mean, kind="stable")
        return {
            "index": self.index[order].tolist(),
            "name": [self.names[i] for i in order],
            "attribution": mean[order].tolist(),
            "std": spread[order].tolist(),
            "voxels": self.n_voxels[order].tolist(),
            "tokens": self.n_tokens[order].tolist(),
        }


def spread_out(n_clips: int, wanted: int) -> tuple[int, ...]:
    """Clips that stand for a run: evenly spaced, at most ``wanted``."""
    return tuple(sorted({round(k) for k in np.linspace(0, n_clips - 1, min(wanted, n_clips))}))


def held_still(clips: torch.Tensor) -> torch.Tensor:
    """The same clips with each voxel at its mean over time: the anatomy without the dynamics."""
    return clips.mean(dim=-1, keepdim=True).expand_as(clips)


def attribute(
    model: AdaptedModel, reader: ClipReader, regions: Regions, answer: int, method: str = "occlusion", n_clips: int = 2
) -> Attribution:
    """Attribute an adapter's answer to regions.

    Parameters
    ----------
    model : AdaptedModel
    reader : ClipReader
    regions : Regions
    answer : int
        The label whose log-odds are followed; 0 for a regression.
    method : str
        An entry of `ANSWER_METHODS`.
    n_clips : int
        Clips that are looked at, evenly spaced.

    Raises
    ------
    UsageError
        There is no such method, or the adapter gives no single number to follow.
    """
    if method not in ANSWER_METHODS:
        raise UsageError(f"There is no attribution {method!r} of an answer.", f"Choose {' or '.join(ANSWER_METHODS)}.")
    card = model.card
    follow = _followed(card, answer)
    device = next(model.parameters()).device
    numbers = spread_out(reader.n_clips, n_clips)
    rows, images = [], []
    for number in numbers:
        clip = reader.clip(number, card.normalisation).unsqueeze(0).to(device)
        if method == "gradients":
            image = integrate_gradients(lambda clips: follow(model(clips)), clip)
            row = regions.sums(image)
        else:
            row = occlude(model, follow, clip, regions)
            image = np.append(row, 0.0)[regions.of_voxel].reshape(MODEL_GRID_SHAPE)
        rows.append(row)
        images.append(image)
    measure = "log-odds" if card.task == CLASSIFICATION else card.unit or card.target
    followed = card.labels[answer] if card.task == CLASSIFICATION else card.target
    return _collected(
        regions, reader, model.encoder.config.patch_size, method, measure, followed, numbers, rows, images
    )


def occlude(
    model: AdaptedModel, follow: Callable[[torch.Tensor], torch.Tensor], clip: torch.Tensor, regions: Regions
) -> np.ndarray:
    """How far the answer falls when each region is held still.

    The patch embedding is linear, so of an occluded clip only the tokens that the region touches are made anew.

    Parameters
    ----------
    model : AdaptedModel
    follow : callable
        From raw outputs (B, O) to the number that is followed, (B,).
    clip : torch.Tensor, (1, 1, 96, 96, 96, 20)
    regions : Regions

    Returns
    -------
    np.ndarray, (R,)
    """
    patch, embed = model.encoder.config.patch_size, model.encoder.patch_embed
    grid = torch.from_numpy(regions.of_voxel).reshape(1, 1, *MODEL_GRID_SHAPE, 1).to(clip.device)
    owners = to_patches(grid, (*patch[:3], 1))[0, :, :, :, 0]  # (X, Y, Z, voxels of a patch)
    found = []
    with torch.inference_mode():
        dynamics = to_patches(clip - held_still(clip), patch)[0]  # (X, Y, Z, T, P)
        tokens = embed(clip)

        def answer(of: torch.Tensor) -> torch.Tensor:
            return follow(model.head(model.encoder.encode_tokens(of).permute(0, 5, 1, 2, 3, 4)))

        whole = answer(tokens)
        for row in range(len(regions.index)):
            inside = owners == row
            touched = inside.any(dim=-1)
            if not dynamics[touched].any():
                found.append(torch.zeros_like(whole))
                continue
            lost = dynamics[touched] * inside[touched][:, None]  # (patches, T, P)
            occluded = tokens.clone()
            occluded[0, touched] -= torch.nn.functional.linear(lost, embed.fc.weight)
            found.append(whole - answer(occluded))
    return torch.cat(found).double().cpu().numpy()


def integrate_gradients(follow: Callable[[torch.Tensor], torch.Tensor], clip: torch.Tensor) -> np.ndarray:
    """Integrated gradients from the still clip, summed over time; they add up to the change of the answer.

    Returns
    -------
    np.ndarray of float32, (96, 96, 96)
    """
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(follow)
    found = method.attribute(clip, held_still(clip), n_steps=STEPS, method="gausslegendre", internal_batch_size=1)
    return found.sum(dim=-1)[0, 0].float().cpu().numpy()


def reconstruction_errors(
    model: MaskedAutoencoder, reader: ClipReader, regions: Regions, normalisation: str = "global", n_clips: int = 1
) -> Attribution:
    """How badly each region is guessed from the rest of the brain.

    All tokens that touch the region are hidden in all volumes. The error is that of the region's own voxels over the
    variance of their values in time, so that 1 is what guessing each voxel's mean would give; `nan` for a region
    without signal.

    Parameters
    ----------
    model : MaskedAutoencoder
    normalisation : str
        That the model was pre-trained with.
    """
    patch = model.config.patch_size
    tokens = regions.patches(patch)
    alone = torch.eye(len(regions.index), dtype=torch.bool)
    device = next(model.parameters()).device
    numbers = spread_out(reader.n_clips, n_clips)
    places = torch.from_numpy(regions.of_voxel).to(device)
    rows = []
    for number in numbers:
        clip = reader.clip(number, normalisation).unsqueeze(0).to(device)
        flat = clip.view(-1, clip.shape[-1])
        own_variance = flat.var(dim=-1, correction=0)
        row = []
        with torch.inference_mode():
            for k, one in enumerate(alone):
                hidden = tokens.hidden(one, "any").to(device)
                mask = hidden[None, ..., None].expand(1, *hidden.shape, clip.shape[-1])
                guess = from_patches(model(clip, mask, "atlas"), patch, model.config.in_chans).reshape(flat.shape)
                chosen = (places == k) & (own_variance > 0)
                error = (guess[chosen] - flat[chosen]).square().mean(dim=-1)
                row.append(float(error.mean() / own_variance[chosen].mean()) if bool(chosen.any()) else float("nan"))
        rows.append(np.array(row))
    images = [np.append(row, 0.0)[regions.of_voxel].reshape(MODEL_GRID_SHAPE) for row in rows]
    measure = "squared error over variance"
    return _collected(regions, reader, patch, "reconstruction", measure, "", numbers, rows, images)


def _followed(card: AdapterCard, answer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """From raw outputs (B, O) to the number that is followed, (B,)."""
    if card.task == REGRESSION:
        return lambda outputs: outputs[:, 0] * card.value_std
    if card.task != CLASSIFICATION:
        raise UsageError(f"The adapter {card.name} gives no single answer.", "Attribute a class or a value.")
    if card.n_outputs == 1:
        return lambda outputs: outputs[:, 0] if answer == 1 else -outputs[:, 0]
    others = [k for k in range(card.n_outputs) if k != answer]
    return lambda outputs: outputs[:, answer] - outputs[:, others].logsumexp(dim=1)


def _collected(
    regions: Regions,
    reader: ClipReader,
    patch: Size4,
    method: str,
    measure: str,
    answer: str,
    numbers: tuple[int, ...],
    rows: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
) -> Attribution:
    seen = np.zeros(int(np.prod(MODEL_GRID_SHAPE)), bool)
    seen[np.flatnonzero(reader.series.mask)[reader.statistics.signal]] = True
    return Attribution(
        method,
        measure,
        answer,
        regions.index,
        tuple(regions.names.get(label, str(label)) for label in regions.index.tolist()),
        regions.sums(seen).astype(int),
        regions.patches(patch).patches_of_regions("majority").int().numpy(),
        np.stack(rows),
        numbers,
        np.stack(images).mean(axis=0, dtype=np.float64).astype(np.float32),
    )


@dataclass(frozen=True)
class Attributed:
    """What regions contribute to the answers about a run, by adapter (or model, for a reconstruction)."""

    atlas: Atlas
    found: dict[str, Attribution]
