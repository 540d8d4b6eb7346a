"""Batches of clips; seed and epoch alone determine their order, for any number of processes.

B  clips of a batch      T  volumes of a clip
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bids_app.errors import NoMatchError, UsageError


class ClipSource(Protocol):
    """Source of clips: a scan of a store or a segment of one."""

    @property
    def participant(self) -> str: ...

    @property
    def n_vols(self) -> int: ...

    @property
    def n_clips(self) -> int: ...

    @property
    def clip_volumes(self) -> int: ...

    def clip(self, start: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Batch of clips.

    Attributes
    ----------
    clips : torch.Tensor, (B, 1, 96, 96, 96, T)
    scans : torch.Tensor of int64, (B,)
        Index of the scan of each clip.
    seeds : torch.Tensor of int64, (B,)
        Random seed of each clip; independent of the number of processes.
    """

    clips: torch.Tensor
    scans: torch.Tensor
    seeds: torch.Tensor

    def __len__(self) -> int:
        return len(self.clips)

    def to(self, device: torch.device | str) -> Batch:
        """Copy clips and scan indices to a device; the seeds stay on the CPU."""
        clips, scans = (x.to(device, non_blocking=True) for x in (self.clips, self.scans))
        return Batch(clips, scans, self.seeds)


@dataclass(frozen=True)
class ClipBatches:
    """Batches of clips.

    Attributes
    ----------
    scans : tuple of ClipSource
    batch_size : int
        Clips per batch and process.
    seed : int
    random_starts : bool
        Read clips in random order from random volumes on (training) instead of consecutive clips (evaluation).
    aligned_starts : bool
        In random order, but starting at multiples of the length of a clip.
    shard : tuple of int
        Rank of this process and number of processes; together they read the batches of one process with a larger batch.
    identities : tuple of int, optional
        Identity of each scan; with random starts, clips of one identity are then read in pairs where possible.
    """

    scans: tuple[ClipSource, ...]
    batch_size: int
    seed: int = 0
    random_starts: bool = True
    shard: tuple[int, int] = (0, 1)
    identities: tuple[int, ...] | None = None
    aligned_starts: bool = False

    def __post_init__(self) -> None:
        if not any(scan.n_clips for scan in self.scans):
            raise NoMatchError(
                "All scans are shorter than a clip.",
                f"A clip of this encoder has {self.scans[0].clip_volumes} volumes at 0.8 s."
                if self.scans
                else "Give scans.",
            )
        if self.batch_size < 1:
            raise UsageError(f"Invalid value for --batch-size: {self.batch_size}.", "Use at least 1.")
        if self.shard[1] > 1 and self.n_clips < self._global_batch_size:
            raise UsageError(
                f"{self.n_clips} clips do not fill a batch of {self.batch_size} in each of {self.shard[1]} processes.",
                "Lower --batch-size or --processes.",
            )

    @property
    def n_clips(self) -> int:
        """Number of clips per epoch."""
        return sum(scan.n_clips for scan in self.scans)

    @property
    def _global_batch_size(self) -> int:
        return self.batch_size * self.shard[1]

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        if self.random_starts:
            return self.n_clips // self._global_batch_size or 1
        return -(-self.n_clips // self._global_batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from batch ``first`` on; the next batch is read in the background."""
        order = [(i, k * scan.clip_volumes) for i, scan in enumerate(self.scans) for k in range(scan.n_clips)]
        if self.random_starts:
            rng = np.random.default_rng([self.seed, number])
            if not self.aligned_starts:
                order = [
                    (i, int(rng.integers(self.scans[i].n_vols - self.scans[i].clip_volumes + 1))) for i, _ in order
                ]
            order = [order[k] for k in rng.permutation(len(order))]
            if self.identities is not None:
                order = _pair(order, self.identities)
        seeds = np.random.default_rng([self.seed, number, 1]).integers(2**62, size=len(order))
        starts = [k * self._global_batch_size + self.shard[0] * self.batch_size for k in range(first, self.steps)]
        spans = [slice(a, a + self.batch_size) for a in starts]
        return _read_ahead(self._read(order[span], seeds[span]) for span in spans)

    def _read(self, group: list[tuple[int, int]], seeds: np.ndarray) -> Batch:
        clips = torch.stack([self.scans[i].clip(start) for i, start in group])
        return Batch(clips, torch.tensor([i for i, _ in group]), torch.from_numpy(seeds))


def _pair(order: list[tuple[int, int]], identities: tuple[int, ...]) -> list[tuple[int, int]]:
    """Reorder clips so that two of one identity are adjacent; unpaired clips come last."""
    waiting: dict[int, tuple[int, int]] = {}
    paired: list[tuple[int, int]] = []
    for clip in order:
        identity = identities[clip[0]]
        if identity in waiting:
            paired += [waiting.pop(identity), clip]
        else:
            waiting[identity] = clip
    return paired + list(waiting.values())


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Read one batch ahead in a thread."""
    waiting: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # raised again by the consumer
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
