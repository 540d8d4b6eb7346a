"""The published code's outputs, recorded beside the repository, come out of its own checkpoint files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_app.model import load_model

ENCODER_CASES = (
    "encoder_sex",
    "encoder_age_padded_time",
    "encoder_windowed_last_stage",
    "encoder_sex_2025",
    "encoder_from_2025_pretraining",
    "encoder_prompts",
)


def seeded_input(case: dict[str, torch.Tensor]) -> torch.Tensor:
    """The input that the case was recorded with, (B, 1, x, y, z, t)."""
    random = np.random.RandomState(case["input_seed"].item())
    return torch.from_numpy(random.standard_normal(case["input_shape"].tolist()).astype("float32"))


@pytest.mark.parametrize("name", ENCODER_CASES)
def test_features_and_output_equal_those_of_the_published_code(name, shared_path):
    case = load_file(shared_path("parity", f"{name}.safetensors"))
    model = load_model(shared_path("parity", f"{name}.ckpt"))
    clips = seeded_input(case)

    torch.testing.assert_close(model.encode(clips), case["features"], rtol=1e-4, atol=1e-4)
    if "output" in case:
        torch.testing.assert_close(model(clips), case["output"], rtol=1e-4, atol=1e-4)
    else:
        assert model.head is None
