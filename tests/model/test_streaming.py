"""Clips are processed in order, in batches that fit the memory."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import TemporaryError
from bids_app.model.encoder import EncoderConfig
from bids_app.model.streaming import apply_in_batches, clip_bytes, starting_batch


class Device:
    """A device with memory for ``capacity`` clips that records the tried batches."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.tried = capacity, []

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        self.tried.append(len(clips))
        if len(clips) > self.capacity:
            raise torch.OutOfMemoryError
        return clips.flatten(1)[:, :1]


def numbered(n: int):
    return (torch.full((1, 2, 2, 2, 2), float(i)) for i in range(n))


@pytest.mark.parametrize(
    ("n", "batch", "capacity"), [(10, 4, 99), (10, 8, 3), (5, 8, 1), (7, 1, 1), (0, 4, 4), (3, 32, 2)]
)
def test_outputs_are_in_order_with_any_memory(n, batch, capacity):
    answers = list(apply_in_batches(Device(capacity), numbered(n), batch))
    assert torch.cat([torch.zeros(0, 1), *answers]).flatten().tolist() == list(range(n))


def test_a_batch_size_that_was_halved_stays_halved():
    device = Device(capacity=2)
    list(apply_in_batches(device, numbered(12), 8))
    assert device.tried == [8, 4, 2, 2, 2, 2, 2, 2]


def test_too_little_memory_for_one_clip_is_a_temporary_error():
    with pytest.raises(TemporaryError, match="one clip"):
        list(apply_in_batches(Device(capacity=0), numbered(3), 4))


def test_no_more_clips_wait_than_a_batch_holds():
    alive = []

    def clips():
        for i in range(9):
            alive.append(i)
            yield torch.zeros(1, 1, 1, 1, 1)

    for answered, _ in enumerate(apply_in_batches(Device(99), clips(), 3), start=1):
        assert len(alive) == 3 * answered


@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (2, 1), (4, 2), (8, 4), (64, 4)])
def test_a_cpu_takes_as_many_clips_as_keep_its_cores_busy(threads, batch, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert starting_batch(EncoderConfig(), torch.device("cpu")) == batch


def test_a_clip_of_the_published_size_takes_some_hundred_megabytes():
    assert 200e6 < clip_bytes(EncoderConfig()) < 500e6
