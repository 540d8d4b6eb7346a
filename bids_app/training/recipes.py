"""Recipes of training, the published one and ours: all choices that concern neither the data nor the model.

The differences between the two, with the reasons for ours, are listed in ``docs/published.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from bids_app.adapters.file import OUTPUTS, PREDICTIONS, STRATEGIES
from bids_app.errors import UsageError
from bids_app.training.data.augmentation import Augmentation
from bids_app.training.optimiser import LoopSettings

PRETRAINING = "pretraining"
PUBLISHED, OURS = "published", "ours"
RAW, STANDARDISED = "raw", "standardised"
HEAD_INPUTS = (RAW, STANDARDISED)
"""What a head that is trained with the encoder reads: the embedding, or the embedding standardised by batches."""


@dataclass(frozen=True)
class Recipe:
    """Choices of training.

    Attributes
    ----------
    loop : LoopSettings
        Optimiser and schedule; epochs and learning rate are those of pre-training.
    learning_rates, epochs : dict of str to float, int
        By what is trained: `PRETRAINING`, or a strategy of adaptation.
    batch_size : int
        Clips per batch and process.
    strd : tuple of int, optional
        Neighbourhoods of spatio-temporal redundancy dropout in pre-training; None: no dropout.
    augment : Augmentation
        Augmentation in pre-training.
    aligned_starts : bool
        Clips start at multiples of their length, instead of at any volume.
    normalisation : str
        Normalisation of clips in adaptation; that of pre-training is ``global``.
    head_input : str
        An entry of `HEAD_INPUTS`.
    balance : bool
        Weight classes inversely to their size.
    clip_average : str
        An entry of `bids_app.adapters.file.CLIP_AVERAGES`.
    matmul : str
        Precision of float32 products on a GPU: ``highest``, or ``high`` (TF32).
    """

    loop: LoopSettings
    learning_rates: dict[str, float]
    epochs: dict[str, int]
    batch_size: int
    strd: tuple[int, int] | None
    augment: Augmentation
    aligned_starts: bool
    normalisation: str
    head_input: str
    balance: bool
    clip_average: str
    matmul: str


RECIPES = {
    PUBLISHED: Recipe(
        loop=LoopSettings(warmup=0.0, final=1.0, clip_norm=None, beta2=0.999, decay_vectors=True),
        learning_rates=dict.fromkeys((PRETRAINING, *STRATEGIES), 5e-5),
        epochs=dict.fromkeys((PRETRAINING, *STRATEGIES), 30),
        batch_size=8,
        strd=None,
        augment=Augmentation(
            degrees=10.0,
            scale=0.1,
            shift=0.0,
            noise=0.1,
            sigma=0.5,
            p_affine=1.0,
            p_noise=0.3,
            p_smooth=0.1,
            padding="border",
            same_noise=True,
            noise_outside=True,
        ),
        aligned_starts=True,
        normalisation="global",
        head_input=RAW,
        balance=False,
        clip_average=OUTPUTS,
        matmul="high",
    ),
    OURS: Recipe(
        loop=LoopSettings(),
        learning_rates={PRETRAINING: 5e-5, **dict.fromkeys(STRATEGIES, 1e-3), "full": 5e-5},
        epochs={PRETRAINING: 30, **dict.fromkeys(STRATEGIES, 10)},
        batch_size=8,
        strd=(5, 5),
        augment=Augmentation(),
        aligned_starts=False,
        normalisation="voxel",
        head_input=STANDARDISED,
        balance=True,
        clip_average=PREDICTIONS,
        matmul="highest",
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name."""
    if name not in RECIPES:
        raise UsageError(f"Unknown recipe: {name!r}.", f"Choose {' or '.join(RECIPES)}.")
    return RECIPES[name]
