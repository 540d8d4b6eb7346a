"""Batches of clips: their order, and its independence of the number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bids_app.errors import NoInputError, TemporaryError, UsageError
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


@dataclass(frozen=True)
class Deadly(Counted):
    """A clip source that kills the process that reads it, as the system does without memory."""

    def clip(self, start: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


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


@pytest.mark.parametrize("workers", [0, 1])
def test_read_errors_are_raised_in_the_training_loop(make_store, workers):
    scans = tuple(make_store(1))
    os.unlink(scans[1].shard.place.path(scans[1].shard.file))
    with pytest.raises(NoInputError, match=r"\.tar: no such file"):
        list(ClipBatches(scans, 1, workers=workers).epoch(0))


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


def test_the_order_of_an_epoch_is_that_of_earlier_versions():
    batches = ClipBatches(FOUR, 4, seed=3)
    scans, starts, seeds = batches.order(1)
    rng = np.random.default_rng([3, 1])
    drawn = [(scan, int(rng.integers(44 - 20 + 1))) for scan in range(4) for _ in range(2)]
    expected = [drawn[k] for k in rng.permutation(8)]
    assert list(zip(scans.tolist(), starts.tolist(), strict=True)) == expected
    assert seeds.tolist() == np.random.default_rng([3, 1, 1]).integers(2**62, size=8).tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_processes_change_neither_clips_nor_their_order(make_store, workers):
    scans = tuple(make_store(2, n_vols=44))
    expected = list(ClipBatches(scans, 3, seed=1).epoch(0, first=1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = list(ClipBatches(scans, 3, seed=1, workers=workers).epoch(0, first=1))
    assert torch.equal(torch.get_rng_state(), before)  # random numbers of the training are the same, too
    assert len(found) == len(expected) == 1
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one.clips, two.clips)
        assert (one.scans.tolist(), one.seeds.tolist()) == (two.scans.tolist(), two.seeds.tolist())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_does_not_end_its_reading_processes(make_store, number):
    """SLURM sends SIGTERM to all of them; the run makes a step more, and saves its state."""
    epoch = ClipBatches(tuple(make_store(2, n_vols=44)), 1, workers=1).epoch(0)
    next(epoch)
    for reader in multiprocessing.active_children():
        os.kill(reader.pid, number)
    assert len(list(epoch)) == 7
    assert multiprocessing.active_children() == []


def test_a_killed_reading_process_is_reported(make_store):
    batches = ClipBatches((Deadly(0), *make_store(1)), 1, random_starts=False, workers=1)
    with pytest.raises(TemporaryError, match="reading process was killed") as caught:
        list(batches.epoch(0))
    assert "--workers" in caught.value.hint


def test_reading_processes_end_with_the_loop(make_store):
    epoch = ClipBatches(tuple(make_store(1)), 1, workers=2).epoch(0)
    next(epoch)
    assert len(multiprocessing.active_children()) == 2
    epoch.close()
    assert multiprocessing.active_children() == []


def test_too_little_shared_memory_is_refused(make_store, monkeypatch):
    state = os.statvfs("/")
    small = os.statvfs_result((state.f_bsize, 1024, *state[2:4], 1, *state[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    with pytest.raises(UsageError, match="/dev/shm has 0 MB") as caught:
        next(ClipBatches(tuple(make_store(1)), 8, workers=2).epoch(0))
    assert "--workers" in caught.value.hint
