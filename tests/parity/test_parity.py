"""Outputs equal those of the published code, from its own checkpoint files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.clips import to_model_grid
from bids_app.model.api import load_autoencoder, load_model
from bids_app.model.checkpoint import HEAD
from bids_app.model.encoder import Encoder
from bids_app.model.heads import build_head
from bids_app.model.masking import ATLAS_RULES, AtlasPatches, MaskSettings, sample_mask
from bids_app.model.patches import from_patches
from bids_app.model.strd import drop_probability
from tests.helpers.models import lightning_content
from tests.parity.cases import FOLDER, STORED, Case
from tests.parity.make_lora import CONFIG, OPTIONS

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ENCODER_CASES = (
    "encoder_sex",
    "encoder_age_padded_time",
    "encoder_windowed_last_stage",
    "encoder_sex_2025",
    "encoder_from_2025_pretraining",
    "encoder_prompts",
)
AUTOENCODER_CASES = {
    "mae_random_random": "random",
    "mae_window_random": "window",
    "mae_atlas_tube": "atlas",
    "mae_two_windows_same_volume": "window",
    "mae_two_windows_other_volume": "random",
}
"""Autoencoder cases and their spatial masks."""


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_the_seeds_restore_the_recorded_weights(name):
    case = Case(name)
    means = torch.stack([weight.double().mean() for weight in case.state_dict.values()])
    torch.testing.assert_close(means, case["mean_of_each_weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ENCODER_CASES)
def test_features_and_output_equal_those_of_the_published_code(name, tmp_path):
    case = Case(name)
    model = load_model(case.write_checkpoint(tmp_path))
    clips = case.input

    torch.testing.assert_close(model.encode(clips), case["features"], **CLOSE)
    if "output" in case:
        torch.testing.assert_close(model(clips), case["output"], **CLOSE)
    else:
        assert model.head is None


def recorded_mask(mask: torch.Tensor, spatial: str) -> torch.Tensor:
    """Expand the recorded mask, one value per token or window, to (B, X, Y, Z, T) on 8x8x8x8 tokens."""
    if spatial != "window":
        return mask.float().reshape(-1, 8, 8, 8, 8)
    grid = mask.float().reshape(-1, 2, 2, 2, 2)
    for axis in (1, 2, 3, 4):
        grid = grid.repeat_interleave(4, dim=axis)
    return grid


@pytest.mark.parametrize(("name", "spatial"), AUTOENCODER_CASES.items())
def test_reconstructions_equal_those_of_the_published_code(name, spatial, tmp_path):
    case = Case(name)
    model = load_autoencoder(case.write_checkpoint(tmp_path))
    clips, mask = case.input, recorded_mask(case["mask"], spatial)

    with torch.no_grad():
        prediction = model(clips, mask, spatial)
    voxels = from_patches(prediction, model.config.patch_size)
    torch.testing.assert_close(voxels[:, :, ::4, ::4, ::4], case["pred_every_4th_voxel"], **CLOSE)
    torch.testing.assert_close(model.loss(prediction, clips, mask), case["loss"][0], **CLOSE)


def test_the_recorded_atlas_mask_hides_whole_regions():
    labels = Case("toy_patch_atlas")["atlas_map"]
    mask = recorded_mask(Case("mae_atlas_tube")["mask"], "atlas")[0, ..., 0]
    atlas = AtlasPatches.from_volume(labels, (1, 1, 1))
    chosen = torch.tensor([bool(mask[labels == label].all()) for label in atlas.labels])
    assert torch.equal(atlas.hidden(chosen, "majority"), mask)


def test_the_v3_head_of_2026_equals_that_of_the_published_code():
    case = Case("head_v3_2026")
    prefix = f"{STORED}{HEAD}head."
    head, unused_keys = build_head({k.removeprefix(prefix): v for k, v in case.tensors.items() if k.startswith(prefix)})
    assert (head.version, unused_keys) == ("v3", ())
    with torch.no_grad():
        torch.testing.assert_close(head(case["features"]), case["output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_merged_low_rank_updates_equal_the_forward_pass_of_peft(name, tmp_path):
    recorded = {k.partition("/")[2]: v for k, v in Case("lora_peft").tensors.items() if k.startswith(f"{name}/")}
    weights = {f"model.{k.removeprefix(STORED)}": v for k, v in recorded.items() if k.startswith(STORED)}
    content = lightning_content(Encoder(CONFIG), lora_config=OPTIONS[name])
    torch.save(content | {"state_dict": weights}, tmp_path / "lora.ckpt")
    model = load_model(tmp_path / "lora.ckpt")
    clips = torch.randn(2, 1, 24, 24, 24, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.encode(clips), recorded["features"], rtol=1e-5, atol=1e-5)


def test_redundancy_dropout_equals_that_of_the_published_code():
    case = Case("strd_l_spat3_l_temp3")
    probability = drop_probability(case["tokens"], (4, 4, 4, 4), l_spat=3, l_temp=3)
    torch.testing.assert_close(probability, case["drop_probability"], **CLOSE)
    torch.testing.assert_close(case["tokens"] * (1 - probability.unsqueeze(-1)), case["expected_tokens"], **CLOSE)


@pytest.mark.parametrize(("name", "mask"), [("prep_tr08", None), ("prep_tr2_masked", "prep_tr2_masked_mask")])
def test_volume_preparation_equals_that_of_the_published_code(name, mask):
    case = Case(name)
    clip = to_model_grid(case.image, mask=mask and Case(mask).image)
    difference = (clip[::3, ::3, ::3] - case["clip_every_3rd_voxel"]).abs().max()
    assert difference <= case["int8_scale"]


@pytest.mark.parametrize("rule", ATLAS_RULES)
def test_atlas_masks_are_drawn_as_by_the_published_code(monkeypatch, rule):
    """The recorded labels are those of whole patches, to which all rules assign the same regions."""
    recorded = np.load(FOLDER / "mask_atlas_random.npz")
    grid, ratio = tuple(recorded["grid"].tolist()), float(recorded["mask_ratio"][0])
    labels = torch.from_numpy(recorded["patch_atlas"])
    voxels = labels.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    atlas = AtlasPatches.from_volume(voxels, (2, 2, 2))
    masks = torch.from_numpy(recorded["mask"]).reshape(-1, *grid)
    for mask in masks:
        first = [int(label) for label in atlas.labels if (mask[..., 0][labels == label] == 1).all()]
        rest = [int(label) for label in atlas.labels if label not in first]
        order = torch.tensor([atlas.labels.tolist().index(label) for label in first + rest])
        monkeypatch.setattr(torch, "randperm", lambda n, generator=None, order=order: order)
        for temporal in ("random", "tube"):
            found = sample_mask(MaskSettings("atlas", temporal, ratio, rule), 1, grid, (4, 4, 4, 4), atlas)
            assert torch.equal(found[0], mask)
