"""Loss of held-out clips: the same clips in each epoch, with the same masks, for any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bids_app.training.data.loader import Batch, ClipBatches, ClipSource

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class HeldOutClips:
    """Clips of participants that are not trained with.

    Attributes
    ----------
    scans : tuple of ClipSource
        All of their clips are used.
    batch_size : int
    losses : callable
        Computes the loss of each clip of a batch, (B,); random only by the seeds of the batch.
    seed : int
    """

    scans: tuple[ClipSource, ...]
    batch_size: int
    losses: Callable[[Batch], torch.Tensor]
    seed: int = 0

    def measure(self, compute: Callable[[Callable[[Any], torch.Tensor], Any], torch.Tensor], fabric: Fabric) -> float:
        """Return the mean loss of all clips; processes share the scans. See `bids_app.training.loop.HeldOut`."""
        rank, world = fabric.global_rank, fabric.world_size
        own = self.scans[rank::world]
        rounds = max(self._n_batches(self.scans[other::world]) for other in range(world))
        total = torch.zeros(2, dtype=torch.float64)  # sum, number of clips
        seen = [0] * len(own)
        if any(scan.n_clips for scan in own):
            for batch in ClipBatches(own, self.batch_size, random_starts=False).epoch(0):
                seeds = []
                for scan in batch.scans.tolist():
                    seeds.append(self._seed(rank + world * scan, seen[scan]))
                    seen[scan] += 1
                losses = compute(self.losses, replace(batch, seeds=torch.tensor(seeds)))
                total += torch.tensor([float(losses.double().sum()), len(losses)], dtype=torch.float64)
        for _ in range(self._n_batches(own), rounds):  # all processes pass through a divided model as often
            compute(self.losses, next(iter(ClipBatches(self.scans, 1, random_starts=False).epoch(0))))
        reduced: Any = fabric.all_reduce(total.to(fabric.device), reduce_op="sum")
        return float(reduced[0] / reduced[1])

    def _n_batches(self, scans: tuple[ClipSource, ...]) -> int:
        return -(-sum(scan.n_clips for scan in scans) // self.batch_size)

    def _seed(self, scan: int, clip: int) -> int:
        """Return the seed of a clip, by the numbers of its scan and of the clip in it."""
        return int(np.random.SeedSequence([self.seed, scan, clip]).generate_state(1, np.uint64)[0] >> 2)
