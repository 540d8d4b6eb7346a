"""Files of the hub by reference, ``hf:owner/name@revision:path``, and their copies in the cache. Nothing is downloaded
here.

In the cache:

    hub/owner/name/COMMIT/PATH              the file
    hub/owner/name/COMMIT/PATH.facts.json   what the file does not say about itself, see `FileFacts`
    hub/owner/name/.revisions/REVISION      the commit to which a branch or tag was resolved when it was fetched

Any other file may have such facts beside it, too: a checkpoint ``age.ckpt`` those in ``age.ckpt.facts.json``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bids_app.bids.writer import write_json, write_text
from bids_app.catalog.cache import cache_dir
from bids_app.errors import BadDataError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, parse_json, read_text
from bids_app.settings import HUB_PREFIX

FORM = f"{HUB_PREFIX}owner/name@revision:path"
DEFAULT_REVISION = "main"
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./+-]{0,199}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_PATH = 1000
"""Letters of a path in a repository."""
FACTS_SUFFIX = ".facts.json"
RESERVED_SUFFIXES = (FACTS_SUFFIX, ".part")
"""Ends of the names of files that are made beside downloaded ones."""
HEAD_FACTS = {"task": str, "target": str, "unit": str, "labels": list, "value_mean": float, "value_std": float}
"""Facts about a head and their types, see `bids_app.adapters.convert.OutputMeaning`."""
Head = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """A file in a repository of the hub.

    Attributes
    ----------
    repo : str
        ``owner/name``.
    revision : str
        Commit, tag or branch.
    path : str
        Path in the repository; empty: its only file of weights.
    """

    repo: str
    revision: str = DEFAULT_REVISION
    path: str = ""

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repo}@{self.revision}" + (f":{self.path}" if self.path else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which always has the same files."""
        return COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True)
class FileFacts:
    """What a file does not say about itself.

    Attributes
    ----------
    source : str
        Reference that the file was fetched from.
    licence : str
        Licence of its repository.
    head : dict
        Meaning of the outputs of its head, by `HEAD_FACTS`.
    """

    source: str = ""
    licence: str = ""
    head: Head = field(default_factory=dict)


def is_reference(text: str) -> bool:
    """Return True for a reference to a file of the hub."""
    return text.startswith(HUB_PREFIX)


def parse_reference(text: str) -> Reference:
    """Parse ``hf:owner/name``, ``hf:owner/name@revision``, ``hf:owner/name@revision:path`` or ``hf:owner/name:path``.

    Raises
    ------
    UsageError
        The text has another form, or a part of it could refer to something outside of the repository.
    """
    place, colon, path = text.removeprefix(HUB_PREFIX).partition(":")
    repo, at, revision = place.partition("@")
    reason = ""
    if not is_reference(text) or not REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        reason = "its repository is not owner/name"
    elif at and (not REVISION.fullmatch(revision) or ".." in revision):
        reason = "its revision is not a commit, tag or branch"
    elif colon:
        reason = problem_of_path(path)
    if reason:
        raise UsageError(f"Invalid reference {text[:MAX_PATH]!a}: {reason}.", f"Use the form {FORM}.")
    return Reference(repo, revision or DEFAULT_REVISION, path)


def problem_of_path(path: str) -> str:
    """Return why a path cannot be that of a file in a repository; empty if it can."""
    parts = path.split("/")
    if not path or len(path) > MAX_PATH or not path.isprintable() or "\\" in path:
        return "its path is empty, too long, or has a backslash or control characters"
    if any(part in ("", ".", "..") or len(os.fsencode(part)) > 200 for part in parts):
        return "its path is not a relative path within the repository"
    if path.endswith(RESERVED_SUFFIXES):
        return f"its path ends in {' or '.join(RESERVED_SUFFIXES)}, which is reserved"
    return ""


def file_in_cache(reference: Reference) -> Path:
    """Return the path of a file in the cache, which may not exist; of its revision's folder, without a path."""
    return _repo_dir(reference) / quote(reference.revision, safe="") / reference.path


