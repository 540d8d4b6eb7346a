"""Train the demonstration model: ``demo_encoder.safetensors`` and ``demo_state.safetensors`` in `bids_app/data`.

    python scripts/make_demo_model.py            # about 25 minutes on two cores

1. Simulate participants in four states on the model grid, with typical preprocessing errors
   (`bids_app.phantom.grid_scans`), and store the scans as int8 clips.
2. Average blocks of 6 x 6 x 6 voxels. An encoder of block averages equals an encoder of voxels whose patch embedding
   has the same weight for all voxels of a block. Training therefore needs 1 / 216 of the data; afterwards each weight
   is repeated 216 times and divided by 216, which gives an ordinary encoder with the same output.
3. Train the whole encoder with a head for the four states. Each scan is also used left-right flipped, with the labels
   lefthand and righthand swapped. There is no pre-training: so small an encoder learns the states faster without it.
4. Write the encoder, the adapter and the card. The same seeds give the same weights on the same kind of machine.
5. Add reference statistics of the training scans, and a calibration from scans of other participants, to the adapter.
   With ``--describe-only``, add them to an existing adapter; scans that are not in ``--work`` are simulated again. With
   ``--calibrate-only``, add only the calibration, with ``--reference-only`` only the statistics.
6. Preprocessed scans differ from those of step 1 in what the domain is measured by, such as smoothness. With
   ``--preprocessed OUT``, the reference statistics include those of other participants, made by the commands below.
   Those in the package are of 34 participants of step 1 (``--reference-only --participants 34``) and of these 14.

    neurostorm-phantom DATASET --participants 14 --seed 71
    neurostorm DATASET OUT participant --model demo --output-clips voxel
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
from bids_app.adapters.calibration_fit import People
from bids_app.adapters.file import AdaptedModel, Adapter, load_adapter, save_adapter
from bids_app.adapters.verdict import SIMULATED
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import save_encoder, weights_sha256
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.phantom.activity import STATES
from bids_app.phantom.grid_scans import simulated_series
from bids_app.training.adapt import AdaptSettings, LabelledScans, adapt
from bids_app.training.calibrate import fit_calibration, predict_scans, summarise
from bids_app.training.data.scan import Scan
from bids_app.training.data.sources import find_own_clips
from bids_app.training.data.store import ClipStore
from bids_app.training.optimiser import LoopSettings
from bids_app.training.reference import add_reference
from bids_app.training.tasks import Task

DATA = Path(__file__).parents[1] / "bids_app" / "data"
BLOCK, PATCH = 6, 12
COARSE = (MODEL_GRID_SHAPE[0] // BLOCK, MODEL_GRID_SHAPE[1] // BLOCK, MODEL_GRID_SHAPE[2] // BLOCK)
CONFIG = EncoderConfig(img_size=(*COARSE, CLIP_VOLUMES), patch_size=(2, 2, 2, 1), embed_dim=16, depths=(1, 2, 1))
"""Encoder of block averages. Patches of 24 mm take an eighth of the time of 12 mm. With either size, a logistic
regression on the standard deviation of eight patches over a clip classifies 98 % of the runs correctly."""
POSITION_SCALE = 15.0
NORMALISATION = "voxel"
TRAINING_SEED, VALIDATION_SEED, CALIBRATION_SEED = 100, 200, 300
FLIPPED_STATE = {"rest": "rest", "lefthand": "righthand", "righthand": "lefthand", "visual": "visual"}
ENCODER_FILE, ADAPTER_FILE = "demo_encoder.safetensors", "demo_state.safetensors"
BATCH = 4
"""Clips per batch on the full grid."""
LIMITS = "Simulated scans only. Calibrated on scans with simulated errors of preprocessing, not on preprocessed scans."
INTENDED_USE = (
    "To show that the program works. It tells the states of simulated participants (neurostorm-phantom) apart; "
    "its answers about a real person mean nothing."
)


@dataclass(frozen=True)
class Averages:
    """A scan as block averages, with the interface of `bids_app.training.data.scan.Scan` for reading clips.

    Attributes
    ----------
    values : np.ndarray, (U, 16, 16, 16) float16
    """

    values: np.ndarray
    participant: str
    state: str
    clip_volumes: int = CLIP_VOLUMES

    @property
    def n_vols(self) -> int:
        """Number of volumes at 0.8 s."""
        return len(self.values)

    @property
    def n_clips(self) -> int:
        """Number of clips without overlap."""
        return self.n_vols // CLIP_VOLUMES

    def clip(self, start: int) -> torch.Tensor:
        """Return the clip that starts at volume ``start``, (1, 16, 16, 16, 20)."""
        rows = self.values[start : start + CLIP_VOLUMES].astype(np.float32)
        return torch.from_numpy(np.moveaxis(rows, 0, -1)[None].copy())


def simulate(job: tuple[Path, int, int, str]) -> str:
    """Simulate one scan, add it to a store, and return its name."""
    folder, seed, person, state = job
    name = f"sub-{person:03d}_task-{state}"
    store = ClipStore(folder, NORMALISATION)
    if name not in store:
        series = simulated_series(state, seed, name, participant=(seed, person))
        store.add(name, series, f"{person:03d}", labels={"state": state})
    return name


def averages(scan: Scan) -> tuple[Averages, Averages]:
    """Return the block averages of a scan, as it is and left-right flipped."""
    values, places = scan.rows()
    x, y, z = np.unravel_index(places, MODEL_GRID_SHAPE)
    state = scan.labels["state"]
    found = []
    for across, shown in ((x, state), ((MODEL_GRID_SHAPE[0] - x) % MODEL_GRID_SHAPE[0], FLIPPED_STATE[state])):
        block = np.ravel_multi_index((across // BLOCK, y // BLOCK, z // BLOCK), COARSE)
        order = np.argsort(block, kind="stable")
        starts = np.flatnonzero(np.diff(block[order], prepend=-1))
        sums = np.add.reduceat(values[:, order], starts, axis=1)  # (U, blocks with brain)
        outside = BLOCK**3 - np.diff(starts, append=len(order))
        means = np.full((len(values), int(np.prod(COARSE))), scan.background, np.float32)
        means[:, block[order][starts]] = (sums + outside * scan.background) / BLOCK**3
        found.append(Averages(means.reshape(-1, *COARSE).astype(np.float16), scan.participant, shown))
    return found[0], found[1]


def simulate_all(folder: Path, seed: int, participants: int, n_procs: int) -> list[str]:
    """Simulate participants in all states; return the names of the scans."""
    ClipStore(folder, NORMALISATION)
    jobs = [(folder, seed, person, state) for person in range(participants) for state in STATES]
    with ProcessPoolExecutor(n_procs) as pool:
        return list(pool.map(simulate, jobs))


def cohort(folder: Path, seed: int, participants: int, n_procs: int, mirror: bool) -> list[Averages]:
    """Simulate participants in all states and return the block averages; with `mirror`, the flipped scans follow."""
    names = simulate_all(folder, seed, participants, n_procs)
    with ProcessPoolExecutor(n_procs) as pool:
        store = ClipStore(folder, NORMALISATION)
        pairs = list(pool.map(averages, [store[name] for name in names]))
    return [scan for scan, _ in pairs] + ([scan for _, scan in pairs] if mirror else [])


def labelled(scans: list[Averages]) -> LabelledScans:
    """Return scans with their states as labels."""
    return LabelledScans(tuple(scans), tuple(scan.state for scan in scans))  # type: ignore[arg-type]


def initial_model(work: Path) -> Model:
    """Return the encoder of block averages before training.

    A state is defined by the strength of the fluctuations at certain positions, so position and fluctuation must
    interact in one nonlinearity. With position embeddings initialised as small as usual, predictions stayed at chance
    for eight epochs; larger initial values avoid this.
    """
    torch.manual_seed(0)
    encoder = Encoder(CONFIG)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("pos_embed"):
                parameter.mul_(POSITION_SCALE)
    return load_model(save_encoder(work / "initial.safetensors", CONFIG, encoder.state_dict(), "initial"))


def for_voxels(state: dict[str, torch.Tensor]) -> tuple[EncoderConfig, dict[str, torch.Tensor]]:
    """Return the encoder of voxels equivalent to an encoder of block averages, rounded to float16 as in the file."""
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
    """Write the encoder and its adapter, with their cards."""
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


def describe(path: Path, model: Model, work: Path, preprocessed: Path | None) -> Path:
    """Add reference statistics of the training scans, and of preprocessed ones, to an adapter's file."""
    others = find_own_clips(preprocessed, NORMALISATION)[0] if preprocessed else {}
    scans = (*ClipStore(work / "training", NORMALISATION), *others.values())
    adapter, told = add_reference(load_adapter(path), model, scans, {}, BATCH)
    say(told)
    cohort = dict(adapter.card.cohort)
    if others:
        cohort["preprocessed"] = {"participants": len({s.participant for s in others.values()}), "scans": len(others)}
    return save_adapter(path, replace(adapter, card=replace(adapter.card, cohort=cohort)))


