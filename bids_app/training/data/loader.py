"""Batches of clips; seed and epoch alone determine their order, for any number of processes and of reading processes.

B  clips of a batch      T  volumes of a clip
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bids_app.errors import NeurostormError, NoMatchError, UsageError
from bids_app.training.data.batches import Batch, ClipSource, QuantisedBatch, QuantisedSource, Request, read_batch
from bids_app.training.data.sampling import DatasetWeights, pair
from bids_app.training.processes import lost_reader

AnyBatch = Batch | QuantisedBatch
BATCHES_AHEAD = 2
"""Batches that each reading process reads ahead."""
VOLUME_BYTES = 300_000
"""Upper estimate of the brain voxels of a volume, for the size of shared memory."""
SHARED_MEMORY = "/dev/shm"


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
    weights : DatasetWeights, optional
        Shares of datasets, with random starts; None: each clip of all datasets once.
    workers : int
        Reading processes; 0: a thread. They change neither clips nor their order.
    pin : bool
        Read into page-locked memory, for a GPU; requires reading processes.
    """

    scans: tuple[ClipSource, ...]
    batch_size: int
    seed: int = 0
    random_starts: bool = True
    shard: tuple[int, int] = (0, 1)
    identities: tuple[int, ...] | None = None
    aligned_starts: bool = False
    weights: DatasetWeights | None = None
    workers: int = 0
    pin: bool = False

    def __post_init__(self) -> None:
        if not self._counts.any():
            raise NoMatchError(
                "All scans are shorter than a clip.",
                f"A clip of this encoder has {self.scans[0].clip_volumes} volumes at 0.8 s."
                if self.scans
                else "Give scans.",
            )
        if self.batch_size < 1:
            raise UsageError(f"Invalid value for --batch-size: {self.batch_size}.", "Use at least 1.")
        n_clips = self.n_clips  # checks the weights, too
        if self.shard[1] > 1 and n_clips < self._global_batch_size:
            raise UsageError(
                f"{self.n_clips} clips do not fill a batch of {self.batch_size} in each of {self.shard[1]} processes.",
                "Lower --batch-size or --devices.",
            )

    @cached_property
    def _counts(self) -> np.ndarray:
        """Number of clips of each scan, (S,)."""
        return np.array([scan.n_clips for scan in self.scans], dtype=int)

    @cached_property
    def n_clips(self) -> int:
        """Number of clips per epoch."""
        if self.weights is not None and self.random_starts:
            return int(self.weights.clips_of_datasets(self._counts).sum())
        return int(self._counts.sum())

    @property
    def _global_batch_size(self) -> int:
        return self.batch_size * self.shard[1]

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        if self.random_starts:
            return self.n_clips // self._global_batch_size or 1
        return -(-self.n_clips // self._global_batch_size)

    def order(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return scan, first volume and seed of each clip of an epoch, (N,) each."""
        scans = np.repeat(np.arange(len(self.scans)), self._counts)
        lengths = np.array([scan.clip_volumes for scan in self.scans])
        starts = (np.arange(len(scans)) - (np.cumsum(self._counts) - self._counts)[scans]) * lengths[scans]
        if self.random_starts:
            if self.weights is not None:
                chosen = self.weights.select(scans, self._counts, np.random.default_rng([self.seed, number, 2]))
                scans, starts = scans[chosen], starts[chosen]
            rng = np.random.default_rng([self.seed, number])
            if not self.aligned_starts:
                starts = rng.integers((np.array([scan.n_vols for scan in self.scans]) - lengths + 1)[scans])
            shuffled = rng.permutation(len(scans))
            scans, starts = scans[shuffled], starts[shuffled]
            if self.identities is not None:
                paired = pair(scans, self.identities)
                scans, starts = scans[paired], starts[paired]
        return scans, starts, np.random.default_rng([self.seed, number, 1]).integers(2**62, size=len(scans))

    def epoch(self, number: int, first: int = 0) -> Iterator[AnyBatch]:
        """Iterate over the batches of an epoch from batch ``first`` on; the next ones are read in the background."""
        requests = self._requests(number, first)
        return self._read_in_processes(requests) if self.workers else _read_ahead(map(read_batch, requests))

    def _requests(self, number: int, first: int) -> Iterator[list[Request]]:
        scans, starts, seeds = self.order(number)
        for step in range(first, self.steps):
            begin = step * self._global_batch_size + self.shard[0] * self.batch_size
            clips = range(begin, min(begin + self.batch_size, len(scans)))
            yield [Request(self._source(scans[k]), int(starts[k]), int(scans[k]), int(seeds[k])) for k in clips]

    def _source(self, index: int) -> ClipSource:
        source = self.scans[index]
        return source.without_facts() if self.workers and isinstance(source, QuantisedSource) else source

    def _read_in_processes(self, requests: Iterator[list[Request]]) -> Generator[AnyBatch, None, None]:
        self._check_shared_memory()
        loader = DataLoader(
            _Reader(),
            batch_sampler=requests,  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            pin_memory=self.pin,
            prefetch_factor=BATCHES_AHEAD,
            generator=torch.Generator(),  # the random numbers of the training are not used
            worker_init_fn=_leave_signals_to_the_run,
        )
        batches = iter(loader)
        try:
            while True:
                batch = next(batches)
                if isinstance(batch, NeurostormError):
                    raise batch
                yield batch
        except StopIteration:
            return
        except RuntimeError as error:
            raise lost_reader(error) or error from None
        finally:
            del batches  # ends the reading processes

    def _check_shared_memory(self) -> None:
        """Check that the batches read ahead fit in the memory that processes share.

        Raises
        ------
        UsageError
            They do not; containers often have only 64 MB.
        """
        volumes = max(scan.clip_volumes for scan in self.scans[:1]) * self.batch_size
        needed = self.workers * (BATCHES_AHEAD + 1) * volumes * VOLUME_BYTES
        if os.path.isdir(SHARED_MEMORY):
            state = os.statvfs(SHARED_MEMORY)
            free = state.f_bavail * state.f_frsize
            if free < needed:
                raise UsageError(
                    f"{SHARED_MEMORY} has {free / 1e6:,.0f} MB, {self.workers} reading processes need "
                    f"{needed / 1e6:,.0f} MB.",
                    "Use fewer --workers, or give the container more (docker run --shm-size).",
                )


def _leave_signals_to_the_run(_: int) -> None:
    """Have a reading process ignore SIGTERM and SIGINT, which SLURM and terminals send to all processes of a run.

    The run needs their batches until its state is saved. Then it ends them; without it, they end by themselves.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Reader(Dataset[Request]):
    """What a reading process does with the requests of a batch."""

    def __getitems__(self, requests: Sequence[Request]) -> AnyBatch | NeurostormError:
        try:
            return read_batch(requests)
        except NeurostormError as error:  # raised again by the training loop, with its exit code
            return error


def _as_it_is(batch: AnyBatch | NeurostormError) -> AnyBatch | NeurostormError:
    return batch


def _read_ahead(batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
    """Read one batch ahead in a thread."""
    waiting: queue.Queue[AnyBatch | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: AnyBatch | BaseException | None) -> bool:
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
