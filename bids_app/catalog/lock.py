"""Checksums of downloaded weights, in a lock file: a later download must give the same bytes.

The catalog has the checksum of a file once it is known. Until then, the first download records it in ``weights.lock``,
in the cache. The file can be copied to other machines, or kept under version control (``fetch --lock FILE``). It also
has the commits to which branches and tags of the hub were resolved.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bids_app.catalog.cache import cache_dir
from bids_app.catalog.models import Entry
from bids_app.catalog.references import COMMIT
from bids_app.errors import BadDataError, CannotCreateError
from bids_app.files import MAX_OPTIONS_BYTES, parse_json, read_text

FILE_NAME = "weights.lock"
VERSION = 1
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checksum:
    """Size and SHA-256 checksum of a file.

    Attributes
    ----------
    size : int or None
        Bytes, if known.
    sha256 : str
    url : str
        Where the file was downloaded from when it was recorded; empty for the catalog.
    checked_against_hub : bool
        Whether the hub sent the same checksum at that time.
    """

    sha256: str
    size: int | None = None
    url: str = ""
    checked_against_hub: bool = False


def default_lock() -> Path:
    """Return the lock file of the cache."""
    return cache_dir() / FILE_NAME


def source_of(entry: Entry) -> str:
    """Return the source of an entry's file, under which its checksum is recorded."""
    return f"{entry.repo}@{entry.revision}:{entry.file}"


def known_checksum(entry: Entry, lock: Path) -> tuple[Checksum, str] | None:
    """Find the checksum of an entry's file, and where it is recorded: in the catalog, or in a lock file.

    Raises
    ------
    BadDataError
        The lock file is damaged, or contradicts the catalog.
    """
    recorded = read_lock(lock).get(source_of(entry))
    if not entry.sha256:
        return None if recorded is None else (recorded, str(lock))
    if recorded is not None and recorded.sha256 != entry.sha256:
        raise BadDataError(
            f"{lock}: sha256 {recorded.sha256[:12]}… of {entry.name}, but {entry.sha256[:12]}… in the catalog.",
            "The catalog is right: the recorded file was not the published one. Remove the lock file and that file.",
        )
    return Checksum(entry.sha256, entry.size), "the catalog"


def read_lock(path: Path) -> dict[str, Checksum]:
    """Read the checksums of a lock file, by source; empty if the file does not exist. See `_read` for the errors."""
    return _read(path)[0]


def read_revisions(path: Path) -> dict[str, str]:
    """Read the commits of a lock file, by ``owner/name@revision``; empty if the file does not exist."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Checksum], dict[str, str]]:
    """Read the checksums and the commits of a lock file.

    Raises
    ------
    NoInputError
        It is not a regular file.
    BadDataError
        The file is damaged: its checksums must not be forgotten silently.
    """
    if not os.path.lexists(path):
        return {}, {}
    try:
        content = parse_json(read_text(path, MAX_OPTIONS_BYTES), str(path))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}")
        revisions = {str(name): _commit(commit) for name, commit in content.get("revisions", {}).items()}
        return {str(source): _checksum(fields) for source, fields in content["files"].items()}, revisions
    except (BadDataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadDataError(
            f"{path}: not a valid lock file ({error}).",
            "Restore it from a copy. If there is none, remove it; the next download records its checksum anew.",
        ) from error


def record_checksum(entry: Entry, checksum: Checksum, lock: Path) -> None:
    """Add the checksum of an entry's file to a lock file; several processes may do so at once.

    Raises
    ------
    CannotCreateError
        The lock file cannot be written.
    """
    _record(lock, f"the checksum of {entry.name}", files={source_of(entry): checksum})


def record_revision(name: str, commit: str, lock: Path) -> None:
    """Add the commit of a branch or tag, ``owner/name@revision``, to a lock file.

    Raises
    ------
    CannotCreateError
        The lock file cannot be written.
    """
    _record(lock, f"the commit of {name}", revisions={name: commit})


def _record(
    lock: Path,
    what: str,
    files: Mapping[str, Checksum] | None = None,
    revisions: Mapping[str, str] | None = None,
) -> None:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock):
            known_files, known_revisions = _read(lock)
            all_files = {**known_files, **(files or {})}
            all_revisions = {**known_revisions, **(revisions or {})}
            content: dict[str, Any] = {"version": VERSION}
            content["files"] = {source: asdict(all_files[source]) for source in sorted(all_files)}
            if all_revisions:
                content["revisions"] = dict(sorted(all_revisions.items()))
            new = lock.with_name(f".{lock.name}.{os.getpid()}")
            new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(new, lock)
    except OSError as error:
        raise CannotCreateError(
            f"{lock}: {what} cannot be recorded ({error.strerror}).",
            "Give a lock file that you can write with --lock, or set NEUROSTORM_CACHE.",
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time download or write a file."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checksum(fields: Any) -> Checksum:
    checksum = Checksum(**fields)
    if not SHA256.fullmatch(checksum.sha256):
        raise ValueError(f"invalid sha256 {checksum.sha256!r}")
    if checksum.size is not None and not isinstance(checksum.size, int):
        raise ValueError(f"invalid size {checksum.size!r}")
    return checksum


def _commit(commit: Any) -> str:
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError(f"invalid commit {commit!r}")
    return commit
