"""The command ``neurostorm`` as a function, `bids_app.run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bids_app.cli.config_file import check_values
from bids_app.cli.neurostorm import parse_settings
from bids_app.cli.options import all_options
from bids_app.errors import UsageError
from bids_app.settings import PARTICIPANT, Option

PACKAGES = Path(__file__).parents[2]
"""The folder from which this package was imported."""
COMMAND = """import sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "neurostorm"
from bids_app.cli.neurostorm import run
run()"""
"""Python code of the command; it imports the same package as the caller."""


def run(
    bids_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    analysis_level: str = PARTICIPANT,
    **options: Any,
) -> int:
    """Run the app as the command ``neurostorm`` does, in a process of its own.

    Its log and its errors are printed as those of the command; nothing of the calling process is changed.

    Parameters
    ----------
    bids_dir, output_dir : str or path
    analysis_level : str
        ``participant`` or ``group``.
    **options
        Options of the command, with underscores: ``participant_label=["01", "02"]``, ``low_mem=True``. An option with
        several values also takes a single one. None and False leave an option out.

    Returns
    -------
    int
        The exit code of the command: 0 if everything succeeded. The message of an error is on the terminal.

    Raises
    ------
    NeurostormError
        Unknown or conflicting options, invalid values, or an unknown analysis level; nothing was started.
    """
    for name, folder in (("bids_dir", bids_dir), ("output_dir", output_dir)):
        if not isinstance(folder, str | os.PathLike):
            raise UsageError(f"{name} is of type {type(folder).__name__}.", "Give a folder as a string, or a path.")
    known = {option.key: option for option in all_options() if not option.is_positional}
    given = {key: _plain(known.get(key), value) for key, value in options.items() if value is not None}
    if empty := [key for key, value in given.items() if value == []]:
        raise UsageError(f"{empty[0]} is empty.", "Give at least one value, or None for the default.")
    check_values(given, known)
    words = [word for key, value in given.items() for word in _words(known[key], value)]
    words += ["--", os.fspath(bids_dir), os.fspath(output_dir), analysis_level]
    parse_settings(words)
    return _wait([sys.executable, "-c", COMMAND, str(PACKAGES), *words])


def _plain(option: Option | None, value: Any) -> Any:
    """Convert paths to text and tuples to lists; one value of an option that takes several to a list."""
    if isinstance(value, list | tuple):
        return [_plain(None, item) for item in value]
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    return [plain] if option is not None and option.many else plain


def _words(option: Option, value: Any) -> Iterator[str]:
    if option.flag or option.counted:
        yield from [option.long_name] * int(value)
    else:
        for item in value if option.many else [value]:
            yield f"{option.long_name}={item}"


def _wait(command: Sequence[str]) -> int:
    """Run a process and return its exit code; it ends as after Ctrl-C when the caller is interrupted."""
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    return code if code >= 0 else 128 - code  # killed by a signal; as in a shell
