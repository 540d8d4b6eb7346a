"""Download of weights from the Hugging Face Hub, on request only: resumable, checked, and atomic.

`huggingface_hub` transfers the files, see `bids_app.catalog.hub`. They are written by plain HTTP into this app's cache,
because `hf_hub_download` discards partial downloads after a failure.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bids_app import __version__
from bids_app.bids.writer import writing_error
from bids_app.catalog.hub import TIMEOUT_S, RepoFile, hub_session, hub_token
from bids_app.catalog.lock import FILE_NAME, SHA256, Checksum, default_lock, known_checksum, locked, record_checksum
from bids_app.catalog.models import Entry
from bids_app.errors import BadDataError, NoInputError, UsageError


@dataclass(frozen=True)
class HubFile:
    """Size and checksum of a file according to the hub."""

    url: str
    size: int | None
    sha256: str | None


def fetch(entry: Entry, lock: Path | None = None, listed: RepoFile | None = None) -> Path:
    """Download an entry's file into the cache; a file that exists is checked, and not downloaded again.

    The file must have the checksum in the catalog or in the lock file. If neither knows it, it is recorded in the lock
    file. Progress is shown in a terminal.

    Parameters
    ----------
    entry : Entry
        Entry of the catalog, with a repository.
    lock : pathlib.Path, optional
        Lock file with checksums; default: that of the cache.
    listed : RepoFile, optional
        The file in the list of its repository, whose size and checksum it must have.

    Raises
    ------
    UsageError
        The entry is not on the hub.
    NoInputError
        The file does not exist on the hub.
    TemporaryError
        The hub cannot be reached, or disconnects repeatedly; the partial download is kept and resumed next time.
    InputOutputError, CannotCreateError
        The cache or the lock file cannot be written.
    BadDataError
        The file differs from that of the hub, the catalog or the lock file; what was downloaded is removed.
    """
    if not entry.repo:
        raise UsageError(f"{entry.name} is not on the hub.", "It is part of the package, or a file of your own.")
    lock = lock or default_lock()
    target = entry.path
    _make_folder(target.parent)
    with locked(target):
        known = known_checksum(entry, lock)
        if target.is_file() and known is not None:
            _require_known(target, known)
            return target
        part = target.with_name(f"{target.name}.part")
        with _session(entry) as (url, headers):
            hub = _as_listed(_query_hub(url, headers), listed)
            size = _expected_size(entry, hub, known)
            _download(url, headers, size, part, entry.name)
        sha256 = file_sha256(part)
        _check(hub, size, part, sha256, known)
        if known is None:
            record_checksum(entry, Checksum(sha256, part.stat().st_size, hub.url, bool(hub.sha256)), lock)
        os.replace(part, target)
    return target


def _make_folder(folder: Path) -> None:
    """Create a folder of the cache that can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = writing_error(error, folder)
        raise type(problem)(problem.message, f"{problem.hint} NEUROSTORM_CACHE sets another folder.") from error


def verify(entry: Entry, lock: Path | None = None) -> str:
    """Compare the file of an entry with its checksum in the catalog or lock file; return the checksum.

    Raises
    ------
    BadDataError
        The file differs.
    NoInputError
        The file is not in the cache, or its checksum is not known.
    """
    path = entry.path
    if not path.is_file():
        raise NoInputError(
            f"{entry.name}: {path} does not exist.", f"Fetch it with 'neurostorm-models fetch {entry.name}'."
        )
    lock = lock or default_lock()
    known = known_checksum(entry, lock)
    if known is None:
        raise NoInputError(
            f"{path}: its checksum is neither in the catalog nor in {lock}.",
            f"Run 'neurostorm-models fetch {entry.name}', or copy the {FILE_NAME} of the machine that it came from.",
        )
    return _require_known(path, known)


def _require_known(path: Path, known: tuple[Checksum, str]) -> str:
    """Return the checksum of a file; raise if it differs from the known one."""
    checksum, source = known
    found = file_sha256(path)
    if found != checksum.sha256:
        raise BadDataError(
            f"{path}: differs from the published file (sha256 {found[:12]}… instead of {checksum.sha256[:12]}… in "
            f"{source}).",
            "Remove it, and fetch it again.",
        )
    return found


