"""Definition of an option: once, on the settings field that it sets.

The parser, the configuration file, the Boutiques descriptors and the documentation are made from these fields.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from bids_app.errors import UsageError

OPTIONS = "options"
"""Key of a field's metadata that holds its options."""


def unchanged(value: Any) -> Any:
    """Return the value itself."""
    return value


def whole_number(text: str) -> int:
    """Parse an integer, such as ``8``."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def number(text: str) -> float:
    """Parse a decimal number, such as ``0.5``."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


@dataclass(frozen=True)
class Option:
    """An option or a positional argument of the command line.

    Attributes
    ----------
    names : tuple of str
        Names with dashes; the parser adds those with underscores. A positional argument has one name without dashes.
    help : str
    group : str
        Heading in the help.
    type : callable
        Converts the text of one value: `str`, `whole_number`, `number`, or a function that raises
        `argparse.ArgumentTypeError`.
    many : bool
        True if it takes one or more values.
    flag, counted : bool
        True if it takes no value: a switch, or a switch that is counted.
    metavar : str, optional
        Placeholder of the value in the help; ``FILE`` if the file has to exist.
    choices : tuple of str
        Allowed values; empty: any.
    parse : callable
        Converts the value, or list of values, to the value of the field.
    write : callable
        Converts the value of the field to the configuration file; the inverse of `parse`.
    default : str
        The default as shown in the help.
    everyday : bool
        True if the table of common options lists it.
    """

    names: tuple[str, ...]
    help: str
    group: str = ""
    type: Callable[[str], Any] = str
    many: bool = False
    flag: bool = False
    counted: bool = False
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[Any], Any] = unchanged
    write: Callable[[Any], Any] = unchanged
    default: str = ""
    everyday: bool = False

    @property
    def long_name(self) -> str:
        """First name with two dashes."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    @property
    def key(self) -> str:
        """Name in the configuration file: ``participant_label``."""
        return self.long_name.removeprefix("--").replace("-", "_")

    @property
    def is_positional(self) -> bool:
        """True for a positional argument."""
        return not self.names[0].startswith("-")

    @property
    def is_path(self) -> bool:
        """True if its values are files or folders."""
        return self.metavar in ("DIR", "FILE", "NAME=PATH") or (self.is_positional and self.metavar is None)

    @property
    def is_number(self) -> bool:
        """True if its values are numbers."""
        return self.type in (whole_number, number)

    @property
    def text(self) -> str:
        """Help text with the default."""
        return self.help if not self.default or "(default" in self.help else f"{self.help} (default: {self.default})"


def option(
    *names: str,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    also: tuple[Option, ...] = (),
    **about: Any,
) -> Any:
    """Declare a dataclass field that is set by an option.

    Parameters
    ----------
    *names : str
        Names of the option.
    default, default_factory
        Default of the field.
    also : tuple of Option
        Further options that set the same field; the configuration file is written with the first one.
    **about
        Further attributes of `Option`.
    """
    write = about.get("write", unchanged)
    text = str(write(default)) if default is not MISSING and default not in (None, (), "", False, 0) else ""
    first = Option(names, default=text, **about)
    return field(default=default, default_factory=default_factory, metadata={OPTIONS: (first, *also)})


def flag(*names: str, **about: Any) -> Any:
    """Declare a field that is true when the option is given."""
    return option(*names, default=False, flag=True, **about)


def options_of(settings: Any) -> Iterator[Option]:
    """Iterate over the options of a settings class: those of its sections first, then its own."""
    for part in fields(settings):
        if is_dataclass(part.default_factory):
            yield from options_of(part.default_factory)
    for part in fields(settings):
        yield from part.metadata.get(OPTIONS, ())


def values_from(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a class's own fields from given option keys; fields that were not given are left out.

    Raises
    ------
    UsageError
        Two options set the same field, or a path is empty.
    """
    values: dict[str, Any] = {}
    for part in fields(settings):
        chosen = [each for each in part.metadata.get(OPTIONS, ()) if each.key in given]
        if len(chosen) > 1:
            names = " and ".join(each.long_name for each in chosen)
            raise UsageError(f"{names} cannot be combined.", "Give only one of them.")
        if chosen:
            refuse_empty(chosen[0], given[chosen[0].key])
            values[part.name] = chosen[0].parse(given[chosen[0].key])
    return values


def refuse_empty(option: Option, value: Any) -> None:
    """Refuse an empty path, which would mean the current folder.

    Raises
    ------
    UsageError
        The value, or one of several, is empty.
    """
    if option.is_path and "" in (value if isinstance(value, list | tuple) else (value,)):
        raise UsageError(f"{option.long_name} is empty.", "Is a variable unset?")


def as_options(settings: Any) -> dict[str, Any]:
    """Return the options that reproduce these settings; positional arguments and empty values are left out."""
    found: dict[str, Any] = {}
    for part in fields(settings):
        value = getattr(settings, part.name)
        if is_dataclass(value):
            found |= as_options(value)
        elif part.metadata.get(OPTIONS):
            first = part.metadata[OPTIONS][0]
            written = None if value is None or first.is_positional else first.write(value)
            if written not in (None, [], ""):
                found[first.key] = written
    return found
