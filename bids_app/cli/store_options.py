"""Options of ``neurostorm-train store``."""

from __future__ import annotations

import argparse
from pathlib import Path


def path(text: str) -> Path:
    """Return a path; an empty one would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; is a variable unset?")
    return Path(text)


def place(text: str) -> str | Path:
    """Return a path, or the URL of a folder in object storage as it is; ``file://`` stands for a path."""
    text = text.removeprefix("file://")
    return text if "://" in text else path(text)


def lasting_place(text: str) -> str | Path:
    """Return a path or URL to write to."""
    if text.startswith("memory://"):
        raise argparse.ArgumentTypeError("memory:// is lost when the command ends; give a path or another URL")
    return place(text)


def part(text: str) -> tuple[int, int]:
    """Read ``3/100`` as the third of 100 parts: its number from 0, and the number of parts."""
    try:
        number, n_parts = (int(each) for each in text.split("/"))
    except ValueError:
        number, n_parts = 0, 0
    if not 1 <= number <= n_parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N")
    return number - 1, n_parts


def size(text: str) -> float:
    """Read a size in GB."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def processes(text: str) -> int:
    """Read a number of processes."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return value


def add_store(p: argparse.ArgumentParser) -> None:
    """Add the commands of stores to a parser."""
    commands = p.add_subparsers(dest="store_command", required=True)
    stored = "path or URL (s3://bucket/store) of a clip store"

    build = commands.add_parser("build", help="add the scans of a dataset to a store; finished ones are kept")
    build.add_argument(
        "data", type=path, metavar="DATA", help="outputs of neurostorm, fMRIPrep, XCP-D, HCP or UK Biobank"
    )
    build.add_argument("store", type=lasting_place, metavar="STORE", help=f"{stored}; created if missing")
    build.add_argument(
        "--normalisation",
        choices=("global", "voxel"),
        help="normalisation of clips (default: global, as for pre-training)",
    )
    build.add_argument(
        "--part",
        type=part,
        default=(0, 1),
        metavar="K/N",
        help="only the participants of part K of N, for job arrays: --part $SLURM_ARRAY_TASK_ID/100",
    )
    build.add_argument("--nprocs", type=processes, default=1, metavar="N", help="parallel processes")
    _add_shard_size(build)

    verify = commands.add_parser(
        "verify", help="compare all scans with their checksums, and name those that are damaged"
    )
    verify.add_argument("folder", type=place, metavar="STORE", help=stored)
    verify.add_argument("--nprocs", type=processes, default=1, metavar="N", help="files to read at the same time")

    info = commands.add_parser("info", help="print what a store holds")
    info.add_argument("folder", type=place, metavar="STORE", help=stored)

    convert = commands.add_parser("convert", help="copy a store of any format to a new one of few files")
    convert.add_argument("folder", type=place, metavar="STORE", help=stored)
    convert.add_argument(
        "new", type=lasting_place, metavar="NEW", help="store to write; an interrupted copy is completed"
    )
    convert.add_argument(
        "--exclude",
        type=path,
        metavar="FILE",
        help="participants to leave out, one label per line, such as withdrawals",
    )
    _add_shard_size(convert)

    index = commands.add_parser("index", help="write the index again for the shards that exist")
    index.add_argument("folder", type=place, metavar="STORE", help=stored)


def _add_shard_size(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--shard-size", type=size, default=2.0, metavar="GB", help="size of a file, GB (default: %(default)s)"
    )
