"""Batches of clips."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from bids_app.errors import UsageError
from bids_app.training.data.loader import ClipBatches


@dataclass(frozen=True)
class Counted:
    """A scan whose clips say where they begin."""

    number: int
    n_vols: int = 44
    n_clips: int = 2
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
    batches = list(ClipBatches(scans, 3, moving=False).epoch(0))
    assert [b.scans.tolist() for b in batches] == [[0, 0, 1], [1]]
    assert torch.equal(batches[0].clips[1], scans[0].clip(20))


def test_an_error_while_reading_reaches_the_trainer(make_store):
    scans = tuple(make_store(1))
    (scans[1].folder / "values.npy").unlink()
    with pytest.raises(FileNotFoundError):
        list(ClipBatches(scans, 1).epoch(0))


def test_leaving_a_loop_early_stops_the_reader(make_store):
    import threading

    before = threading.active_count()
    for _ in ClipBatches(tuple(make_store(1)), 1).epoch(0):
        break
    assert threading.active_count() == before


def test_processes_are_dealt_what_one_with_the_larger_batch_is_given():
    scans = FOUR
    whole = list(ClipBatches(scans, 4, seed=2).epoch(3))
    halves = [list(ClipBatches(scans, 2, seed=2, share=(rank, 2)).epoch(3)) for rank in range(2)]
    assert [len(h) for h in halves] == [len(whole)] * 2
    for one, *parts in zip(whole, *halves, strict=True):
        for name in ("clips", "scans", "seeds"):
            assert torch.equal(getattr(one, name), torch.cat([getattr(p, name) for p in parts]))


def test_an_epoch_can_be_entered_in_the_middle():
    batches = ClipBatches(FOUR, 2, seed=1)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, first=3))
    assert [b.seeds.tolist() for b in rest] == [b.seeds.tolist() for b in whole[3:]]
    assert torch.equal(rest[0].clips, whole[3].clips)


def test_more_processes_than_clips_are_refused():
    with pytest.raises(UsageError, match="2 clips do not fill"):
        ClipBatches(FOUR[:1], 2, share=(0, 2))


def test_clips_of_a_kind_come_in_pairs():
    scans = tuple(Counted(k) for k in range(8))
    kinds = tuple(k % 4 for k in range(8))
    order = torch.cat([b.scans for b in ClipBatches(scans, 4, seed=3, kinds=kinds).epoch(0)])
    assert sorted(order.tolist()) == sorted([*range(8)] * 2)
    of_pairs = order.reshape(-1, 2) % 4
    assert (of_pairs[:, 0] == of_pairs[:, 1]).all()
