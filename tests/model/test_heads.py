"""Heads of the three published versions."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import BadDataError
from bids_app.model.heads import HEADS, build_head, n_outputs, pool


@pytest.mark.parametrize("version", HEADS)
def test_a_head_is_rebuilt_from_its_keys(version):
    torch.manual_seed(0)
    head = HEADS[version](16, 3, 2 * 2 * 2 * 5).eval()
    features = torch.randn(2, 16, 2, 2, 2, 5)
    again, unused_keys = build_head(head.state_dict())
    assert again.version == version
    assert unused_keys == ()
    torch.testing.assert_close(again(features), head(features))


@pytest.mark.parametrize("version", ["v3", "v3-2025"])
def test_the_number_of_transformer_layers_is_read_from_the_keys(version):
    head = HEADS[version](16, 3, 8, 2).eval()
    again, _ = build_head(head.state_dict())
    assert len(again.transformer_encoder["layers"]) == 2


def test_the_token_head_attends_to_its_own_clip_only():
    torch.manual_seed(0)
    head = HEADS["v3"](16, 1, 8).eval()
    a, b, c = torch.randn(3, 16, 2, 2, 2, 1)
    alone = head(a[None])
    torch.testing.assert_close(head(torch.stack([a, b]))[:1], alone)
    assert (head(c[None]) - alone).abs() > 1e-4


def test_fewer_tokens_than_positions_use_the_first_positions_and_more_are_an_error():
    head = HEADS["v3"](16, 1, 8).eval()
    assert head(torch.randn(1, 16, 2, 2, 1, 1)).shape == (1, 1)
    with pytest.raises(BadDataError, match="8 tokens but received 16"):
        head(torch.randn(1, 16, 2, 2, 2, 2))


def without_batch_first(head, features: torch.Tensor) -> torch.Tensor:
    """The v3 head of 2025 as published: its layers take the first axis, of clips, for that of the tokens."""
    tokens = features.flatten(2).transpose(1, 2)
    x = torch.cat([head.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + head.pos_embed
    for layer in head.transformer_encoder["layers"]:
        published = torch.nn.TransformerEncoderLayer(16, 8, 64, 0.1).eval()
        published.load_state_dict(layer.state_dict())
        x = published(x)
    return head.mlp_head(x[:, 0])


@pytest.mark.parametrize("n_clips", [1, 3])
def test_the_v3_head_of_2025_gives_the_published_output_which_is_the_same_for_every_clip(n_clips):
    torch.manual_seed(0)
    head = HEADS["v3-2025"](16, 2, 8, 3).eval()
    for parameter in head.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    features = torch.randn(n_clips, 16, 2, 2, 2, 1)
    torch.testing.assert_close(head(features), without_batch_first(head, features))
    torch.testing.assert_close(head(features), head(torch.randn_like(features)), rtol=0, atol=0)


def test_the_error_for_an_unknown_head_lists_its_keys_and_the_way_to_embeddings():
    with pytest.raises(BadDataError, match=r"unknown kind.*fc1\.weight") as caught:
        build_head({"fc1.weight": torch.zeros(2, 2), "bn1.weight": torch.zeros(2)})
    assert "--level minimal" in caught.value.hint
    assert caught.value.exit_code == 65


def test_two_classes_have_one_logit():
    assert [n_outputs(n) for n in (1, 2, 3, 7)] == [1, 1, 3, 7]


def test_the_error_for_an_incomplete_head_names_the_missing_key():
    with pytest.raises(BadDataError, match=r"head\.weight"):
        build_head({"head.bias": torch.zeros(1)})


def test_pooling_is_the_mean_over_all_tokens():
    features = torch.randn(2, 3, 2, 2, 2, 4)
    torch.testing.assert_close(pool(features), features.flatten(2).mean(-1))
