"""Options of ``neurostorm-train``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from bids_app.cli.export_options import add_export
from bids_app.cli.store_options import add_store, path, place
from bids_app.settings import DEFAULT_MODEL

PROGRAM = "neurostorm-train"
STRATEGIES = ("linear", "ln", "prompt", "prompt_ln", "lora", "full")  # as in bids_app.adapters.file, which needs torch
DATA_HELP = (
    "outputs of neurostorm (with --output-clips, or --output-spaces MNI152NLin6Asym), of fMRIPrep, XCP-D, HCP or UK "
    "Biobank, or clip stores prepared from them"
)
TARGET_HELP = (
    "participants.tsv:sex, sessions.tsv:mood, phenotype/anxiety.tsv:score (in the derivatives or the raw dataset), "
    "events.tsv:trial_type (label of each clip), events.tsv:stim_file (with --images), scan:task, or "
    "scan:participant (with --task embedding, for re-identification)"
)


def at_least(minimum: float) -> Callable[[str], float]:
    """Return a function that reads numbers of the type of ``minimum`` which are not below it."""

    def read(text: str) -> float:
        value = type(minimum)(text)
        if not minimum <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number from {minimum}")
        return value

    read.__name__ = type(minimum).__name__  # for the error of argparse
    return read


def seed(text: str) -> int:
    """Read a random seed, of at most 63 bits as PyTorch takes it."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 2^63 - 1")
    return value


