"""Dequantising gives the same bits as the formula, whatever the device and the order of operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.training.data.quantise import BACKGROUND, N_VOXELS, QuantisedClip, dequantise, voxels_of


def make_clip(seed: int = 0, n_voxels: int = 5000, n_vols: int = 20) -> QuantisedClip:
    rng = np.random.default_rng(seed)
    mask = np.zeros(N_VOXELS, bool)
    mask[rng.permutation(N_VOXELS)[:n_voxels]] = True
    codes = rng.integers(-128, 128, (n_vols, n_voxels)).astype(np.int8)
    return QuantisedClip(codes, np.packbits(mask), float(rng.uniform(0.01, 0.1)), float(rng.normal()))


def by_formula(clip: QuantisedClip) -> torch.Tensor:
    """Fill a grid of codes, then compute its values in Python numbers, as earlier versions did."""
    codes = torch.full((N_VOXELS, len(clip.codes)), BACKGROUND, dtype=torch.int8)
    codes[torch.from_numpy(voxels_of(clip.mask))] = torch.from_numpy(np.ascontiguousarray(clip.codes.T))
    values = torch.where(codes == BACKGROUND, clip.background, codes.float().mul_(clip.scale))
    return values.reshape(1, *MODEL_GRID_SHAPE, -1)


@pytest.mark.parametrize("seed", range(3))
def test_values_are_bit_equal_to_the_formula(seed):
    clip = make_clip(seed)
    assert torch.equal(clip.values(), by_formula(clip))


@pytest.mark.gpu
def test_values_on_a_gpu_are_bit_equal():
    clip = make_clip()
    numbers = torch.tensor([clip.scale, clip.background], device="cuda")
    out = torch.empty(1, *MODEL_GRID_SHAPE, 20, device="cuda")
    dequantise(torch.from_numpy(clip.codes).cuda(), torch.from_numpy(clip.mask).cuda(), numbers[0], numbers[1], out)
    assert torch.equal(out.cpu(), clip.values())
