"""Any file of the hub is fetched by reference: checked, recorded, resumed, and the same each time."""

from __future__ import annotations

import os

import pytest

from bids_app.catalog.fetch import verify
from bids_app.catalog.fetch_reference import fetch_reference, store_head
from bids_app.catalog.lock import default_lock, read_lock, read_revisions, source_of
from bids_app.catalog.models import find_model, weights_path
from bids_app.catalog.references import read_facts
from bids_app.errors import BadDataError, CannotCreateError, InputOutputError, NoInputError, TemporaryError, UsageError
from tests.helpers.hub import COMMIT, serve_hub

WEIGHTS = bytes(range(256)) * 1000
OTHER = bytes(reversed(WEIGHTS))
NEXT = "f" * 40
BRANCH = "hf:lab/model@main:task1/age.ckpt"
PINNED = f"hf:lab/model@{COMMIT}:task1/age.ckpt"
ATTEMPTS = 6


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("lab/model", {"task1/age.ckpt": WEIGHTS, "README.md": b"# Card"})
        yield hub


@pytest.mark.parametrize("text", [BRANCH, PINNED, "hf:lab/model", "hf:lab/model:task1/age.ckpt"])
def test_a_file_is_fetched_by_branch_commit_or_as_the_only_one(hub, text):
    entry = fetch_reference(text)
    assert entry.path.read_bytes() == WEIGHTS
    assert entry.name == PINNED
    assert weights_path(find_model(text)) == entry.path
    assert (read_facts(entry.path).source, entry.licence) == (PINNED, "mit")
    assert verify(entry) == read_lock(default_lock())[source_of(entry)].sha256
    assert read_revisions(default_lock()) == ({} if text == PINNED else {"lab/model@main": COMMIT})


def test_a_small_file_without_a_checksum_of_the_hub_is_recorded(hub):
    entry = fetch_reference("hf:lab/model@main:README.md")
    assert entry.path.read_bytes() == b"# Card"
    assert not read_lock(default_lock())[source_of(entry)].checked_against_hub


def test_a_file_in_the_cache_is_not_requested_again(hub):
    fetch_reference(BRANCH)
    hub.requests.clear()
    fetch_reference(BRANCH)
    fetch_reference(PINNED)
    assert hub.requests == []


def test_a_branch_stays_at_its_recorded_commit_until_an_update(hub):
    first = fetch_reference(BRANCH)
    hub.add("lab/model", {"task1/age.ckpt": OTHER}, commit=NEXT)
    assert fetch_reference(BRANCH) == first
    updated = fetch_reference(BRANCH, update=True)
    assert updated.path.read_bytes() == OTHER
    assert find_model(BRANCH) == updated
    assert first.path.read_bytes() == WEIGHTS
    assert read_revisions(default_lock()) == {"lab/model@main": NEXT}


def test_the_lock_file_of_a_study_gives_the_same_file_on_other_machines(hub, tmp_path, monkeypatch):
    lock = tmp_path / "study.lock"
    fetch_reference(BRANCH, lock)
    hub.add("lab/model", {"task1/age.ckpt": OTHER}, commit=NEXT)
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "other machine"))
    assert fetch_reference(BRANCH, lock).path.read_bytes() == WEIGHTS
    assert find_model(BRANCH).revision == COMMIT
    assert not default_lock().exists()


@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_mirror_with_other_bytes_is_refused(hub, tmp_path, monkeypatch, with_checksums):
    fetch_reference(BRANCH).path.unlink()
    hub.repositories["lab/model"].files[COMMIT]["task1/age.ckpt"] = OTHER
    hub.with_checksums = with_checksums
    with pytest.raises(BadDataError, match=r"weights\.lock"):
        fetch_reference(BRANCH)
    assert not find_model(BRANCH).path.exists()


def test_bytes_that_differ_from_the_checksum_of_the_hub_are_refused_at_the_first_fetch(hub):
    hub.sent = OTHER
    with pytest.raises(BadDataError, match="wrong content"):
        fetch_reference(PINNED)
    assert not default_lock().exists()
    assert not find_model(PINNED).path.exists()


def test_a_changed_file_in_the_cache_is_refused(hub):
    fetch_reference(BRANCH).path.write_bytes(OTHER)
    with pytest.raises(BadDataError, match="differs from the published file"):
        fetch_reference(BRANCH)


def test_an_interrupted_download_goes_on(hub):
    hub.break_after = [100_000] + [0] * ATTEMPTS * 2
    with pytest.raises(TemporaryError, match="cannot be reached"):
        fetch_reference(PINNED)
    hub.break_after = []
    assert fetch_reference(PINNED).path.read_bytes() == WEIGHTS
    assert hub.ranges[-1] == "bytes=100000-"


def test_a_missing_file_is_named_with_the_file_that_was_probably_meant(hub):
    with pytest.raises(NoInputError, match=r"there is no file age\.ckpt") as caught:
        fetch_reference("hf:lab/model@main:age.ckpt")
    assert "task1/age.ckpt" in caught.value.hint
    with pytest.raises(NoInputError, match=r"no file sex\.ckpt") as caught:
        fetch_reference("hf:lab/model@main:sex.ckpt")
    assert "list --hub hf:lab/model@main" in caught.value.hint


def test_several_files_of_weights_are_listed(hub):
    hub.add("lab/two", {"a.ckpt": WEIGHTS, "b.safetensors": WEIGHTS})
    with pytest.raises(UsageError, match=r"2 files of weights: a\.ckpt, b\.safetensors"):
        fetch_reference("hf:lab/two")
    hub.add("lab/none", {"README.md": b""})
    with pytest.raises(NoInputError, match="no file of weights"):
        fetch_reference("hf:lab/none")


def test_a_full_disk_is_named(hub):
    path = find_model(PINNED).path
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.part").symlink_to("/dev/full")
    with pytest.raises(InputOutputError, match="No space left") as caught:
        fetch_reference(PINNED)
    assert "NEUROSTORM_CACHE" in caught.value.hint


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "file"))
    with pytest.raises(CannotCreateError, match=str(tmp_path / "file")) as caught:
        fetch_reference(PINNED)
    assert "NEUROSTORM_CACHE" in caught.value.hint


def test_the_file_of_a_catalog_entry_is_stored_as_that_entry(hub):
    known = find_model("hcpya-sex")
    hub.add(known.repo, {known.file: WEIGHTS}, commit=known.revision)
    entry = fetch_reference(f"hf:{known.repo}@main:{known.file}")
    assert (entry.name, entry.path) == (known.name, known.path)
    assert find_model("hcpya-sex").path.is_file()


def test_facts_of_a_head_are_kept_by_later_fetches(hub):
    entry = store_head(fetch_reference(BRANCH), {"labels": ["a", "b"]})
    assert entry.head == {"labels": ["a", "b"]}
    entry.path.unlink()
    assert fetch_reference(BRANCH).head == {"labels": ["a", "b"]}
    assert store_head(entry, {"labels": ["b", "a"], "unit": "x"}).head == {"labels": ["b", "a"], "unit": "x"}


def test_a_fact_that_contradicts_the_catalog_is_refused(hub):
    known = find_model("hcpya-sex")
    os.makedirs(known.path.parent)
    with pytest.raises(UsageError, match="the catalog has"):
        store_head(known, {"labels": ["male", "female"]})
    assert store_head(known, {"labels": ["female", "male"]}).head == known.head
