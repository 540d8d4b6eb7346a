"""Small models, and checkpoints in the format of the published training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig

SMALL = EncoderConfig(img_size=(24, 24, 24, 6), embed_dim=8, depths=(2, 2))
"""Configuration with two stages of two blocks on clips of 24x24x24x6."""


def save_random_encoder(path: Path, config: EncoderConfig, **facts: Any) -> Path:
    """Write an untrained encoder named ``tiny``, always the same for a configuration."""
    torch.manual_seed(0)
    return save_encoder(path, config, Encoder(config).state_dict(), "tiny", **facts)


def random_model(folder: Path, config: EncoderConfig) -> Model:
    """Load the encoder of `save_random_encoder`."""
    return load_model(save_random_encoder(folder / "tiny.safetensors", config))


def linear_head(n_features: int, outputs: int = 1, seed: int = 1) -> dict[str, torch.Tensor]:
    """Make the weights of a linear head without bias."""
    weight = torch.randn(outputs, n_features, generator=torch.Generator().manual_seed(seed))
    return {"head.weight": weight, "head.bias": torch.zeros(outputs)}


def lightning_content(encoder: Encoder, head: dict[str, torch.Tensor] | None = None, **hyper: Any) -> dict[str, Any]:
    """Make a checkpoint of encoder and head as the published training code saves it."""
    config = encoder.config
    state = {f"model.{k}": v.clone() for k, v in encoder.state_dict().items()}
    state |= {f"output_head.head.{k}": v.clone() for k, v in (head or {}).items()}
    parameters: dict[str, Any] = {
        "model": "neurostorm",
        "img_size": list(config.img_size),
        "patch_size": list(config.patch_size),
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "window_size": list(config.window_size),
        "first_window_size": list(config.first_window_size),
        "last_layer_full_MSA": config.whole_last_stage,
        "c_multiplier": 2,
        "clf_head_version": "v1",
    }
    return {"epoch": 1, "global_step": 2, "state_dict": state, "hyper_parameters": parameters | hyper, "callbacks": {}}
