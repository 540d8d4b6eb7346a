"""Attribution of a prediction, or of a reconstruction, to the regions of an atlas.

Three methods: `occlude` replaces a region's voxels by their mean over the clip and measures the change of the
prediction; `integrate_gradients` integrates the gradient from the mean image to the clip (Sundararajan et al. 2017,
with captum); `reconstruction_errors` hides a region from the masked autoencoder and measures the reconstruction error.
All describe what this model uses, not the function of a region; `attribution_control` has maps to compare them with.

    B  batch      V  voxels of a clip, 96 x 96 x 96      R  regions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bids_app.adapters.attribution_control import N_HEADS, PERMUTED, RANDOM, Control, permute_labels, randomise
from bids_app.adapters.file import CLASSIFICATION, REGRESSION, AdaptedModel, AdapterCard
from bids_app.catalog.atlases import Atlas
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader
from bids_app.errors import BadDataError, UsageError
from bids_app.model.encoder import Encoder
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches
from bids_app.model.patches import from_patches, to_patches
from bids_app.model.windows import Size4

PREDICTION_METHODS = ("occlusion", "gradients")
STEPS = 16
"""Integration points between the mean image and the clip."""
N_CLIPS = 2
"""Default number of analysed clips."""
Readout = Callable[[torch.Tensor], torch.Tensor]
"""From features (B, C, X, Y, Z, T) to attributed quantities (B, Q)."""


@dataclass(frozen=True)
class Regions:
    """An atlas on the model grid.

    Attributes
    ----------
    name : str
    labels : np.ndarray of int, (96, 96, 96)
        0 outside all regions.
    names : dict of int to str
        Region names, by label.
    """

    name: str
    labels: np.ndarray
    names: dict[int, str]

    def __post_init__(self) -> None:
        if self.labels.shape != MODEL_GRID_SHAPE or not self.labels.any():
            raise BadDataError(
                f"The atlas {self.name} has no region on the model grid.", "Check its affine and its space."
            )

    @cached_property
    def index(self) -> np.ndarray:
        """Labels on the model grid, in ascending order, (R,)."""
        found = np.unique(self.labels)
        return found[found != 0]

    @property
    def absent(self) -> tuple[tuple[int, str], ...]:
        """Labels and names without a voxel on the model grid."""
        present = {0, *self.index.tolist()}
        return tuple((label, name) for label, name in self.names.items() if label not in present)

    @cached_property
    def of_voxel(self) -> np.ndarray:
        """Index of each voxel's region, (V,); R outside all regions."""
        rows = np.searchsorted(self.index, self.labels.reshape(-1))
        return np.where(self.labels.reshape(-1) != 0, rows, len(self.index))

    def patches(self, patch: Size4) -> AtlasPatches:
        """Return the fraction of each token's patch in each region."""
        return AtlasPatches.from_volume(torch.from_numpy(self.labels).long(), patch[:3])

    def paint(self, values: np.ndarray) -> np.ndarray:
        """Return an image (96, 96, 96) with the value of each voxel's region, from values (R,); 0 outside."""
        return np.append(values, 0.0)[self.of_voxel].reshape(MODEL_GRID_SHAPE).astype(np.float32)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum voxel values (96, 96, 96) over each region, (R,)."""
        totals = np.bincount(self.of_voxel, values.reshape(-1).astype(np.float64), len(self.index) + 1)
        return totals[: len(self.index)]


@dataclass(frozen=True)
class Attribution:
    """Contribution of each region.

    Attributes
    ----------
    method : str
        An entry of `PREDICTION_METHODS`, or ``reconstruction``.
    measure : str
        Quantity of the values: log-odds of ``target``, the unit of a regression, or an error.
    target : str
        The label whose log-odds are attributed, or the regression target; empty for a reconstruction.
    index : np.ndarray of int, (R,)
    names : tuple of str
    n_voxels, n_tokens : np.ndarray of int, (R,)
        Voxels with signal on the model grid, and tokens with a majority in the region. Without tokens, the encoder
        cannot separate the region from its neighbours.
    clips : np.ndarray, (n_clips, R)
        Contributions in each analysed clip.
    clip_numbers : tuple of int
    image : np.ndarray of float32, (96, 96, 96)
        Mean over clips of each voxel's value (gradients), or of its region's.
    """

    method: str
    measure: str
    target: str
    index: np.ndarray
    names: tuple[str, ...]
    n_voxels: np.ndarray
    n_tokens: np.ndarray
    clips: np.ndarray
    clip_numbers: tuple[int, ...]
    image: np.ndarray
    mask_token: str = ""
    """Spatial mask whose token hides the region (``reconstruction``)."""
    control: Control | None = None
    """Contributions in a control, if one was requested."""
    absent: tuple[tuple[int, str], ...] = ()
    """Labels and names of the atlas that have no voxel on the model grid."""

    @property
    def mean(self) -> np.ndarray:
        """Contributions, mean over clips, (R,)."""
        return self.clips.mean(axis=0)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation over clips, (R,); NaN with one clip."""
        return self.clips.std(axis=0) if len(self.clips) > 1 else np.full(self.clips.shape[1], np.nan)

    @property
    def order(self) -> np.ndarray:
        """Order of the regions by sign and size: largest positive first, then largest negative, then the others."""
        mean = np.where(self.n_voxels > 0, self.mean, np.nan)
        rank = np.select([mean > 0, mean < 0, mean == 0], [0, 1, 2], 3)
        return np.lexsort((np.where(np.isnan(mean), 0, -np.abs(mean)), rank))

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the regions without a voxel with signal, which have no contribution."""
        listed = (name for name, n in zip(self.names, self.n_voxels, strict=True) if n == 0)
        return (*listed, *(name for _, name in self.absent))

    @property
    def without_token(self) -> tuple[str, ...]:
        """Names of the regions that own no token, so that the encoder cannot separate them from their neighbours."""
        return tuple(name for name, n in zip(self.names, self.n_tokens, strict=True) if n == 0)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table: one row per region, sorted as `order`; NaN where a region has no value.

        Regions without a voxel with signal have no contribution, and those without a token no p value.
        """
        mean, order, seen = self.mean, self.order, self.n_voxels > 0
        found: dict[str, np.ndarray | None] = {
            "index": self.index,
            "name": np.array(self.names),
            "attribution": np.where(seen, mean, np.nan),
            "std": np.where(seen, self.deviation, np.nan),
            "voxels": self.n_voxels,
            "tokens": self.n_tokens,
        }
        if self.control is not None:
            found["control"] = np.where(seen, self.control.values, np.nan)
            tested = seen & (self.n_tokens > 0)
            found |= {"z": self.control.z_values(mean, tested), "p": self.control.p_values(mean, tested)}
        table = {name: values[order].tolist() for name, values in found.items() if values is not None}
        missing = {"voxels": 0, "tokens": 0}
        for label, name in self.absent:
            own = {"index": label, "name": name, **missing}
            for column, cells in table.items():
                cells.append(own.get(column, float("nan")))
        return table


