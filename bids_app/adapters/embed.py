"""Embeddings of a series on the model grid, for use in Python; the participant level gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bids_app.clips import MODEL_GRID_SHAPE, MODEL_TR
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model
from bids_app.model.heads import pool
from bids_app.model.streaming import apply_in_batches, starting_batch


@torch.inference_mode()
def encode(model: Model, grid: torch.Tensor | np.ndarray) -> np.ndarray:
    """Compute the embedding of each clip of a series.

    Parameters
    ----------
    model : Model
        From `bids_app.load_model`; its device does the computation.
    grid : torch.Tensor or numpy.ndarray, (96, 96, 96, U)
        U volumes at 0.8 s, from `bids_app.to_model_grid`.

    Returns
    -------
    numpy.ndarray of float32, (n_clips, C)
        Mean over tokens of the features of each clip of 20 volumes, in order. Volumes after the last complete clip are
        not used. The mean over clips is the embedding of the run.

    Raises
    ------
    UsageError
        An argument is of another type.
    BadDataError
        The series has another shape, is shorter than a clip, or its embeddings are not finite.
    """
    if not isinstance(model, Model):
        raise UsageError(f"The model is of type {type(model).__name__}.", "Load it with load_model.")
    if not isinstance(grid, torch.Tensor | np.ndarray):
        raise UsageError(f"The series is of type {type(grid).__name__}.", "Make it with to_model_grid.")
    numeric = not grid.is_complex() if isinstance(grid, torch.Tensor) else grid.dtype.kind in "biuf"
    if not numeric:
        raise UsageError(f"The series has values of type {grid.dtype}.", "Make it with to_model_grid.")
    grid = torch.as_tensor(grid, dtype=torch.float32)
    n_vols = model.config.img_size[3]
    if tuple(grid.shape[:-1]) != MODEL_GRID_SHAPE:
        raise BadDataError(
            f"A series of shape {tuple(grid.shape)} is not on the model grid.",
            "The shape must be (96, 96, 96, volumes), as from to_model_grid.",
        )
    if grid.shape[-1] < n_vols:
        raise BadDataError(
            f"The series lasts {grid.shape[-1] * MODEL_TR:.1f} s; a clip requires {n_vols * MODEL_TR:.1f} s.",
            "Use a longer run.",
        )
    if not torch.isfinite(grid).all():
        raise BadDataError("The series contains NaN or infinite values.", "Make it with to_model_grid.")
    batch = starting_batch(model.config, model.device)
    parts = apply_in_batches(lambda clips: pool(model.encode(clips.to(model.device))), _clips(grid, n_vols), batch)
    embeddings = np.concatenate([part.float().cpu().numpy() for part in parts])
    if not np.isfinite(embeddings).all():
        raise BadDataError(f"{model.path}: the embeddings contain NaN or infinite values.", "Use another model.")
    return embeddings


def _clips(grid: torch.Tensor, n_vols: int) -> Iterator[torch.Tensor]:
    for start in range(0, grid.shape[-1] - n_vols + 1, n_vols):
        yield grid[..., start : start + n_vols].unsqueeze(0)
