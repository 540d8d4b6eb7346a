"""Augmentation: its effect on known shapes, and its dependence on the seed of each clip alone."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from bids_app.errors import UsageError
from bids_app.training.data.augmentation import Augmentation, apply_affine, smooth

ALWAYS = {"p_affine": 1.0, "p_noise": 1.0, "p_smooth": 1.0}
NO_CHANGE = {"degrees": 0.0, "scale": 0.0, "shift": 0.0, "noise": 0.0, "sigma": 0.0, **ALWAYS}


def blob(at=(8, 8, 8), size: int = 16) -> torch.Tensor:
    """Rerotation a Gaussian in two volumes, (2, size, size, size)."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for _ in range(3)), indexing="ij")
    squares = sum((a - c) ** 2 for a, c in zip(axes, at, strict=True))
    return torch.exp(-squares / 4).repeat(2, 1, 1, 1)


def centre(volume: torch.Tensor) -> list[float]:
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in volume.shape), indexing="ij")
    return [float((a * volume).sum() / volume.sum()) for a in axes]


def test_a_shift_moves_along_one_axis():
    for axis in range(3):
        shift = torch.zeros(3)
        shift[axis] = 2.0
        expected = [8.0, 8.0, 8.0]
        expected[axis] -= 2.0  # the output at x shows the input at x + 2
        assert centre(apply_affine(blob(), torch.eye(3), shift)[1]) == pytest.approx(expected, abs=0.05)


def test_an_affine_rotates_and_scales_about_the_centre():
    rotation = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # offset (a, b, c) shows (-b, a, c)
    assert centre(apply_affine(blob((11, 7.5, 7.5)), rotation, torch.zeros(3))[0]) == pytest.approx(
        [7.5, 4.0, 7.5], abs=0.05
    )
    shrunk = apply_affine(blob((10.5, 7.5, 7.5)), torch.diag(torch.tensor([2.0, 1.0, 1.0])), torch.zeros(3))
    assert centre(shrunk[0]) == pytest.approx([9.0, 7.5, 7.5], abs=0.05)


def test_smoothing_has_the_given_width_along_each_axis():
    volume = torch.zeros(1, 21, 21, 21)
    volume[0, 10, 10, 10] = 1.0
    out = smooth(volume, (0.0, 1.0, 4.0 / 2.3548))[0]
    assert out.sum() == pytest.approx(1.0, abs=1e-3)
    assert out[10, 10, 12] / out[10, 10, 10] == pytest.approx(0.5, abs=0.01)
    assert out[10, 11, 10] / out[10, 10, 10] == pytest.approx(0.6065, abs=0.01)
    assert out[9].abs().max() == 0


def test_smoothing_equals_the_gaussian_filter_of_scipy():
    volumes = torch.randn(2, 9, 14, 11, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(volumes.numpy(), 2.0 / 2.3548, mode="constant", axes=(1, 2, 3), radius=3)
    assert smooth(
        volumes.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), [2.0 / 2.3548] * 3
    ).numpy() == pytest.approx(expected, abs=1e-6)


def test_augmentation_depends_on_the_seed_of_the_clip_alone():
    clips = torch.stack([blob().permute(1, 2, 3, 0)[None] - 3.0 for _ in range(3)])
    seeds = torch.tensor([5, 6, 5])
    out = Augmentation(**ALWAYS)(clips, seeds)
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out[1:2], Augmentation(**ALWAYS)(clips[1:2], seeds[1:2]))


def test_the_background_is_kept_and_all_volumes_move_together():
    clip = torch.zeros(1, 1, 16, 16, 16, 2)
    clip[0, 0, 4:12, 4:12, 4:12] = 2.0
    clip -= 1.5
    out = Augmentation(**{**NO_CHANGE, "noise": 0.5})(clip, torch.tensor([1]))
    assert (out[clip == -1.5] == -1.5).all()
    assert not torch.equal(out[..., 0], out[..., 1])
    moved = Augmentation(**{**NO_CHANGE, "degrees": 10.0, "shift": 2.0})(clip, torch.tensor([1]))
    assert not torch.equal(moved, clip)
    assert torch.equal(moved[..., 0], moved[..., 1])
    assert moved.min() == -1.5


def test_zero_settings_change_nothing():
    clip = blob().permute(1, 2, 3, 0)[None, None] - 1
    assert torch.allclose(Augmentation(**NO_CHANGE)(clip, torch.tensor([1])), clip, atol=1e-5)
    never = Augmentation(p_affine=0.0, p_noise=0.0, p_smooth=0.0)
    assert torch.equal(never(clip, torch.tensor([1])), (clip + 1) - 1)


def test_each_change_has_its_own_probability():
    clips = blob().permute(1, 2, 3, 0)[None, None].expand(400, -1, -1, -1, -1, -1)
    for name, change in (("p_affine", "shift"), ("p_noise", "noise"), ("p_smooth", "sigma")):
        augment = Augmentation(
            **{**NO_CHANGE, "p_affine": 0.0, "p_noise": 0.0, "p_smooth": 0.0, change: 0.5, name: 0.3}
        )
        changed = [not torch.allclose(out, clips[0], atol=1e-5) for out in augment(clips, torch.arange(400))]
        assert 0.2 < sum(changed) / 400 < 0.4, name


def test_noise_may_be_the_same_in_all_volumes_and_outside_of_the_brain():
    clip = torch.zeros(1, 1, 16, 16, 16, 3)
    clip[0, 0, 4:12, 4:12, 4:12] = 2.0
    noise = Augmentation(**{**NO_CHANGE, "noise": 0.5, "same_noise": True, "noise_outside": True})
    added = noise(clip, torch.tensor([1])) - clip
    torch.testing.assert_close(added[..., 0], added[..., 2])
    assert (added[0, 0, 0] != 0).all()


def test_padding_is_background_or_a_copy_of_the_edge():
    volume = torch.ones(1, 6, 6, 6)
    shift = torch.tensor([2.0, 0.0, 0.0])
    assert apply_affine(volume, torch.eye(3), shift, "zeros")[0, 5].max() == 0
    torch.testing.assert_close(apply_affine(volume, torch.eye(3), shift, "border"), volume)


@pytest.mark.parametrize("invalid", [{"degrees": -1.0}, {"scale": 1.0}, {"p_noise": 1.1}, {"padding": "mirror"}])
def test_invalid_settings_raise(invalid):
    with pytest.raises(UsageError):
        Augmentation(**invalid)
