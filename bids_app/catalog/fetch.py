"""Fetching weights from the hub, on request only: resumed where it broke off, checked, and renamed last.

Proxies come from the usual environment variables (``https_proxy``, ``no_proxy``), a mirror from ``HF_ENDPOINT``, and a
token for it from ``HF_TOKEN``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.catalog.models import Entry
from bids_app.errors import BadDataError, InputOutputError, NoInputError, TemporaryError, UsageError

DEFAULT_ENDPOINT = "https://huggingface.co"
BLOCK = 1 << 20
TIMEOUT = 30.0
ATTEMPTS = 6
"""Connections that may break off, without a byte between, before giving up."""
SHA256 = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in all."""


@dataclass(frozen=True)
class HubFile:
    """What the hub says of a file before it is fetched."""

    url: str
    size: int | None
    sha256: str | None


class _KeepRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect as the answer: the hub's own headers are on it, not on the storage behind it."""

    def redirect_request(self, *_: Any) -> None:
        return None


def file_url(entry: Entry) -> str:
    """Where an entry's file is on the hub, or on the mirror that ``HF_ENDPOINT`` names."""
    endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    return f"{endpoint}/{entry.repo}/resolve/{entry.revision}/{urllib.parse.quote(entry.file)}"


def fetch(entry: Entry, progress: Progress | None = None) -> Path:
    """Bring an entry's file into the cache; one that is there already, and checked, is left alone.

    Parameters
    ----------
    entry : Entry
        Of the catalog, with a repository.
    progress : callable, optional

    Raises
    ------
    UsageError
        The entry is no file of the hub.
    NoInputError
        The hub has no such file.
    TemporaryError
        The hub cannot be reached, or breaks off again and again; what has come stays, and is gone on from next time.
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
        hub = _ask(entry)
        if entry.size is not None and hub.size not in (None, entry.size):
            raise BadDataError(
                f"The hub's {entry.file} has {hub.size} bytes, and the catalog knows {entry.size}.",
                "It is not the file that was published; check HF_ENDPOINT.",
            )
        size, part = hub.size or entry.size, target.with_name(f"{target.name}.part")
        _download(hub, size, part, progress)
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


def _request(url: str, start: int = 0, method: str = "GET") -> urllib.request.Request:
    headers = {"User-Agent": f"neurostorm/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers, method=method)
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # never to the storage behind the hub
    return request


def _ask(entry: Entry) -> HubFile:
    """Size and sha256 of the file. Large files are kept in storage of their own, whose redirect carries both."""
    url = file_url(entry)
    for attempt in range(ATTEMPTS):
        try:
            headers = _head(url)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise _refused(url, error) from error
            if attempt == ATTEMPTS - 1:
                raise _unreachable(url, error) from error
            time.sleep(_pause(attempt))
    etag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"').lower()
    size = headers.get("X-Linked-Size") or (None if headers.get("Location") else headers.get("Content-Length"))
    return HubFile(url, int(size) if size and size.isdigit() else None, etag if SHA256.fullmatch(etag) else None)


def _head(url: str, hops: int = 5) -> Any:
    opener = urllib.request.build_opener(_KeepRedirects)
    try:
        with opener.open(_request(url, method="HEAD"), timeout=TIMEOUT) as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        if error.code not in (301, 302, 303, 307, 308):
            raise
        location = error.headers.get("Location")
        if location and not error.headers.get("X-Linked-ETag"):
            # a repository that moved: the file's own headers are further on, at the same host
            onward = urllib.parse.urljoin(url, location)
            if hops and urllib.parse.urlsplit(onward).netloc == urllib.parse.urlsplit(url).netloc:
                with contextlib.suppress(urllib.error.HTTPError):
                    return _head(onward, hops - 1)
        return error.headers


def _download(hub: HubFile, size: int | None, part: Path, progress: Progress | None) -> None:
    """Fill ``part`` up to ``size``, going on from what it holds."""
    idle = 0
    while True:
        held = part.stat().st_size if part.exists() else 0
        if size is not None and held >= size:
            return
        try:
            _receive(hub.url, part, held, size, progress)
            if size is None:
                return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # it has no more than what is held
                part.unlink()
            elif error.code < 500:
                raise _refused(hub.url, error) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise InputOutputError(
                    f"{part}: {error.strerror}.", "Free some space, or set NEUROSTORM_CACHE."
                ) from error
        except http.client.HTTPException:
            pass
        idle = 0 if part.exists() and part.stat().st_size > held else idle + 1
        if idle == ATTEMPTS:
            raise _unreachable(hub.url, None)
        time.sleep(_pause(idle))


def _receive(url: str, part: Path, held: int, size: int | None, progress: Progress | None) -> None:
    """Append what one connection gives."""
    # an opener of its own, because the shared one remembers the proxies of its first use
    with urllib.request.build_opener().open(_request(url, held), timeout=TIMEOUT) as answer:
        whole = held and answer.status != 206  # a server that does not know of ranges begins again
        with part.open("wb" if whole else "ab") as file:
            held = 0 if whole else held
            while block := answer.read(BLOCK):
                file.write(block)
                held += len(block)
                if progress is not None:
                    progress(held, size or 0)
                if size is not None and held > size:
                    break


def _check(hub: HubFile, size: int | None, part: Path, sha256: str) -> None:
    wrong = ""
    if size is not None and part.stat().st_size != size:
        wrong = f"{part.stat().st_size} bytes instead of {size}"
    elif hub.sha256 is not None and sha256 != hub.sha256:
        wrong = f"sha256 {sha256[:12]}… instead of {hub.sha256[:12]}…"
    if wrong:
        part.unlink()
        raise BadDataError(f"What came from {hub.url} is not the file: {wrong}.", "Try again; check proxy and mirror.")


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in (404, 410):
        return NoInputError(f"{url}: the hub has no such file ({error.code}).", "Check HF_ENDPOINT; it may be moved.")
    if error.code in (401, 403):
        return NoInputError(f"{url}: the hub refuses it ({error.code}).", "Set HF_TOKEN, if the mirror asks for one.")
    return TemporaryError(f"{url}: the hub answers {error.code}.", "Try again later.")


def _unreachable(url: str, error: BaseException | None) -> TemporaryError:
    reason = getattr(error, "reason", None) or error or "it breaks off again and again"
    return TemporaryError(
        f"{url}: cannot be fetched ({reason}).",
        "Check the network, https_proxy and HF_ENDPOINT, then fetch again: it goes on from where it was.",
    )


def _pause(attempt: int) -> float:
    """Seconds to wait before another attempt."""
    return min(0.2 * 2**attempt, 10.0) if attempt else 0.0


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time fetches a file."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
