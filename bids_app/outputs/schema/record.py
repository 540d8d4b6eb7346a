"""Frozen dataclasses that are written as JSON objects and read back: each field has a key and a reader.

A field that is None is not written, unless it is declared with ``null=True``: then it is written as ``null``. Files of
earlier versions that lack keys are readable; a value of the wrong type is an error with the name of its key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar

from bids_app.errors import BadDataError
from bids_app.files import read_output
from bids_app.outputs.schema.readers import Read, WrongValueError

R = TypeVar("R", bound="Record")
HINT = "Run this participant again; finished steps are taken from the cache."


def key(
    name: str,
    read: Read,
    *,
    null: bool = False,
    required: bool = False,
    default: Any = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare a field with its own key.

    Parameters
    ----------
    name : str
        JSON key.
    read : callable
        Reader, see `readers`.
    null : bool
        True: write None as ``null``.
    required : bool
        True: a file without this key is invalid.
    default : Any
        Value of the field if a file lacks the key.
    factory : callable, optional
        Makes this value, instead of ``default``.
    """
    metadata = {"key": name, "read": read, "null": null, "required": required}
    if required:
        return field(metadata=metadata)
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def inline(*kinds: type[Record], always: bool = False) -> Any:
    """Declare a field whose record has its keys in the same object; of several types, the first with a key there.

    Without any of these keys, the field is None, or with ``always`` an empty record.
    """
    metadata = {"inline": kinds, "always": always}
    return field(default_factory=kinds[0], metadata=metadata) if always else field(default=None, metadata=metadata)


def columns() -> Any:
    """Declare a field for the data dictionary: all objects under keys of no other field, by column."""
    return field(default_factory=dict, metadata={"columns": True})


@dataclass(frozen=True, kw_only=True)
class Record:
    """JSON object; `key`, `inline` and `columns` declare its fields."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, with keys in the order of the fields."""
        found: dict[str, Any] = {}
        for declared in fields(self):
            value, metadata = getattr(self, declared.name), declared.metadata
            if "key" in metadata:
                if value is not None or metadata["null"]:
                    found[metadata["key"]] = as_json(value)
            elif "inline" in metadata:
                found.update({} if value is None else value.to_json())
            elif "columns" in metadata:
                found.update(value)
        return found

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read a JSON object.

        Raises
        ------
        BadDataError
            Not an object, missing required key, or value of the wrong type.
        """
        try:
            return _read(cls, content)
        except WrongValueError as error:
            where = ".".join(error.keys)
            raise BadDataError(
                f"{where} {error.problem}." if where else f"The content {error.problem}.", HINT
            ) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON file.

        Raises
        ------
        OSError
            Missing or unreadable file.
        BadDataError
            Invalid JSON, or not such a record.
        """
        try:
            return cls.from_json(json.loads(read_output(path)))
        except (ValueError, RecursionError) as error:
            raise BadDataError(f"{path.name}: not a valid JSON file ({error}).", HINT) from error
        except BadDataError as error:
            raise BadDataError(f"{path.name}: {error.message}", error.hint) from error


def as_json(value: Any) -> Any:
    """Convert the value of a field to JSON."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


@dataclass(frozen=True)
class _Plan:
    """Fields of a record class, collected once."""

    keyed: tuple[tuple[str, str, Read, bool], ...]
    """Name of the field, key, reader, required."""
    inlined: tuple[tuple[str, tuple[type[Record], ...], bool], ...]
    columns: str
    """Name of the field for all other keys; empty if there is none."""
    known: frozenset[str]
    """All keys of the object except columns."""
    defaults: dict[str, Any]
    factories: tuple[tuple[str, Callable[[], Any]], ...]


_PLANS: dict[type, _Plan] = {}


def _plan(cls: type[Record]) -> _Plan:
    if cls not in _PLANS:
        _PLANS[cls] = _make_plan(cls)
    return _PLANS[cls]


def _make_plan(cls: type[Record]) -> _Plan:
    keyed, inlined, rest, known = [], [], "", set()
    for declared in fields(cls):
        metadata = declared.metadata
        if "key" in metadata:
            keyed.append((declared.name, metadata["key"], metadata["read"], metadata["required"]))
            known.add(metadata["key"])
        elif "inline" in metadata:
            inlined.append((declared.name, metadata["inline"], metadata["always"]))
            known.update(*(_plan(kind).known for kind in metadata["inline"]))
        elif "columns" in metadata:
            rest = declared.name
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise TypeError(f"{cls.__name__}.{declared.name} has neither a key nor a default.")
    defaults = {declared.name: declared.default for declared in fields(cls) if declared.default is not MISSING}
    factories = [(f.name, f.default_factory) for f in fields(cls) if f.default_factory is not MISSING]
    return _Plan(tuple(keyed), tuple(inlined), rest, frozenset(known), defaults, tuple(factories))


def _read(cls: type[R], content: Any) -> R:
    if not isinstance(content, dict):
        raise WrongValueError("is not an object")
    plan = _plan(cls)
    values: dict[str, Any] = {}
    for name, where, read, required in plan.keyed:
        value = content.get(where)
        if value is not None:
            try:
                values[name] = read(value)
            except WrongValueError as error:
                raise error.under(where) from error
        elif required:
            raise WrongValueError("is missing", where)
    for name, kinds, always in plan.inlined:
        chosen = next((kind for kind in kinds if not _plan(kind).known.isdisjoint(content)), None)
        if chosen is not None or always:
            values[name] = _read(chosen or kinds[0], content)
    if plan.columns:
        values[plan.columns] = {
            name: value for name, value in content.items() if name not in plan.known and isinstance(value, dict)
        }
    found = object.__new__(cls)  # twice as fast as the constructor of a frozen class
    found.__dict__.update(plan.defaults)
    for name, factory in plan.factories:
        if name not in values:
            values[name] = factory()
    found.__dict__.update(values)
    return found


def record(kind: type[Record]) -> Read:
    """Make a reader of a nested record."""
    return lambda value: _read(kind, value)
