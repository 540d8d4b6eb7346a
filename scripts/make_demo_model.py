"""Train the demonstration model: ``demo_encoder.safetensors`` and ``demo_state.safetensors`` in `bids_app/data`.

    python scripts/make_demo_model.py            # some 25 minutes on two cores

1. Scans of simulated participants in four states are brought onto the model grid, with the mistakes that preprocessing
   makes (`bids_app.phantom.grid_scans`), and stored as int8 clips.
2. Blocks of 6 x 6 x 6 voxels are averaged. An encoder that reads averages is an encoder whose patch embedding weighs
   the voxels of a block alike; it is trained on 1 / 216 of the data, and becomes an ordinary encoder, with the same
   answers, when each of those weights is written 216 times, divided by 216.
3. All of the encoder is trained with a head for the four states. Every scan is also shown mirrored, left hand and right
   hand exchanged. There is no pre-training: so small an encoder learns the states faster without it.
4. Encoder, adapter and card are written. The same seeds give the same weights on the same kind of machine.
5. The adapter gets reference statistics of the training scans, and a calibration by the validation scans; with
   ``--describe-only`` an adapter that is there already gets them, for the time of one pass through the encoder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.adapters.calibration import TEMPERATURE
from bids_app.adapters.file import AdaptedModel, Adapter, load_adapter, save_adapter
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import save_encoder, weights_sha256
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.phantom.activity import STATES
from bids_app.phantom.grid_scans import simulated_series
from bids_app.training.adapt import AdaptSettings, Labelled, adapt
from bids_app.training.calibrate import answers_of, calibration_of, in_words
from bids_app.training.data.store import ClipStore, Scan
from bids_app.training.loop import LoopSettings
from bids_app.training.reference import with_reference
from bids_app.training.tasks import Question

DATA = Path(__file__).parents[1] / "bids_app" / "data"
BLOCK, PATCH = 6, 12
COARSE = (MODEL_GRID_SHAPE[0] // BLOCK, MODEL_GRID_SHAPE[1] // BLOCK, MODEL_GRID_SHAPE[2] // BLOCK)
CONFIG = EncoderConfig(img_size=(*COARSE, CLIP_VOLUMES), patch_size=(2, 2, 2, 1), embed_dim=16, depths=(1, 2, 1))
"""On averages. Patches of 24 mm, for an eighth of the time that 12 mm take; with a logistic regression on the spread of
each patch over a clip, both tell 98 % of the runs from eight places."""
POSITION_SCALE = 15.0
NORMALISATION = "voxel"
TRAINING_SEED, VALIDATION_SEED = 100, 200
IN_THE_MIRROR = {"rest": "rest", "lefthand": "righthand", "righthand": "lefthand", "visual": "visual"}
ENCODER_FILE, ADAPTER_FILE = "demo_encoder.safetensors", "demo_state.safetensors"
BATCH = 4
"""Clips at a time of the whole grid."""
LIMITS = (
    "Simulated scans only. Its calibration is of scans that preprocessing's mistakes were simulated for, not of scans "
    "that went through preprocessing."
)
INTENDED_USE = (
    "To show that the program works. It tells the states of simulated participants (neurostorm-phantom) apart; "
    "its answers about a real person mean nothing."
)


@dataclass(frozen=True)
class Averages:
    """A scan as averages of patches; stands in for `bids_app.training.data.store.Scan` where clips are read.

    Attributes
    ----------
    values : np.ndarray, (U, 16, 16, 16) float16
    """

    values: np.ndarray
    participant: str
    state: str

    @property
    def n_vols(self) -> int:
        """Volumes at 0.8 s."""
        return len(self.values)

    @property
    def n_clips(self) -> int:
        """Clips that do not overlap."""
        return self.n_vols // CLIP_VOLUMES

    def clip(self, start: int) -> torch.Tensor:
        """Volumes from ``start`` on, (1, 16, 16, 16, 20)."""
        rows = self.values[start : start + CLIP_VOLUMES].astype(np.float32)
        return torch.from_numpy(np.moveaxis(rows, 0, -1)[None].copy())


def simulate(job: tuple[Path, int, int, str]) -> str:
    """Add one simulated scan to a store."""
    folder, seed, person, state = job
    name = f"sub-{person:03d}_task-{state}"
    store = ClipStore(folder, NORMALISATION)
    if name not in store:
        series = simulated_series(state, seed, name, participant=(seed, person))
        store.add(name, series, f"{person:03d}", labels={"state": state})
    return name


def averages(scan: Scan) -> tuple[Averages, Averages]:
    """Average a scan's blocks, as it is and mirrored."""
    values, places = scan.rows()
    x, y, z = np.unravel_index(places, MODEL_GRID_SHAPE)
    state = scan.labels["state"]
    found = []
    for across, shown in ((x, state), ((MODEL_GRID_SHAPE[0] - x) % MODEL_GRID_SHAPE[0], IN_THE_MIRROR[state])):
        block = np.ravel_multi_index((across // BLOCK, y // BLOCK, z // BLOCK), COARSE)
        order = np.argsort(block, kind="stable")
        starts = np.flatnonzero(np.diff(block[order], prepend=-1))
        sums = np.add.reduceat(values[:, order], starts, axis=1)  # (U, blocks with brain)
        outside = BLOCK**3 - np.diff(starts, append=len(order))
        means = np.full((len(values), int(np.prod(COARSE))), scan.background, np.float32)
        means[:, block[order][starts]] = (sums + outside * scan.background) / BLOCK**3
        found.append(Averages(means.reshape(-1, *COARSE).astype(np.float16), scan.participant, shown))
    return found[0], found[1]


def cohort(folder: Path, seed: int, participants: int, n_procs: int, mirror: bool) -> list[Averages]:
    """Simulated participants in all states, as averages; the second half of the list is mirrored."""
    ClipStore(folder, NORMALISATION)
    jobs = [(folder, seed, person, state) for person in range(participants) for state in STATES]
    with ProcessPoolExecutor(n_procs) as pool:
        names = list(pool.map(simulate, jobs))
        store = ClipStore(folder, NORMALISATION)
        pairs = list(pool.map(averages, [store[name] for name in names]))
    return [scan for scan, _ in pairs] + ([scan for _, scan in pairs] if mirror else [])


def labelled(scans: list[Averages]) -> Labelled:
    """Scans with their states."""
    return Labelled(tuple(scans), tuple(scan.state for scan in scans))  # type: ignore[arg-type]


def beginning(work: Path) -> Model:
    """An encoder of averages before training.

    A state is told by how much a place fluctuates, so place and fluctuation must meet in one nonlinearity. Positions
    that begin as small as is usual left the answers at chance for eight epochs; begun larger, they meet from the first
    step.
    """
    torch.manual_seed(0)
    encoder = Encoder(CONFIG)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("pos_embed"):
                parameter.mul_(POSITION_SCALE)
    return load_model(save_encoder(work / "beginning.safetensors", CONFIG, encoder.state_dict(), "beginning"))


def for_voxels(state: dict[str, torch.Tensor]) -> tuple[EncoderConfig, dict[str, torch.Tensor]]:
    """The encoder of voxels that answers as an encoder of averages does; rounded to float16, as it is stored."""
    weight = state["patch_embed.fc.weight"]  # (C, 8), the 2 x 2 x 2 blocks of a patch
    blocks = weight.reshape(-1, *CONFIG.patch_size[:3])
    for axis in (1, 2, 3):
        blocks = blocks.repeat_interleave(BLOCK, dim=axis)
    whole = state | {"patch_embed.fc.weight": blocks.reshape(len(weight), -1) / BLOCK**3}
    config = replace(CONFIG, img_size=(*MODEL_GRID_SHAPE, CLIP_VOLUMES), patch_size=(PATCH, PATCH, PATCH, 1))
    return config, {name: value.half().float() for name, value in whole.items()}


def write(
    encoder: dict[str, torch.Tensor], adapter: Adapter, facts: dict[str, Any], out_dir: Path
) -> tuple[Path, Path]:
    """Write the encoder, the adapter that belongs to it, and their card."""
    config, state = for_voxels(encoder)
    first = save_encoder(
        out_dir / ENCODER_FILE,
        config,
        state,
        "demo",
        info={"licence": "Apache-2.0", "intended_use": INTENDED_USE, **facts},
        demonstration=True,
        dtype=torch.float16,
    )
    card = replace(
        adapter.card,
        encoder_sha256=weights_sha256(state),
        strategy="linear",
        prompt_len=0,
        intended_use=INTENDED_USE,
        licence="Apache-2.0",
        demonstration=True,
    )
    second = save_adapter(out_dir / ADAPTER_FILE, Adapter(card, adapter.head))
    return first, second


def describe(path: Path, model: Model, work: Path) -> Path:
    """Add to an adapter's file what tells whether its answers can be trusted."""
    training, validation = (tuple(ClipStore(work / name, NORMALISATION)) for name in ("training", "validation"))
    adapter, told = with_reference(load_adapter(path), model, training, {}, BATCH)
    say(told)
    held_out = Labelled(validation, tuple(scan.labels["state"] for scan in validation))
    answers = answers_of(model, AdaptedModel(model, adapter), validation, BATCH)
    people = len({scan.participant for scan in validation})
    source = f"{len(validation)} simulated scans of {people} participants, by which the training's epoch was chosen too"
    made = calibration_of(adapter.card, answers, held_out, TEMPERATURE, source)
    say(in_words(made, adapter.card))
    return save_adapter(path, replace(adapter, card=replace(adapter.card, calibration=made.as_dict(), limits=LIMITS)))


def say(line: str) -> None:
    """Print with the time since the start."""
    print(f"{time.monotonic() - STARTED:7.0f} s  {line}", flush=True)


STARTED = time.monotonic()


def main() -> int:
    """Run all steps."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--work", type=Path, default=Path("demo-model"), help="stores, logs and states; can be taken up again"
    )
    p.add_argument("--out", type=Path, default=DATA)
    p.add_argument("--participants", type=int, default=70)
    p.add_argument("--validation", type=int, default=10, help="participants that are only tested")
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--nprocs", type=int, default=os.cpu_count() or 1)
    p.add_argument("--describe-only", action="store_true", help="step 5 alone, for the adapter in --out")
    arguments = p.parse_args()
    work = arguments.work
    if arguments.describe_only:
        describe(arguments.out / ADAPTER_FILE, load_model(arguments.out / ENCODER_FILE), work)
        return 0
    training = cohort(work / "training", TRAINING_SEED, arguments.participants, arguments.nprocs, mirror=True)
    validation = cohort(work / "validation", VALIDATION_SEED, arguments.validation, arguments.nprocs, mirror=False)
    say(f"{len(training)} scans for training, mirrored ones included, and {len(validation)} for validation")
    settings = AdaptSettings(
        "full", batch_size=16, loop=LoopSettings(arguments.epochs, 3e-3, weight_decay=0.05, warmup=0.1)
    )
    adapter, _ = adapt(
        beginning(work),
        Question.about("state", list(STATES)),
        labelled(training),
        labelled(validation),
        settings,
        NORMALISATION,
        "demostate",
        work / "states",
        say,
    )
    facts = {
        "cohort": f"{arguments.participants} simulated participants, {len(training) // 2} scans, each also mirrored",
        "made_by": "scripts/make_demo_model.py",
        "metrics": adapter.card.metrics,
    }
    for path in write(adapter.encoder, adapter, facts, arguments.out):
        say(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    describe(arguments.out / ADAPTER_FILE, load_model(arguments.out / ENCODER_FILE), work)
    say(f"held-out scans on the model grid: {adapter.card.metrics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
