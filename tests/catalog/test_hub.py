"""Content of a repository of the hub, and the hub's errors, with a stand-in for the hub."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import constants

from bids_app.catalog.hub import Repo, RepoFile, read_repo
from bids_app.errors import BadDataError, NoInputError, TemporaryError
from tests.helpers.hub import COMMIT, LARGE, serve_hub

WEIGHTS = bytes(range(256)) * 200
FILES = {"task1/age.ckpt": WEIGHTS, "README.md": b"# Card"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("lab/model", FILES)
        yield hub


def test_a_repository_has_its_commit_licence_and_files_with_sizes_and_checksums(hub):
    assert len(WEIGHTS) > LARGE
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    files = (RepoFile("README.md", 6, ""), RepoFile("task1/age.ckpt", len(WEIGHTS), sha256))
    assert read_repo("lab/model", "main") == Repo("lab/model", COMMIT, "mit", False, files)
    assert read_repo("lab/model", COMMIT).files == files


def test_a_licence_that_is_no_identifier_is_not_taken_over(hub):
    hub.repositories["lab/model"].licence = "mit\n<script>"
    assert read_repo("lab/model", "main").licence == ""


def test_paths_that_lead_out_of_a_repository_are_left_out(hub):
    hub.add("lab/evil", {"../../x.ckpt": WEIGHTS, "/etc/x.ckpt": WEIGHTS, "good.ckpt": WEIGHTS})
    assert [file.path for file in read_repo("lab/evil", "main").files] == ["good.ckpt"]


def test_a_private_repository_needs_a_token_and_the_error_tells_how_to_give_it(hub, monkeypatch):
    hub.repositories["lab/model"].private = True
    with pytest.raises(NoInputError, match="access denied") as caught:
        read_repo("lab/model", "main")
    assert "HF_TOKEN" in caught.value.hint
    assert "hf auth login" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert read_repo("lab/model", "main").private


def test_the_token_of_a_login_is_used(hub, tmp_path, monkeypatch):
    hub.repositories["lab/model"].private = True
    (tmp_path / "token").write_text(hub.token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert read_repo("lab/model", "main").commit == COMMIT


def test_a_gated_repository_is_named_as_such(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.repositories["lab/model"].gated = True
    with pytest.raises(NoInputError, match=r"403.*gated") as caught:
        read_repo("lab/model", "main")
    assert "request access" in caught.value.hint


def test_an_unknown_repository_or_revision_is_named(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(NoInputError, match="hf:lab/other@main: no such repository"):
        read_repo("lab/other", "main")
    with pytest.raises(NoInputError, match="hf:lab/model@v2: no such commit, tag or branch"):
        read_repo("lab/model", "v2")


def test_an_unreachable_hub_is_a_temporary_error(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match="cannot be reached") as caught:
        read_repo("lab/model", "main")
    assert "HF_ENDPOINT" in caught.value.hint


def test_offline_mode_sends_no_request(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TemporaryError, match="HF_HUB_OFFLINE"):
        read_repo("lab/model", "main")
    assert hub.requests == []


@pytest.mark.parametrize(
    "answer", [b"<html>Please log in</html>", b"[]", b'{"sha": 1}', b'{"id": "x", "siblings": [1]}']
)
def test_the_answer_of_another_server_is_refused(hub, answer):
    hub.answer = answer
    with pytest.raises(BadDataError) as caught:
        read_repo("lab/model", "main")
    assert "HF_ENDPOINT" in caught.value.hint


def test_another_commit_than_the_wanted_one_is_refused(hub):
    hub.answer = b'{"id": "lab/model", "sha": "%s", "siblings": []}' % (b"1" * 40)
    with pytest.raises(BadDataError, match="answers with the commit '1111"):
        read_repo("lab/model", COMMIT)
