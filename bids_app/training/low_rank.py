"""Low-rank updates (LoRA, Hu et al. 2022) of an encoder's linear layers, trained with ``peft``.

A layer with the weight W (O, I) computes (W + s B A) x, with A (R, I), B (O, R) and s = alpha / R; W is not trained. A
is initialised at random and B with zeros, so that training starts from the encoder as it is. `bids_app.model.lora`
merges the updates of a file into the weights, without ``peft``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bids_app.errors import UsageError
from bids_app.model.encoder import Encoder

PROJECTIONS = ("in_proj", "x_proj", "out_proj", "linear1", "linear2")
"""Linear layers of a block: the projections of Mamba, and the MLP."""
READ_BY_THE_SCAN = ".dt_proj"
"""End of the name of the layer whose weight the mixer reads without calling the layer; its rank is low already."""


@dataclass(frozen=True)
class LowRankSettings:
    """Settings of low-rank updates.

    Attributes
    ----------
    rank : int
        R, for all layers.
    alpha : float
        Updates are scaled by ``alpha`` / ``rank``.
    targets : tuple of str
        Linear layers to update: ends of their names (``in_proj``, ``layers.3.blocks.0.mlp.linear1``), or patterns for
        whole names (``layers.[123].*.linear1``).
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"Invalid value for --rank: {self.rank}.", "Use at least 1.")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"Invalid value for --lora-alpha: {self.alpha:g}.", "Use a positive number.")
        if not self.targets:
            raise UsageError("--lora-targets names no layer.", f"Omit it, or choose from {', '.join(PROJECTIONS)}.")

    def facts(self) -> dict[str, Any]:
        """Return the settings under the names of the card of an adapter."""
        return {"rank": self.rank, "lora_alpha": float(self.alpha), "lora_targets": tuple(self.targets)}


def check_low_rank(encoder: Encoder, settings: LowRankSettings) -> tuple[str, ...]:
    """Check before training that an encoder can have low-rank updates.

    Parameters
    ----------
    encoder : Encoder
    settings : LowRankSettings

    Returns
    -------
    tuple of str
        Names of the layers that will be updated.

    Raises
    ------
    UsageError
        A target is no layer, the rank exceeds the size of a layer, or ``peft`` is not installed.
    """
    layers = _choose_layers(encoder, settings.targets)
    sizes = {name: min(layer.weight.shape) for name, layer in layers.items()}
    smallest = min(sizes, key=lambda name: sizes[name])
    if settings.rank > sizes[smallest]:
        shape = " x ".join(map(str, layers[smallest].weight.shape))
        raise UsageError(
            f"--rank {settings.rank} exceeds the size of the layer {smallest} ({shape}), which has no higher rank.",
            f"Use --rank {sizes[smallest]} or less, or choose larger layers only with --lora-targets.",
        )
    _import_peft()
    return tuple(layers)


def add_low_rank_updates(encoder: Encoder, settings: LowRankSettings) -> None:
    """Wrap the chosen layers of an encoder with untrained updates; only these will require gradients.

    Parameters
    ----------
    encoder : Encoder
        Changed in place; its parameters keep their values. The updates are initialised with the global random
        generator of torch.
    settings : LowRankSettings

    Raises
    ------
    UsageError
        As in `check_low_rank`.
    """
    names = check_low_rank(encoder, settings)
    peft = _import_peft()
    exactly = "|".join(map(re.escape, names))  # a regular expression: of a list, it would also take ends of names
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=exactly)
    peft.inject_adapter_in_model(config, encoder)


def _choose_layers(encoder: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Return the linear layers that targets choose, by name in the order of the encoder."""
    layers = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(READ_BY_THE_SCAN)
    }
    chosen: set[str] = set()
    for target in targets:
        found = {name for name in layers if f".{name}".endswith(f".{target}") or fnmatchcase(name, target)}
        if not found:
            ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise UsageError(
                f"--lora-targets: the encoder has no linear layer {target!r} that can be updated.",
                f"Choose from {ends}, give a name such as {next(iter(layers))}, or a pattern with *.",
            )
        chosen |= found
    return {name: layer for name, layer in layers.items() if name in chosen}


def _import_peft() -> Any:
    """Import ``peft``, which takes seconds and is needed for training only."""
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"--strategy lora needs the package peft ({error}).", 'Install it: pip install "neurostorm[lora]".'
        ) from error
    return peft
