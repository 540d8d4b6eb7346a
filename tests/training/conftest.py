"""Small clip stores of simulated noise, and a tiny encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bids_app.clips import MODEL_GRID_SHAPE, GridSeries
from bids_app.model.api import Model
from bids_app.model.encoder import EncoderConfig
from bids_app.training.data.store import ClipStore
from tests.helpers.datasets import write_standard_image
from tests.helpers.images import StandardBrain
from tests.helpers.models import random_model

TINY = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=8, depths=(1, 1))


def _ball(radius: float = 12.0) -> np.ndarray:
    """Return a ball at the centre of the model grid, (96, 96, 96) bool."""
    axes = np.meshgrid(*(np.arange(n) - 47.5 for n in MODEL_GRID_SHAPE), indexing="ij")
    return np.sqrt(sum(a**2 for a in axes)) < radius


@pytest.fixture(scope="session")
def invented_series() -> Callable[..., GridSeries]:
    """Return the function `simulate_series`."""
    return simulate_series


@pytest.fixture(scope="session")
def tiny_config() -> EncoderConfig:
    """Return the configuration of `tiny_model`."""
    return TINY


def simulate_series(seed: int = 0, n_vols: int = 22, amplitude: float = 0.0, side: int = 0) -> GridSeries:
    """Simulate noise in a ball; one half (``side`` -1 or 1 along the first axis) may be brighter."""
    rng = np.random.default_rng(seed)
    mask = _ball()
    values = rng.normal(1000, 20, (n_vols, mask.sum())).astype(np.float32)
    if side:
        half = side * (np.argwhere(mask)[:, 0] - 47.5) > 0
        values[:, half] += np.float32(amplitude)
    return GridSeries(values, mask, tr=0.8)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., ClipStore]:
    """Return a function that fills a store with one scan per participant and side."""

    def make(participants: int = 3, n_vols: int = 22) -> ClipStore:
        store = ClipStore(tmp_path / "store", "global")
        for participant in range(participants):
            for side, label in ((-1, "left"), (1, "right")):
                series = simulate_series(2 * participant + (side > 0), n_vols, 60.0, side)
                store.add(f"sub-{participant:02d}_task-{label}", series, f"{participant:02d}", labels={"side": label})
        return store

    return make


@pytest.fixture
def tiny_model(tmp_path: Path) -> Model:
    """Return an encoder of two stages with random weights."""
    return random_model(tmp_path, TINY)


@pytest.fixture
def write_derivative(standard_brain: StandardBrain) -> Callable[..., None]:
    """Return the function `write_series` for the standard brain."""
    return partial(write_series, standard_brain)


def write_series(
    brain: StandardBrain, root: Path, label: str, space: str, tr: float = 0.8, n_vols: int = 28, side: int = 0
) -> None:
    """Write a preprocessed series in a space, with mask and sidecar; one half may be brighter."""
    folder = root / f"sub-{label}" / "func"
    data = brain.series(n_vols, seed=len(label)) * brain.mask[..., None]
    if side:
        half = side * (np.arange(data.shape[0]) - data.shape[0] / 2) > 0
        data[half] += (100 * brain.mask[half, ..., None]).astype(data.dtype)
    stem = f"sub-{label}_task-rest_space-{space}_res-2"
    write_standard_image(folder / f"{stem}_desc-preproc_bold.nii.gz", data, brain.affine, tr=9.9)
    (folder / f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": tr}))
    write_standard_image(folder / f"{stem}_desc-brain_mask.nii.gz", brain.mask.astype(np.uint8), brain.affine)