def calibrate(path: Path, model: Model, work: Path, participants: int, n_procs: int) -> Path:
    """Add a calibration from the scans of other participants to an adapter's file."""
    adapter = load_adapter(path)
    simulate_all(work / "calibration", CALIBRATION_SEED, participants, n_procs)
    scans = tuple(ClipStore(work / "calibration", NORMALISATION))
    held_out = LabelledScans(scans, tuple(scan.labels["state"] for scan in scans))
    answers = predict_scans(model, AdaptedModel(model, adapter), scans, BATCH)
    people = People([scan.participant for scan in scans])
    made = fit_calibration(adapter.card, answers, held_out, people, TEMPERATURE, "simulated scans")
    say(summarise(made, adapter.card))
    card = adapter.card
    described = replace(card, calibration=made.as_dict(), limits=LIMITS, cohort=card.cohort | {SIMULATED: True})
    return save_adapter(path, replace(adapter, card=described))


def complete(arguments: argparse.Namespace) -> None:
    """Add reference statistics, unless only a calibration is wanted, and a calibration to the adapter."""
    path, model = arguments.out / ADAPTER_FILE, load_model(arguments.out / ENCODER_FILE)
    if not arguments.calibrate_only:
        simulate_all(arguments.work / "training", TRAINING_SEED, arguments.participants, arguments.nprocs)
        describe(path, model, arguments.work, arguments.preprocessed)
    if not arguments.reference_only:
        calibrate(path, model, arguments.work, arguments.calibration, arguments.nprocs)


