"""References to files of the hub, and their copies and facts in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.catalog.models import Entry, find_adapter, find_model, stored_entries, weights_path
from bids_app.catalog.references import (
    FileFacts,
    Reference,
    facts_path,
    file_in_cache,
    parse_reference,
    read_facts,
    record_commit,
    write_facts,
)
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.settings.values import file_or_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = f"hf:lab/model@{COMMIT}:task1/age.ckpt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(text: str, facts: FileFacts | None = None) -> Path:
    path = file_in_cache(parse_reference(text))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    write_facts(path, facts or FileFacts())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:lab/model", Reference("lab/model", "main", "")),
        ("hf:lab/model@v1.0", Reference("lab/model", "v1.0", "")),
        (
            "hf:lab/model@refs/pr/3:a b/LoRA 64.ckpt",
            Reference("lab/model", "refs/pr/3", "a b/LoRA 64.ckpt"),
        ),
        ("hf:lab/model:age.ckpt", Reference("lab/model", "main", "age.ckpt")),
    ],
)
def test_parts_of_a_reference(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "hf:model",
        "hf:../model@main:a.ckpt",
        "hf:lab/..@main:a.ckpt",
        "hf:lab/model@:a.ckpt",
        "hf:lab/model@../..:a.ckpt",
        "hf:lab/model@main:",
        "hf:lab/model@main:../../other/a.ckpt",
        "hf:lab/model@main:/etc/passwd",
        "hf:lab/model@main:a//b.ckpt",
        "hf:lab/model@main:a/./b.ckpt",
        "hf:lab/model@main:..\\b.ckpt",
        "hf:lab/model@main:a\nb.ckpt",
        "hf:lab/model@main:a.ckpt.facts.json",
        f"hf:lab/model@main:{'a' * 300}.ckpt",
    ],
)
def test_a_reference_to_something_outside_of_its_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Invalid reference") as caught:
        find_model(text)
    assert "hf:owner/name@revision:path" in caught.value.hint


def test_a_reference_is_neither_a_path_of_the_current_folder_nor_changed_by_the_options() -> None:
    assert file_or_name(PINNED) == PINNED


def test_a_file_that_was_not_fetched_hints_at_the_command(cache: Path) -> None:
    for find in (find_model, find_adapter):
        with pytest.raises(NoInputError) as caught:
            weights_path(find(PINNED))
        assert f"neurostorm-models fetch {PINNED}" in caught.value.hint
        assert str(cache) in caught.value.message


def test_a_branch_is_that_of_the_recorded_commit() -> None:
    path = store(PINNED)
    with pytest.raises(NoInputError, match="not in the cache"):
        weights_path(find_model("hf:lab/model@main:task1/age.ckpt"))
    record_commit(Reference("lab/model", "main"), COMMIT)
    assert weights_path(find_model("hf:lab/model@main:task1/age.ckpt")) == path


def test_a_damaged_record_of_a_branch_is_named() -> None:
    record_commit(Reference("lab/model", "main"), "no commit")
    with pytest.raises(BadDataError, match="not the hash of a commit"):
        find_model("hf:lab/model@main:task1/age.ckpt")


def test_without_a_path_the_only_file_of_weights_is_found() -> None:
    path = store(PINNED)
    store(f"hf:lab/model@{COMMIT}:README.md")
    assert weights_path(find_model(f"hf:lab/model@{COMMIT}")) == path
    store(f"hf:lab/model@{COMMIT}:sex.ckpt")
    with pytest.raises(UsageError, match=r"sex\.ckpt, task1/age\.ckpt"):
        find_model(f"hf:lab/model@{COMMIT}")


def test_the_file_of_a_catalog_entry_is_that_entry() -> None:
    known = find_model("hcpya-age")
    assert find_model(f"hf:{known.repo}@{known.revision}:{known.file}") == known


def test_facts_beside_a_file_are_those_of_its_head(tmp_path: Path) -> None:
    path = store(PINNED, FileFacts("source", "mit", {"labels": ["a", "b"], "value_std": 2}))
    entry = find_model(PINNED)
    assert (entry.licence, entry.head) == ("mit", {"labels": ["a", "b"], "value_std": 2})
    assert find_model(str(path)).head == entry.head
    assert [stored.name for stored in stored_entries()] == [PINNED]


def test_facts_of_the_catalog_take_precedence() -> None:
    known = find_model("hcpya-sex")
    known.path.parent.mkdir(parents=True)
    write_facts(known.path, FileFacts(head={"labels": ["male", "female"], "unit": "none"}))
    assert find_model("hcpya-sex").head == {**known.head, "unit": "none"}


@pytest.mark.parametrize(
    "content",
    [
        '{"head": {"labels": "a,b"}}',
        '{"head": {"value_mean": true}}',
        '{"head": {"value_mean": NaN}}',
        '{"head": {"orders": "x"}}',
        '{"licence": 3}',
        '{"other": ""}',
        "[]",
        "{",
    ],
)
def test_damaged_facts_are_named(content: str) -> None:
    path = store(PINNED)
    facts_path(path).write_text(content)
    with pytest.raises(BadDataError, match=r"age\.ckpt\.facts\.json"):
        read_facts(path)


def test_facts_survive_being_written(tmp_path: Path) -> None:
    facts = FileFacts(PINNED, "mit", {"task": "regression", "value_mean": 28.5, "value_std": 3.0, "unit": "years"})
    write_facts(tmp_path / "age.ckpt", facts)
    assert read_facts(tmp_path / "age.ckpt") == facts
    assert json.loads(facts_path(tmp_path / "age.ckpt").read_text())["source"] == PINNED


def test_a_referenced_file_is_not_one_of_the_user(cache: Path) -> None:
    entry = find_model(PINNED)
    assert isinstance(entry, Entry)
    assert (entry.own, entry.referenced) == (False, True)
    assert entry.path == cache / "hub" / "lab" / "model" / COMMIT / "task1" / "age.ckpt"
