"""Reconstruction of hidden patches: whether a masked autoencoder recognises a scan as what it was trained on.

Patches of some clips are hidden as in the pre-training, and reconstructed by the encoder and the decoder of the model's
file. The squared error within the brain is compared with two predictions that know nothing of brains: the mean of all
visible voxels of the clip, and the mean of each voxel over the clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bids_app.adapters.attribution import mean_over_time, select_clips
from bids_app.clips import NORMALISATIONS
from bids_app.errors import BadDataError
from bids_app.model.checkpoint import Checkpoint
from bids_app.model.mae import MaskedAutoencoder, autoencoder_from, trained_mask
from bids_app.model.masking import TEMPORAL_MASKS, MaskSettings, sample_mask
from bids_app.model.patches import from_patches

N_CLIPS = 2
"""Number of reconstructed clips, evenly spaced."""
NO_DECODER = "The model's file has no decoder, so that hidden patches cannot be reconstructed."
OWN_PRETRAINING = (
    "Use a file of `neurostorm-train pretrain --mask random` or `--mask window`: it has the decoder and its settings."
)


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction errors of a run.

    Attributes
    ----------
    error : float, optional
        Squared error of hidden patches in the brain, relative to that of predicting the mean of the visible voxels; 1:
        no better than this mean. None if it was not measured.
    dynamics : float, optional
        The same, relative to that of predicting each voxel's mean over the clip: 1 is no better than the true image
        without its dynamics.
    clips : tuple of int
        Reconstructed clips.
    mask : str
        Hidden patches, in words.
    reason : str
        Why nothing was measured; empty if it was.
    """

    error: float | None = None
    dynamics: float | None = None
    clips: tuple[int, ...] = ()
    mask: str = ""
    reason: str = ""

    @property
    def facts(self) -> dict[str, float | str]:
        """Facts for the verdict, see `bids_app.adapters.verdict`."""
        if self.error is None or self.dynamics is None:
            return {"reconstruction_unknown": self.reason}
        return {"reconstruction_error": self.error, "reconstruction_dynamics": self.dynamics}


class Clips(Protocol):
    """Clips of a run."""

    @property
    def n_clips(self) -> int:
        """Number of clips."""

    @property
    def mask(self) -> np.ndarray:
        """Brain mask, (96, 96, 96) bool."""

    def clip(self, index: int, normalisation: str) -> torch.Tensor:
        """Read a clip, (1, 96, 96, 96, T)."""


@dataclass(frozen=True)
class Autoencoder:
    """The masked autoencoder of a model's file, with the masks and the normalisation of its pre-training."""

    model: MaskedAutoencoder
    masks: MaskSettings
    normalisation: str
    device: torch.device

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str | torch.device = "cpu") -> Autoencoder:
        """Build the autoencoder of a file.

        Raises
        ------
        BadDataError
            The file has no decoder, or does not say how it was trained.
        """
        if not any(key.startswith("decoder_pred.") for key in checkpoint.decoder):
            raise BadDataError(NO_DECODER, OWN_PRETRAINING)
        masks = mask_settings(checkpoint)
        if masks.spatial == "atlas":
            raise BadDataError(
                "The model was trained with masks of an atlas, which its file does not contain.", OWN_PRETRAINING
            )
        normalisation = str(checkpoint.info.get("normalisation", "global"))
        if normalisation not in NORMALISATIONS:
            raise BadDataError(
                f"The normalisation of the pre-training is unknown ({normalisation[:50]!a}).", OWN_PRETRAINING
            )
        model = autoencoder_from(checkpoint).to(device).eval()
        return cls(model, masks, normalisation, torch.device(device))

    @torch.inference_mode()
    def measure(self, run: Clips, seed: int = 0) -> Reconstruction:
        """Reconstruct hidden patches of some clips of a run.

        Parameters
        ----------
        run : Clips
        seed : int
            Seed of the masks.
        """
        generator = torch.Generator().manual_seed(seed)
        brain = torch.from_numpy(run.mask).to(self.device)[..., None]
        numbers = select_clips(run.n_clips, N_CLIPS)
        sums = torch.zeros(3, dtype=torch.float64)
        for number in numbers:
            clip = run.clip(number, self.normalisation)[None].to(self.device)
            predicted, hidden = self._reconstruct(clip, generator)
            chosen, visible = hidden & brain, ~hidden & brain
            truth = clip[0, 0]
            if not chosen.any() or not visible.any():
                return Reconstruction(reason="The masks hide no part of the brain, or all of it.")
            for k, guess in enumerate((predicted, truth[visible].mean(), mean_over_time(truth))):
                sums[k] += (truth - guess)[chosen].double().square().sum().cpu()
        ours, mean, still = sums.tolist()
        if not math.isfinite(ours):
            return Reconstruction(
                reason="The reconstruction is infinite or NaN; the weights of the decoder may be damaged."
            )
        if min(mean, still) <= 0:
            return Reconstruction(reason="The hidden patches are constant.")
        words = f"{self.masks.ratio:.0%} of {self.masks.spatial} patches in space, {self.masks.temporal} in time"
        return Reconstruction(ours / mean, ours / still, numbers, words)

    def _reconstruct(self, clip: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct a clip (1, 1, 96, 96, 96, T); return it, and where it was hidden, (96, 96, 96, T) each."""
        config = self.model.config
        mask = sample_mask(self.masks, 1, config.grid(0), config.window_size, generator=generator).to(self.device)
        predicted = from_patches(self.model(clip, mask, self.masks.spatial), config.patch_size, config.in_chans)
        hidden = mask[0] > 0
        for axis, size in enumerate(config.patch_size):
            hidden = hidden.repeat_interleave(size, dim=axis)
        return predicted[0, 0], hidden


def measure_reconstruction(
    checkpoint: Checkpoint, run: Clips, device: str | torch.device = "cpu", seed: int = 0
) -> Reconstruction:
    """Reconstruct hidden patches of some clips of a run, or return why a file cannot do it; see `Autoencoder`."""
    try:
        return Autoencoder.load(checkpoint, device).measure(run, seed)
    except BadDataError as error:
        return Reconstruction(reason=error.message)


def mask_settings(checkpoint: Checkpoint) -> MaskSettings:
    """Return the masks of a file's pre-training; the published ratio and masks in time where it does not name them.

    Raises
    ------
    BadDataError
        The file does not name its masks in space.
    """
    own = checkpoint.info.get("mask")
    known: Mapping[str, Any] = own if isinstance(own, Mapping) else {
        "ratio": checkpoint.info.get("mask_ratio"), "temporal": checkpoint.info.get("time_mask"),
    }  # fmt: skip
    ratio, temporal, default = known.get("ratio"), known.get("temporal"), MaskSettings()
    return MaskSettings(
        trained_mask(checkpoint),
        str(temporal) if temporal in TEMPORAL_MASKS else default.temporal,
        ratio if isinstance(ratio, float) and 0 < ratio < 1 else default.ratio,
    )
