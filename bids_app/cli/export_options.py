"""Options of ``neurostorm-train export``."""

from __future__ import annotations

import argparse

from bids_app.cli.store_options import path, processes

FORMATS = ("brainmarks", "parquet", "anndata", "zarr")


def folds(text: str) -> int:
    """Read a number of folds."""
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 2")
    return value


def seed(text: str) -> int:
    """Read a random seed, of at most 32 bits as scikit-learn takes it."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 2^32 - 1")
    return value


def add_export(p: argparse.ArgumentParser) -> None:
    """Add the options of the command to a parser."""
    p.add_argument("data", type=path, metavar="OUT", help="output folder of neurostorm, with embeddings")
    p.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="brainmarks: Arrow files with a dataset plugin; parquet: a table for pandas and polars; anndata: an .h5ad "
        "file; zarr: a Zarr store with the layout of AnnData",
    )
    p.add_argument(
        "--output",
        type=path,
        metavar="PATH",
        help="file or folder to write (default: embeddings.parquet, embeddings.h5ad, embeddings.zarr or "
        "embeddings_brainmarks)",
    )
    p.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    p.add_argument("--name", help="name of the dataset in Brainmarks, after neurostorm_ (default: the target column)")
    group = p.add_argument_group("embeddings")
    group.add_argument("--model", metavar="NAME", help="model of the embeddings (default: the only one in OUT)")
    group.add_argument(
        "--normalisation",
        choices=("global", "voxel", "none"),
        help="normalisation of the clips; none: encoders of Brainmarks (default: the only one in OUT)",
    )
    group.add_argument(
        "--exclude-failed", action="store_true",
        help="leave out the runs that people rated as failed (ratings of neurostorm-review in OUT)",
    )  # fmt: skip
    group.add_argument("--nprocs", type=processes, default=1, metavar="N", help="parallel processes that read OUT")
    group = p.add_argument_group("labels")
    group.add_argument(
        "--target",
        metavar="TABLE:COLUMN",
        help="participants.tsv:sex, sessions.tsv:mood, phenotype/anxiety.tsv:score (in OUT or the raw dataset), or "
        "scan:task; runs without a value are left out",
    )
    group.add_argument(
        "--also-target",
        action="append",
        default=[],
        metavar="TABLE:COLUMN",
        help="add this column, too; may be repeated, not for brainmarks",
    )
    group.add_argument(
        "--task", choices=("classification", "regression"), help="type of task (default: from the values)"
    )
    group.add_argument(
        "--raw", type=path, metavar="DIR", help="raw dataset with tables (default: as linked in the derivatives)"
    )
    group = p.add_argument_group("sets for training, validation and test")
    group.add_argument(
        "--folds",
        type=folds,
        metavar="K",
        help="folds by participant, the same as of evaluate: one is the test set, one the validation set (default: 5)",
    )
    group.add_argument("--seed", type=seed, metavar="N", help="random seed of the folds, as of evaluate (default: 0)")
    group.add_argument(
        "--split",
        type=path,
        metavar="FILE",
        help="TSV or JSON file with the training, validation and test participants, instead of folds",
    )
    group.add_argument("--family-column", metavar="[TABLE:]COLUMN", help="families to keep together in folds")