def select_clips(n_clips: int, wanted: int) -> tuple[int, ...]:
    """Select at most ``wanted`` evenly spaced clips of a run."""
    return tuple(sorted({round(k) for k in np.linspace(0, n_clips - 1, min(wanted, n_clips))}))


def mean_over_time(clips: torch.Tensor) -> torch.Tensor:
    """Replace each voxel by its mean over time: the anatomy without the dynamics."""
    return clips.mean(dim=-1, keepdim=True).expand_as(clips)


def attribute(
    model: AdaptedModel,
    reader: ClipReader,
    regions: Regions,
    output: int,
    method: str = "occlusion",
    n_clips: int = N_CLIPS,
    control: str = "",
    seed: int = 0,
) -> Attribution:
    """Attribute an adapter's prediction to regions.

    Parameters
    ----------
    model : AdaptedModel
    reader : ClipReader
    regions : Regions
    output : int
        Index of the label whose log-odds are attributed; 0 for a regression.
    method : str
        An entry of `PREDICTION_METHODS`.
    n_clips : int
        Number of analysed clips, evenly spaced.
    control : str
        ``random``, ``permuted``, or empty for none, see `bids_app.adapters.attribution_control`. By occlusion,
        `N_HEADS` heads of permuted labels are analysed; by gradients, one.
    seed : int
        Seed of the control.

    Raises
    ------
    UsageError
        Unknown method or control, or the adapter has no scalar output.
    """
    if method not in PREDICTION_METHODS:
        raise UsageError(f"Unknown attribution method {method!r}.", f"Choose {' or '.join(PREDICTION_METHODS)}.")
    if control not in ("", RANDOM, PERMUTED):
        raise UsageError(f"Unknown attribution control {control!r}.", f"Choose {RANDOM} or {PERMUTED}.")
    card = model.card
    scalar = _scalar_output(card, output)
    device = next(model.parameters()).device
    numbers = select_clips(reader.n_clips, n_clips)

    def own(features: torch.Tensor) -> torch.Tensor:
        return scalar(model.head(features))[:, None]

    passes: list[tuple[Encoder, Readout]] = [(model.encoder, own)]
    if control == RANDOM:
        passes.append((randomise(model.encoder, seed), own))
    elif control == PERMUTED:
        heads = permute_labels(model, N_HEADS if method == "occlusion" else 1, seed)

        def permuted(features: torch.Tensor) -> torch.Tensor:
            outputs = heads(features)  # (B, D, O)
            return scalar(outputs.flatten(0, 1)).reshape(outputs.shape[:2])

        if method == "occlusion":  # one pass through the encoder serves all heads
            passes = [(model.encoder, lambda features: torch.cat([own(features), permuted(features)], dim=1))]
        else:
            passes.append((model.encoder, permuted))
    rows, images = [], []
    for number in numbers:
        clip = reader.clip(number, card.normalisation).unsqueeze(0).to(device)
        found = [_explain(method, encoder, readout, clip, regions) for encoder, readout in passes]
        rows.append(np.concatenate([values for values, _ in found]))
        images.append([image for _, image in found])
    values = np.stack(rows)  # (n_clips, Q, R)
    measure = "log-odds" if card.task == CLASSIFICATION else card.unit or card.target
    target = card.labels[output] if card.task == CLASSIFICATION else card.target
    attribution = _collect(
        regions, reader, model.encoder.config.patch_size, method, measure, target, numbers, list(values[:, 0]),
        [clip[0] for clip in images],
    )  # fmt: skip
    if not control:
        return attribution
    others = values[:, 1:].mean(axis=0)
    image = _mean_image([clip[1] for clip in images]) if len(passes) > 1 else regions.paint(others[0])
    heads_of_permuted = others if len(others) > 1 else others[:0]
    return replace(attribution, control=Control(control, others[0], image, heads_of_permuted))


