"""Download of weights from the hub: complete, checked, and resumed after a lost connection."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from bids_app.catalog.fetch import fetch, verify
from bids_app.catalog.lock import default_lock, read_lock, source_of
from bids_app.catalog.models import Entry, weights_path
from bids_app.cli.models import main as models_command
from bids_app.errors import BadDataError, NoInputError, TemporaryError, UsageError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
REVISION = "0123456789abcdef0123456789abcdef01234567"
ATTEMPTS = 6
"""Connections without a byte between before huggingface_hub gives up."""
PLACE = f"/lab/model/resolve/{REVISION}/deep/weights.ckpt"


@dataclass
class Hub:
    """A mock hub with configurable failures."""

    content: bytes = CONTENT
    sha256: str | None = hashlib.sha256(CONTENT).hexdigest()
    sent: bytes | None = None
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next connections are closed."""
    knows_ranges: bool = True
    status: int = 200
    reset_after: int | None = None
    """Bytes after which the next connection is reset."""
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    """Host of each request, and the token sent to it."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""
    location: str = ""
    """URL of the content: on another host, as for the hub's large files."""


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def _note(self, method, wanted):
        self.hub.requests.append((method, self.path, wanted))
        self.hub.tokens.append((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))

    def do_HEAD(self):
        self._note("HEAD", None)
        if self.hub.status != 200 or not self.path.endswith(PLACE):
            return self.send_error(404 if self.hub.status == 200 else self.hub.status)
        self.send_response(302)  # as the hub does for large files
        self.send_header("Location", self.hub.location)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("X-Linked-Size", str(len(self.hub.content)))
        if self.hub.sha256:
            self.send_header("X-Linked-ETag", f'"{self.hub.sha256}"')
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def do_GET(self):
        self._note("GET", self.headers.get("Range"))
        if self.path.endswith(PLACE):
            self.send_response(302)
            self.send_header("Location", self.hub.location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = self.hub.sent or self.hub.content
        start = 0
        if self.hub.knows_ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.hub.reset_after is not None:
            self.wfile.write(content[start : start + self.hub.reset_after])
            self.hub.reset_after = None
            time.sleep(0.2)  # wait for delivery
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return None
        end = start + self.hub.break_after.pop(0) if self.hub.break_after else len(content)
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True
        return None


def skip_waiting(monkeypatch):
    """Skip the waiting time between attempts."""
    clock = SimpleNamespace(sleep=lambda seconds: None)
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", clock)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.location = f"http://localhost:{server.server_address[1]}/storage/blob"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # bytes per write
    skip_waiting(monkeypatch)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def entry() -> Entry:
    return Entry("weights", "", "deep/weights.ckpt", repo="lab/model", revision=REVISION, size=len(CONTENT))


def recorded(entry, lock=None):
    return read_lock(lock or default_lock())[source_of(entry)]


def test_file_is_fetched_checked_and_found(hub, entry):
    path = fetch(entry)
    assert path.read_bytes() == CONTENT
    assert weights_path(entry) == path
    assert recorded(entry).checked_against_hub is True
    assert verify(entry) == hub.sha256
    assert not list(path.parent.glob("*.part"))


def test_existing_file_is_not_fetched_again(hub, entry):
    fetch(entry)
    hub.requests.clear()
    fetch(entry)
    assert hub.requests == []


def test_download_is_resumed_after_a_closed_connection(hub, entry):
    hub.break_after = [100_000, 0, 300_000]
    assert fetch(entry).read_bytes() == CONTENT
    ranges = [r for method, path, r in hub.requests if method == "GET" and path == "/storage/blob"]
    assert ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=400000-"]


def test_download_is_resumed_by_a_later_call(hub, entry):
    hub.break_after = [100_000] + [0] * 2 * ATTEMPTS
    with pytest.raises(TemporaryError, match="cannot be reached"):
        fetch(entry)
    hub.break_after = []
    hub.requests.clear()
    assert fetch(entry).read_bytes() == CONTENT
    assert hub.requests[-1][2] == "bytes=100000-"


def test_download_restarts_without_range_support(hub, entry):
    hub.break_after, hub.knows_ranges = [100_000], False
    assert fetch(entry).read_bytes() == CONTENT


@pytest.mark.parametrize("sent", [b"x" * len(CONTENT), CONTENT + b"more"])
def test_wrong_content_is_deleted(hub, entry, sent):
    hub.sent = sent
    with pytest.raises(BadDataError, match="wrong content"):
        fetch(entry)
    assert not entry.path.exists()
    assert not list(entry.path.parent.glob("*.part"))
    hub.sent = None
    assert fetch(entry).read_bytes() == CONTENT


def test_size_different_from_the_catalog_raises(hub, entry):
    hub.content = CONTENT + b"more"
    with pytest.raises(BadDataError, match="catalog"):
        fetch(entry)


def test_file_missing_on_the_hub_raises(hub, entry):
    hub.status = 404
    with pytest.raises(NoInputError, match=r"deep/weights\.ckpt"):
        fetch(entry)


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_tells_how_to_give_a_token(hub, entry, status):
    hub.status = status
    with pytest.raises(NoInputError, match=f"access denied by the hub .{status}") as caught:
        fetch(entry)
    assert "HF_TOKEN" in caught.value.hint


def test_server_error_is_retried_and_then_raises(hub, entry):
    hub.status = 503
    with pytest.raises(TemporaryError, match=r"503|Service"):
        fetch(entry)
    assert len(hub.requests) == ATTEMPTS


def test_missing_network_gives_a_hint(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    skip_waiting(monkeypatch)
    with pytest.raises(TemporaryError) as caught:
        fetch(entry)
    assert "HF_ENDPOINT" in caught.value.hint
    assert "proxy" in caught.value.hint


def test_proxy_of_the_environment_is_used(hub, entry, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("no_proxy", "")
    hub.location = "http://storage.invalid/storage/blob"
    assert fetch(entry).read_bytes() == CONTENT
    assert {path for _, path, _ in hub.requests} == {f"http://hub.invalid{PLACE}", hub.location}


def test_file_without_hub_checksum_is_recorded_as_unchecked(hub, entry):
    hub.sha256 = None
    fetch(entry)
    assert recorded(entry).checked_against_hub is False


def test_changed_file_raises(hub, entry):
    path = fetch(entry)
    path.write_bytes(b"y" * len(CONTENT))
    with pytest.raises(BadDataError, match="differs from the published file"):
        verify(entry)


def test_verifying_a_missing_file_raises(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    with pytest.raises(NoInputError, match="does not exist"):
        verify(entry)


def test_file_of_the_package_is_not_fetched():
    with pytest.raises(UsageError, match="demo"):
        fetch(Entry("demo", "", "demo.safetensors"))


def test_download_is_resumed_after_a_reset_connection(hub, entry):
    hub.reset_after = 100_000
    assert fetch(entry).read_bytes() == CONTENT
    assert hub.requests[-1][2] == "bytes=100000-"


def test_token_is_sent_to_the_hub_but_not_to_its_storage(hub, entry, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch(entry)
    assert set(hub.tokens) == {("127.0.0.1", "Bearer secret"), ("localhost", None)}


def test_offline_mode_sends_no_request(hub, entry, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TemporaryError, match="HF_HUB_OFFLINE"):
        fetch(entry)
    assert hub.requests == []


def test_no_other_file_is_requested_or_written(hub, entry, tmp_path):
    home = tmp_path / "home"
    code = f"from bids_app.catalog.models import Entry; from bids_app.catalog.fetch import fetch; fetch({entry!r})"
    environment = os.environ | {"HOME": str(home), "HF_HOME": str(home / "hf"), "AI_AGENT": "someone"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not home.exists()
    assert {path for _, path, _ in hub.requests} == {PLACE, "/storage/blob"}
    assert {path.name for path in entry.path.parent.iterdir()} == {
        "weights.ckpt", ".weights.ckpt.lock",
    }  # fmt: skip
    assert default_lock().is_file()


OTHER = bytes(reversed(CONTENT))


def serve_other_bytes(hub, with_checksum):
    """Make the hub a mirror with other bytes of the same size, and with their checksum or none."""
    hub.content = OTHER
    hub.sha256 = hashlib.sha256(OTHER).hexdigest() if with_checksum else None


def remove_files(entry):
    """Remove the downloaded file, but not the lock file."""
    entry.path.unlink()


def assert_nothing_is_left(entry):
    assert not entry.path.exists()
    assert not list(entry.path.parent.glob("*.part"))


@pytest.mark.parametrize("with_checksum", [True, False])
@pytest.mark.parametrize("known_by", ["lock file", "catalog"])
def test_a_mirror_with_other_bytes_is_refused_and_its_file_removed(hub, entry, with_checksum, known_by):
    if known_by == "catalog":
        entry = replace(entry, sha256=hub.sha256)
    else:
        fetch(entry)
        remove_files(entry)
    serve_other_bytes(hub, with_checksum)
    hub.requests.clear()
    with pytest.raises(BadDataError, match=r"weights\.lock" if known_by == "lock file" else "the catalog") as caught:
        fetch(entry)
    assert caught.value.exit_code == 65
    assert hashlib.sha256(CONTENT).hexdigest()[:12] in caught.value.message
    assert_nothing_is_left(entry)
    assert ("GET" in {method for method, *_ in hub.requests}) != with_checksum  # a wrong checksum is seen before
    hub.content, hub.sha256 = CONTENT, None
    assert fetch(entry).read_bytes() == CONTENT


def test_first_download_records_its_checksum_for_other_machines(hub, entry, tmp_path, monkeypatch):
    fetch(entry)
    assert recorded(entry).sha256 == hub.sha256
    assert recorded(entry).size == len(CONTENT)
    lock = default_lock().rename(tmp_path / "study.lock")
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "other machine"))
    serve_other_bytes(hub, with_checksum=True)
    with pytest.raises(BadDataError, match=r"study\.lock"):
        fetch(entry, lock)
    assert_nothing_is_left(entry)


def test_checksum_in_the_catalog_needs_no_lock_file(hub, entry):
    entry = replace(entry, sha256=hub.sha256)
    fetch(entry)
    assert not default_lock().exists()
    assert verify(entry) == hub.sha256


def test_existing_file_that_differs_from_the_lock_file_is_refused(hub, entry):
    fetch(entry).write_bytes(OTHER)
    with pytest.raises(BadDataError, match="differs from the published file"):
        fetch(entry)


def test_a_file_without_a_known_checksum_is_not_called_intact(hub, entry):
    fetch(entry)
    default_lock().unlink()
    with pytest.raises(NoInputError, match="neither in the catalog nor in"):
        verify(entry)


def test_verify_names_every_file_that_differs(hub, entry, tmp_path, monkeypatch, capsys):
    entries = {name: replace(entry, name=name) for name in ("one", "two", "three")}
    monkeypatch.setattr("bids_app.cli.models.catalog", lambda kind="models": entries if kind == "adapters" else {})
    for changed in entries.values():
        fetch(changed)
    for name in ("one", "three"):
        entries[name].path.write_bytes(OTHER)
    assert models_command(["verify"]) == 65
    printed = capsys.readouterr()
    assert [str(entries[name].path) in printed.err for name in entries] == [True, False, True]
    assert "two: " in printed.out
    assert "is intact" in printed.out


def test_fetch_command_prints_and_records_a_new_checksum(hub, entry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bids_app.cli.models._named", lambda name: entry)
    lock = tmp_path / "study.lock"
    assert models_command(["fetch", "weights", "--lock", str(lock)]) == 0
    assert f"sha256 {hub.sha256}, recorded in {lock}" in capsys.readouterr().out
    assert recorded(entry, lock).sha256 == hub.sha256
    assert not default_lock().exists()
    assert models_command(["fetch", "weights", "--lock", str(lock)]) == 0
    assert "recorded" not in capsys.readouterr().out
    assert models_command(["verify", "weights", "--lock", str(lock)]) == 0
