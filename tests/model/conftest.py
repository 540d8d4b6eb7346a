"""Small encoders, and checkpoints in the format that the published training code writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bids_app.model.encoder import Encoder
from tests.helpers.models import SMALL, lightning_content


@pytest.fixture
def small_encoder() -> Encoder:
    """Two stages of two blocks on clips of 24x24x24x6."""
    torch.manual_seed(0)
    return Encoder(SMALL).eval()


@pytest.fixture
def small_checkpoint(tmp_path, small_encoder) -> Path:
    """A Lightning file with a one-logit head."""
    torch.manual_seed(1)
    head = {"head.weight": torch.randn(1, 16), "head.bias": torch.randn(1)}
    path = tmp_path / "small.ckpt"
    torch.save(lightning_content(small_encoder, head, task_name="sex", num_classes=2), path)
    return path
