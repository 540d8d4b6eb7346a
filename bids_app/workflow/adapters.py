"""The adapters of an invocation, each read once in its main process: checks, methods text and steps are told of them.

Steps run in other processes, and load what they compute with themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bids_app.adapters.file import AdapterCard, parse_adapter
from bids_app.catalog.models import adapter_paths, find_model
from bids_app.errors import NoInputError
from bids_app.settings import Settings
from bids_app.workflow.graph import file_stamp


@dataclass(frozen=True)
class KnownAdapter:
    """What an invocation needs to know of an adapter, without its tensors.

    Attributes
    ----------
    path : pathlib.Path
    card : AdapterCard
    false_alarms : float, optional
        Share of scans like its cohort's that count as far from it; None: the file has no reference statistics.
    sha256 : str
        Of the file.
    stamp : str
        Tells when the file changed.
    """

    path: Path
    card: AdapterCard
    false_alarms: float | None
    sha256: str
    stamp: str


def chosen_adapters(settings: Settings) -> tuple[KnownAdapter, ...]:
    """The adapters that are applied; a file that changed since it was read is read again.

    Raises
    ------
    BadDataError
        One of them is not an adapter.
    """
    wanted = settings.model
    if wanted.embeddings_only:
        return ()
    return tuple(know_adapter(path) for path in adapter_paths(find_model(wanted.model), wanted.adapters))


def know_adapter(path: Path) -> KnownAdapter:
    """An adapter's file, as it was when it was read last, unless it changed since."""
    return _read(path, file_stamp(path))


@lru_cache(maxsize=64)
def _read(path: Path, stamp: str) -> KnownAdapter:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NoInputError(f"{path}: {error.strerror}.", "Check its permissions, or get it again.") from error
    adapter = parse_adapter(content, path)
    false_alarms = None if adapter.domain is None else adapter.domain.limit[1]
    return KnownAdapter(path, adapter.card, false_alarms, hashlib.sha256(content).hexdigest(), stamp)
