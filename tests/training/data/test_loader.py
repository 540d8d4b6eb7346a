"""Batches of clips: their order, and its independence of the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from bids_app.errors import NoInputError, UsageError
from bids_app.training.data.loader import ClipBatches


@dataclass(frozen=True)
class Counted:
    """A clip source whose values encode its number and the start of the clip."""

    number: int
    n_vols: int = 44
    n_clips: int = 2
    clip_volumes: int = 20
    participant: str = ""

    def clip(self, start: int) -> torch.Tensor:
        return torch.full((1, 2, 2, 2, 20), 100.0 * self.number + start)


FOUR = tuple(Counted(k) for k in range(4))


def test_batches_depend_on_seed_and_epoch_alone():
    scans = FOUR[:2]
    batches = ClipBatches(scans, 2, seed=5)
    first, again, later = (list(batches.epoch(k)) for k in (0, 0, 1))
    assert len(first) == batches.steps == 2
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.clips, b.clips) for a, b in zip(first, later, strict=True))
    assert sorted(torch.cat([b.scans for b in first]).tolist()) == [0, 0, 1, 1]


def test_evaluation_reads_each_clip_once_in_order(make_store):
    scans = tuple(make_store(1, n_vols=44))
    batches = list(ClipBatches(scans, 3, random_starts=False).epoch(0))
    assert [b.scans.tolist() for b in batches] == [[0, 0, 1], [1]]
    assert torch.equal(batches[0].clips[1], scans[0].clip(20))


def test_read_errors_are_raised_in_the_training_loop(make_store):
    scans = tuple(make_store(1))
    (scans[1].folder / "values.npy").unlink()
    with pytest.raises(NoInputError, match=r"values\.npy"):
        list(ClipBatches(scans, 1).epoch(0))


def test_leaving_the_loop_stops_the_reading_thread(make_store):
    import threading

    before = threading.active_count()
    for _ in ClipBatches(tuple(make_store(1)), 1).epoch(0):
        break
    assert threading.active_count() == before


def test_processes_together_read_the_batches_of_one_process():
    scans = FOUR
    whole = list(ClipBatches(scans, 4, seed=2).epoch(3))
    halves = [list(ClipBatches(scans, 2, seed=2, shard=(rank, 2)).epoch(3)) for rank in range(2)]
    assert [len(h) for h in halves] == [len(whole)] * 2
    for one, *parts in zip(whole, *halves, strict=True):
        for name in ("clips", "scans", "seeds"):
            assert torch.equal(getattr(one, name), torch.cat([getattr(p, name) for p in parts]))


def test_an_epoch_can_be_resumed():
    batches = ClipBatches(FOUR, 2, seed=1)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, first=3))
    assert [b.seeds.tolist() for b in rest] == [b.seeds.tolist() for b in whole[3:]]
    assert torch.equal(rest[0].clips, whole[3].clips)


def test_too_few_clips_for_the_processes_raise():
    with pytest.raises(UsageError, match="2 clips do not fill"):
        ClipBatches(FOUR[:1], 2, shard=(0, 2))


def test_clips_of_one_identity_come_in_pairs():
    scans = tuple(Counted(k) for k in range(8))
    identities = tuple(k % 4 for k in range(8))
    order = torch.cat([b.scans for b in ClipBatches(scans, 4, seed=3, identities=identities).epoch(0)])
    assert sorted(order.tolist()) == sorted([*range(8)] * 2)
    pairs = order.reshape(-1, 2) % 4
    assert (pairs[:, 0] == pairs[:, 1]).all()
