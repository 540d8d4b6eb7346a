"""Comparison of random, window and region masks in pre-training, on a simulated cohort with a known group difference.

    python benchmarks/region_masking.py            # five seeds; about 25 minutes of CPU time on each of two cores
    python benchmarks/region_masking.py --quick    # one seed, few participants, one or two steps: a functional test

The template's brain is divided into parcels with slow fluctuations, partly their own and partly shared with other
parcels. Limbic and cerebellar parcels fluctuate more strongly in one of two groups than in the other; mean images do
not differ. Small encoders are pre-trained on participants without group labels, with the same budget (clips, epochs,
batches, seeds) for each kind of mask, and are then frozen. A linear head is cross-validated on other participants. An
encoder with random weights is the baseline: pre-training contributes only what exceeds its accuracy.

Finally, each pre-trained autoencoder reconstructs every parcel of new scans from the rest of the brain; an error of 1
corresponds to predicting the mean of each voxel. All training uses `neurostorm-train`; an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from bids_app.adapters.attribution import Regions, reconstruction_errors
from bids_app.bids.writer import write_json, write_text, write_tsv
from bids_app.catalog.templates import MODEL_SPACE, brain_on
from bids_app.cli.train import main as train
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, MODEL_TR, ClipReader, GridSeries
from bids_app.model.api import load_autoencoder
from bids_app.model.checkpoint import read_checkpoint, save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder, trained_mask
from bids_app.phantom.geometry import rng_for
from bids_app.training.data.store import ClipStore
from bids_app.training.memory import reuse_freed_memory

MASKS = ("random", "window", "atlas")
UNTRAINED = "untrained"
CONFIG = EncoderConfig(patch_size=(8, 8, 8, 1), embed_dim=12, depths=(1, 1), first_window_size=(4, 4, 4, 4))
AFFECTED = {
    "limbic": ((-24, -14, -18), (24, -14, -18), (0, 32, -12), (0, 30, 24), (0, -44, 28)),
    "cerebellum": ((-16, -56, -36), (16, -56, -36), (-38, -64, -34), (38, -64, -34)),
}
"""Centres of the parcels that differ between the groups, mm."""
GROUPS = ("control", "patient")


@dataclass(frozen=True)
class Plan:
    """Sizes of the cohort and of the training.

    Attributes
    ----------
    pretraining, labelled, held_out : int
        Number of participants: for pre-training, with a group label, and for the reconstruction.
    clips : int
        Clips per scan.
    epochs, seeds : int
    parcels : int
        Number of parcels besides those of `AFFECTED`.
    effect : float
        Relative difference of the fluctuations of each group from the mean of both.
    """

    pretraining: int = 40
    labelled: int = 80
    held_out: int = 2
    clips: int = 2
    epochs: int = 3
    seeds: int = 5
    parcels: int = 46
    effect: float = 0.35


QUICK = Plan(4, 12, 1, 1, 1, 1, 10)


@lru_cache(maxsize=1)
def brain() -> np.ndarray:
    """Return the template's brain on the model grid, (96, 96, 96) bool."""
    return brain_on(MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)


