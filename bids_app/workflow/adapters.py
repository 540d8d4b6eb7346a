"""Adapters of an invocation, each file read once in the main process, for checks and the methods text.

Steps run in other processes and load the adapters themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bids_app.adapters.file import AdapterCard, parse_adapter
from bids_app.bids.entities import as_label
from bids_app.catalog.models import adapter_paths, find_model
from bids_app.errors import UsageError
from bids_app.files import open_regular
from bids_app.settings import Settings
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


def chosen_adapters(settings: Settings) -> tuple[AdapterInfo, ...]:
    """Read the adapters to apply.

    Raises
    ------
    NoInputError, BadDataError
        A file cannot be read, or is not an adapter.
    UsageError
        Two adapters have the same name.
    """
    wanted = settings.model
    if wanted.embeddings_only:
        return ()
    paths = dict.fromkeys(adapter_paths(find_model(wanted.model), wanted.adapters))
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
    adapter = parse_adapter(content, path)
    false_alarms = None if adapter.domain is None else adapter.domain.limit[1]
    return AdapterInfo(path, adapter.card, false_alarms, hashlib.sha256(content).hexdigest())
