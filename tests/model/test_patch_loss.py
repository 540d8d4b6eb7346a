"""Reconstruction loss of hidden patches, compared with that of all patches."""

from __future__ import annotations

import pytest
import torch

from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.patch_loss import select_patches, select_rows
from bids_app.model.patches import to_patches

CONFIG = EncoderConfig(img_size=(8, 8, 8, 4), patch_size=(2, 2, 2, 1), embed_dim=8, depths=(1, 1))


def masks(kind: str) -> torch.Tensor:
    """Return a mask (2, 4, 4, 4, 4) in which the clips have different numbers of hidden patches."""
    drawn = torch.rand(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    drawn[1] = drawn[1].square()
    return drawn * (drawn > 0.4) if kind == "partly hidden" else (drawn > 0.5).float()


@pytest.mark.parametrize("kind", ["hidden", "partly hidden"])
@pytest.mark.parametrize("has_weights", [False, True])
def test_losses_and_gradients_are_those_of_all_patches(kind: str, has_weights: bool) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG)
    clips, mask = torch.randn(2, 1, 8, 8, 8, 4), masks(kind)
    weights = torch.rand(1, 4, 4, 4, 1) if has_weights else None

    def gradients(losses: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (losses * torch.tensor([1.0, 3.0])).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    prediction = model(clips, mask)
    wanted = torch.stack(
        [model.loss(prediction[i : i + 1], clips[i : i + 1], mask[i : i + 1], weights) for i in (0, 1)]
    )
    found = model.losses(clips, mask, weights=weights)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    expected, own = gradients(wanted), gradients(found)
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (own[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_clip_without_hidden_patches_has_no_loss() -> None:
    torch.manual_seed(0)
    losses = MaskedAutoencoder(CONFIG).losses(torch.randn(1, 1, 8, 8, 8, 4), torch.zeros(1, 4, 4, 4, 4))
    losses.sum().backward()
    assert losses.tolist() == [0.0]


def test_chosen_patches_are_rows_of_all_patches() -> None:
    clip, chosen = torch.randn(1, 8, 8, 8, 4), masks("hidden")[0] > 0
    wanted = to_patches(clip[None], CONFIG.patch_size)[0][chosen]
    assert torch.equal(select_patches(clip, CONFIG.patch_size, chosen), wanted)


def test_the_gradient_of_rows_passes_a_numerical_check() -> None:
    tokens = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: select_rows(x, torch.tensor([3, 0])).square(), tokens)
