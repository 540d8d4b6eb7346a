"""Options from a TOML file, such as the ``neurostorm.toml`` that each run leaves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bids_app.cli.options import NOTRACK
from bids_app.errors import UsageError
from bids_app.settings import Option, Settings, options_of


def read_config_file(path: Path) -> dict[str, Any]:
    """Options of a TOML file by their keys, as the command line would give them.

    Raises
    ------
    UsageError
        The file cannot be read, names an unknown option, or has a value that the option does not take.
    """
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not a readable TOML file ({error}).", "Start from a run's neurostorm.toml."
        ) from error
    given = content.get("options", {})
    if not isinstance(given, dict):
        raise UsageError(f"{path}: [options] is not a table.", "Start from a run's neurostorm.toml.")
    known = {option.key: option for option in (*options_of(Settings), NOTRACK) if not option.is_positional}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(f"{path}: unknown options {', '.join(unknown)}.", "See neurostorm --help.")
    found: dict[str, Any] = {}
    for name, value in given.items():
        try:
            found[name] = as_on_command_line(known[name], value)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: Invalid value for {name}: {error}.", "See neurostorm --help.") from error
    return found


def as_on_command_line(option: Option, value: Any) -> Any:
    """A value of a TOML file as the command line would give it.

    Raises
    ------
    TypeError, ValueError, argparse.ArgumentTypeError
        It is not what the option takes.
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