@lru_cache(maxsize=1)
def parcels(others: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the parcel of each brain voxel, (V,) from 0, by the nearest centre, and the names of the parcels."""
    points = np.argwhere(brain()) @ MODEL_GRID_AFFINE[:3, :3].T + MODEL_GRID_AFFINE[:3, 3]
    names = [f"{system}{k + 1}" for system, centres in AFFECTED.items() for k in range(len(centres))]
    centres = [np.array(centre, float) for group in AFFECTED.values() for centre in group]
    for number in range(others):  # the voxel farthest from all centres before it
        centres.append(points[np.argmax(cKDTree(np.array(centres)).query(points)[0])])
        names.append(f"other{number + 1}")
    return cKDTree(np.array(centres)).query(points)[1], tuple(names)


def write_atlas(folder: Path, plan: Plan) -> None:
    """Write the parcels as a label image with its table."""
    owners, names = parcels(plan.parcels)
    labels = np.zeros(MODEL_GRID_SHAPE, np.int16)
    labels[brain()] = owners + 1
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, MODEL_GRID_AFFINE), folder / "parcels.nii.gz")
    write_tsv(folder / "parcels.tsv", {"index": list(range(1, len(names) + 1)), "name": list(names)})


def simulate(label: str, group: str | None, plan: Plan) -> GridSeries:
    """Simulate one scan: noise per voxel, fluctuations per parcel, and fluctuations shared by parcels."""
    rng = rng_for(label, "scan")
    owners, names = parcels(plan.parcels)
    n_vols = plan.clips * CLIP_VOLUMES
    strength = 0.02 * np.exp(rng.normal(0, 0.1, len(names)))
    affected = np.array([not name.startswith("other") for name in names])
    if group is not None:
        strength[affected] *= 1 + plan.effect * (1 if group == GROUPS[1] else -1)
    loads = rng_for("networks").normal(size=(len(names), 5)) / 5**0.5
    courses = 0.8 * _slow(rng, n_vols, len(names)) + 0.6 * _slow(rng, n_vols, 5) @ loads.T  # (U, parcels)
    values = 0.03 * rng.standard_normal((n_vols, len(owners)), dtype=np.float32)
    values += (courses * strength).astype(np.float32)[:, owners]
    values += 1 + 0.1 * rng_for("anatomy").standard_normal(len(owners), dtype=np.float32)
    return GridSeries(1000 * values, brain(), MODEL_TR)


def _slow(rng: np.random.Generator, n_vols: int, n: int) -> np.ndarray:
    """Return slow time courses (U, n) with a standard deviation of 1."""
    course = gaussian_filter1d(rng.standard_normal((n_vols + 40, n)), 2.5, axis=0)
    return (course / course.std(axis=0))[20:-20]


def make_cohort(folder: Path, plan: Plan) -> None:
    """Write the stores of participants without and with a group label, and participants.tsv."""
    people = [(f"{k:03d}", GROUPS[k % 2]) for k in range(plan.labelled)]
    write_tsv(
        folder / "participants.tsv",
        {"participant_id": [f"sub-{p}" for p, _ in people], "group": [group for _, group in people]},
    )
    write_json(folder / "dataset_description.json", {"Name": "simulated", "BIDSVersion": "1.10.0"})
    stores = ClipStore(folder / "unlabelled", "voxel"), ClipStore(folder / "labelled", "voxel")
    for k in range(plan.pretraining):
        if f"sub-p{k:03d}_task-x" not in stores[0]:  # from both groups, without the label
            stores[0].add(f"sub-p{k:03d}_task-x", simulate(f"p{k:03d}", GROUPS[k % 2], plan), f"p{k:03d}")
    for label, group in people:
        if f"sub-{label}_task-x" not in stores[1]:
            stores[1].add(f"sub-{label}_task-x", simulate(label, group, plan), label)


def pretrained(kind: str, seed: int, work: Path, store: Path, atlas: Path, plan: Plan) -> Path:
    """Return an encoder trained with a kind of mask; an existing one is not trained again."""
    path = work / f"{kind}_{seed}.safetensors"
    if path.is_file():
        return path
    if kind == UNTRAINED:
        torch.manual_seed(seed)
        model = MaskedAutoencoder(CONFIG)
        return save_encoder(path, CONFIG, model.encoder.state_dict(), kind, decoder=model.decoder_state(), info={})
    config = write_text(work / "config.json", json.dumps(CONFIG.as_dict()))
    options = ["--mask", kind, "--config", str(config), "--output", str(path), "--normalisation", "voxel"]
    options += ["--atlas", str(atlas)] if kind == "atlas" else []
    options += ["--epochs", str(plan.epochs), "--batch-size", "2", "--learning-rate", "1e-3", "--no-augment"]
    if train(["pretrain", str(store), *options, "--seed", str(seed), "--name", kind]):
        raise SystemExit(f"{path}: pre-training failed")
    return path


def correct_predictions(encoder: Path, store: Path, tables: Path) -> np.ndarray:
    """Cross-validate a linear head; return whether each participant is classified correctly, (participants,) 0 or 1."""
    report = encoder.with_suffix(".report")
    options = ["--raw", str(tables), "--target", "participants.tsv:group", "--model", str(encoder), "--baselines"]
    options += ["--strategy", "linear", "--permutations", "0", "--repeats", "2", "--output", str(report)]
    if train(["evaluate", str(store), *options]):
        raise SystemExit(f"{encoder}: the evaluation failed")
    with open(report / "answers.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return np.array([float(row[f"encoder_p_{row['truth']}"]) > 0.5 for row in rows], float)


def parcel_errors(encoder: Path, regions: Regions, plan: Plan) -> np.ndarray:
    """Return the reconstruction error of each parcel, (parcels,), as the mean over held-out scans."""
    model, spatial = load_autoencoder(encoder), trained_mask(read_checkpoint(encoder))
    found = []
    for k in range(plan.held_out):
        reader = ClipReader(simulate(f"held{k}", GROUPS[k % 2], plan))
        found.append(reconstruction_errors(model, reader, regions, spatial, "voxel").clips[0])
    return np.mean(found, axis=0)


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval of values (seeds, participants), over participants and seeds."""
    rng = np.random.default_rng(0)
    n_seeds, n = values.shape
    means = [
        values[rng.integers(n_seeds, size=n_seeds)][:, rng.integers(n, size=n)].mean() for _ in range(draws)
    ]  # fmt: skip
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def one_encoder(kind: str, seed: int, work: Path, plan: Plan) -> tuple[np.ndarray, np.ndarray | None]:
    """Train an encoder in one thread; return correct predictions and, unless untrained, parcel errors."""
    torch.set_num_threads(1)
    reuse_freed_memory()  # as the command does
    started = time.monotonic(), time.process_time()
    encoder = pretrained(kind, seed, work, work / "unlabelled", work / "parcels.nii.gz", plan)
    correct = correct_predictions(encoder, work / "labelled", work)
    errors = None if kind == UNTRAINED else parcel_errors(encoder, regions_of(plan), plan)
    took = time.monotonic() - started[0], time.process_time() - started[1]
    print(f"{kind}, seed {seed}: {took[0]:.0f} s, {took[1]:.0f} s of CPU time", flush=True)
    return correct, errors


def regions_of(plan: Plan) -> Regions:
    """Return the parcels as regions for the reconstruction."""
    owners, names = parcels(plan.parcels)
    labels = np.zeros(MODEL_GRID_SHAPE, np.int64)
    labels[brain()] = owners + 1
    return Regions("parcels", labels, {k + 1: name for k, name in enumerate(names)})


def run(work: Path, plan: Plan, processes: int = 1) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return correct predictions (seeds, participants) and parcel errors (seeds, parcels) of each kind of mask."""
    write_atlas(work, plan)
    make_cohort(work, plan)
    jobs = [(kind, seed) for seed in range(plan.seeds) for kind in (*MASKS, UNTRAINED)]
    done = Parallel(processes, backend="multiprocessing")(delayed(one_encoder)(*job, work, plan) for job in jobs)
    found = dict(zip(jobs, done, strict=True))
    seeds = range(plan.seeds)
    correct = {kind: np.stack([found[kind, seed][0] for seed in seeds]) for kind in (UNTRAINED, *MASKS)}
    return correct, {kind: np.array([found[kind, seed][1] for seed in seeds]) for kind in MASKS}


def report(correct: dict[str, np.ndarray], errors: dict[str, np.ndarray], names: tuple[str, ...]) -> None:
    """Print accuracies, their differences from window masks, and reconstruction errors by region."""
    print("\n| mask | accuracy | range over seeds | difference from window masks |\n" + "| --- " * 4 + "|")
    for kind, values in correct.items():
        low, high = values.mean(axis=1).min(), values.mean(axis=1).max()
        difference = interval(values - correct["window"])
        cells = [kind, "{:.3f} ({:.3f} to {:.3f})".format(*interval(values)), f"{low:.3f} to {high:.3f}"]
        cells.append("" if kind == "window" else "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference))
        print("| " + " | ".join(cells) + " |")
    systems = np.array([name.rstrip("0123456789") for name in names])
    print("\nSquared error divided by variance for parcels that are masked entirely, mean (range) over seeds:\n")
    print(f"| mask | {' | '.join((*AFFECTED, 'other'))} |\n" + "| --- " * (len(AFFECTED) + 2) + "|")
    for kind, values in errors.items():
        cells = []
        for system in (*AFFECTED, "other"):
            means = np.nanmean(values[:, systems == system], axis=1)
            cells.append(f"{means.mean():.3f} ({means.min():.3f} to {means.max():.3f})")
        print(f"| {kind} | {' | '.join(cells)} |")


def main() -> None:
    """Run the benchmark and print its tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, default=Path("region-masking"), help="cohort (about 1.3 GB), encoders, reports")
    p.add_argument("--quick", action="store_true", help="only check that the benchmark runs")
    p.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="encoders trained in parallel")
    arguments = p.parse_args()
    plan = QUICK if arguments.quick else Plan()
    started = time.monotonic()
    correct, errors = run(arguments.work, plan, arguments.processes)
    report(correct, errors, parcels(plan.parcels)[1])
    print(f"\n{plan}: {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
