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


def test_the_token_head_attends_to_its_own_clip_only():
    torch.manual_seed(0)
    head = HEADS["v3"](16, 1, 8).eval()
    a, b, c = torch.randn(3, 16, 2, 2, 2, 1)
    alone = head(a[None])
    torch.testing.assert_close(head(torch.stack([a, b]))[:1], alone)
    assert (head(c[None]) - alone).abs() > 1e-4


def test_two_classes_have_one_logit():
    assert [n_outputs(n) for n in (1, 2, 3, 7)] == [1, 1, 3, 7]


def test_the_error_for_an_incomplete_head_names_the_missing_key():
    with pytest.raises(BadDataError, match=r"head\.weight"):
        build_head({"head.bias": torch.zeros(1)})


def test_pooling_is_the_mean_over_all_tokens():
    features = torch.randn(2, 3, 2, 2, 2, 4)
    torch.testing.assert_close(pool(features), features.flatten(2).mean(-1))