def say(line: str) -> None:
    """Print a line with the time since the start."""
    print(f"{time.monotonic() - STARTED:7.0f} s  {line}", flush=True)


STARTED = time.monotonic()


def main() -> int:
    """Train, write and describe the demonstration model."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--work", type=Path, default=Path("demo-model"), help="stores, logs and states; a second run resumes from it"
    )
    p.add_argument("--out", type=Path, default=DATA)
    p.add_argument("--participants", type=int, default=70)
    p.add_argument("--validation", type=int, default=10, help="participants for validation only")
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--nprocs", type=int, default=os.cpu_count() or 1)
    p.add_argument("--calibration", type=int, default=60, help="participants for calibration only")
    p.add_argument("--describe-only", action="store_true", help="only step 5, for the adapter in --out")
    p.add_argument("--reference-only", action="store_true", help="only the statistics, for the adapter in --out")
    p.add_argument("--preprocessed", type=Path, help="output folder of the command, see step 6")
    p.add_argument("--calibrate-only", action="store_true", help="only the calibration, for the adapter in --out")
    arguments = p.parse_args()
    work = arguments.work
    if arguments.describe_only or arguments.calibrate_only or arguments.reference_only:
        complete(arguments)
        return 0
    training = cohort(work / "training", TRAINING_SEED, arguments.participants, arguments.nprocs, mirror=True)
    validation = cohort(work / "validation", VALIDATION_SEED, arguments.validation, arguments.nprocs, mirror=False)
    say(f"{len(training)} scans for training, including flipped ones, and {len(validation)} for validation")
    settings = AdaptSettings(
        "full", batch_size=16, loop=LoopSettings(arguments.epochs, 3e-3, weight_decay=0.05, warmup=0.1)
    )
    adapter, _ = adapt(
        initial_model(work),
        Task.from_values("state", list(STATES)),
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
    complete(arguments)
    say(f"validation scans on the model grid: {adapter.card.metrics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
