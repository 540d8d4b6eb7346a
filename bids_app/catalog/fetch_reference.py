"""Download of any file of the hub by reference, ``hf:owner/name@revision:path``, on request only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bids_app.catalog.fetch import fetch
from bids_app.catalog.hub import Repo, missing_file, read_repo
from bids_app.catalog.lock import default_lock, known_checksum, read_revisions, record_revision
from bids_app.catalog.models import FILE_SUFFIXES, Entry, find_model
from bids_app.catalog.references import (
    Head,
    Reference,
    facts_path,
    only,
    option_of,
    parse_reference,
    read_facts,
    record_commit,
    write_facts,
)
from bids_app.errors import NoInputError, UsageError


def fetch_reference(text: str, lock: Path | None = None, update: bool = False) -> Entry:
    """Download a file of the hub into the cache, and return its entry.

    A branch or tag is resolved to a commit, which is recorded in the lock file and in the cache; later calls use the
    recorded commit. Size and checksum are recorded, and later downloads must match them, see `bids_app.catalog.fetch`.
    Nothing is requested for a file that is in the cache.

    Parameters
    ----------
    text : str
        See `bids_app.catalog.references.parse_reference`.
    lock : pathlib.Path, optional
        Lock file; default: that of the cache.
    update : bool
        Resolve a branch or tag again.

    Raises
    ------
    UsageError
        The reference is invalid, or has no path although the repository has several files of weights.
    NoInputError
        Repository, revision or file do not exist or are not accessible.
    TemporaryError, InputOutputError, CannotCreateError, BadDataError
        See `bids_app.catalog.fetch.fetch`.
    """
    lock = lock or default_lock()
    wanted = parse_reference(text)
    commit = _locked_commit(wanted, lock, update)
    if commit is not None and wanted.path:
        entry = find_model(str(replace(wanted, revision=commit)))
        if entry.path.is_file() and known_checksum(entry, lock) is not None and facts_path(entry.path).is_file():
            fetch(entry, lock)  # compares the file with its checksum
            _record(wanted, commit, lock)
            return entry
    repo = read_repo(wanted.repo, commit or wanted.revision)
    found = replace(_with_path(wanted, repo), revision=repo.commit)
    entry = find_model(str(found))
    fetch(entry, lock, next(file for file in repo.files if file.path == found.path))
    _record(wanted, repo.commit, lock)
    facts = read_facts(entry.path)
    write_facts(entry.path, replace(facts, source=str(found), licence=repo.licence))
    return find_model(str(found))


def _locked_commit(wanted: Reference, lock: Path, update: bool) -> str | None:
    """Return the commit of a revision, if it is a commit or recorded in the lock file."""
    if wanted.is_pinned:
        return wanted.revision
    return None if update else read_revisions(lock).get(_name(wanted))


def _name(reference: Reference) -> str:
    """Return the name of a revision in a lock file."""
    return f"{reference.repo}@{reference.revision}"


def _record(wanted: Reference, commit: str, lock: Path) -> None:
    """Record the commit of a branch or tag in the lock file, and in the cache for later runs."""
    if not wanted.is_pinned:
        if read_revisions(lock).get(_name(wanted)) != commit:
            record_revision(_name(wanted), commit, lock)
        record_commit(wanted, commit)


def _with_path(wanted: Reference, repo: Repo) -> Reference:
    """Return a reference with a path, which is in the repository."""
    weights = [file.path for file in repo.files if Path(file.path).suffix in FILE_SUFFIXES]
    if not wanted.path:
        if not weights:
            raise NoInputError(f"{wanted}: the repository has no file of weights.", "Check owner and name.")
        return only(wanted, weights)
    if wanted.path not in {file.path for file in repo.files}:
        raise missing_file(wanted, repo)
    return wanted


def store_head(entry: Entry, head: Head) -> Entry:
    """Store the meaning of a head beside the file of an entry, and return the entry with it.

    Parameters
    ----------
    entry : Entry
        Its file must be in the cache.
    head : dict
        Facts by `bids_app.catalog.references.HEAD_FACTS`; they replace those of an earlier call.

    Raises
    ------
    UsageError
        A fact contradicts the catalog.
    """
    known = find_model(entry.name)
    facts = read_facts(entry.path)
    for name, value in head.items():
        if name in known.head and name not in facts.head and known.head[name] != value:
            raise UsageError(
                f"{entry.name}: {option_of(name)} is {value}, but the catalog has {known.head[name]}.",
                f"Leave out {option_of(name)}.",
            )
    write_facts(entry.path, replace(facts, head={**facts.head, **head}))
    return find_model(entry.name)
