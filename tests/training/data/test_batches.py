"""Batches travel as they are stored, and have the values of their clips on arrival."""

from __future__ import annotations

import torch

from bids_app.training.data.batches import Batch, QuantisedBatch, Request, read_batch
from bids_app.training.data.labels import Segment
from tests.training.data.test_loader import Counted


def test_a_batch_has_the_clips_of_its_scans_and_segments(make_store):
    first, second = make_store(1, n_vols=60)
    sources = [(first, 3), (second, 40), (Segment(first, 10, 45), 25)]
    batch = read_batch([Request(source, start, k, 7 + k) for k, (source, start) in enumerate(sources)])
    assert isinstance(batch, QuantisedBatch)
    assert batch.codes.dtype == torch.int8
    assert len(batch) == 3
    expected = torch.stack([source.clip(start) for source, start in sources])
    assert torch.equal(batch.clips, expected)
    assert torch.equal(expected[2], first.clip(35))
    moved = batch.to("cpu")
    assert torch.equal(moved.clips, expected)
    assert (moved.scans.tolist(), moved.seeds.tolist()) == ([0, 1, 2], [7, 8, 9])


def test_scans_of_different_brains_share_a_batch(tmp_path, invented_series):
    from dataclasses import replace

    from bids_app.training.data.store import ClipStore

    series = invented_series(n_vols=25)
    smaller = series.mask.copy()
    smaller[48:] = False
    part = replace(series, mask=smaller, values=series.values[:, smaller[series.mask]])
    store = ClipStore(tmp_path, "voxel")
    scans = [store.add("a", series, "01"), store.add("b", part, "02")]
    batch = read_batch([Request(scan, 2, k, 0) for k, scan in enumerate(scans)])
    assert batch.sizes[0] != batch.sizes[1]
    assert torch.equal(batch.clips, torch.stack([scan.clip(2) for scan in scans]))


def test_sources_without_codes_are_read_as_values():
    batch = read_batch([Request(Counted(3), 5, 0, 1)])
    assert isinstance(batch, Batch)
    assert (batch.clips == 305).all()


def test_segments_of_scans_without_codes_are_read_as_values():
    segment = Segment(Counted(3), 2, 60)  # type: ignore[arg-type]
    batch = read_batch([Request(segment, 5, 0, 1)])
    assert isinstance(batch, Batch)
    assert torch.equal(batch.clips[0], Counted(3).clip(7))
