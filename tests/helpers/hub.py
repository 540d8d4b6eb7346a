"""A stand-in for the Hugging Face Hub on this machine: repositories with commits, access, large files and uploads."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 10_000
"""Bytes from which a file is stored as a large one, with a checksum."""


@dataclass
class Repository:
    """A repository: its files by commit, and its branches and tags."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    licence: str | None = "mit"
    private: bool = False
    gated: bool = False


@dataclass
class StandInHub:
    """The hub, with configurable failures; ``requests`` are method and path of all requests."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "secret"
    """Token that may read private repositories, and write."""
    with_checksums: bool = True
    sent: bytes | None = None
    """Content that is sent instead of that of any file."""
    answer: bytes | None = None
    """Answer to all requests of information."""
    refuses_cards: bool = False
    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next downloads are disconnected."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    large_files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def add(self, repo: str, files: dict[str, bytes], commit: str = COMMIT, branch: str = "main", **facts: Any) -> None:
        """Add a commit with these files to a repository, and set its branch to it."""
        found = self.repositories.setdefault(repo, Repository(**facts))
        found.files[commit] = files
        found.revisions[branch] = commit


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does."""

    hub: StandInHub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, code: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """Return a repository and a commit, or answer with the error of the hub."""
        repo = self.hub.repositories.get(name)
        if repo is None or (repo.private and not self.has_token()):
            self.answer({}, 404 if self.has_token() else 401, X_Error_Code="RepoNotFound")
            return None
        if repo.gated:
            self.answer({}, 403, X_Error_Code="GatedRepo")
            return None
        commit = revision if revision in repo.files else repo.revisions.get(revision)
        if commit is None:
            self.answer({}, 404, X_Error_Code="RevisionNotFound")
            return None
        return repo, commit

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if path.startswith("/api/models/"):
            self.information(path.removeprefix("/api/models/"))
        elif path.startswith("/storage/"):
            self.content(self.hub.large_files[path.removeprefix("/storage/")])
        else:
            self.resolve(path.removeprefix("/"))

    def information(self, path: str) -> None:
        if self.hub.answer is not None:
            return self.answer(self.hub.answer)
        name, _, revision = path.partition("/revision/")
        found = self.find(name, revision or "main")
        if found is None:
            return None
        repo, commit = found
        siblings = [
            {"rfilename": path, "size": len(data), **self.large(data)} for path, data in repo.files[commit].items()
        ]
        card = {"license": repo.licence} if repo.licence else None
        return self.answer({"id": name, "sha": commit, "private": repo.private, "cardData": card, "siblings": siblings})

    def large(self, data: bytes) -> dict[str, Any]:
        if len(data) < LARGE or not self.hub.with_checksums:
            return {}
        return {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}}

    def resolve(self, path: str) -> None:
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self.find(name, revision)
        if found is None:
            return None
        repo, commit = found
        data = repo.files[commit].get(file)
        if data is None:
            return self.answer({}, 404, X_Error_Code="EntryNotFound")
        if len(data) < LARGE:
            return self.content(self.hub.sent or data, ETag='"blob"', X_Repo_Commit=commit)
        sha256 = hashlib.sha256(data).hexdigest()
        self.hub.large_files[sha256] = self.hub.sent or data
        etag = {"X_Linked_ETag": f'"{sha256}"'} if self.hub.with_checksums else {}
        where = f"{self.hub.url}/storage/{sha256}"
        return self.answer({}, 302, Location=where, X_Linked_Size=str(len(data)), X_Repo_Commit=commit, **etag)

    def content(self, data: bytes, **headers: str) -> None:
        """Send a file from the wanted byte, up to a disconnection."""
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.ranges.append(wanted)
        end = start + self.hub.break_after.pop(0) if self.hub.break_after else len(data)
        self.wfile.write(data[start:end])
        self.close_connection = end < len(data)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        body = self.body()
        if not self.has_token():
            self.answer({"error": "no write access"}, 403)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            errors = {"errors": [{"message": "license is not valid"}]}
            self.answer(errors if self.hub.refuses_cards else {}, 400 if self.hub.refuses_cards else 200)
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["size"] >= LARGE else "regular" for file in files}
            self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{item['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.commit(path, [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            return self.answer({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        self.hub.add(name, {}, "0" * 40)
        return self.answer({"url": f"{self.hub.url}/{name}"})

    def commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        repo = self.hub.repositories[name]
        files = dict(repo.files[repo.revisions["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.hub.add(name, files, commit)
        self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == self.path.removeprefix("/storage/")
        self.hub.large_files[self.path.removeprefix("/storage/")] = data
        self.answer({})


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[StandInHub]:
    """Serve an empty hub, and let this process use it, with an empty cache and without a token."""
    hub = StandInHub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NEUROSTORM_CACHE", str(cache))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another server
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    clock = SimpleNamespace(sleep=lambda seconds: None)  # no waiting between attempts
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", clock)
    yield hub
    server.shutdown()
    server.server_close()
