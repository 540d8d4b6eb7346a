"""Settings of the training loop, its learning rate and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from bids_app.errors import UsageError

MAX_LEARNING_RATE = 1.0
"""Steps of AdamW are about as long as the learning rate: with a larger one, no weight would keep its size."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop.

    Attributes
    ----------
    epochs : int
    learning_rate : float
        Maximum learning rate, after the warm-up.
    weight_decay : float
        Weight decay of matrices.
    decay_vectors : bool
        Biases, norms and other vectors have the weight decay of matrices, instead of none.
    beta2 : float
        Decay of AdamW's mean of squared gradients, per step.
    warmup : float
        Fraction of the steps in which the learning rate rises from 0.
    final : float
        Final learning rate as a fraction of the maximum.
    clip_norm : float, optional
        Maximum norm of the gradients; None: they are not clipped.
    accumulate : int
        Batches per optimiser step; remaining batches of an epoch are not used.
    seed : int
    checkpoint_interval : float
        Time between saved states within an epoch, s; the state is also saved after each epoch.
    """

    epochs: int = 30
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.05
    final: float = 0.01
    clip_norm: float | None = 1.0
    accumulate: int = 1
    seed: int = 0
    checkpoint_interval: float = 600.0
    decay_vectors: bool = False
    beta2: float = 0.98

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.accumulate < 1:
            raise UsageError(
                f"Invalid values: --epochs {self.epochs}, --accumulate {self.accumulate}.", "Use at least 1."
            )
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise UsageError(
                f"Invalid value for --learning-rate: {self.learning_rate}.",
                f"Use a number above 0, and not above {MAX_LEARNING_RATE:g}.",
            )
        if not 0 <= self.warmup < 1:
            raise UsageError(f"Invalid warm-up: {self.warmup}.", "Use a value from 0 to below 1.")

    def learning_rate_at(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        n_warmup = max(1, round(self.warmup * n_steps))
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        progress = (step - n_warmup) / max(1, n_steps - n_warmup)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimiser(model: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """Create AdamW for the parameters that require a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UsageError("The model has no trainable parameters.", "Choose another strategy.")
    of_vectors = settings.weight_decay if settings.decay_vectors else 0.0
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": of_vectors},
    ]
    betas = (0.9, settings.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=betas)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set the precision of float32 products on a GPU, and restore it afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
