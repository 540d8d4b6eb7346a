"""NeuroSTORM's encoders as models of Brainmarks, which finds this module by its folder; see docs/integrations.md.

``bids_app_<name>`` for each encoder of the catalog, with ``_`` for ``-`` and ``p`` for ``.``, and ``bids_app_file`` for
a checkpoint. Brainmarks has a model ``neurostorm`` of its own in ``neurostorm.py``, which this module leaves as it is.

    B  batch    T  volumes of a sample    V  voxels of its brain    U  volumes at 0.8 s, in W clips    C  features
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_app.catalog.models import PACKAGE_DATA, catalog
from bids_app.clips import NORMALISATIONS, ClipReader, GridSeries, labels_to_model_grid
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model, load_model

try:
    from brainmarks.models.base import Embeddings, ModelTransform, ModelWrapper
    from brainmarks.models.registry import register_model
except ModuleNotFoundError as error:
    raise ImportError(
        f'{error}: this module is a plugin of Brainmarks; install it with: pip install "neurostorm[brainmarks]"'
    ) from error

BRAIN_MASK = PACKAGE_DATA / "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"
PUBLISHED_WINDOWS = 8
"""Number of clips, from the start of a run, that Brainmarks' own wrappers of volumetric models read at most."""

Pair = tuple[ModelTransform, ModelWrapper]


@cache
def brain_on_model_grid() -> tuple[np.ndarray, np.ndarray]:
    """Return where the columns of a sample are on the model grid.

    Returns
    -------
    mask : np.ndarray of bool, (96, 96, 96)
    columns : np.ndarray of int32, (V,)
        Columns of a sample in the order of the mask's voxels.
    """
    image: Any = nib.load(BRAIN_MASK)
    brain = np.asarray(image.dataobj).T > 0  # (z, y, x) of R-A-S voxels, as Brainmarks reads images
    numbers = np.zeros(brain.shape, np.int32)
    numbers[brain] = np.arange(1, brain.sum() + 1)
    grid = labels_to_model_grid(nib.Nifti1Image(numbers.T, image.affine))
    mask = grid > 0
    return mask, grid[mask] - 1


class NeurostormTransform(ModelTransform):
    """Transform of a sample to clips on the model grid, by the code that the participant level uses.

    Parameters
    ----------
    clip_volumes : int
        Volumes per clip of the model.
    normalisation : str
        ``global`` (one z-score over the brain, as in the training of the published models) or ``voxel``.
    max_windows : int or None
        Maximum number of clips, from the start of the run; None: all.
    """

    def __init__(self, clip_volumes: int, normalisation: str, max_windows: int | None) -> None:
        if normalisation not in NORMALISATIONS:
            raise UsageError(f"Unknown normalisation {normalisation!r}.", f"Choose from {', '.join(NORMALISATIONS)}.")
        if max_windows is not None and max_windows < 1:
            raise UsageError(f"Invalid max_windows: {max_windows}.", "Give a number above 0, or null for all clips.")
        self.clip_volumes, self.normalisation, self.max_windows = clip_volumes, normalisation, max_windows

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return a sample with ``bold`` as (1, 96, 96, 96, U), U = W * `clip_volumes`.

        Parameters
        ----------
        sample : dict
            ``bold`` (T, V), z-scored for each voxel; ``mean`` and ``std`` (1, V) in scanner units; ``tr`` in seconds.

        Raises
        ------
        BadDataError
            The sample is not in the space ``mni``, or is shorter than a clip; nothing is padded.
        """
        mask, columns = brain_on_model_grid()
        bold, mean, std = (torch.as_tensor(sample[key]).float() for key in ("bold", "mean", "std"))
        if bold.shape[1:] != columns.shape:
            raise BadDataError(
                f"A sample of shape {tuple(bold.shape)} is not in the space mni of {len(columns)} voxels.",
                "Curate the dataset for the space mni.",
            )
        values = (bold * std + mean).cpu().numpy()[:, columns]
        reader = ClipReader(GridSeries(values, mask, float(sample["tr"])), self.clip_volumes)
        n_clips = min(reader.n_clips, self.max_windows or reader.n_clips)
        clips = reader.volumes(0, n_clips * self.clip_volumes, self.normalisation)
        return {**sample, "bold": clips.unsqueeze(0)}


class NeurostormWrapper(ModelWrapper):
    """An encoder, in float32 as at the participant level, also under automatic mixed precision."""

    __space__ = "mni"

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> Embeddings:
        """Encode the clips of ``bold`` (B, 1, 96, 96, 96, U).

        Returns
        -------
        Embeddings
            ``patch_embeds`` (B, L, C): the L tokens of all clips. Their mean is the embedding of the run. There are no
            class and register tokens.
        """
        bold, n_vols = batch["bold"].to(self.model.device, torch.float32), self.model.config.img_size[3]
        with torch.autocast(bold.device.type, enabled=False):
            clips = [self.model.encode(clip) for clip in bold.split(n_vols, dim=-1)]
        features = torch.stack(clips, dim=1)  # (B, W, C, X, Y, Z, T)
        tokens = features.flatten(3).transpose(2, 3)  # (B, W, X * Y * Z * T, C)
        return Embeddings(cls_embeds=None, reg_embeds=None, patch_embeds=tokens.flatten(1, 2))


def model_pair(path_or_name: str | Path, normalisation: str, max_windows: int | None) -> Pair:
    """Load a model, as `bids_app.load_model`, and make its transform."""
    model = load_model(path_or_name, with_head=False)
    return NeurostormTransform(model.config.img_size[3], normalisation, max_windows), NeurostormWrapper(model)


def model_name(name: str) -> str:
    """Return the name in Brainmarks of an encoder of the catalog."""
    return "bids_app_" + name.replace("-", "_").replace(".", "p")


def _constructor(name: str) -> Callable[..., Pair]:
    def make(normalisation: str = "global", max_windows: int | None = PUBLISHED_WINDOWS) -> Pair:
        return model_pair(name, normalisation, max_windows)

    return make


for _name in catalog():
    register_model(model_name(_name))(_constructor(_name))


@register_model
def bids_app_file(
    ckpt_path: str = "", normalisation: str = "global", max_windows: int | None = PUBLISHED_WINDOWS
) -> Pair:
    """Load a checkpoint of the published code, an encoder of ``neurostorm-train``, or a fetched file of the hub."""
    if not ckpt_path:
        raise UsageError("bids_app_file requires a file.", "Add: --overrides model_kwargs.ckpt_path=FILE")
    return model_pair(ckpt_path, normalisation, max_windows)
