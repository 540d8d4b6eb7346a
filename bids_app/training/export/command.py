"""The command ``neurostorm-train export``."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_app.adapters.file import CLASSIFICATION
from bids_app.bids.writer import remove_leftovers
from bids_app.errors import CannotCreateError, NoMatchError, UsageError
from bids_app.outputs.schema import REFUSE
from bids_app.terminal import count_of, first_of
from bids_app.training.data.examples import participants_target
from bids_app.training.data.labels import check_values
from bids_app.training.data.splits import read_families
from bids_app.training.export import brainmarks, tables
from bids_app.training.export.provenance import describe_export, name_of_target
from bids_app.training.export.runs import MAX_NAMED, EmbeddedRuns, read_runs, read_values
from bids_app.training.export.sets import Sets, sets_from_file, sets_from_folds
from bids_app.training.tasks import Task

BRAINMARKS = "brainmarks"
SUFFIXES = {"parquet": ".parquet", "anndata": ".h5ad", "zarr": ".zarr", BRAINMARKS: ""}
"""Suffix of the output of each format; without one, it is a folder."""
FOLDS = 5
"""Default number of folds, as of ``evaluate``."""
WRITERS = {"parquet": tables.write_parquet, "anndata": tables.write_anndata, "zarr": tables.write_zarr}


def export(arguments: argparse.Namespace) -> None:
    """Write the embeddings of a cohort, with labels, sets and provenance, in one of the formats."""
    _check_arguments(arguments)
    tables.check_packages(arguments.format)
    output = arguments.output or Path(f"embeddings{SUFFIXES[arguments.format] or f'_{arguments.format}'}")
    _check_target(output, arguments.format, arguments.overwrite)
    found = read_runs(
        arguments.data, arguments.model, arguments.normalisation, arguments.exclude_failed, arguments.nprocs
    )
    found, labels = _read_labels(arguments, found)
    task, sets = _make_sets(arguments, found, labels) if arguments.target else (None, None)
    about = describe_export(found, arguments.data, _facts(arguments, task, sets))
    remove_leftovers(output.absolute().parent, deep=False)
    if arguments.format == BRAINMARKS:
        assert task is not None  # checked with the arguments
        assert sets is not None
        name = brainmarks.dataset_name(arguments.target, arguments.name)
        values = [str(value) for value in labels[_column(arguments.target)]]
        brainmarks.check_sets_and_classes(task, sets, values)
        brainmarks.write_brainmarks(output, name, found, values, sets, about)
        _print_commands(output, name)
    else:
        WRITERS[arguments.format](output, tables.make_table(found, labels, sets, task), found, about)
    refused = sum(run.record.worst_verdict == REFUSE for run in found.runs)
    if refused:
        print(f"Warning: {count_of(refused, 'run')} with the verdict refuse; see the column verdict.")
    print(f"Wrote {output}: {count_of(len(found.runs), 'run')} of {count_of(about['n_participants'], 'participant')}")


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Check that no option is missing or would be ignored."""
    needs_target = ("also_target", "task", "family_column", "split", "folds", "seed")
    unused = [name for name in needs_target if getattr(arguments, name) not in (None, [])]
    if arguments.target is None and arguments.format == BRAINMARKS:
        raise UsageError("--format brainmarks requires labels.", "Add: --target participants.tsv:COLUMN")
    if arguments.target is None and unused:
        raise UsageError(
            f"--{unused[0].replace('_', '-')} has no effect without --target.", "Add --target, or leave it out."
        )
    if arguments.split and (arguments.folds, arguments.seed) != (None, None):
        raise UsageError("--folds and --seed have no effect with --split.", "Leave them out, or --split.")
    if arguments.format == BRAINMARKS and arguments.also_target:
        raise UsageError("A dataset of Brainmarks has one target.", "Export each target with a command of its own.")
    if arguments.format != BRAINMARKS and arguments.name:
        raise UsageError(f"--name has no effect with --format {arguments.format}.", "Leave it out.")
    columns = [_column(target) for target in [arguments.target or "", *arguments.also_target]]
    if len(set(columns)) < len(columns):
        raise UsageError(f"Two targets have the same column: {', '.join(columns)}.", "Export them separately.")


def _check_target(output: Path, name: str, overwrite: bool) -> None:
    """Check that the output has the suffix of its format, and that nothing else is replaced.

    Raises
    ------
    UsageError
        Another suffix.
    CannotCreateError
        It exists, and it is not to be overwritten, or is no earlier export.
    """
    suffix = SUFFIXES[name]
    if suffix and output.suffix != suffix:
        raise UsageError(f"Invalid value for --output: {output}.", f"With --format {name}, it ends with {suffix}.")
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise CannotCreateError(f"{output}: exists.", "Choose another --output, or replace it with --overwrite.")
    if not _is_export(output, name) or output.is_symlink():
        raise CannotCreateError(f"{output}: is no export of the format {name}.", "Choose another --output.")


