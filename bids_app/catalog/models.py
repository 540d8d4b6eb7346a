"""The encoders and adapters that can be named, and where they are on this machine; nothing is fetched from here.

An entry without a ``repo`` ships with the package, in ``bids_app/data``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bids_app.errors import NoInputError, UsageError
from bids_app.settings import home_dir

CATALOG = Path(__file__).with_name("models.yml")
PACKAGE_DATA = Path(__file__).parents[1] / "data"
CACHE_VARIABLE = "NEUROSTORM_CACHE"
"""Environment variable: the folder that weights are kept in."""
FILE_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Entry:
    """A model or an adapter of the catalog, or a file of the user's.

    Attributes
    ----------
    name, description, licence : str
    file : str
        Path in the hub's repository or in the package's data; for a file of the user's its own path.
    repo, revision : str
        Of the hub; empty for what ships with the package.
    size : int or None
        Bytes, where known.
    adapters : tuple of str
        Adapters that are applied when none are named.
    model : str
        Of an adapter: the model that it belongs to.
    answers : dict
        Of a fine-tuned model: what is known of its head's outputs beyond its file, see `bids_app.adapters.convert`.
    """

    name: str
    description: str
    file: str
    licence: str = ""
    repo: str = ""
    revision: str = ""
    size: int | None = None
    adapters: tuple[str, ...] = ()
    model: str = ""
    answers: dict[str, Any] = field(default_factory=dict, hash=False)
    own: bool = False
    """Whether it is a file of the user's."""

    @property
    def path(self) -> Path:
        """Where its file is, or would be."""
        if self.own:
            return Path(self.file)
        if not self.repo:
            return PACKAGE_DATA / self.file
        return cache_dir() / "models" / self.name / self.revision[:12] / Path(self.file).name


def cache_dir() -> Path:
    """Where weights are kept: ``NEUROSTORM_CACHE``, else ``neurostorm`` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else home_dir() / ".cache") / "neurostorm"


@cache
def catalog(kind: str = "models") -> dict[str, Entry]:
    """The entries of ``models`` or ``adapters``, by name."""
    import yaml

    content: dict[str, dict[str, Any]] = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))[kind]
    return {
        name: Entry(name, **{**fields, "adapters": tuple(fields.get("adapters", ()))})
        for name, fields in content.items()
    }


def find_model(name: str) -> Entry:
    """A model by its name in the catalog, or by the path of its file."""
    return _find(name, "models")


def find_adapter(name: str) -> Entry:
    """An adapter by its name in the catalog, or by the path of its file."""
    return _find(name, "adapters")


def _find(name: str, kind: str) -> Entry:
    known = catalog(kind)
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix in FILE_SUFFIXES:
        return Entry(path.stem, "a file of your own", str(path.absolute()), own=True)
    raise UsageError(f"There is no {kind.removesuffix('s')} '{name}'.", f"Give a file, or one of: {', '.join(known)}.")


def weights_path(entry: Entry) -> Path:
    """The file of an entry.

    Raises
    ------
    NoInputError
        It is not here. It is never fetched behind a user's back.
    """
    path = entry.path
    if path.is_file():
        return path
    if entry.own:
        raise NoInputError(f"{path}: no such file.", "Check the path.")
    if not entry.repo:
        raise NoInputError(
            f"{path}: {entry.name} is not in this installation.",
            "Fetch the published weights with 'neurostorm-models fetch neurostorm-5ds', or give a file of your own.",
        )
    raise NoInputError(
        f"The weights of {entry.name} are not in the cache ({path}).",
        f"Fetch them with 'neurostorm-models fetch {entry.name}' where there is a network, or try '--model demo'.",
    )


def adapter_paths(model: Entry, wanted: Sequence[str]) -> list[Path]:
    """Files of the adapters that were named, or of those that belong to the model when none were."""
    return [weights_path(find_adapter(name)) for name in wanted or model.adapters]
