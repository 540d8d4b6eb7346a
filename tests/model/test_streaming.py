"""Clips stream through a model in order, whatever memory allows at a time."""

from __future__ import annotations

import pytest
import torch

from bids_app.errors import TemporaryError
from bids_app.model.encoder import EncoderConfig
from bids_app.model.streaming import apply_in_batches, clip_bytes, starting_batch


class Device:
    """Has memory for some clips at a time; remembers the batches that were tried."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, []

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        self.tried.append(len(clips))
        if len(clips) > self.room:
            raise torch.OutOfMemoryError
        return clips.flatten(1)[:, :1]


def numbered(n: int):
    return (torch.full((1, 2, 2, 2, 2), float(i)) for i in range(n))


@pytest.mark.parametrize(("n", "batch", "room"), [(10, 4, 99), (10, 8, 3), (5, 8, 1), (7, 1, 1), (0, 4, 4), (3, 32, 2)])
def test_answers_come_in_order_whatever_the_room(n, batch, room):
    answers = list(apply_in_batches(Device(room), numbered(n), batch))
    assert torch.cat([torch.zeros(0, 1), *answers]).flatten().tolist() == list(range(n))


def test_a_batch_that_was_too_large_is_halved_once_and_for_all():
    device = Device(room=2)
    list(apply_in_batches(device, numbered(12), 8))
    assert device.tried == [8, 4, 2, 2, 2, 2, 2, 2]


def test_no_room_for_one_clip_is_an_error_that_may_pass():
    with pytest.raises(TemporaryError, match="one clip"):
        list(apply_in_batches(Device(room=0), numbered(3), 4))


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
