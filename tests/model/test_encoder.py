"""The encoder's shapes, positions and windows."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import BadDataError
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.patches import PatchMerging, from_patches, to_patches


def test_the_published_configuration_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in Encoder(EncoderConfig()).parameters()) == 5_173_020


def test_prompts_of_50_tokens_have_the_published_number_of_parameters():
    encoder = Encoder(EncoderConfig(prompt_len=50))
    assert sum(p.numel() for n, p in encoder.named_parameters() if n.endswith(".prompt")) == 82_800


def test_features_are_channels_first(small_encoder):
    assert small_encoder(torch.randn(2, 1, 24, 24, 24, 6)).shape == (2, 16, 2, 2, 2, 6)


def test_clips_of_a_batch_are_independent(small_encoder):
    a, b = torch.randn(2, 1, 24, 24, 24, 6)
    torch.testing.assert_close(small_encoder(torch.stack([a, b]))[:1], small_encoder(a[None]), rtol=1e-5, atol=1e-5)


def test_shorter_clips_are_accepted(small_encoder):
    assert small_encoder(torch.randn(1, 1, 24, 24, 24, 5)).shape[-1] == 5


@pytest.mark.parametrize(
    "shape", [(1, 24, 24, 24, 6), (1, 1, 24, 24, 18, 6), (1, 2, 24, 24, 24, 6), (1, 1, 24, 24, 24, 7)]
)
def test_clips_of_another_shape_are_rejected(small_encoder, shape):
    with pytest.raises(BadDataError, match="shape"):
        small_encoder(torch.zeros(shape))


def test_patches_are_flattened_with_the_last_axis_fastest():
    clips = torch.arange(2 * 4 * 4 * 4 * 3).reshape(1, 2, 4, 4, 4, 3)
    patches = to_patches(clips, (2, 2, 2, 1))
    assert patches[0, 1, 0, 1, 2].reshape(2, 2, 2, 2)[1, 0, 1, 1] == clips[0, 1, 3, 0, 3, 2]
    assert torch.equal(from_patches(patches, (2, 2, 2, 1), 2), clips)


def test_merging_concatenates_neighbours_in_the_order_of_their_offsets():
    x = torch.arange(8.0).reshape(1, 2, 2, 2, 1, 1).requires_grad_()
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    assert merging(x).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_every_parameter_gets_a_gradient():
    encoder = Encoder(EncoderConfig(img_size=(24, 24, 24, 6), embed_dim=8, depths=(2, 2), prompt_len=2))
    encoder(torch.randn(1, 1, 24, 24, 24, 6)).square().mean().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "change", [{"img_size": (96, 96, 90, 20)}, {"depths": ()}, {"embed_dim": 0}, {"window_size": (4, 4, 4)}]
)
def test_an_invalid_configuration_is_rejected(change):
    with pytest.raises(BadDataError, match=next(iter(change))):
        EncoderConfig(**change)


def test_a_configuration_survives_json():
    config = EncoderConfig(depths=(1, 2), img_size=(48, 48, 48, 8))
    assert EncoderConfig.from_dict(config.as_dict()) == config
    with pytest.raises(BadDataError, match="widths"):
        EncoderConfig.from_dict({**config.as_dict(), "widths": 3})
