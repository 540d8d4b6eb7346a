"""The masked autoencoder: masking, loss and files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import load_autoencoder, load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder, trained_mask
from bids_app.model.masking import SPATIAL_MASKS, TEMPORAL_MASKS, AtlasPatches, MaskSettings, sample_mask
from bids_app.model.patches import to_patches
from bids_app.model.strd import TokenDropout, set_token_dropout
from tests.helpers.models import SMALL, lightning_content

GRID = SMALL.grid(0)


@pytest.fixture
def autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SMALL)


@pytest.fixture
def clips() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 1, 24, 24, 24, 6)


def test_the_published_autoencoder_has_the_published_number_of_parameters():
    names = dict(MaskedAutoencoder(EncoderConfig()).named_parameters())
    single = {"mask_token", "atlas_mask_token"}  # the published count is of 2025, with window mask tokens only
    assert sum(p.numel() for n, p in names.items() if n not in single) == 7_712_892


@pytest.mark.parametrize("spatial", SPATIAL_MASKS)
@pytest.mark.parametrize("temporal", TEMPORAL_MASKS)
def test_every_kind_of_mask_trains(autoencoder, clips, spatial, temporal):
    atlas = AtlasPatches.from_volume(torch.arange(64).reshape(4, 4, 4) % 5, (1, 1, 1))
    mask = sample_mask(MaskSettings(spatial, temporal), 2, GRID, SMALL.first_window_size, atlas)
    optimiser = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(3):
        loss = autoencoder.loss(autoencoder(clips, mask, spatial), clips, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_hidden_voxels_do_not_reach_the_prediction(autoencoder, clips):
    mask = sample_mask(MaskSettings("random", "random"), 2, GRID, SMALL.first_window_size)
    hidden = mask.repeat_interleave(6, 1).repeat_interleave(6, 2).repeat_interleave(6, 3).unsqueeze(1)
    with torch.no_grad():
        prediction = autoencoder(clips, mask, "random")
        other = autoencoder(torch.where(hidden == 1, 99.0, clips), mask, "random")
    torch.testing.assert_close(prediction, other)


def test_the_loss_is_over_hidden_patches_only(autoencoder, clips):
    mask = torch.zeros(2, *GRID)
    mask[0, 1, 2, 3, 4] = 1
    prediction = torch.zeros(2, *GRID, 216)
    expected = to_patches(clips, SMALL.patch_size)[0, 1, 2, 3, 4].square().mean()
    torch.testing.assert_close(autoencoder.loss(prediction, clips, mask), expected)


def test_weights_scale_the_loss_of_a_patch(autoencoder, clips):
    mask, weights = torch.ones(2, *GRID), torch.zeros(2, *GRID)
    weights[1] = 3.0
    expected = clips[1].square().mean()
    torch.testing.assert_close(autoencoder.loss(torch.zeros(2, *GRID, 216), clips, mask, weights), expected)


def test_a_partly_hidden_patch_is_a_blend(autoencoder, clips):
    mask = torch.full((2, *GRID), 0.5)
    seen = []
    autoencoder.encoder.encode_tokens = lambda tokens: seen.append(tokens) or torch.zeros(2, 2, 2, 2, 6, 16)
    autoencoder(clips, mask, "random")
    expected = (autoencoder.encoder.patch_embed(clips) + autoencoder.mask_token) / 2
    torch.testing.assert_close(seen[0], expected)


def test_a_mask_with_a_different_grid_is_rejected(autoencoder, clips):
    with pytest.raises(BadDataError, match="mask"):
        autoencoder(clips, torch.zeros(2, 4, 4, 4, 5))
    with pytest.raises(UsageError, match="tube"):
        autoencoder(clips, torch.zeros(2, *GRID), "tube")


def test_a_pretraining_file_restores_decoder_and_encoder(autoencoder, clips, tmp_path):
    path = save_encoder(
        tmp_path / "m.safetensors", SMALL, autoencoder.encoder.state_dict(), "m", decoder=autoencoder.decoder_state()
    )
    mask = torch.ones(2, *GRID)
    with torch.no_grad():
        torch.testing.assert_close(load_autoencoder(path)(clips, mask), autoencoder.eval()(clips, mask))
        torch.testing.assert_close(load_model(path).encode(clips), autoencoder.encoder(clips))


def test_the_mask_token_of_2025_is_the_window_mask_token(autoencoder, tmp_path):
    decoder = autoencoder.decoder_state()
    decoder["mask_token"] = decoder.pop("window_mask_token")
    del decoder["atlas_mask_token"]
    state = {f"model.{k}": v for k, v in {**autoencoder.encoder.state_dict(), **decoder}.items()}
    content = lightning_content(autoencoder.encoder, model="swin4d_mae") | {"state_dict": state}
    torch.save(content, tmp_path / "old.ckpt")
    old = load_autoencoder(tmp_path / "old.ckpt")
    assert torch.equal(old.window_mask_token, autoencoder.window_mask_token)
    torch.testing.assert_close(old.mask_token, autoencoder.window_mask_token.mean(0))


def test_a_file_without_decoder_is_rejected(small_checkpoint):
    with pytest.raises(BadDataError, match="no decoder"):
        load_autoencoder(small_checkpoint)


def test_redundancy_dropout_is_active_during_training_only(autoencoder, clips):
    set_token_dropout(autoencoder, TokenDropout())
    encoder = autoencoder.encoder.eval()
    with torch.no_grad():
        quiet = encoder(clips)
        torch.testing.assert_close(encoder(clips), quiet)
        encoder.train()
        assert (encoder(clips) - quiet).abs().max() > 1e-4
        set_token_dropout(autoencoder, None)
        torch.testing.assert_close(encoder(clips), quiet)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"mask": {"spatial": "atlas"}}, "atlas"),
        ({"spatial_mask": "window"}, "window"),
        ({"spatial_mask": "tube"}, None),
        ({}, None),
    ],
)
def test_the_mask_of_the_training_is_read_from_the_file_or_the_file_is_refused(info, expected) -> None:
    checkpoint = SimpleNamespace(path="a.ckpt", decoder={"mask_token": torch.zeros(4)}, info=info)
    checkpoint.require_decoder = lambda: None
    if expected is None:
        with pytest.raises(BadDataError, match="does not name the masks"):
            trained_mask(checkpoint)
    else:
        assert trained_mask(checkpoint) == expected


def test_files_of_2025_were_trained_with_window_masks() -> None:
    checkpoint = SimpleNamespace(path="a.ckpt", decoder={"mask_token": torch.zeros(256, 4)}, info={})
    checkpoint.require_decoder = lambda: None
    assert trained_mask(checkpoint) == "window"