def _is_export(path: Path, name: str) -> bool:
    """Return whether a file or folder is an earlier export."""
    if name == BRAINMARKS:
        return (path / brainmarks.MARKER).is_file() and (path / "brainmarks" / "datasets").is_dir()
    if name == "zarr":
        return (path / "obsm" / tables.REPRESENTATION).is_dir()
    return path.is_file() and tables.has_provenance(path, name)


def _read_labels(
    arguments: argparse.Namespace, found: EmbeddedRuns
) -> tuple[EmbeddedRuns, dict[str, list[str | None]]]:
    """Read the labels; runs without a value of the first target are left out, and with a split those of no set."""
    if arguments.target is None:
        return found, {}
    values = read_values(arguments.target, found.runs, arguments.data, arguments.raw)
    without = [run.name for run, value in zip(found.runs, values, strict=True) if value is None]
    if without:
        print(f"Left out, without a value of {arguments.target}: {first_of(without, MAX_NAMED)}")
    found = _keep(found, [value is not None for value in values])
    if arguments.split:
        named = [bool(name) for name in sets_from_file(arguments.split, found.runs, {}).names]
        if not any(named):
            raise NoMatchError(f"{arguments.split}: no labelled run is in its sets.", "Check its participant labels.")
        outside = [run.name for run, is_in in zip(found.runs, named, strict=True) if not is_in]
        if outside:
            print(f"Left out, in no set of {arguments.split.name}: {first_of(outside, MAX_NAMED)}")
        found = _keep(found, named)
    targets = [arguments.target, *arguments.also_target]
    labels = {_column(text): read_values(text, found.runs, arguments.data, arguments.raw) for text in targets}
    return found, labels


def _keep(found: EmbeddedRuns, wanted: list[bool]) -> EmbeddedRuns:
    """Return the wanted runs."""
    return replace(found, runs=tuple(run for run, keep in zip(found.runs, wanted, strict=True) if keep))


def _make_sets(
    arguments: argparse.Namespace, found: EmbeddedRuns, labels: dict[str, list[str | None]]
) -> tuple[Task, Sets]:
    """Define the task, and make the sets of its runs."""
    column = _column(arguments.target)
    values = [str(value) for value in labels[column]]
    for warning in check_values(column, values, [run.participant for run in found.runs], arguments.task):
        print(warning)
    task = Task.from_values(column, values, arguments.task)
    families: dict[str, str] = {}
    if arguments.family_column:
        table = participants_target(arguments.family_column, arguments.data, arguments.raw)
        if table.table is None:
            raise UsageError(f"Invalid value for --family-column: {arguments.family_column}.", "Give TABLE.tsv:COLUMN.")
        families = read_families(table.table, table.column, {run.participant for run in found.runs})
    if arguments.split:
        return task, sets_from_file(arguments.split, found.runs, families)
    n_folds = FOLDS if arguments.folds is None else arguments.folds
    sets = sets_from_folds(task, found.runs, values, families, n_folds, arguments.seed or 0)
    for warning in sets.warnings:
        print(warning)
    return task, sets


def _facts(arguments: argparse.Namespace, task: Task | None, sets: Sets | None) -> dict[str, Any]:
    """Return the facts about labels and sets for the provenance."""
    if task is None or sets is None:
        return {}
    facts: dict[str, Any] = {"target": name_of_target(arguments.target), "task": task.kind, "sets": sets.origin}
    facts |= {"classes": list(task.labels)} if task.kind == CLASSIFICATION else {}
    if arguments.also_target:
        facts["other_targets"] = [name_of_target(text) for text in arguments.also_target]
    if arguments.family_column:
        facts["families"] = name_of_target(arguments.family_column)
    return facts


def _column(target: str) -> str:
    return target.rpartition(":")[2]


def _print_commands(folder: Path, name: str) -> None:
    """Print how Brainmarks finds the dataset, and how to evaluate the same split here."""
    options = "device=cpu amp=false num_workers=1"
    print(
        f"For Brainmarks: PYTHONPATH={shlex.quote(str(folder))} python -m brainmarks.main_logistic {brainmarks.MODEL} "
        f"patch {name} --overrides {options}"
    )
    print(f"The same split here: neurostorm-train evaluate DATA --split {folder / 'evaluate.split.tsv'}")