def files_in_cache() -> Iterator[Reference]:
    """Yield the files in the cache that were fetched by reference."""
    root = cache_dir() / "hub"
    for facts in sorted(root.glob(f"*/*/*/**/*{FACTS_SUFFIX}")):
        path = facts.with_name(facts.name.removesuffix(FACTS_SUFFIX))
        owner, name, revision, *parts = path.relative_to(root).parts
        if COMMIT.fullmatch(revision) and path.is_file():
            yield Reference(f"{owner}/{name}", revision, "/".join(parts))


def sole_file(reference: Reference, suffixes: Collection[str]) -> Reference:
    """Complete a reference without a path by the only file with one of these extensions in the cache.

    Raises
    ------
    UsageError
        The cache has several.
    """
    found = [
        other
        for other in files_in_cache()
        if (other.repo, other.revision) == (reference.repo, reference.revision) and Path(other.path).suffix in suffixes
    ]
    return only(reference, [other.path for other in found]) if found else reference


def only(reference: Reference, paths: Collection[str]) -> Reference:
    """Complete a reference by the only one of these paths.

    Raises
    ------
    UsageError
        There are several.
    """
    if len(paths) > 1:
        names = ", ".join(sorted(paths)[:10])
        raise UsageError(f"{reference} has {len(paths)} files of weights: {names}.", f"Name one: {reference}:PATH.")
    return replace(reference, path=next(iter(paths)))


def recorded_commit(reference: Reference) -> str | None:
    """Return the commit of a reference's revision, as recorded when it was fetched; None if it is not known.

    Raises
    ------
    BadDataError
        The record is damaged.
    """
    if reference.is_pinned:
        return reference.revision
    path = _revision_file(reference)
    if not path.is_file():
        return None
    commit = read_text(path, MAX_OPTIONS_BYTES).strip()
    if not COMMIT.fullmatch(commit):
        raise BadDataError(f"{path}: not the hash of a commit.", f"Remove it, and fetch {reference} again.")
    return commit


def record_commit(reference: Reference, commit: str) -> None:
    """Record the commit to which a branch or tag was resolved."""
    if not reference.is_pinned:
        write_text(_revision_file(reference), f"{commit}\n")


def facts_path(path: Path) -> Path:
    """Return the path of the facts beside a file."""
    return path.with_name(path.name + FACTS_SUFFIX)


def read_facts(path: Path) -> FileFacts:
    """Read the facts beside a file; empty ones if there are none.

    Raises
    ------
    BadDataError
        They are not valid.
    """
    beside = facts_path(path)
    if not os.path.lexists(beside):
        return FileFacts()
    content = parse_json(read_text(beside, MAX_OPTIONS_BYTES), str(beside))
    try:
        facts = FileFacts(**content)
        valid = isinstance(facts.source, str) and isinstance(facts.licence, str) and _is_head(facts.head)
    except TypeError:
        valid = False
    if not valid:
        raise BadDataError(
            f"{beside}: not valid facts about {path.name}.",
            f"Remove it, and fetch the file again with {', '.join(map(option_of, HEAD_FACTS))}.",
        )
    return facts


def write_facts(path: Path, facts: FileFacts) -> None:
    """Write facts beside a file, atomically."""
    write_json(facts_path(path), {"source": facts.source, "licence": facts.licence, "head": facts.head})


def option_of(fact: str) -> str:
    """Return the option that gives a fact."""
    return f"--{fact.replace('_', '-')}"


def _is_head(head: Any) -> bool:
    return isinstance(head, dict) and all(
        name in HEAD_FACTS and _has_type(value, HEAD_FACTS[name]) for name, value in head.items()
    )


def _has_type(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if expected is list:
        return isinstance(value, list) and all(isinstance(label, str) for label in value)
    return isinstance(value, expected)


def _repo_dir(reference: Reference) -> Path:
    return cache_dir() / "hub" / reference.repo


def _revision_file(reference: Reference) -> Path:
    return _repo_dir(reference) / ".revisions" / quote(reference.revision, safe="")
