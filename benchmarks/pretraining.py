"""Speed of pre-training: clips per second by backend, and the share of each step spent waiting for data.

    python benchmarks/pretraining.py                    # batches of 8 clips, as published
    python benchmarks/pretraining.py --batch-size 1     # little memory; any delay in reading shows in each step
    python benchmarks/pretraining.py --default-memory   # without the command's own memory handling
    python benchmarks/pretraining.py --quick            # a small encoder, to check that the benchmark runs

The published configuration and recipe (window masks, redundancy dropout, augmentation, AdamW) in the loop of
`neurostorm-train pretrain`, on a store of noise in a brain of 230,000 voxels. Backends alternate, one epoch each.

A step lasts from the request of a batch to the request of the next. `waiting` is the time until the batch is available;
it is long only if reading is slower than training. The first step of an epoch is reported separately, because no batch
can be read ahead of it. Speed-ups are also given in CPU time, because wall time varies on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder import backend, noise_run, table

from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.mamba import D_STATE
from bids_app.model.scan import BACKENDS
from bids_app.training.data.batches import Batch, QuantisedBatch
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.store import ClipStore
from bids_app.training.memory import reuse_freed_memory
from bids_app.training.optimiser import LoopSettings
from bids_app.training.pretrain import PretrainSettings, pretrain

QUICK = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=8, depths=(1, 1))


@dataclass
class Step:
    """Wall time, CPU time and waiting time of a step, s."""

    first: bool
    wall: float
    cpu: float
    waiting: float


@dataclass
class TimedBatches:
    """Batches that record when they are requested and when they are available."""

    batches: ClipBatches
    measured: list[Step] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        return self.batches.steps

    def __getattr__(self, name: str) -> Any:
        """Return what the loop reads of the batches beside them."""
        return getattr(self.batches, name)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch | QuantisedBatch]:
        """Yield the batches; a step ends when the next batch is requested."""
        batches = self.batches.epoch(number, first)
        requested = (time.perf_counter(), time.process_time())
        for index, batch in enumerate(batches):
            waiting = time.perf_counter() - requested[0]
            try:
                yield batch
            finally:  # no request follows the last batch
                now = (time.perf_counter(), time.process_time())
                self.measured.append(Step(index == 0, now[0] - requested[0], now[1] - requested[1], waiting))
            requested = (time.perf_counter(), time.process_time())


def make_store(folder: Path, n_scans: int, clips: int) -> ClipStore:
    """Write a store of noise."""
    store = ClipStore(folder / "clips", "global")
    for number in range(n_scans):
        store.add(f"sub-{number:02d}_task-x", noise_run(folder / f"run{number}", 20 * clips), f"{number:02d}")
    return store


def reading(batches: ClipBatches) -> float:
    """Return the time to read a clip without other work, s."""
    scans, start = batches.scans, time.perf_counter()
    for scan in scans:
        scan.clip(0)
    return (time.perf_counter() - start) / len(scans)


def measure(arguments: argparse.Namespace) -> dict[str, list[Step]]:
    """Train with each backend in turn, one epoch at a time, and return the steps of each."""
    config = QUICK if arguments.quick else EncoderConfig()
    device = torch.device(arguments.device)
    names = [name for name, b in BACKENDS.items() if not b.unavailable(device, torch.float32, D_STATE)]
    settings = PretrainSettings(loop=LoopSettings(epochs=1))
    found: dict[str, list[Step]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        clips = arguments.batch_size * arguments.steps
        store = make_store(Path(folder), 2, -(-clips // 2))
        batches = ClipBatches(tuple(store), arguments.batch_size)
        print(f"Reading a clip alone takes {reading(batches):.3f} s.")
        for turn in range(arguments.repeats):
            for name in names:
                torch.manual_seed(turn)
                watched = TimedBatches(batches)
                with backend(name):
                    pretrain(MaskedAutoencoder(config).to(device), watched, settings, report=lambda _: None)  # type: ignore[arg-type]
                found[name] += watched.measured
    return found


def rows(found: dict[str, list[Step]], batch_size: int) -> list[list[str]]:
    """Return one row per backend: throughput in wall and CPU time, speed-ups, and waiting."""

    def median(name: str, what: str) -> float:
        return float(np.median([getattr(step, what) for step in found[name]]))

    lines = []
    for name, steps in found.items():
        later = [step for step in steps if not step.first]
        share = sum(s.waiting for s in later) / max(sum(s.wall for s in later), 1e-9)
        lines.append(
            [
                name,
                str(len(steps)),
                f"{median(name, 'wall'):.2f}",
                f"{batch_size / median(name, 'wall'):.3f}",
                f"{median('reference', 'wall') / median(name, 'wall'):.1f}",
                f"{median(name, 'cpu'):.2f}",
                f"{median('reference', 'cpu') / median(name, 'cpu'):.1f}",
                f"{np.mean([s.waiting for s in steps if s.first]):.3f}",
                f"{np.mean([s.waiting for s in later]):.4f}" if later else "",
                f"{100 * share:.2f} %" if later else "",
            ]
        )
    return lines


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps per epoch")
    parser.add_argument("--repeats", type=int, default=2, help="epochs per backend")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--default-memory", action="store_true", help="return freed memory to the system")
    parser.add_argument("--quick", action="store_true", help="use a small encoder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.default_memory:
        reuse_freed_memory()  # as the command does
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {arguments.threads} threads, torch {torch.__version__}, batches of {arguments.batch_size}")
    head = [
        "backend",
        "steps",
        "s per step",
        "clips/s",
        "speed-up",
        "CPU s per step",
        "speed-up (CPU)",
    ]
    head += ["wait, first step, s", "wait, later steps, s", "share of later steps"]
    name = "a small encoder" if arguments.quick else "the published configuration"
    table(f"Pre-training {name}, float32", head, rows(measure(arguments), arguments.batch_size))


if __name__ == "__main__":
    main()
