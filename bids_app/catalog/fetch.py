"""Fetching weights from the hub, on request only: resumed where it broke off, checked, and renamed last.

The transfer is `huggingface_hub`'s: proxies come from the usual environment variables (``https_proxy``, ``no_proxy``),
a mirror from ``HF_ENDPOINT``, and ``HF_HUB_OFFLINE`` forbids it. A token is sent where ``HF_TOKEN`` holds one. Files
come by plain HTTP into the cache's own folder: `hf_hub_download` would throw away what came before a failure.
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
    """What the hub says of a file before it is fetched."""

    url: str
    size: int | None
    sha256: str | None


def fetch(entry: Entry) -> Path:
    """Bring an entry's file into the cache; one that is there already, and checked, is left alone.

    A terminal is shown how far it is.

    Parameters
    ----------
    entry : Entry
        Of the catalog, with a repository.

    Raises
    ------
    UsageError
        The entry is no file of the hub.
    NoInputError
        The hub has no such file.
    TemporaryError
        The hub cannot be reached, or breaks off again and again; what has come stays, and is gone on from next time.
    InputOutputError
        The cache cannot be written.
    BadDataError
        What came is not what the hub, or the catalog, says it should be.
    """
    if not entry.repo:
        raise UsageError(f"{entry.name} is no file of the hub.", "It ships with the package, or is a file of your own.")
    target = entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if target.is_file() and read_record(target) is not None:
            return target
        part = target.with_name(f"{target.name}.part")
        with _session(entry) as (url, headers):
            hub = _ask(url, headers)
            if entry.size is not None and hub.size not in (None, entry.size):
                raise BadDataError(
                    f"The hub's {entry.file} has {hub.size} bytes, and the catalog knows {entry.size}.",
                    "It is not the file that was published; check HF_ENDPOINT.",
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
    """Compare the file of an entry with what it was when fetched; returns its sha256.

    Raises
    ------
    BadDataError
        Its size or its sha256 changed.
    NoInputError
        It is not here.
    """
    path = entry.path
    if not path.is_file():
        raise NoInputError(
            f"{entry.name}: {path} is not here.", f"Fetch it with 'neurostorm-models fetch {entry.name}'."
        )
    record = read_record(path)
    found = file_sha256(path)
    expected = [entry.size] if entry.size is not None else []
    if record is not None:
        expected.append(int(record["size"]))
    if any(size != path.stat().st_size for size in expected) or (record is not None and record["sha256"] != found):
        raise BadDataError(f"{path}: is not the file that was published.", "Remove it, and fetch it again.")
    return found


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_path(path: Path) -> Path:
    """Where it is noted what a fetched file was."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """What was noted when a file was fetched; None where it came some other way, or was cut since."""
    try:
        record = json.loads(record_path(path).read_text())
        return record if record["size"] == path.stat().st_size and SHA256.fullmatch(record["sha256"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _session(entry: Entry) -> Iterator[tuple[str, dict[str, str]]]:
    """Where an entry's file is on the hub and what to send along; what goes wrong is said in our own errors."""
    from huggingface_hub import close_session, constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    constants.HF_HUB_DISABLE_TELEMETRY = True  # or else it asks a list of agents from the hub, and keeps it in HF_HOME
    url = hf_hub_url(entry.repo, entry.file, revision=entry.revision, endpoint=os.environ.get("HF_ENDPOINT") or None)
    headers = {"user-agent": f"neurostorm/{__version__}"}
    if token := os.environ.get("HF_TOKEN"):
        headers["authorization"] = f"Bearer {token}"
    try:
        yield url, headers
    except OfflineModeIsEnabled as error:
        raise TemporaryError(f"{url}: not fetched, since HF_HUB_OFFLINE is set.", "Unset it to fetch.") from error
    except HfHubHTTPError as error:
        raise _refused(url, error.response.status_code) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            hint = "Free some space, or set NEUROSTORM_CACHE."
            raise InputOutputError(f"{entry.path}: {error.strerror}.", hint) from error
        raise TemporaryError(
            f"{url}: cannot be fetched ({error}).",
            "Check the network, https_proxy and HF_ENDPOINT, then fetch again: it goes on from where it was.",
        ) from error
    finally:
        close_session()  # it remembers the proxies of its first use


def _ask(url: str, headers: dict[str, str]) -> HubFile:
    """Size and sha256 of the file. Large files are kept in storage of their own, whose redirect carries both."""
    from huggingface_hub import get_hf_file_metadata

    told = get_hf_file_metadata(url, token=False, headers=headers, timeout=TIMEOUT_S, retry_on_errors=True)
    etag = (told.etag or "").lower()
    return HubFile(url, told.size, etag if SHA256.fullmatch(etag) else None)


def _download(url: str, headers: dict[str, str], size: int | None, part: Path, name: str) -> None:
    """Fill ``part`` up to ``size``, going on from what it holds."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.file_download import http_get

    while True:
        held = part.stat().st_size if part.exists() else 0
        if size is not None and held == size:
            return
        resumed = held if size is not None and held < size else 0
        try:
            with part.open("ab" if resumed else "wb") as file:
                http_get(url, file, resume_size=resumed, headers=headers, displayed_filename=name)
            return
        except HfHubHTTPError:
            raise
        except HTTPError:  # a reset connection, which `http_get` does not try again
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
        raise BadDataError(f"What came from {hub.url} is not the file: {wrong}.", "Try again; check proxy and mirror.")


def _refused(url: str, code: int) -> NeurostormError:
    if code in (404, 410):
        return NoInputError(f"{url}: the hub has no such file ({code}).", "Check HF_ENDPOINT; it may be moved.")
    if code in (401, 403):
        return NoInputError(f"{url}: the hub refuses it ({code}).", "Set HF_TOKEN, if the mirror asks for one.")
    return TemporaryError(f"{url}: the hub answers {code}.", "Try again later.")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time fetches a file."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