def _explain(
    method: str, encoder: Encoder, readout: Readout, clip: torch.Tensor, regions: Regions
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the contributions of the regions to each quantity (Q, R), and the map of the first."""
    if method == "gradients":
        image = integrate_gradients(lambda clips: readout(encoder(clips))[:, 0], clip)
        return regions.sums(image)[None], image
    values = occlude(encoder, readout, clip, regions)
    return values, regions.paint(values[0])


def occlude(encoder: Encoder, readout: Readout, clip: torch.Tensor, regions: Regions) -> np.ndarray:
    """Measure the decrease of the prediction when each region is replaced by its mean over time.

    The patch embedding is linear, so only the tokens that overlap the region are recomputed.

    Parameters
    ----------
    encoder : Encoder
    readout : callable
        Maps features to the attributed quantities (B, Q).
    clip : torch.Tensor, (1, 1, 96, 96, 96, T)
    regions : Regions

    Returns
    -------
    np.ndarray, (Q, R)
    """
    patch, embed = encoder.config.patch_size, encoder.patch_embed
    grid = torch.from_numpy(regions.of_voxel).reshape(1, 1, *MODEL_GRID_SHAPE, 1).to(clip.device)
    owners = to_patches(grid, (*patch[:3], 1))[0, :, :, :, 0]  # (X, Y, Z, voxels of a patch)
    found = []
    with torch.inference_mode():
        dynamics = to_patches(clip - mean_over_time(clip), patch)[0]  # (X, Y, Z, T, P)
        tokens = embed(clip)

        def predict(tokens: torch.Tensor) -> torch.Tensor:
            return readout(encoder.encode_tokens(tokens).permute(0, 5, 1, 2, 3, 4))

        whole = predict(tokens)
        for row in range(len(regions.index)):
            inside = owners == row
            touched = inside.any(dim=-1)
            if not dynamics[touched].any():
                found.append(torch.zeros_like(whole))
                continue
            lost = dynamics[touched] * inside[touched][:, None]  # (patches, T, P)
            occluded = tokens.clone()
            occluded[0, touched] -= torch.nn.functional.linear(lost, embed.fc.weight)
            found.append(whole - predict(occluded))
    return torch.cat(found).T.double().cpu().numpy()


def integrate_gradients(scalar: Callable[[torch.Tensor], torch.Tensor], clip: torch.Tensor) -> np.ndarray:
    """Compute integrated gradients from the mean image, summed over time; their sum is the change of the prediction.

    Returns
    -------
    np.ndarray of float32, (96, 96, 96)
    """
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(scalar)
    found = method.attribute(clip, mean_over_time(clip), n_steps=STEPS, method="gausslegendre", internal_batch_size=1)
    return found.sum(dim=-1)[0, 0].float().cpu().numpy()


def reconstruction_errors(
    model: MaskedAutoencoder,
    reader: ClipReader,
    regions: Regions,
    spatial: str,
    normalisation: str = "global",
    n_clips: int = N_CLIPS,
    control: str = "",
    seed: int = 0,
) -> Attribution:
    """Compute the error of reconstructing each region from the rest of the brain.

    All tokens that overlap the region are hidden in all volumes. The squared error of the region's voxels is divided
    by their temporal variance, so that 1 equals predicting each voxel's mean; `nan` for a region without signal.

    Parameters
    ----------
    model : MaskedAutoencoder
    spatial : str
        Spatial mask of the model's pre-training, see `bids_app.model.mae.trained_mask`: the token of any other mask is
        not trained.
    normalisation : str
        Normalisation of the model's pre-training.
    n_clips : int
        Number of analysed clips, evenly spaced.
    control : str
        ``random``: the errors of an autoencoder with random weights as well; empty: no control.
    seed : int
        Seed of the control.
    """
    if control not in ("", RANDOM):
        raise UsageError(
            f"Reconstructions have no labels: --attribution-control {control} is not possible.",
            f"Use --attribution-control {RANDOM}.",
        )
    if control:
        own = reconstruction_errors(model, reader, regions, spatial, normalisation, n_clips)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            untrained = MaskedAutoencoder(model.config).to(next(model.parameters()).device).eval()
        other = reconstruction_errors(untrained, reader, regions, spatial, normalisation, n_clips)
        return replace(own, control=Control(control, other.mean, other.image, np.empty((0, len(regions.index)))))
    patch = model.config.patch_size
    tokens = regions.patches(patch)
    alone = torch.eye(len(regions.index), dtype=torch.bool)
    device = next(model.parameters()).device
    numbers = select_clips(reader.n_clips, n_clips)
    region_of_voxel = torch.from_numpy(regions.of_voxel).to(device)
    rows = []
    for number in numbers:
        clip = reader.clip(number, normalisation).unsqueeze(0).to(device)
        flat = clip.view(-1, clip.shape[-1])
        variance = flat.var(dim=-1, correction=0)
        row = []
        with torch.inference_mode():
            for k, one in enumerate(alone):
                hidden = tokens.hidden(one, "any").to(device)
                mask = hidden[None, ..., None].expand(1, *hidden.shape, clip.shape[-1])
                predicted = from_patches(model(clip, mask, spatial), patch, model.config.in_chans).reshape(flat.shape)
                chosen = (region_of_voxel == k) & (variance > 0)
                error = (predicted[chosen] - flat[chosen]).square().mean(dim=-1)
                row.append(float(error.mean() / variance[chosen].mean()) if bool(chosen.any()) else float("nan"))
        rows.append(np.array(row))
    images = [regions.paint(row) for row in rows]
    measure = "squared error over variance"
    found = _collect(regions, reader, patch, "reconstruction", measure, "", numbers, rows, images)
    return replace(found, mask_token=spatial)


def _scalar_output(card: AdapterCard, output: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from raw outputs (B, O) to the attributed quantity (B,)."""
    if card.task == REGRESSION:
        return lambda outputs: outputs[:, 0] * card.value_std
    if card.task != CLASSIFICATION:
        raise UsageError(
            f"The adapter {card.name} has no scalar output to attribute.",
            "Use an adapter for classification or regression.",
        )
    if card.n_outputs == 1:
        return lambda outputs: outputs[:, 0] if output == 1 else -outputs[:, 0]
    others = [k for k in range(card.n_outputs) if k != output]
    return lambda outputs: outputs[:, output] - outputs[:, others].logsumexp(dim=1)


def _collect(
    regions: Regions,
    reader: ClipReader,
    patch: Size4,
    method: str,
    measure: str,
    target: str,
    numbers: tuple[int, ...],
    rows: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
) -> Attribution:
    has_signal = np.zeros(int(np.prod(MODEL_GRID_SHAPE)), bool)
    has_signal[np.flatnonzero(reader.series.mask)[reader.statistics.signal]] = True
    return Attribution(
        method,
        measure,
        target,
        regions.index,
        tuple(regions.names.get(label, str(label)) for label in regions.index.tolist()),
        regions.sums(has_signal).astype(int),
        regions.patches(patch).patches_of_regions("majority").int().numpy(),
        np.stack(rows),
        numbers,
        _mean_image(images),
        absent=regions.absent,
    )


def _mean_image(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(images).mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclass(frozen=True)
class RunAttribution:
    """Attributions of a run's predictions, by adapter (or by model, for a reconstruction)."""

    atlas: Atlas
    found: dict[str, Attribution]
