"""Download of weights from the Hugging Face Hub, on request only: resumable, checked, and atomic.

`huggingface_hub` transfers the files: proxies are taken from the usual environment variables (``https_proxy``,
``no_proxy``), a mirror from ``HF_ENDPOINT``, a token from ``HF_TOKEN``; ``HF_HUB_OFFLINE`` forbids downloads. Files are
written by plain HTTP into this app's cache, because `hf_hub_download` discards partial downloads after a failure.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.catalog.models import Entry
from bids_app.errors import BadDataError, InputOutputError, NeurostormError, NoInputError, TemporaryError, UsageError

TIMEOUT_S = 30.0
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """Size and checksum of a file according to the hub."""

    url: str
    size: int | None
    sha256: str | None


def fetch(entry: Entry) -> Path:
    """Download an entry's file into the cache; a checked file that exists is not downloaded again.

    Progress is shown in a terminal.

    Parameters
    ----------
    entry : Entry
        Entry of the catalog, with a repository.

    Raises
    ------
    UsageError
        The entry is not on the hub.
    NoInputError
        The file does not exist on the hub.
    TemporaryError
        The hub cannot be reached, or disconnects repeatedly; the partial download is kept and resumed next time.
    InputOutputError
        The cache cannot be written.
    BadDataError
        The file differs from that of the hub or the catalog.
    """
    if not entry.repo:
        raise UsageError(f"{entry.name} is not on the hub.", "It is part of the package, or a file of your own.")
    target = entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if target.is_file() and read_record(target) is not None:
            return target
        part = target.with_name(f"{target.name}.part")
        with _session(entry) as (url, headers):
            hub = _query_hub(url, headers)
            if entry.size is not None and hub.size not in (None, entry.size):
                raise BadDataError(
                    f"{entry.file}: {hub.size} bytes on the hub, {entry.size} bytes in the catalog.",
                    "This is not the published file; check HF_ENDPOINT.",
                )
            size = hub.size or entry.size
            _download(url, headers, size, part, entry.name)
        sha256 = file_sha256(part)
        _check(hub, size, part, sha256)
        record = {
            "sha256": sha256,
            "size": part.stat().st_size,
            "url": hub.url,
            "checked_against_hub": bool(hub.sha256),
        }
        record_path(target).write_text(json.dumps(record, indent=1))
        os.replace(part, target)
    return target


def verify(entry: Entry) -> str:
    """Check the file of an entry against its record; return its SHA-256 checksum.

    Raises
    ------
    BadDataError
        The size or checksum has changed.
    NoInputError
        The file is not in the cache.
    """
    path = entry.path
    if not path.is_file():
        raise NoInputError(
            f"{entry.name}: {path} does not exist.", f"Fetch it with 'neurostorm-models fetch {entry.name}'."
        )
    record = read_record(path)
    found = file_sha256(path)
    expected = [entry.size] if entry.size is not None else []
    if record is not None:
        expected.append(int(record["size"]))
    if any(size != path.stat().st_size for size in expected) or (record is not None and record["sha256"] != found):
        raise BadDataError(f"{path}: differs from the published file.", "Remove it, and fetch it again.")
    return found


def file_sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_path(path: Path) -> Path:
    """Return the path of the record of a downloaded file."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of a downloaded file; None if there is none, or the file has another size."""
    try:
        record = json.loads(record_path(path).read_text())
        return record if record["size"] == path.stat().st_size and SHA256.fullmatch(record["sha256"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _session(entry: Entry) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield URL and headers for an entry's file; convert errors of the hub to those of this app."""
    from huggingface_hub import close_session, constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    constants.HF_HUB_DISABLE_TELEMETRY = True  # otherwise it downloads a list of agents into HF_HOME
    url = hf_hub_url(entry.repo, entry.file, revision=entry.revision, endpoint=os.environ.get("HF_ENDPOINT") or None)
    headers = {"user-agent": f"neurostorm/{__version__}"}
    if token := os.environ.get("HF_TOKEN"):
        headers["authorization"] = f"Bearer {token}"
    try:
        yield url, headers
    except OfflineModeIsEnabled as error:
        raise TemporaryError(f"{url}: not fetched, because HF_HUB_OFFLINE is set.", "Unset HF_HUB_OFFLINE.") from error
    except HfHubHTTPError as error:
        raise _http_error(url, error.response.status_code) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            hint = "Free some space, or set NEUROSTORM_CACHE."
            raise InputOutputError(f"{entry.path}: {error.strerror}.", hint) from error
        raise TemporaryError(
            f"{url}: cannot be fetched ({error}).",
            "Check the network, https_proxy and HF_ENDPOINT, then fetch again; the download is resumed.",
        ) from error
    finally:
        close_session()  # a session keeps the proxies of its first use


def _query_hub(url: str, headers: dict[str, str]) -> HubFile:
    """Query size and SHA-256 checksum of a file. For large files, the redirect to their storage has both."""
    from huggingface_hub import get_hf_file_metadata

    metadata = get_hf_file_metadata(url, token=False, headers=headers, timeout=TIMEOUT_S, retry_on_errors=True)
    etag = (metadata.etag or "").lower()
    return HubFile(url, metadata.size, etag if SHA256.fullmatch(etag) else None)


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


def _check(hub: HubFile, size: int | None, part: Path, sha256: str) -> None:
    wrong = ""
    if size is not None and part.stat().st_size != size:
        wrong = f"{part.stat().st_size} bytes instead of {size}"
    elif hub.sha256 is not None and sha256 != hub.sha256:
        wrong = f"sha256 {sha256[:12]}… instead of {hub.sha256[:12]}…"
    if wrong:
        part.unlink()
        raise BadDataError(f"{hub.url}: wrong content: {wrong}.", "Try again; check proxy and mirror.")


def _http_error(url: str, code: int) -> NeurostormError:
    if code in (404, 410):
        return NoInputError(f"{url}: not found on the hub ({code}).", "Check HF_ENDPOINT; the file may have moved.")
    if code in (401, 403):
        return NoInputError(f"{url}: access denied by the hub ({code}).", "Set HF_TOKEN if the mirror requires one.")
    return TemporaryError(f"{url}: HTTP error {code} from the hub.", "Try again later.")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Lock a file, so that one process at a time downloads it."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
