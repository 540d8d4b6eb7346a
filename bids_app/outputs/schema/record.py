"""Frozen dataclasses that become JSON objects and come back: each field names its key, and how its value is read.

A field that is None has no key in the file, unless it is declared with ``null=True``: then the file says ``null``. So
files of earlier versions, which lack keys, are read as well; a value of the wrong type is an error that names its key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar

from bids_app.errors import BadDataError
from bids_app.outputs.schema.readers import Read, WrongValueError

R = TypeVar("R", bound="Record")
HINT = "Run this participant again: what is whole is taken from the cache."


def key(
    name: str,
    read: Read,
    *,
    null: bool = False,
    required: bool = False,
    default: Any = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare a field with a key of its own.

    Parameters
    ----------
    name : str
        The key.
    read : callable
        One of `readers`, or one that they make.
    null : bool
        Whether None is written, as ``null``.
    required : bool
        Whether a file without it is malformed.
    default : Any
        The field's value where a file lacks the key.
    factory : callable, optional
        Makes that value, in place of ``default``.
    """
    metadata = {"key": name, "read": read, "null": null, "required": required}
    if required:
        return field(metadata=metadata)
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def inline(*kinds: type[Record], always: bool = False) -> Any:
    """Declare a field whose record has its keys in the same object; of several kinds, the first that has a key there.

    Where no key is there, the field is None, or with ``always`` an empty record.
    """
    metadata = {"inline": kinds, "always": always}
    return field(default_factory=kinds[0], metadata=metadata) if always else field(default=None, metadata=metadata)


def columns() -> Any:
    """Declare a field for the data dictionary: the objects under keys that no other field has, by column."""
    return field(default_factory=dict, metadata={"columns": True})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object; see `key`, `inline` and `columns` for its fields."""

    def to_json(self) -> dict[str, Any]:
        """The object, with its keys in the order of the fields."""
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
        """Read an object.

        Raises
        ------
        BadDataError
            It is not an object, lacks a key that it must have, or has a value of the wrong type.
        """
        try:
            return _read(cls, content)
        except WrongValueError as error:
            where = ".".join(error.keys)
            raise BadDataError(f"{where} {error.problem}." if where else f"It {error.problem}.", HINT) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises
        ------
        OSError
            It is not there, or cannot be opened.
        BadDataError
            It is not JSON, or not such a record.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (ValueError, RecursionError) as error:
            raise BadDataError(f"{path.name} is not readable as JSON ({error}).", HINT) from error
        except BadDataError as error:
            raise BadDataError(f"{path.name}: {error.message}", error.hint) from error


def as_json(value: Any) -> Any:
    """A field's value as JSON has it."""
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
    """How a class is read, found once."""

    keyed: tuple[tuple[str, str, Read, bool], ...]
    """Name of the field, key, reader, and whether it is required."""
    inlined: tuple[tuple[str, tuple[type[Record], ...], bool], ...]
    columns: str
    """Name of the field for all other keys; empty where there is none."""
    known: frozenset[str]
    """All keys of the object, apart from columns."""
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
            raise TypeError(f"{cls.__name__}.{declared.name} is in no file, and has no default.")
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
    found = object.__new__(cls)  # as its own constructor would, which takes twice as long for a frozen class
    found.__dict__.update(plan.defaults)
    for name, factory in plan.factories:
        if name not in values:
            values[name] = factory()
    found.__dict__.update(values)
    return found


def record(kind: type[Record]) -> Read:
    """Make a reader of a record of its own."""
    return lambda value: _read(kind, value)
