"""Pre-training as it is run: clips per second by backend, and what of a step is spent waiting for data.

    python benchmarks/pretraining.py                    # batches of 8 clips, as published
    python benchmarks/pretraining.py --batch-size 1     # little memory: every step waits for a clip, if it has to
    python benchmarks/pretraining.py --default-memory   # without what the command does about memory
    python benchmarks/pretraining.py --quick            # a small encoder, to see that the command works

The published configuration and recipe (window masks, redundancy dropout, augmentation, AdamW) in the loop of
`neurostorm-train pretrain`, over a store of noise in a brain of 230,000 voxels. Backends take turns, an epoch each.

A step lasts from asking for a batch to asking for the next one. `waiting` is what of it passes before the batch is
there: the reader has to be slower than the training for that to grow. The first step of an epoch, before which nothing
could be read ahead, is given apart. Ratios are those of processor time as well, because a shared machine stretches the
seconds of the clock unevenly.
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

import numpy as np
import torch
from encoder import backend, noise_run, table

from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.mamba import D_STATE
from bids_app.model.scan import BACKENDS
from bids_app.training.data.loader import Batch, ClipBatches
from bids_app.training.data.store import ClipStore
from bids_app.training.loop import LoopSettings
from bids_app.training.memory import reuse_freed_memory
from bids_app.training.pretrain import PretrainSettings, pretrain

QUICK = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=8, depths=(1, 1))


@dataclass
class Step:
    """A step's times, s: by the clock, of the processor, and what passed before its batch was there."""

    first: bool
    wall: float
    cpu: float
    waiting: float


@dataclass
class Watched:
    """Batches that note when they are asked for and when they are there."""

    batches: ClipBatches
    found: list[Step] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.batches.steps

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The same batches; a step ends where the next is asked for."""
        given = self.batches.epoch(number, first)
        asked = (time.perf_counter(), time.process_time())
        for place, batch in enumerate(given):
            waiting = time.perf_counter() - asked[0]
            try:
                yield batch
            finally:  # the last one is not followed by a question
                now = (time.perf_counter(), time.process_time())
                self.found.append(Step(place == 0, now[0] - asked[0], now[1] - asked[1], waiting))
            asked = (time.perf_counter(), time.process_time())


def make_store(folder: Path, n_scans: int, clips: int) -> ClipStore:
    """A store of noise."""
    store = ClipStore(folder / "clips", "global")
    for number in range(n_scans):
        store.add(f"sub-{number:02d}_task-x", noise_run(folder / f"run{number}", 20 * clips), f"{number:02d}")
    return store


def reading(batches: ClipBatches) -> float:
    """Seconds to read a clip with nothing else to do."""
    scans, start = batches.scans, time.perf_counter()
    for scan in scans:
        scan.clip(0)
    return (time.perf_counter() - start) / len(scans)


def measure(arguments: argparse.Namespace) -> dict[str, list[Step]]:
    """Train with each backend in turn, an epoch at a time; the steps of each."""
    config = QUICK if arguments.quick else EncoderConfig()
    device = torch.device(arguments.device)
    names = [name for name, b in BACKENDS.items() if not b.obstacle(device, torch.float32, D_STATE)]
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
                watched = Watched(batches)
                with backend(name):
                    pretrain(MaskedAutoencoder(config).to(device), watched, settings, report=lambda _: None)  # type: ignore[arg-type]
                found[name] += watched.found
    return found


def rows(found: dict[str, list[Step]], batch_size: int) -> list[list[str]]:
    """A row a backend: throughput by clock and processor, ratios, and waiting."""

    def middle(name: str, what: str) -> float:
        return float(np.median([getattr(step, what) for step in found[name]]))

    lines = []
    for name, steps in found.items():
        later = [step for step in steps if not step.first]
        share = sum(s.waiting for s in later) / max(sum(s.wall for s in later), 1e-9)
        lines.append(
            [
                name,
                str(len(steps)),
                f"{middle(name, 'wall'):.2f}",
                f"{batch_size / middle(name, 'wall'):.3f}",
                f"{middle('reference', 'wall') / middle(name, 'wall'):.1f}",
                f"{middle(name, 'cpu'):.2f}",
                f"{middle('reference', 'cpu') / middle(name, 'cpu'):.1f}",
                f"{np.mean([s.waiting for s in steps if s.first]):.3f}",
                f"{np.mean([s.waiting for s in later]):.4f}" if later else "",
                f"{100 * share:.2f} %" if later else "",
            ]
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=2, help="epochs of each backend")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--default-memory", action="store_true", help="freed memory goes back, unlike in the command")
    parser.add_argument("--quick", action="store_true", help="a small encoder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.default_memory:
        reuse_freed_memory()  # as the command does
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {arguments.threads} threads, torch {torch.__version__}, batches of {arguments.batch_size}")
    head = [
        "backend",
        "steps",
        "s a step",
        "clips a second",
        "times reference",
        "CPU s a step",
        "times reference (CPU)",
    ]
    head += ["waiting, first step, s", "waiting, later steps, s", "share of their time"]
    name = "a small encoder" if arguments.quick else "the published configuration"
    table(f"Pre-training {name}, float32", head, rows(measure(arguments), arguments.batch_size))


if __name__ == "__main__":
    main()
