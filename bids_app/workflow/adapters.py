"""Adapters of an invocation, or the head in the file of its model, read once in the main process, for checks and texts.

Steps run in other processes and load them themselves.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from bids_app.adapters.file import Adapter, AdapterCard, parse_adapter
from bids_app.adapters.own_head import own_head
from bids_app.bids.entities import as_label
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import Entry, adapter_paths, find_model, weights_path
from bids_app.errors import UsageError
from bids_app.files import open_regular
from bids_app.settings import BRAINMARKS_PREFIX, Settings
from bids_app.workflow.graph import file_stamp


@dataclass(frozen=True)
class AdapterInfo:
    """Description of an adapter, without its tensors.

    Attributes
    ----------
    path : pathlib.Path
    card : AdapterCard
    false_alarms : float, optional
        Fraction of in-distribution scans that are classified as out-of-distribution; None: no reference statistics.
    sha256 : str
        Hash of the file.
    """

    path: Path
    card: AdapterCard
    false_alarms: float | None
    sha256: str

    @property
    def stamp(self) -> str:
        """Text that changes with the file or the card; the card of a model's own head has facts of the catalog."""
        return self.sha256 + hashlib.sha256(json.dumps(asdict(self.card), sort_keys=True).encode()).hexdigest()


def chosen_adapters(settings: Settings) -> tuple[AdapterInfo, ...]:
    """Read the adapters to apply: those that were given, else those of the model, else the head in its file.

    There are none for encoders of Brainmarks.

    Raises
    ------
    NoInputError, BadDataError
        A file cannot be read, or is not an adapter; or the head in the model's file is of an unknown kind.
    UsageError
        Two adapters have the same name.
    """
    wanted = settings.model
    if wanted.embeddings_only or wanted.model.startswith(BRAINMARKS_PREFIX):
        return ()
    model = find_model(wanted.model)
    paths = dict.fromkeys(adapter_paths(model, wanted.adapters))
    if not paths:
        path = weights_path(model)
        own = _read_own_head(model, path, file_stamp(path))
        return () if own is None else (own,)
    found = tuple(read_adapter(path) for path in paths)
    by_label: dict[str, Path] = {}
    for adapter in found:
        other = by_label.setdefault(as_label(adapter.card.name), adapter.path)
        if other != adapter.path:
            raise UsageError(
                f"{other} and {adapter.path}: both adapters are named {adapter.card.name}, so that one would overwrite "
                "the predictions of the other.",
                "Apply one of them, or the second one in another output folder.",
            )
    return found


def read_adapter(path: Path) -> AdapterInfo:
    """Read an adapter file; the result is cached until the file changes."""
    return _read(path, file_stamp(path))


@lru_cache(maxsize=64)
def _read(path: Path, stamp: str) -> AdapterInfo:
    with open_regular(path) as file:
        content = file.read()
    return _describe(parse_adapter(content, path), path, hashlib.sha256(content).hexdigest())


@lru_cache(maxsize=8)
def _read_own_head(model: Entry, path: Path, stamp: str) -> AdapterInfo | None:
    adapter = own_head(model)
    return None if adapter is None else _describe(adapter, path, file_sha256(path))


def _describe(adapter: Adapter, path: Path, sha256: str) -> AdapterInfo:
    false_alarms = None if adapter.domain is None else adapter.domain.limit[1]
    return AdapterInfo(path, adapter.card, false_alarms, sha256)
