"""``neurostorm-train``: what can be asked; commands.py does it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_app.errors import EXIT_OK, NeurostormError

STRATEGIES = ("linear", "ln", "prompt", "prompt_ln", "full")  # as in bids_app.adapters.file, which needs torch
DATA_HELP = (
    "derivatives with *_space-<template>_desc-preproc_bold.nii.gz (of neurostorm run with --output-spaces "
    "MNI152NLin6Asym, or of fMRIPrep), or stores of clips that were prepared from them"
)
TARGET_HELP = (
    "participants.tsv:sex, sessions.tsv:mood, phenotype/anxiety.tsv:score (in the derivatives or the raw dataset), "
    "events.tsv:trial_type (what goes on in each clip), events.tsv:stim_file (with --images), scan:task, or "
    "scan:participant (with --task embedding, for re-identification)"
)


class ArgumentParser(argparse.ArgumentParser):
    """Reads options from files as people write them."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """``--ridge 0.1  # strong`` to its words."""
        return shlex.split(arg_line, comments=True)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = ArgumentParser(
        prog="neurostorm-train",
        description="Pre-train an encoder, adapt one to a question, or evaluate it, with your own scans.",
        epilog="Options can be kept in a file and named as @FILE: one line an option with its value, # for remarks.",
        fromfile_prefix_chars="@",
    )
    commands = p.add_subparsers(dest="command", required=True)
    _add_pretrain(
        commands.add_parser("pretrain", help="train an encoder by hiding parts of clips (masked autoencoder)")
    )
    _add_adapt(commands.add_parser("adapt", help="train an adapter: prompts, norms, head, or everything"))
    _add_evaluate(commands.add_parser("evaluate", help="cross-validate an adapter beside simple baselines"))
    _add_calibrate(
        commands.add_parser("calibrate", help="learn how far an adapter's answers can be trusted, from your own scans")
    )
    return p


