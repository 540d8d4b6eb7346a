"""Options from a TOML file, such as the ``neurostorm.toml`` in the log folder of each run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app.cli.options import NOTRACK
from bids_app.cli.other_pipelines import refuse_foreign_keys
from bids_app.errors import BadDataError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, read_text
from bids_app.settings import Option, Settings, options_of


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the options of a TOML file, with the values that the command line would give.

    Raises
    ------
    UsageError
        Unreadable file, unknown option or invalid value.
    """
    import tomllib

    try:
        content = tomllib.loads(read_text(path, MAX_OPTIONS_BYTES))
    except (BadDataError, ValueError, RecursionError) as error:
        reason = error.message if isinstance(error, BadDataError) else f"{path}: not a readable TOML file ({error})."
        raise UsageError(reason, "Use the neurostorm.toml of a run as a template.") from error
    given = content.get("options")
    if not isinstance(given, dict):
        other = "; fMRIPrep's and XCP-D's files cannot be used here" if "execution" in content else ""
        raise UsageError(f"{path}: no table [options]{other}.", "Use the neurostorm.toml of a run as a template.")
    known = {option.key: option for option in (*options_of(Settings), NOTRACK) if not option.is_positional}
    return check_values(given, known, f"{path}: ")


def check_values(given: Mapping[str, Any], known: Mapping[str, Option], where: str = "") -> dict[str, Any]:
    """Return the values that the command line would give for these keys of options.

    Parameters
    ----------
    given : mapping
        Values by key.
    known : mapping
        Allowed options by key.
    where : str
        Beginning of messages: ``"neurostorm.toml: "``.

    Raises
    ------
    UsageError
        Unknown option or invalid value.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        refuse_foreign_keys(unknown)
        raise UsageError(f"{where}unknown options {', '.join(unknown)}.", "List all options with neurostorm --help.")
    found: dict[str, Any] = {}
    for name, value in given.items():
        try:
            found[name] = as_command_line_value(known[name], value)
        except (argparse.ArgumentTypeError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"{where}Invalid value for {name}: {error}.", "See this option in neurostorm --help."
            ) from error
    return found


def as_command_line_value(option: Option, value: Any) -> Any:
    """Convert a TOML value to the value that the command line would give.

    Raises
    ------
    TypeError, ValueError, argparse.ArgumentTypeError
        Invalid value.
    """
    if option.flag or option.counted:
        if not isinstance(value, bool | int):
            raise TypeError(f"{value!r} is not true or false")
        return value
    if option.many != isinstance(value, list):
        raise TypeError(f"{value!r} is not a list" if option.many else f"{value!r} is not a single value")
    found = [_convert(option, item) for item in (value if option.many else [value])]
    return found if option.many else found[0]


def _convert(option: Option, item: Any) -> Any:
    if not isinstance(item, int | float if option.is_number else str):
        raise TypeError(f"{item!r} is not {'a number' if option.is_number else 'text'}")
    if option.choices and item not in option.choices:
        raise ValueError(f"{item!r} is not one of {', '.join(option.choices)}")
    return option.type(str(item))
