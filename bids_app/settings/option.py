"""How an option is defined: once, on the field of the settings that it fills.

The parser, the configuration file, the Boutiques descriptors and README's table are made by walking the dataclasses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any

from bids_app.errors import UsageError

OPTIONS = "options"
"""Key of a field's metadata under which its options are."""


def unchanged(value: Any) -> Any:
    """The value itself."""
    return value


def whole_number(text: str) -> int:
    """An integer, such as ``8``."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def number(text: str) -> float:
    """A decimal number, such as ``0.5``."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument, of the command line.

    Attributes
    ----------
    names : tuple of str
        With dashes; the spelling with underscores is added by the parser. A positional argument has one name without.
    help : str
    group : str
        Heading in the help.
    type : callable
        Text of the command line to one value: `str`, `whole_number`, `number`, or a function that raises
        `argparse.ArgumentTypeError`.
    many : bool
        Whether it takes one value or more.
    flag, counted : bool
        Whether it takes no value: it is given or not, or is given so many times.
    metavar : str, optional
        What stands for the value in the help; ``FILE`` where the file has to exist.
    choices : tuple of str
        The values that it takes; empty: any.
    parse : callable
        Value, or list of values, to what the field holds.
    write : callable
        What the field holds to a value of the configuration file, which `parse` understands.
    default : str
        The default as text, for those who read.
    everyday : bool
        Whether README's table shows it.
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
        """The first name with two dashes."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    @property
    def key(self) -> str:
        """The name in the configuration file: ``participant_label``."""
        return self.long_name.removeprefix("--").replace("-", "_")

    @property
    def is_positional(self) -> bool:
        """Whether it is named by its place."""
        return not self.names[0].startswith("-")

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers."""
        return self.type in (whole_number, number)

    @property
    def text(self) -> str:
        """The help with the default."""
        return self.help if not self.default or "(default" in self.help else f"{self.help} (default: {self.default})"


def option(
    *names: str,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    also: tuple[Option, ...] = (),
    **about: Any,
) -> Any:
    """A field of a dataclass that an option fills.

    Parameters
    ----------
    *names : str
        Of the option.
    default, default_factory
        Of the field.
    also : tuple of Option
        Further options that fill the same field; the configuration file is written with the first.
    **about
        Of `Option`.
    """
    write = about.get("write", unchanged)
    text = str(write(default)) if default is not MISSING and default not in (None, (), "", False, 0) else ""
    first = Option(names, default=text, **about)
    return field(default=default, default_factory=default_factory, metadata={OPTIONS: (first, *also)})


def flag(*names: str, **about: Any) -> Any:
    """A field that is true when the option is given."""
    return option(*names, default=False, flag=True, **about)


def options_of(settings: Any) -> Iterator[Option]:
    """The options of a settings class: first those of the sections that it holds, then its own."""
    for part in fields(settings):
        if is_dataclass(part.default_factory):
            yield from options_of(part.default_factory)
    for part in fields(settings):
        yield from part.metadata.get(OPTIONS, ())


def values_from(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a class's own fields from what was given, by the options' keys; other fields are left out.

    Raises
    ------
    UsageError
        Two options for the same field.
    """
    values: dict[str, Any] = {}
    for part in fields(settings):
        asked = [each for each in part.metadata.get(OPTIONS, ()) if each.key in given]
        if len(asked) > 1:
            names = " and ".join(each.long_name for each in asked)
            raise UsageError(f"{names} exclude each other.", "Give one of them.")
        if asked:
            values[part.name] = asked[0].parse(given[asked[0].key])
    return values


def as_options(settings: Any) -> dict[str, Any]:
    """The options that give these settings again, by their keys; positional arguments and empty values are left out."""
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