def _add_pretrain(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", required=True, type=Path, metavar="FILE", help="safetensors file to write")
    _add_data(p, normalisation="global")
    _add_loop(p, epochs=30, batch_size=8, learning_rate=5e-5)
    group = p.add_argument_group("what is trained")
    group.add_argument("--start-from", metavar="MODEL", help="weights with a decoder to go on from (default: random)")
    group.add_argument("--config", type=Path, metavar="JSON", help="encoder configuration (default: the published one)")
    group.add_argument("--name", default="pretrained", help="what the model is called in outputs")
    group = p.add_argument_group("what is hidden, and how clips are changed")
    group.add_argument("--mask", choices=("random", "window", "atlas"), default="window", help="in space")
    group.add_argument("--mask-time", choices=("random", "tube"), default="random", help="in time")
    group.add_argument("--mask-ratio", type=float, default=0.5, metavar="R", help="share that is hidden")
    group.add_argument("--atlas", metavar="NAME|NIFTI", help="for --mask atlas: aal3, or a label image in MNI space")
    group.add_argument(
        "--atlas-rule", choices=("any", "majority", "pure", "soft"), default="majority", help="patches of a region"
    )
    group.add_argument(
        "--region-weights",
        metavar="alike|TSV",
        help="reconstruction counts by region: all alike, or by the columns index and weight",
    )
    group.add_argument("--no-strd", action="store_true", help="without spatio-temporal redundancy dropout")
    group.add_argument("--no-augment", action="store_true", help="without affine changes, noise and smoothing")
    group = p.add_argument_group("resources")
    group.add_argument("--processes", type=int, default=1, metavar="N", help="that share the batches, one a device")
    group.add_argument("--checkpointing", action="store_true", help="less memory, more time, the same numbers")


def _add_adapt(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=Path, metavar="FILE", help="safetensors file to write (default: NAME.safetensors)")
    _add_data(p, normalisation="voxel", both=True)
    _add_question(p)
    _add_loop(p, epochs=10, batch_size=8, learning_rate=1e-3)
    p.add_argument(
        "--diagnosis", "--research-only", dest="research_only", action="store_true",
        help="the answer is a diagnosis: the adapter is applied only with --acknowledge-research-use",
    )  # fmt: skip
    group = p.add_argument_group("validation")
    group.add_argument("--split", type=Path, metavar="FILE", help="TSV or JSON that says who trains and who validates")
    group.add_argument("--validation", type=float, default=0.2, metavar="SHARE", help="of the participants; 0: none")
    group.add_argument("--patience", type=int, metavar="N", help="stop after so many epochs without a better one")
    p.add_argument("--name", help="of the adapter, letters and digits (default: the column's)")


def _add_evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (default: NAME_evaluation)")
    _add_data(p, normalisation="voxel")
    _add_question(p)
    _add_loop(p, epochs=10, batch_size=8, learning_rate=1e-3)
    p.set_defaults(strategy="linear")  # the others train through the encoder in every fold
    group = p.add_argument_group("evaluation")
    group.add_argument("--folds", type=int, default=5, metavar="K", help="of the cross-validation (default: 5)")
    group.add_argument("--site-column", metavar="[TABLE:]COLUMN", help="leave one site out instead")
    group.add_argument(
        "--baselines",
        nargs="*",
        choices=("connectivity", "mean", "confounds"),
        default=["connectivity", "mean", "confounds"],
        help="functional connectivity, mean image, motion and confounds",
    )
    group.add_argument("--atlas", metavar="NAME|NIFTI", help="parcels of the connectivity (default: cubes of 24 mm)")
    group.add_argument("--permutations", type=int, default=200, metavar="N", help="of the labels; 0: no test")
    group.add_argument("--draws", type=int, default=1000, metavar="N", help="bootstrap samples of participants")
    group.add_argument(
        "--pool", type=int, default=300, metavar="N", help="images to choose from, the right one included"
    )
    group.add_argument("--name", help="in the report (default: the column's)")


def _add_calibrate(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="its file, or a name of the catalog")
    p.add_argument("data", nargs="+", type=Path, metavar="DATA", help=DATA_HELP)
    p.add_argument("--output", type=Path, required=True, metavar="FILE", help="adapter to write, calibrated")
    p.add_argument("--target", required=True, metavar="TABLE:COLUMN", help=TARGET_HELP)
    p.add_argument(
        "--method",
        choices=("temperature", "isotonic", "none"),
        help="of probabilities (default: temperature); isotonic needs 100 scans",
    )
    p.add_argument("--model", help="encoder: a name of the catalog, or a file (default: the adapter's, if it tells)")
    p.add_argument("--source", default="", metavar="TEXT", help="whose scans these are (default: names of the data)")
    p.add_argument(
        "--reference", action="store_true", help="also take these scans as those that new ones are compared with"
    )
    group = p.add_argument_group("who trained")
    group.add_argument("--split", type=Path, metavar="FILE", help="(default: the .split.tsv beside the adapter)")
    group.add_argument("--other-people", action="store_true", help="nobody here did, though labels may be alike")
    group = p.add_argument_group("data")
    _add_sources(group)
    _add_event_rule(group)
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at a time")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def _add_data(p: argparse.ArgumentParser, normalisation: str, both: bool = False) -> None:
    p.add_argument("data", nargs="+", type=Path, help=DATA_HELP)
    group = p.add_argument_group("data")
    _add_sources(group)
    group.add_argument(
        "--normalisation",
        choices=("global", "voxel", *(["both"] if both else [])),
        default=normalisation,
        help="of clips" + ("; both: a second head for the global one too (strategy linear)" if both else ""),
    )


def _add_sources(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--raw", type=Path, metavar="DIR", help="raw dataset with tables (default: as derivatives say)")
    group.add_argument("--store", type=Path, metavar="DIR", help="where prepared clips go (default: beside the output)")
    group.add_argument("--nprocs", type=int, default=1, metavar="N", help="processes that prepare clips")


def _add_event_rule(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--event-delay", type=float, default=4.0, metavar="S", help="of the BOLD response")
    group.add_argument("--event-overlap", type=float, default=0.5, metavar="R", help="share of a clip that events fill")


def _add_question(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("question")
    group.add_argument("--target", required=True, metavar="TABLE:COLUMN", help=TARGET_HELP)
    group.add_argument(
        "--task", choices=("classification", "regression", "embedding"), help="default: by the values"
    )  # fmt: skip
    group.add_argument("--model", default="neurostorm-5ds", help="encoder: a name of the catalog, or a file")
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="prompt",
        help="what is trained beside the head (default: %(default)s)",
    )
    group.add_argument("--prompt-len", type=int, default=50, metavar="K", help="prompts in front of each window")
    group.add_argument("--no-balance", action="store_true", help="do not make up for classes of different size")
    group.add_argument("--ridge", type=float, default=1e-2, metavar="R", help="penalty on the weights of linear heads")
    group.add_argument("--dimensions", type=int, default=64, metavar="N", help="of an embedding's vector")
    group.add_argument("--images", type=Path, metavar="FILE", help=".tsv (stim_file, numbers) or .npy with .tsv beside")
    _add_event_rule(group)
    group.add_argument("--family-column", metavar="[TABLE:]COLUMN", help="families that no split may tear apart")


def _add_loop(p: argparse.ArgumentParser, epochs: int, batch_size: int, learning_rate: float) -> None:
    group = p.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=epochs, metavar="N")
    group.add_argument("--batch-size", type=int, default=batch_size, metavar="N", help="of each process")
    group.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches to one step")
    group.add_argument("--learning-rate", type=float, default=learning_rate, metavar="R")
    group.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    group.add_argument("--seed", type=int, default=0, metavar="S")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    from bids_app.training import calibrate as calibration
    from bids_app.training import commands
    from bids_app.training.memory import keep_freed_memory

    if argv is None:  # the process is this command's own
        keep_freed_memory()
    try:
        {
            "pretrain": commands.pretrain,
            "adapt": commands.adapt,
            "evaluate": commands.evaluate,
            "calibrate": calibration.calibrate,
        }[arguments.command](arguments)
    except NeurostormError as error:
        print(f"neurostorm-train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("neurostorm-train: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
