"""Batches of clips, in an order and at times that only the seed and the epoch decide, whatever the number of processes.

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

from bids_app.clips import CLIP_VOLUMES
from bids_app.errors import NoMatchError, UsageError


class Readable(Protocol):
    """What clips are read from: a scan of a store, or a stretch of one."""

    @property
    def participant(self) -> str: ...

    @property
    def n_vols(self) -> int: ...

    @property
    def n_clips(self) -> int: ...

    def clip(self, start: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Clips of an epoch.

    Attributes
    ----------
    clips : torch.Tensor, (B, 1, 96, 96, 96, 20)
    scans : torch.Tensor of int64, (B,)
        Index of the scan that each is of.
    seeds : torch.Tensor of int64, (B,)
        A number of each clip's own, for what is random about it; the same however clips are dealt to processes.
    """

    clips: torch.Tensor
    scans: torch.Tensor
    seeds: torch.Tensor

    def __len__(self) -> int:
        return len(self.clips)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device; the seeds stay where they are."""
        clips, scans = (x.to(device, non_blocking=True) for x in (self.clips, self.scans))
        return Batch(clips, scans, self.seeds)


@dataclass(frozen=True)
class ClipBatches:
    """Batches of clips.

    Attributes
    ----------
    scans : tuple of Readable
    batch_size : int
        Clips that a process is given at a time.
    seed : int
    moving : bool
        Clips begin anywhere (training), or where they do without overlap (evaluation).
    share : tuple of int
        Which of how many processes this is; together they are given what one with the larger batch would be.
    kinds : tuple of int, optional
        Of each scan. Clips of moving batches then come in pairs of one kind, as far as there are two.
    """

    scans: tuple[Readable, ...]
    batch_size: int
    seed: int = 0
    moving: bool = True
    share: tuple[int, int] = (0, 1)
    kinds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not any(scan.n_clips for scan in self.scans):
            raise NoMatchError("No scan is as long as a clip.", f"A clip needs {CLIP_VOLUMES} volumes at 0.8 s.")
        if self.batch_size < 1:
            raise UsageError(f"A batch of {self.batch_size} was asked for.", "1 or more.")
        if self.share[1] > 1 and self.n_clips < self._together:
            raise UsageError(
                f"{self.n_clips} clips do not fill a batch of {self.batch_size} in each of {self.share[1]} processes.",
                "Take smaller batches, or fewer processes.",
            )

    @property
    def n_clips(self) -> int:
        """Clips of an epoch."""
        return sum(scan.n_clips for scan in self.scans)

    @property
    def _together(self) -> int:
        return self.batch_size * self.share[1]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.n_clips // self._together or 1 if self.moving else -(-self.n_clips // self._together)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from the ``first`` on, the next one read while the last is used."""
        order = [(i, k * CLIP_VOLUMES) for i, scan in enumerate(self.scans) for k in range(scan.n_clips)]
        if self.moving:
            rng = np.random.default_rng([self.seed, number])
            order = [(i, int(rng.integers(self.scans[i].n_vols - CLIP_VOLUMES + 1))) for i, _ in order]
            order = [order[k] for k in rng.permutation(len(order))]
            if self.kinds is not None:
                order = _paired(order, self.kinds)
        seeds = np.random.default_rng([self.seed, number, 1]).integers(2**62, size=len(order))
        begins = [k * self._together + self.share[0] * self.batch_size for k in range(first, self.steps)]
        spans = [slice(a, a + self.batch_size) for a in begins]
        return _ahead(self._read(order[span], seeds[span]) for span in spans)

    def _read(self, group: list[tuple[int, int]], seeds: np.ndarray) -> Batch:
        clips = torch.stack([self.scans[i].clip(start) for i, start in group])
        return Batch(clips, torch.tensor([i for i, _ in group]), torch.from_numpy(seeds))


def _paired(order: list[tuple[int, int]], kinds: tuple[int, ...]) -> list[tuple[int, int]]:
    """The same clips with two of a kind beside each other; those that are left over come last."""
    waiting: dict[int, tuple[int, int]] = {}
    paired: list[tuple[int, int]] = []
    for clip in order:
        kind = kinds[clip[0]]
        if kind in waiting:
            paired += [waiting.pop(kind), clip]
        else:
            waiting[kind] = clip
    return paired + list(waiting.values())


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
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
        except BaseException as error:  # handed to the reader, who raises it
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