def _expected_size(entry: Entry, hub: HubFile, known: tuple[Checksum, str] | None) -> int | None:
    """Return the size of the file to download (bytes); raise if the hub offers a file other than the known one."""
    sizes = {"the catalog": entry.size}
    hint = "This is not the published file; check HF_ENDPOINT and the proxy."
    if known is not None:
        sizes[known[1]] = known[0].size or sizes.get(known[1])
        if hub.sha256 not in (None, known[0].sha256):
            raise BadDataError(
                f"{entry.file}: sha256 {str(hub.sha256)[:12]}… on the hub, {known[0].sha256[:12]}… in {known[1]}.", hint
            )
    for source, size in sizes.items():
        if size is not None and hub.size not in (None, size):
            raise BadDataError(f"{entry.file}: {hub.size} bytes on the hub, {size} bytes in {source}.", hint)
    return hub.size or next((size for size in sizes.values() if size is not None), None)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _session(entry: Entry) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield URL and headers for an entry's file; convert errors of the hub to those of this app."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(entry.repo, entry.file, revision=entry.revision, endpoint=os.environ.get("HF_ENDPOINT") or None)
    headers = {"user-agent": f"neurostorm/{__version__}"}
    if token := hub_token():
        headers["authorization"] = f"Bearer {token}"
    with hub_session(url, entry.path):
        yield url, headers


def _query_hub(url: str, headers: dict[str, str]) -> HubFile:
    """Query size and SHA-256 checksum of a file. For large files, the redirect to their storage has both."""
    from huggingface_hub import get_hf_file_metadata

    metadata = get_hf_file_metadata(url, token=False, headers=headers, timeout=TIMEOUT_S, retry_on_errors=True)
    etag = (metadata.etag or "").lower()
    return HubFile(url, metadata.size, etag if SHA256.fullmatch(etag) else None)


def _as_listed(hub: HubFile, listed: RepoFile | None) -> HubFile:
    """Complete what a request for a file tells by the list of its repository; raise if they differ."""
    if listed is None:
        return hub
    pairs = ((hub.size, listed.size), (hub.sha256, listed.sha256))
    if any(one and other and one != other for one, other in pairs):
        raise BadDataError(
            f"{hub.url}: its size or checksum differs from that in the list of the repository.",
            "Try again; check HF_ENDPOINT and the proxy.",
        )
    return HubFile(hub.url, hub.size or listed.size, hub.sha256 or listed.sha256 or None)


def _download(url: str, headers: dict[str, str], size: int | None, part: Path, name: str) -> None:
    """Download a file to ``part``, resuming a partial download."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.file_download import http_get

    while True:
        present = part.stat().st_size if part.exists() else 0
        if size is not None and present == size:
            return
        resumed = present if size is not None and present < size else 0
        try:
            with part.open("ab" if resumed else "wb") as file:
                http_get(url, file, resume_size=resumed, headers=headers, displayed_filename=name)
            return
        except HfHubHTTPError:
            raise
        except HTTPError:  # a reset connection, which `http_get` does not retry
            if part.stat().st_size <= resumed:
                raise


def _check(hub: HubFile, size: int | None, part: Path, sha256: str, known: tuple[Checksum, str] | None) -> None:
    """Raise and remove a download whose size or checksum is wrong."""
    wrong = ""
    if size is not None and part.stat().st_size != size:
        wrong = f"{part.stat().st_size} bytes instead of {size}"
    elif known is not None and sha256 != known[0].sha256:
        wrong = f"sha256 {sha256[:12]}… instead of {known[0].sha256[:12]}… in {known[1]}"
    elif hub.sha256 is not None and sha256 != hub.sha256:
        wrong = f"sha256 {sha256[:12]}… instead of {hub.sha256[:12]}…"
    if wrong:
        part.unlink()
        raise BadDataError(f"{hub.url}: wrong content: {wrong}.", "Try again; check proxy and mirror.")
