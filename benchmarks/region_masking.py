"""Comparison of random, window and region masks in pre-training, on a simulated cohort whose groups differ in dynamics.

    python benchmarks/region_masking.py            # three seeds; see the README for the time
    python benchmarks/region_masking.py --quick    # one seed, few participants, one or two steps: a functional test

Scans are those of `bids_app.phantom.dynamic_cohorts`, at 2 mm and a TR of 0.8 s, with heads, motion and sites that are
independent of the group. In patients, the correlation of two pairs of networks is higher, and the regions of the limbic
network and the cerebellum fluctuate more than in controls; mean images do not differ. The regions are those of the
simulation, which favours region masks; masks are the published ones (whole regions through the whole clip). Small
encoders are pre-trained on participants without group labels, with the same budget (clips, epochs, batches, seeds) for
each kind of mask, and are then frozen. A linear head is cross-validated on other participants, beside functional
connectivity, amplitudes, the mean image, motion and site. An encoder with random weights shows what pre-training adds.

Finally, each pre-trained autoencoder reconstructs every region of new scans from the rest of the brain; an error of 1
corresponds to predicting the mean of each voxel. All training uses `neurostorm-train`; an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from joblib import Parallel, delayed

from bids_app.adapters.attribution import Regions, reconstruction_errors
from bids_app.bids.writer import write_text, write_tsv
from bids_app.catalog.templates import MODEL_SPACE, brain_on
from bids_app.cli.train import main as train
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, MODEL_TR, ClipReader
from bids_app.model.api import load_autoencoder
from bids_app.model.checkpoint import read_checkpoint, save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder, trained_mask
from bids_app.phantom.cohorts import write_tables
from bids_app.phantom.dynamic_cohorts import (
    GROUPS,
    NO_EFFECTS,
    SCORES,
    CohortPlan,
    random_participant,
    scan_participant,
)
from bids_app.phantom.dynamic_scans import DynamicScan
from bids_app.phantom.geometry import apply
from bids_app.phantom.regional_series import OWN_SHARE, regions
from bids_app.training.data.store import ClipStore
from bids_app.training.memory import reuse_freed_memory

MASKS = ("random", "window", "atlas")
UNTRAINED = "untrained"
BASELINES = ("connectivity", "amplitude", "mean", "confounds", "site")
TITLES = {
    UNTRAINED: "random weights",
    "random": "random masks",
    "window": "window masks",
    "atlas": "region masks",
    "connectivity": "functional connectivity",
    "amplitude": "amplitudes (SD, ALFF)",
    "mean": "mean image",
    "confounds": "motion",
}
CONFIG = EncoderConfig(patch_size=(8, 8, 8, 1), embed_dim=12, depths=(1, 1), first_window_size=(4, 4, 4, 4))
COHORT = 7
"""Seed of the cohort."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the cohort and of the training.

    Attributes
    ----------
    pretraining, labelled, held_out : int
        Number of participants: for pre-training, with a group label, and for the reconstruction.
    clips : int
        Clips per scan.
    epochs, seeds, repeats : int
        Repeats are those of the folds.
    connectivity, variance : float
        Differences of each group from the mean of both: of the correlations of `LINKS`, and of the logarithm of the
        standard deviation of `VARIED`.
    """

    pretraining: int = 40
    labelled: int = 100
    held_out: int = 2
    clips: int = 6
    epochs: int = 3
    seeds: int = 3
    repeats: int = 4
    connectivity: float = 0.15
    variance: float = 0.15


QUICK = Plan(4, 12, 1, 1, 1, 1, 2)


@lru_cache(maxsize=1)
def labels() -> np.ndarray:
    """Return the regions of the simulation on the model grid, (96, 96, 96) int32 from 1."""
    brain = brain_on(MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)
    found = np.zeros(MODEL_GRID_SHAPE, np.int32)
    found[brain] = regions().owners(apply(MODEL_GRID_AFFINE, np.argwhere(brain).astype(float))) + 1
    return found


def names() -> dict[int, str]:
    """Return the name of each region: its network and a number."""
    return {k: f"{network}{k}" for k, network in enumerate(regions().networks, start=1)}


def write_atlas(folder: Path) -> None:
    """Write the regions as a label image with its table."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels(), MODEL_GRID_AFFINE), folder / "regions.nii.gz")
    write_tsv(folder / "regions.tsv", {"index": list(names()), "name": list(names().values())})


def simulate(number: int, plan: Plan) -> DynamicScan:
    """Simulate a scan of a participant."""
    effects = replace(NO_EFFECTS, connectivity=plan.connectivity, variance=plan.variance, own=OWN_SHARE)
    cohort = CohortPlan(seconds=plan.clips * CLIP_VOLUMES * MODEL_TR, tr=MODEL_TR, step=1, effects=effects)
    person = random_participant(COHORT, number, cohort.confounding)
    sign = 1 if person.group == GROUPS[1] else -1
    person = replace(person, score=SCORES[0] + sign * SCORES[1])  # the variance follows the group
    return scan_participant(person, cohort, COHORT, "rest")


def make_cohort(folder: Path, plan: Plan) -> None:
    """Write the stores of participants without and with a group label, and the tables of the latter."""
    cohort = CohortPlan()
    people = [random_participant(COHORT, number, cohort.confounding) for number in range(plan.labelled)]
    write_tables(folder, people)
    stores = {"labelled": range(plan.labelled), "unlabelled": range(1000, 1000 + plan.pretraining)}
    for name, numbers in stores.items():
        store = ClipStore(folder / name, "voxel")
        for number in numbers:
            label = f"{number:03d}"
            if f"sub-{label}_task-x" not in store:
                scan = simulate(number, plan)
                store.add(f"sub-{label}_task-x", scan.series, label, confounds=scan.confounds)


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


