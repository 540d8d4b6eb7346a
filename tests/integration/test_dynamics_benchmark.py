"""The benchmark of dynamics: encoders of block averages give the output of encoders of voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE
from bids_app.model.api import load_model
from bids_app.model.heads import pool
from bids_app.phantom.dynamic_cohorts import CohortPlan, dynamic_traits
from bids_app.training.data.store import ClipStore
from tests.helpers.scripts import load_benchmark

dynamics = load_benchmark("dynamics")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a scan of 4 mm voxels in a store."""
    folder = tmp_path_factory.mktemp("cohort")
    scan = dynamic_traits(folder, 2, CohortPlan(seconds=24.0))[0]
    return ClipStore(folder / "clips", "voxel").add(scan.name, scan.simulate().series, scan.participant)


def test_block_averages_are_those_of_voxels_that_stand_for_their_neighbours(stored):
    sparse = stored.clip(0)[0].numpy()
    whole = sparse[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    means = whole.reshape(16, 6, 16, 6, 16, 6, CLIP_VOLUMES).mean(axis=(1, 3, 5))
    found = dynamics.BlockScan(**vars(stored)).clip(0)[0].numpy()
    assert np.abs(means - found).max() < 1e-4


def test_the_encoder_of_block_averages_equals_that_of_voxels(stored, tmp_path):
    clip = dynamics.BlockScan(**vars(stored)).clip(0)
    voxels = clip
    for axis in (1, 2, 3):
        voxels = voxels.repeat_interleave(6, dim=axis)
    assert voxels.shape == (1, *MODEL_GRID_SHAPE, CLIP_VOLUMES)
    coarse, whole = dynamics.make_encoder(dynamics.ENCODER, tmp_path), load_model(dynamics.DEMONSTRATION)
    with torch.no_grad():
        expected, found = pool(whole.encode(voxels[None])), pool(coarse.encode(clip[None]))
    assert torch.allclose(expected, found, atol=1e-4, rtol=1e-3)
    assert found.std() > 0.01


def test_the_rule_names_the_region_with_the_largest_deviation():
    sds = np.array([[0.9, 0.2, 0.3], [0.2, 0.8, 0.3], [0.2, 0.1, 0.7], [0.3, 0.4, 0.2]])
    states = np.array(["righthand", "lefthand", "visual", "rest"])
    assert dynamics.apply_rule(sds, 0.5).tolist() == states.tolist()
    assert 0.4 <= dynamics.best_threshold(sds, states) < 0.7
