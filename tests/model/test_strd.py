"""Redundancy dropout: spatial and temporal neighbours, and dropped tokens."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import UsageError
from bids_app.model.strd import WINDOWS_PER_CHUNK, TokenDropout, drop_probability, neighbourhoods

WINDOW = (4, 4, 4, 4)


def test_neighbours_share_the_time_or_the_position():
    spatial, temporal = neighbourhoods(WINDOW, 3, 5)
    token = ((1 * 4 + 1) * 4 + 1) * 4 + 0  # position (1, 1, 1), first volume
    assert spatial[token].sum() == 26
    assert temporal[token].nonzero().flatten().tolist() == [token + 1, token + 2]


def test_the_probability_equals_the_formula_for_each_token():
    torch.manual_seed(0)
    window, h = (2, 2, 1, 3), torch.randn(1, 12, 6)
    spatial, temporal = neighbourhoods(window, 3, 3)
    a = torch.softmax(h[0] @ h[0].T / 6**0.5, -1)
    for i, probability in enumerate(drop_probability(h, window, 3, 3)[0]):
        s, t = spatial[i], temporal[i]
        w = 0.5 * (a[i, t].max() * a[i] / (a[i, s].sum() + 1e-8) + a[i, s].max() * a[i] / (a[i, t].sum() + 1e-8))
        expected = (w.clamp(0, 1).sum() / (s.sum() + t.sum())).clamp(0, 1)
        torch.testing.assert_close(probability, expected)


def test_tokens_without_neighbours_are_kept():
    assert drop_probability(torch.randn(2, 4, 8), (2, 2, 1, 1), 1, 1).abs().max() == 0


def test_tokens_are_dropped_with_their_probability():
    torch.manual_seed(0)
    tokens = torch.randn(1, 256, 12)
    probability = drop_probability(tokens, WINDOW)
    dropout = TokenDropout().train()
    dropped = torch.stack([(dropout(tokens, WINDOW) == 0).all(-1) for _ in range(400)]).float().mean(0)
    torch.testing.assert_close(dropped, probability, atol=0.12, rtol=0)


def test_kept_tokens_receive_gradients():
    torch.manual_seed(0)
    tokens = torch.randn(1, 256, 12, requires_grad=True)
    kept = TokenDropout().train()(tokens, WINDOW)
    kept.sum().backward()
    assert torch.equal(tokens.grad != 0, (kept != 0).all(-1, keepdim=True).expand_as(kept))


def test_neighbourhoods_below_one_are_rejected():
    with pytest.raises(UsageError):
        TokenDropout(0, 5)


def test_windows_are_independent_of_each_other():
    tokens = torch.randn(2 * WINDOWS_PER_CHUNK + 3, 24, 5, generator=torch.Generator().manual_seed(3))
    together = drop_probability(tokens, (3, 2, 2, 2))
    alone = torch.cat([drop_probability(one[None], (3, 2, 2, 2)) for one in tokens])
    assert torch.allclose(together, alone, atol=1e-6)
