"""Encoders and adapters by name, reference or path, and their files on this machine. Nothing is downloaded here.

An entry without a ``repo`` is part of the package, in ``bids_app/data``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from bids_app.catalog.cache import cache_dir
from bids_app.catalog.references import (
    Reference,
    file_in_cache,
    files_in_cache,
    is_reference,
    parse_reference,
    read_facts,
    recorded_commit,
    sole_file,
)
from bids_app.errors import NoInputError, UsageError
from bids_app.files import check_regular

CATALOG = Path(__file__).with_name("models.yml")
PACKAGE_DATA = Path(__file__).parents[1] / "data"
FILE_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Entry:
    """A model or an adapter: an entry of the catalog, or a user-supplied file.

    Attributes
    ----------
    name, description, licence : str
    file : str
        Path in the hub's repository or in the package data; the path itself of a user-supplied file.
    repo, revision : str
        Repository and revision on the hub; empty for files of the package.
    size : int or None
        Bytes, if known.
    sha256 : str
        SHA-256 checksum of the file; empty if it is not known yet, see `bids_app.catalog.lock`.
    adapters : tuple of str
        Adapters that are applied by default.
    model : str
        For an adapter, its model.
    head : dict
        For a fine-tuned model, facts about its head beyond the file, see `bids_app.adapters.convert`.
    """

    name: str
    description: str
    file: str
    licence: str = ""
    repo: str = ""
    revision: str = ""
    size: int | None = None
    sha256: str = ""
    adapters: tuple[str, ...] = ()
    model: str = ""
    head: dict[str, Any] = field(default_factory=dict, hash=False)
    own: bool = False
    """True for a user-supplied file."""
    referenced: bool = False
    """True for a file of the hub that is not in the catalog; its name is its reference."""

    @property
    def path(self) -> Path:
        """Path of its file, which may not exist."""
        if self.own:
            return Path(self.file)
        if not self.repo:
            return PACKAGE_DATA / self.file
        if self.referenced:
            return file_in_cache(Reference(self.repo, self.revision, self.file))
        return cache_dir() / "models" / self.name / self.revision[:12] / Path(self.file).name


@cache
def catalog(kind: str = "models") -> dict[str, Entry]:
    """Read the entries of ``models`` or ``adapters`` from ``models.yml``, by name."""
    import yaml

    content: dict[str, dict[str, Any]] = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))[kind]
    return {
        name: Entry(name, **{**fields, "adapters": tuple(fields.get("adapters", ()))})
        for name, fields in content.items()
    }


def find_model(name: str) -> Entry:
    """Find a model by its name in the catalog, by a reference to the hub, or by the path of its file."""
    return _find(name, "models")


def find_adapter(name: str) -> Entry:
    """Find an adapter by its name in the catalog, by a reference to the hub, or by the path of its file."""
    return _find(name, "adapters")


def _find(name: str, kind: str) -> Entry:
    known = catalog(kind)
    if name in known:
        return _with_facts(known[name])
    if is_reference(name):
        return _with_facts(_referenced(parse_reference(name), kind))
    path = Path(name)
    if path.suffix in FILE_SUFFIXES:
        return _with_facts(Entry(path.stem, "a file of your own", str(path.absolute()), own=True))
    raise UsageError(
        f"Unknown {kind.removesuffix('s')} '{name}'.",
        f"Give a file, a file of the hub (hf:owner/name@revision:path), or one of: {', '.join(known)}.",
    )


def _referenced(reference: Reference, kind: str) -> Entry:
    """Return the entry of a file of the hub; that of the catalog, if it is in it."""
    reference = replace(reference, revision=recorded_commit(reference) or reference.revision)
    if not reference.path:
        reference = sole_file(reference, FILE_SUFFIXES)
    for entry in catalog(kind).values():
        if (entry.repo, entry.revision, entry.file) == (reference.repo, reference.revision, reference.path):
            return entry
    return entry_of(reference)


def entry_of(reference: Reference) -> Entry:
    """Return the entry of a file of the hub that is not in the catalog."""
    return Entry(
        str(reference),
        "a file of the hub",
        reference.path,
        repo=reference.repo,
        revision=reference.revision,
        referenced=True,
    )


def _with_facts(entry: Entry) -> Entry:
    """Add the facts beside the file of an entry; those of the catalog take precedence."""
    facts = read_facts(entry.path)
    if not facts.head and not facts.licence:
        return entry
    return replace(entry, licence=entry.licence or facts.licence, head={**facts.head, **entry.head})


def stored_entries() -> list[Entry]:
    """Return the files of the hub in the cache that are not in the catalog."""
    return [_with_facts(entry_of(reference)) for reference in files_in_cache()]


def weights_path(entry: Entry) -> Path:
    """Return the file of an entry.

    Raises
    ------
    NoInputError
        The file does not exist, or is not a regular file. Files are never downloaded without a request.
    """
    path = entry.path
    if entry.own:
        check_regular(path)
        return path
    if path.is_file():
        return path
    if not entry.repo:
        raise NoInputError(
            f"{path}: the weights of {entry.name} are missing from this installation.",
            "Fetch the published weights with 'neurostorm-models fetch neurostorm-5ds', or give a file of your own.",
        )
    raise NoInputError(
        f"The weights of {entry.name} are not in the cache ({path}).",
        f"With internet access, run 'neurostorm-models fetch {entry.name}', or try '--model demo'.",
    )


def adapter_paths(model: Entry, wanted: Sequence[str]) -> list[Path]:
    """Return the files of the requested adapters, or of the model's default adapters."""
    return [weights_path(find_adapter(name)) for name in wanted or model.adapters]
