"""Small encoders, and checkpoints in the format that the published training code writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bids_app.model.encoder import Encoder, EncoderConfig

SMALL = EncoderConfig(img_size=(24, 24, 24, 6), embed_dim=8, depths=(2, 2))


@pytest.fixture
def small_encoder() -> Encoder:
    """Two stages of two blocks on clips of 24x24x24x6."""
    torch.manual_seed(0)
    return Encoder(SMALL).eval()


def lightning_content(
    encoder: Encoder, head: dict[str, torch.Tensor] | None = None, **hyper: object
) -> dict[str, object]:
    """What the published training code would save of an encoder and a head."""
    config = encoder.config
    state = {f"model.{k}": v.clone() for k, v in encoder.state_dict().items()}
    state |= {f"output_head.head.{k}": v.clone() for k, v in (head or {}).items()}
    parameters: dict[str, object] = {
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


@pytest.fixture
def small_checkpoint(tmp_path, small_encoder) -> Path:
    """A Lightning file with a one-logit head."""
    torch.manual_seed(1)
    head = {"head.weight": torch.randn(1, 16), "head.bias": torch.randn(1)}
    path = tmp_path / "small.ckpt"
    torch.save(lightning_content(small_encoder, head, task_name="sex", num_classes=2), path)
    return path