def evaluated(encoder: Path, work: Path, plan: Plan, baselines: bool) -> dict[str, np.ndarray]:
    """Cross-validate a linear head; return whether each participant is classified correctly, (participants,).

    0.5 stands for equal probabilities. The keys are ``encoder`` and, if asked for, the names of `BASELINES`.
    """
    report = encoder.with_suffix(".report")
    options = ["--raw", str(work), "--target", "participants.tsv:group", "--model", str(encoder)]
    options += ["--strategy", "linear", "--permutations", "0", "--repeats", str(plan.repeats)]
    options += ["--atlas", str(work / "regions.nii.gz"), "--output", str(report), "--baselines"]
    methods = ["encoder", *(BASELINES if baselines else ())]
    if train(["evaluate", str(work / "labelled"), *options, *methods[1:]]):
        raise SystemExit(f"{encoder}: the evaluation failed")
    with open(report / "answers.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    probabilities = {m: np.array([float(row[f"{m}_p_{row['truth']}"]) for row in rows]) for m in methods}
    return {m: np.heaviside(p - 0.5, 0.5) for m, p in probabilities.items()}


def region_errors(encoder: Path, plan: Plan) -> np.ndarray:
    """Return the reconstruction error of each region, (regions,), as the mean over held-out scans."""
    model, spatial = load_autoencoder(encoder), trained_mask(read_checkpoint(encoder))
    known = Regions("regions", labels().astype(np.int64), names())
    readers = (ClipReader(simulate(2000 + k, plan).series) for k in range(plan.held_out))
    return np.mean([reconstruction_errors(model, reader, known, spatial, "voxel").clips[0] for reader in readers], 0)


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval of values (seeds, participants), over participants and seeds."""
    rng = np.random.default_rng(0)
    n_seeds, n = values.shape
    means = [
        values[rng.integers(n_seeds, size=n_seeds)][:, rng.integers(n, size=n)].mean() for _ in range(draws)
    ]  # fmt: skip
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def one_encoder(kind: str, seed: int, work: Path, plan: Plan) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Train an encoder in one thread; return correct predictions by method and, unless untrained, region errors."""
    torch.set_num_threads(1)
    reuse_freed_memory()  # as the command does
    started = time.monotonic(), time.process_time()
    encoder = pretrained(kind, seed, work, work / "unlabelled", work / "regions.nii.gz", plan)
    correct = evaluated(encoder, work, plan, baselines=(kind, seed) == (UNTRAINED, 0))
    errors = None if kind == UNTRAINED else region_errors(encoder, plan)
    took = time.monotonic() - started[0], time.process_time() - started[1]
    print(f"{kind}, seed {seed}: {took[0]:.0f} s, {took[1]:.0f} s of CPU time", flush=True)
    return correct, errors


def run(work: Path, plan: Plan, processes: int = 1) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return correct predictions (seeds, participants) of each method and region errors (seeds, regions) of each mask.

    Baselines have one seed.
    """
    write_atlas(work)
    make_cohort(work, plan)
    jobs = [(kind, seed) for seed in range(plan.seeds) for kind in (UNTRAINED, *MASKS)]
    done = Parallel(processes, backend="multiprocessing")(delayed(one_encoder)(*job, work, plan) for job in jobs)
    found = dict(zip(jobs, done, strict=True))
    seeds = range(plan.seeds)
    correct = {kind: np.stack([found[kind, seed][0]["encoder"] for seed in seeds]) for kind in (UNTRAINED, *MASKS)}
    correct |= {name: found[UNTRAINED, 0][0][name][None] for name in BASELINES}
    return correct, {kind: np.array([found[kind, seed][1] for seed in seeds]) for kind in MASKS}


def report(correct: dict[str, np.ndarray], errors: dict[str, np.ndarray]) -> None:
    """Print accuracies, their differences from random masks, and reconstruction errors by network."""
    print("\n| method | accuracy | range over seeds | difference from random masks |\n" + "| --- " * 4 + "|")
    for kind, values in correct.items():
        low, high = values.mean(axis=1).min(), values.mean(axis=1).max()
        cells = [TITLES.get(kind, kind), "{:.3f} ({:.3f} to {:.3f})".format(*interval(values))]
        cells.append("" if len(values) == 1 else f"{low:.3f} to {high:.3f}")
        difference = "{:+.3f} ({:+.3f} to {:+.3f})".format(*interval(values - correct["random"]))
        cells.append("" if kind == "random" else difference)
        print("| " + " | ".join(cells) + " |")
    networks = sorted(set(regions().networks))
    of_region = np.array(regions().networks)
    print("\nSquared error divided by variance of regions that are masked entirely, mean (range) over seeds:\n")
    print(f"| mask | {' | '.join((*networks, 'all'))} |\n" + "| --- " * (len(networks) + 2) + "|")
    for kind, values in errors.items():
        parts = [np.nanmean(values[:, of_region == network], axis=1) for network in networks]
        parts.append(np.nanmean(values, axis=1))
        cells = [f"{means.mean():.3f} ({means.min():.3f} to {means.max():.3f})" for means in parts]
        print("| " + " | ".join([kind, *cells]) + " |")


def main() -> None:
    """Run the benchmark and print its tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, default=Path("region-masking"), help="cohort (about 4 GB), encoders, reports")
    p.add_argument("--quick", action="store_true", help="only check that the benchmark runs")
    p.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="encoders trained in parallel")
    arguments = p.parse_args()
    plan = QUICK if arguments.quick else Plan()
    started = time.monotonic()
    correct, errors = run(arguments.work, plan, arguments.processes)
    report(correct, errors)
    print(f"\n{plan}: {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
