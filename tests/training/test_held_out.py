"""Held-out loss: independent of the epoch, the batches and the number of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bids_app.training.held_out import HeldOutClips
from tests.training.test_pretrain import SmallScan

SCANS = tuple(SmallScan(seed, n_vols) for seed, n_vols in enumerate((44, 20, 61, 12, 40)))


def random_losses(batch) -> torch.Tensor:
    """A loss that depends on the clip and on its seed."""
    noise = [torch.rand((), generator=torch.Generator().manual_seed(int(seed))) for seed in batch.seeds]
    return batch.clips.square().mean(dim=(1, 2, 3, 4, 5)) + torch.stack(noise)


def measure(rank: int = 0, world: int = 1, batch_size: int = 2) -> tuple[float, torch.Tensor]:
    """Return the loss that a process finds, and the sum and number of its own clips."""
    own = []

    def all_reduce(total, reduce_op):
        own.append(total)
        return total

    fabric = SimpleNamespace(global_rank=rank, world_size=world, device="cpu", all_reduce=all_reduce)
    found = HeldOutClips(SCANS, batch_size, random_losses).measure(lambda loss_of, batch: loss_of(batch), fabric)
    return found, own[0]


def test_held_out_loss_is_the_mean_over_all_clips_for_any_number_of_processes():
    whole, total = measure()
    assert total[1] == sum(scan.n_clips for scan in SCANS) == 8
    parts = sum(measure(rank, 3)[1] for rank in range(3))
    assert float(parts[0] / parts[1]) == pytest.approx(whole, rel=1e-7)


def test_held_out_loss_has_the_same_masks_each_time_and_in_any_batches():
    torch.manual_seed(1)
    first = measure()[0]
    torch.manual_seed(2)
    assert measure()[0] == first
    assert measure(batch_size=5)[0] == pytest.approx(first, rel=1e-6)
