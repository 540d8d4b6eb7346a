"""Shares of datasets in an epoch."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.sampling import DatasetWeights
from tests.training.data.test_loader import Counted

SCANS = tuple(Counted(k) for k in range(10))  # two clips each
OWNERS = (0,) * 8 + (1,) * 2


def drawn(batches: ClipBatches, epoch: int) -> list[tuple[int, int]]:
    scans, starts, _ = batches.order(epoch)
    return list(zip(scans.tolist(), starts.tolist(), strict=True))


def test_uniform_weights_subsample_to_the_smallest_dataset():
    batches = ClipBatches(SCANS, 2, seed=1, aligned_starts=True, weights=DatasetWeights(OWNERS, (1.0, 1.0)))
    assert (batches.n_clips, batches.steps) == (8, 4)
    first, second = drawn(batches, 0), drawn(batches, 1)
    for clips in (first, second):
        assert len(set(clips)) == 8  # no clip twice
        assert np.bincount([OWNERS[scan] for scan, _ in clips]).tolist() == [4, 4]
    assert set(first) != set(second)  # other clips of the larger dataset
    assert drawn(batches, 0) == first


def test_weights_are_shares_of_the_clips():
    batches = ClipBatches(SCANS, 2, weights=DatasetWeights(OWNERS, (6.0, 2.0)))
    assert np.bincount([OWNERS[scan] for scan, _ in drawn(batches, 0)]).tolist() == [12, 4]


def test_shares_do_not_depend_on_processes():
    weights = DatasetWeights(OWNERS, (1.0, 1.0))
    whole = [b.scans.tolist() for b in ClipBatches(SCANS, 4, weights=weights).epoch(2)]
    halves = [[b.scans.tolist() for b in ClipBatches(SCANS, 2, weights=weights, shard=(r, 2)).epoch(2)] for r in (0, 1)]
    assert whole == [one + two for one, two in zip(*halves, strict=True)]


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, float("nan")), (1.0, float("inf")), (1.0, 1e9)])
def test_weights_without_clips_are_refused(weights):
    with pytest.raises(UsageError, match="--dataset-weights"):
        ClipBatches(SCANS, 2, weights=DatasetWeights(OWNERS, weights))