def device(text: str) -> str:
    """Check the name of a device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:N")
    return text


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Pre-train an encoder, adapt and evaluate it, or calibrate an adapter, with your own scans.",
        epilog="Options can be read from a file with @FILE: one option with its value per line, # for comments.",
    )
    commands = p.add_subparsers(dest="command", required=True)
    _add_pretrain(commands.add_parser("pretrain", help="pre-train an encoder as a masked autoencoder"))
    _add_adapt(
        commands.add_parser("adapt", help="train an adapter: prompts, norms, low-rank updates, a head, or all weights")
    )
    _add_evaluate(
        commands.add_parser("evaluate", help="cross-validate an adaptation in comparison with simple baselines")
    )
    _add_calibrate(commands.add_parser("calibrate", help="calibrate the predictions of an adapter with your own scans"))
    add_export(
        commands.add_parser("export", help="write the embeddings of a cohort, with labels and splits, for other tools")
    )
    add_store(commands.add_parser("store", help="build, verify and describe clip stores for training"))
    return p


def _add_pretrain(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", required=True, type=path, metavar="FILE", help="safetensors file to write")
    _add_data(p, kind=place)
    _add_loop(p)
    group = p.add_argument_group("model")
    group.add_argument("--start-from", metavar="MODEL", help="initial weights, including a decoder (default: random)")
    group.add_argument("--config", type=path, metavar="JSON", help="encoder configuration (default: the published one)")
    group.add_argument("--name", default="pretrained", help="name of the model in outputs (default: %(default)s)")
    p.add_argument(
        "--dataset-weights",
        nargs="+",
        metavar="W",
        help="share of each dataset in the clips of an epoch: uniform, or one number for each DATA (default: each clip "
        "of all datasets once)",
    )
    group = p.add_argument_group("masking and augmentation")
    group.add_argument("--mask", choices=("random", "window", "atlas"), default="window", help="spatial mask")
    group.add_argument("--mask-time", choices=("random", "tube"), default="random", help="temporal mask")
    group.add_argument("--mask-ratio", type=float, default=0.5, metavar="R", help="fraction to mask")
    group.add_argument("--atlas", metavar="NAME|NIFTI", help="for --mask atlas: aal3, or a label image in MNI space")
    group.add_argument(
        "--atlas-rule",
        choices=("any", "majority", "pure", "soft"),
        default="majority",
        help="assignment of patches to regions",
    )
    group.add_argument(
        "--atlas-count",
        choices=("regions", "patches"),
        default="regions",
        help="what --mask-ratio counts with --mask atlas; patches is not the published method",
    )
    group.add_argument(
        "--atlas-redraw",
        action="store_true",
        help="with --mask atlas, draw other regions in each volume; not the published method",
    )
    group.add_argument(
        "--region-weights",
        metavar="alike|TSV",
        help="weights of regions in the reconstruction loss: alike, or TSV with columns index and weight",
    )
    group.add_argument(
        "--strd",
        action=argparse.BooleanOptionalAction,
        help="spatio-temporal redundancy dropout (default: from the recipe)",
    )
    group.add_argument("--no-augment", action="store_true", help="disable augmentation (affine, noise, smoothing)")
    group = p.add_argument_group("watching")
    group.add_argument(
        "--validation-share",
        type=float,
        default=0.0,
        metavar="R",
        help="fraction of participants to hold out; their loss is measured after each epoch (default: 0)",
    )
    group.add_argument(
        "--checkpoint-steps", type=at_least(1), metavar="N", help="also keep the weights every N optimiser steps"
    )
    group.add_argument(
        "--logger",
        nargs="+",
        choices=("tensorboard", "wandb"),
        default=[],
        help="also log to TensorBoard, or to Weights & Biases (offline), in the folder of the state",
    )
    group = p.add_argument_group("resources")
    group.add_argument("--nodes", type=int, metavar="N", help="nodes (default: those of torchrun or srun, or 1)")
    group.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="processes on each node, one per device (default: those of torchrun or srun, or 1)",
    )
    group.add_argument(
        "--strategy",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="ddp: each device has all weights; fsdp: weights and optimiser are divided among devices, for "
        "encoders much larger than the published one (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="processes that read clips, for each training process (default: 4 on a GPU; 0 on a CPU, a thread reads)",
    )
    group.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: less memory, more time, same results"
    )


def _add_adapt(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=path, metavar="FILE", help="safetensors file to write (default: NAME.safetensors)")
    _add_data(p, both=True)
    _add_task(p)
    _add_loop(p)
    p.add_argument(
        "--diagnosis", "--research-only", dest="research_only", action="store_true",
        help="the target is a diagnosis: applying the adapter requires --acknowledge-research-use",
    )  # fmt: skip
    group = p.add_argument_group("validation")
    group.add_argument(
        "--split", type=path, metavar="FILE", help="TSV or JSON file with the training and validation participants"
    )
    group.add_argument(
        "--validation",
        type=float,
        default=0.2,
        metavar="FRACTION",
        help="fraction of participants for validation; 0: no validation",
    )
    group.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without improvement")
    p.add_argument("--name", help="name of the adapter, letters and digits (default: the target column)")


def _add_evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=path, metavar="DIR", help="folder of the report (default: NAME_evaluation)")
    _add_data(p)
    _add_task(p)
    _add_loop(p)
    p.set_defaults(strategy="linear", model=None)  # other strategies train the encoder in each fold
    group = p.add_argument_group("existing adapter")
    group.add_argument(
        "--adapter",
        metavar="ADAPTER",
        help="evaluate this adapter instead, on scans of participants that are not in its training set: file, name in "
        "the catalog or reference (hf:owner/name@revision:path)",
    )
    _add_training_set(group)
    group = p.add_argument_group("evaluation")
    group.add_argument(
        "--folds", type=int, default=5, metavar="K", help="number of cross-validation folds (default: %(default)s)"
    )
    group.add_argument(
        "--split",
        type=path,
        metavar="FILE",
        help="TSV or JSON file with the training, validation (optional) and test participants, instead of --folds; "
        "with --adapter: its split file (default: its .split.tsv)",
    )
    group.add_argument(
        "--site-column",
        "--leave-out",
        metavar="[TABLE:]COLUMN",
        help="leave one site (each value of this column) out instead of --folds",
    )
    group.add_argument(
        "--baselines",
        nargs="*",
        choices=("connectivity", "mean", "amplitude", "confounds", "site"),
        default=["connectivity", "mean", "amplitude", "confounds", "site"],
        help="baselines: functional connectivity, mean image, temporal SD and ALFF, motion and confounds, site "
        "(default: all)",
    )
    group.add_argument(
        "--atlas", metavar="NAME|NIFTI", help="parcels for connectivity and amplitudes (default: cubes of 24 mm)"
    )
    group.add_argument(
        "--permutations", type=int, default=200, metavar="N", help="label permutations for the test; 0: no test"
    )
    group.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="repeats of the folds, and of the samples of --train-shares (default: 10 for strategy linear except "
        "embeddings, else 1)",
    )
    group.add_argument(
        "--train-shares",
        nargs="+",
        type=float,
        default=[],
        metavar="R",
        help="data efficiency: also train with these shares of the training participants, such as 0.01 0.1 1",
    )
    group.add_argument(
        "--also-target",
        action="append",
        default=[],
        metavar="TABLE:COLUMN",
        help="evaluate this target too, with one table for all; may be repeated",
    )
    group.add_argument(
        "--harmonise",
        choices=("combat",),
        help="remove differences between the sites of participants.tsv from embeddings, fitted to training sets",
    )
    group.add_argument(
        "--pool", type=int, default=300, metavar="N", help="number of images to choose from, including the correct one"
    )
    group.add_argument(
        "--gallery",
        type=int,
        metavar="N",
        help="re-identification: number of participants to choose from, the right one included (default: test set)",
    )
    group.add_argument(
        "--across-sessions",
        nargs="?",
        const="session",
        choices=("session", "run"),
        help="re-identification: compare scans of different sessions only; run: runs are sessions, as the days of HCP "
        "Young Adult",
    )
    group.add_argument(
        "--zero-shot", action="store_true", help="re-identification without training: compare the encoder's embeddings"
    )
    group.add_argument(
        "--workers",
        type=at_least(1),
        default=1,
        metavar="N",
        help="train the folds in N processes, for strategies other than linear; the results stay the same",
    )
    group.add_argument("--name", help="name of the report (default: the target column)")


def _add_calibrate(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter file, name in the catalog or reference to the hub")
    p.add_argument("data", nargs="+", type=path, metavar="DATA", help=DATA_HELP)
    p.add_argument("--output", type=path, required=True, metavar="FILE", help="calibrated adapter to write")
    p.add_argument("--target", required=True, metavar="TABLE:COLUMN", help=TARGET_HELP)
    p.add_argument(
        "--method",
        choices=("temperature", "none"),
        help="calibration of probabilities (default: temperature)",
    )
    p.add_argument(
        "--model",
        help="encoder: name in the catalog, reference or file (default: that of an adapter of the catalog, else "
        f"{DEFAULT_MODEL})",
    )
    p.add_argument(
        "--source", default="", metavar="TEXT", help="description of the scans (default: names of the datasets)"
    )
    p.add_argument(
        "--reference",
        action="store_true",
        help="also use these scans as the reference for out-of-distribution detection",
    )
    group = p.add_argument_group("training set")
    group.add_argument("--split", type=path, metavar="FILE", help="split file of the adapter (default: its .split.tsv)")
    _add_training_set(group)
    group = p.add_argument_group("data")
    _add_sources(group)
    _add_event_rule(group)
    group.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="clips per batch")
    group.add_argument("--device", type=device, default="cpu", help="cpu, cuda, cuda:1, ...")


def _add_training_set(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--other-people",
        action="store_true",
        help="no participant belongs to the training set, even if labels are equal",
    )


def _add_data(p: argparse.ArgumentParser, both: bool = False, kind: Callable[[str], object] = path) -> None:
    p.add_argument("data", nargs="+", type=kind, help=DATA_HELP)
    group = p.add_argument_group("data")
    _add_sources(group)
    group.add_argument(
        "--normalisation",
        choices=("global", "voxel", *(["both"] if both else [])),
        help="normalisation of clips (default: from the recipe)"
        + ("; both: train a second head for global (strategy linear)" if both else ""),
    )


def _add_sources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--raw", type=path, metavar="DIR", help="raw dataset with tables (default: as linked in the derivatives)"
    )
    group.add_argument(
        "--store", type=path, metavar="DIR", help="folder for prepared clips (default: next to the output)"
    )
    group.add_argument(
        "--nprocs", type=at_least(1), default=1, metavar="N", help="parallel processes for clip preparation"
    )
    group.add_argument(
        "--exclude-failed", action="store_true",
        help="leave out the runs that people rated as failed (ratings of neurostorm-review in the derivatives)",
    )  # fmt: skip


def _add_event_rule(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--event-delay", type=float, default=4.0, metavar="S", help="delay of the BOLD response, s")
    group.add_argument(
        "--event-overlap",
        type=float,
        default=0.5,
        metavar="R",
        help="minimum fraction of a clip covered by an event label",
    )


def _add_task(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("task")
    group.add_argument("--target", required=True, metavar="TABLE:COLUMN", help=TARGET_HELP)
    group.add_argument(
        "--task", choices=("classification", "regression", "embedding"), help="type of task (default: from the values)"
    )  # fmt: skip
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"encoder: name in the catalog, reference or file (default: {DEFAULT_MODEL}; with --adapter: its own)",
    )
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="prompt",
        help="parameters to train with the head (default: %(default)s)",
    )
    group.add_argument("--prompt-len", type=int, default=50, metavar="K", help="number of prompts per window")
    group.add_argument("--rank", type=int, metavar="N", help="rank of low-rank updates (strategy lora; default: 8)")
    group.add_argument(
        "--lora-alpha",
        type=float,
        metavar="A",
        help="low-rank updates are scaled by A / rank (strategy lora; default: the rank)",
    )
    group.add_argument(
        "--lora-targets",
        nargs="+",
        metavar="NAME",
        help="linear layers with low-rank updates, by the end of their name or a pattern with * (strategy lora; "
        "default: in_proj x_proj out_proj linear1 linear2, the projections of Mamba and the MLP)",
    )
    group.add_argument("--no-balance", action="store_true", help="do not weight classes by their size")
    group.add_argument(
        "--ridge",
        type=at_least(0.0),
        default=1e-2,
        metavar="R",
        help="L2 penalty of linear heads; evaluate selects it, except for embeddings",
    )
    group.add_argument("--dimensions", type=int, default=64, metavar="N", help="length of the vectors of an embedding")
    group.add_argument(
        "--images",
        type=path,
        metavar="FILE",
        help="image vectors: .tsv (stim_file and numbers), or .npy with a .tsv of the same name",
    )
    _add_event_rule(group)
    group.add_argument("--family-column", metavar="[TABLE:]COLUMN", help="families to keep together in splits")


def _add_loop(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=("published", "ours"),
        default="ours",
        help="learning rate, schedule, epochs, normalisation and other choices: as published, or ours, listed with the "
        "reasons in docs/published.md; options that are given override it (default: %(default)s)",
    )
    group.add_argument("--epochs", type=at_least(1), metavar="N", help="number of epochs (default: from the recipe)")
    group.add_argument(
        "--batch-size", type=at_least(1), metavar="N", help="clips per batch and process (default: from the recipe)"
    )
    group.add_argument("--accumulate", type=at_least(1), default=1, metavar="N", help="batches per optimiser step")
    group.add_argument(
        "--learning-rate", type=float, metavar="R", help="maximum learning rate (default: from the recipe)"
    )
    group.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="numerical precision")
    group.add_argument("--seed", type=seed, default=0, metavar="S", help="random seed")
    group.add_argument("--device", type=device, default="cpu", help="cpu, cuda, cuda:1, ...")
