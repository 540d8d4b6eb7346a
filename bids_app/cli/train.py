"""Command-line interface of ``neurostorm-train``."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bids_app.cli.outcome import exit_code_of, hide_warnings_of_resource_trackers, leave, raise_when_terminated
from bids_app.cli.train_options import PROGRAM, parser
from bids_app.errors import CannotCreateError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, open_regular, read_text
from bids_app.terminal import escaped_output

RESUME = "Run the same command to resume."
MAX_OPTION_FILES = 8
"""Levels of option files that name option files."""


def check_output(path: Path) -> None:
    """Check that a file can be written before hours of work: its folder is created, and a file in it.

    Raises
    ------
    UsageError
        The path has no name of a file.
    CannotCreateError
        The file cannot be written.
    """
    if path.name in ("", ".."):
        raise UsageError(f"Invalid value for --output: {path} is a folder.", "Give a name in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CannotCreateError(f"{path}: cannot be written ({error.strerror}).", "Choose another --output.") from error


def missing_folders(output: Path) -> list[Path]:
    """Return the folders that a command will create for its output, the innermost first."""
    folders = [output.with_suffix(".training"), output.with_suffix(".clips"), *output.parents] if output.name else []
    return [folder for folder in folders if not folder.exists()]


FILES = ("split", "images", "config", "region_weights")
"""Options that name files which are read after hours of work; models, adapters and atlases are read first."""
ALIKE = "alike"
"""Value of ``--region-weights`` that is no file."""


ONLY_WITHOUT_ADAPTER = (
    "strategy", "prompt_len", "no_balance", "ridge", "dimensions", "task", "folds", "baselines", "permutations",
    "repeats", "train_shares", "gallery", "across_sessions", "zero_shot", "also_target", "harmonise", "pool",
    "site_column", "family_column", "atlas", "normalisation", "recipe", "epochs", "workers",
    "accumulate", "learning_rate", "precision",
)  # fmt: skip
"""Options of ``evaluate`` that an existing adapter does not use."""
ONLY_WITH_ADAPTER = ("other_people",)


def check_evaluation(arguments: argparse.Namespace) -> None:
    """Check that no option of ``evaluate`` would be ignored.

    Raises
    ------
    UsageError
        An option has no effect with or without ``--adapter``, or with ``--split``.
    """
    if arguments.command != "evaluate":
        return
    names = ONLY_WITHOUT_ADAPTER if arguments.adapter else ONLY_WITH_ADAPTER
    default = vars(parser().parse_args(["evaluate", "DATA", "--target", "T"]))
    unused = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) != default[name]]
    if unused:
        how = "with" if arguments.adapter else "without"
        raise UsageError(f"{', '.join(unused)} has no effect {how} --adapter.", "Leave it out.")
    if arguments.split and arguments.folds != default["folds"]:
        raise UsageError("--folds has no effect with --split, which is one split.", "Leave one of them out.")


def check_inputs(arguments: argparse.Namespace) -> None:
    """Check that the files of options can be read, before hours of work.

    Raises
    ------
    NoInputError
        A file does not exist, may not be read, or is not a regular file.
    """
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    paths = [Path(given[name]) for name in FILES if name in given and given[name] != ALIKE]
    paths += [path.with_suffix(".tsv") for path in paths if path.suffix == ".npy"]
    for path in paths:
        open_regular(path).close()


def with_option_files(words: Sequence[str], depth: int = 0) -> list[str]:
    """Replace ``@FILE`` by the options in the file: one option with its value per line, ``#`` for comments.

    Raises
    ------
    NoInputError, BadDataError
        See `bids_app.files.read_text`.
    UsageError
        A line is not valid, or option files name each other in more than `MAX_OPTION_FILES` levels.
    """
    found: list[str] = []
    for word in words:
        if not word.startswith("@"):
            found.append(word)
            continue
        path = Path(word[1:])
        if depth == MAX_OPTION_FILES:
            raise UsageError(f"{path}: option files name each other.", "Name no option file within itself.")
        try:
            inner = [part for line in read_text(path, MAX_OPTIONS_BYTES).splitlines() for part in split_line(line)]
        except ValueError as error:  # quotation marks without an end
            raise UsageError(f"{path}: not a file of options ({error}).", "Correct its quotation marks.") from error
        found += with_option_files(inner, depth + 1)
    return found


def split_line(line: str) -> list[str]:
    """Split a line such as ``--ridge 0.1  # strong`` into arguments."""
    return shlex.split(line, comments=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; without ``argv``, as the program, exit with it."""
    code = run_command(argv)
    if argv is None:
        leave(code)
    return code


@escaped_output()
def run_command(argv: Sequence[str] | None) -> int:
    """Run the command and return its exit code."""
    words: list[str] = []

    def read_option_files() -> None:
        if argv is None:
            raise_when_terminated()
            hide_warnings_of_resource_trackers()
        words.extend(with_option_files(sys.argv[1:] if argv is None else argv))

    if code := exit_code_of(PROGRAM, read_option_files):
        return code
    arguments = parser().parse_args(words)

    output = arguments.output or Path("adapter") if arguments.command != "store" else None  # in the current folder
    created = missing_folders(output) if output else []

    def check() -> None:
        check_evaluation(arguments)
        check_inputs(arguments)
        if output:
            check_output(output)

    # the imports of the command take seconds
    code = exit_code_of(PROGRAM, check) or exit_code_of(PROGRAM, lambda: run(arguments, argv is None), RESUME)
    if code:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()  # fails if there is a file in it
    return code


def run(arguments: argparse.Namespace, is_program: bool) -> None:
    """Run the command."""
    from bids_app.training import calibrate as calibration
    from bids_app.training import commands, store_commands
    from bids_app.training import pretrain_command as pretraining
    from bids_app.training.export import command as exporting
    from bids_app.training.memory import reuse_freed_memory
    from bids_app.training.processes import check_single

    if is_program:
        reuse_freed_memory()
    command = {
        "pretrain": pretraining.pretrain,
        "adapt": commands.adapt,
        "evaluate": commands.evaluate,
        "calibrate": calibration.calibrate,
        "export": exporting.export,
        "store": store_commands.run,
    }[arguments.command]
    if arguments.command != "pretrain":
        check_single(arguments.command)
    command(arguments)


if __name__ == "__main__":
    sys.exit(main())
