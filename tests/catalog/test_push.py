"""Upload of files to a repository of the hub, with a stand-in for the hub."""

from __future__ import annotations

import pytest

from bids_app.catalog.push import upload
from bids_app.errors import BadDataError, NoInputError, TemporaryError, UsageError
from tests.helpers.hub import serve_hub

WEIGHTS = bytes(range(256)) * 200
CARD = b"---\nlicense: mit\n---\n# Card"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def files(tmp_path):
    (tmp_path / "README.md").write_bytes(CARD)
    (tmp_path / "sex.safetensors").write_bytes(WEIGHTS)
    return [tmp_path / "README.md", tmp_path / "sex.safetensors"]


def published(hub, name="lab/sex"):
    repo = hub.repositories[name]
    return repo.files[repo.revisions["main"]]


def test_files_are_uploaded_in_one_commit_to_a_new_repository(hub, files):
    url = upload(files, "lab/sex")
    assert published(hub) == {"README.md": CARD, "sex.safetensors": WEIGHTS}
    assert url == f"{hub.url}/lab/sex/commit/{hub.repositories['lab/sex'].revisions['main']}"
    assert not hub.repositories["lab/sex"].private
    assert [path for method, path in hub.requests if "/commit/" in path] == ["/api/models/lab/sex/commit/main"]


def test_other_files_of_an_existing_repository_are_kept(hub, files):
    hub.add("lab/sex", {"other.txt": b"other", "README.md": b"old"})
    upload(files, "lab/sex")
    assert published(hub) == {"other.txt": b"other", "README.md": CARD, "sex.safetensors": WEIGHTS}


def test_a_private_repository_is_created_as_such(hub, files):
    upload(files, "lab/sex", private=True)
    assert hub.repositories["lab/sex"].private


def test_nothing_is_uploaded_to_a_public_repository_that_should_be_private(hub, files):
    hub.add("lab/sex", {"other.txt": b"other"})
    with pytest.raises(UsageError, match="is public"):
        upload(files, "lab/sex", private=True)
    assert published(hub) == {"other.txt": b"other"}


def test_without_a_token_nothing_is_requested_and_the_error_tells_how_to_give_it(hub, files, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NoInputError, match="requires a token") as caught:
        upload(files, "lab/sex")
    assert "write access" in caught.value.hint
    assert hub.requests == []


def test_a_token_that_may_not_write_is_named(hub, files, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "read-only")
    with pytest.raises(NoInputError, match="403") as caught:
        upload(files, "lab/sex")
    assert "write access" in caught.value.hint
    assert hub.repositories == {}


def test_a_card_that_the_hub_refuses_is_named_and_no_file_uploaded(hub, files):
    hub.refuses_cards = True
    with pytest.raises(BadDataError, match="license is not valid"):
        upload(files, "lab/sex")
    assert published(hub) == {}


def test_an_unreachable_hub_is_a_temporary_error(hub, files, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match="cannot be reached"):
        upload(files, "lab/sex")


@pytest.mark.parametrize("name", ["sex", "lab/sex/x", "lab/../x", "hf:lab/sex", "lab/se x", "/lab", ""])
def test_a_name_that_is_no_repository_is_refused(hub, files, name):
    with pytest.raises(UsageError, match="Invalid repository"):
        upload(files, name)
    assert hub.requests == []
