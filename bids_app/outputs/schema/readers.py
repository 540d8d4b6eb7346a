"""Readers of JSON values: each converts the value of a key to that of a field, or raises an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

Read = Callable[[Any], Any]
"""Converts a JSON value to the value of a field."""


class WrongValueError(Exception):
    """Invalid value of a key; ``keys`` is its path."""

    def __init__(self, problem: str, *keys: str) -> None:
        super().__init__(problem, *keys)
        self.problem, self.keys = problem, keys

    def under(self, key: str) -> WrongValueError:
        """Return the same error with a key in front of the path."""
        return WrongValueError(self.problem, key, *self.keys)


def text(value: Any) -> str:
    """Read text."""
    if isinstance(value, str):
        return value
    raise WrongValueError("is not text")


def flag(value: Any) -> bool:
    """Read true or false."""
    if isinstance(value, bool):
        return value
    raise WrongValueError("is neither true nor false")


def whole(value: Any) -> int:
    """Read a whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise WrongValueError("is not a whole number")


def number(value: Any) -> float | None:
    """Read a number; None if it is not finite."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if math.isfinite(value) else None
    raise WrongValueError("is not a number")


def mapping(value: Any) -> dict[str, Any]:
    """Read an object without checking its content."""
    if isinstance(value, dict):
        return value
    raise WrongValueError("is not an object")


def value_or_text(value: Any) -> float | str | None:
    """Read a number or text."""
    return value if isinstance(value, str) else number(value)


def one_of(*choices: str) -> Read:
    """Make a reader of text with a few allowed values."""

    def read(value: Any) -> str:
        if value in choices and isinstance(value, str):
            return value
        raise WrongValueError(f"is none of {', '.join(choices)}")

    return read


def member(kind: type[Enum]) -> Read:
    """Make a reader of an enumeration's value."""

    def read(value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError as error:
            raise WrongValueError(f"is none of {', '.join(str(item.value) for item in kind)}") from error

    return read


def several(read: Read) -> Read:
    """Make a reader of a list, as a tuple."""

    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise WrongValueError("is not a list")
        try:
            return tuple([read(item) for item in value])
        except WrongValueError as error:
            raise _numbered(value, read) from error

    return read_all


def by_name(read: Read) -> Read:
    """Make a reader of an object whose values have the same type, or are null."""

    def read_all(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, item in mapping(value).items():
            try:
                found[name] = None if item is None else read(item)
            except WrongValueError as error:
                raise error.under(name) from error
        return found

    return read_all


def _numbered(values: list[Any], read: Read) -> WrongValueError:
    """Return the error of the first invalid item of a list, with its index."""
    for index, item in enumerate(values):
        try:
            read(item)
        except WrongValueError as error:
            return error.under(str(index))
    raise AssertionError
