"""The published code's outputs, recorded beside the repository, come out of its own checkpoint files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bids_app.model.api import load_autoencoder, load_model
from bids_app.model.masking import AtlasPatches
from bids_app.model.patches import from_patches
from bids_app.model.strd import drop_probability

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


def recorded_mask(mask: torch.Tensor, spatial: str) -> torch.Tensor:
    """The recorded mask, one number a token or a window, as (B, X, Y, Z, T) on 8x8x8x8 tokens."""
    if spatial != "window":
        return mask.float().reshape(-1, 8, 8, 8, 8)
    grid = mask.float().reshape(-1, 2, 2, 2, 2)
    for axis in (1, 2, 3, 4):
        grid = grid.repeat_interleave(4, dim=axis)
    return grid


@pytest.mark.parametrize(
    ("name", "spatial"),
    [("mae_random_random", "random"), ("mae_window_random", "window"), ("mae_atlas_tube", "atlas")],
)
def test_the_autoencoder_reconstructs_what_the_published_code_does(name, spatial, shared_path):
    case = load_file(shared_path("parity", f"{name}.safetensors"))
    model = load_autoencoder(shared_path("parity", f"{name}.ckpt"))
    clips, mask = seeded_input(case), recorded_mask(case["mask"], spatial)

    with torch.no_grad():
        prediction = model(clips, mask, spatial)
    voxels = from_patches(prediction, model.config.patch_size)
    torch.testing.assert_close(voxels[:, :, ::2, ::2, ::2], case["pred_every_2nd_voxel"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.loss(prediction, clips, mask), case["loss"][0], rtol=1e-4, atol=1e-4)


def test_the_recorded_atlas_mask_hides_whole_regions(shared_path):
    labels = load_file(shared_path("parity", "toy_patch_atlas.safetensors"))["atlas_map"]
    case = load_file(shared_path("parity", "mae_atlas_tube.safetensors"))
    mask = recorded_mask(case["mask"], "atlas")[0, ..., 0]
    atlas = AtlasPatches.from_volume(labels, (1, 1, 1))
    chosen = torch.tensor([bool(mask[labels == label].all()) for label in atlas.labels])
    assert torch.equal(atlas.hidden(chosen, "majority"), mask)


def test_redundancy_dropout_equals_that_of_the_published_code(shared_path):
    case = load_file(shared_path("parity", "strd_l_spat3_l_temp3.safetensors"))
    probability = drop_probability(case["tokens"], (4, 4, 4, 4), l_spat=3, l_temp=3)
    torch.testing.assert_close(probability, case["drop_probability"], rtol=1e-4, atol=1e-4)
    expected = case["tokens"] * (1 - probability.unsqueeze(-1))
    torch.testing.assert_close(expected, case["expected_tokens"], rtol=1e-4, atol=1e-4)
