"""Lock file of downloaded weights: checksums by source, kept when it is damaged or written by several processes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.lock import (
    Checksum,
    known_checksum,
    read_lock,
    read_revisions,
    record_checksum,
    record_revision,
    source_of,
)
from bids_app.catalog.models import Entry, catalog
from bids_app.errors import BadDataError, CannotCreateError
from tests.helpers.paths import ROOT

ENTRY = Entry("weights", "", "deep/weights.ckpt", repo="lab/model", revision="0123456789" * 4)
ONE, OTHER = Checksum("1" * 64, 10, "url", True), Checksum("2" * 64, 10)


def test_recorded_checksums_are_read_again(tmp_path: Path) -> None:
    lock = tmp_path / "new folder" / "weights.lock"
    second = replace(ENTRY, revision="f" * 40)
    record_checksum(ENTRY, ONE, lock)
    record_checksum(second, OTHER, lock)
    assert read_lock(lock) == {source_of(ENTRY): ONE, source_of(second): OTHER}
    assert known_checksum(ENTRY, lock) == (ONE, str(lock))
    assert known_checksum(replace(ENTRY, revision="0" * 40), lock) is None


def test_catalog_precedes_the_lock_file_and_must_not_contradict_it(tmp_path: Path) -> None:
    lock = tmp_path / "weights.lock"
    known = replace(ENTRY, sha256=ONE.sha256, size=10)
    assert known_checksum(known, lock) == (Checksum(ONE.sha256, 10), "the catalog")
    record_checksum(ENTRY, OTHER, lock)
    with pytest.raises(BadDataError, match="111111111111… in the catalog"):
        known_checksum(known, lock)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "files": {}}',
        '{"version": 1, "files": {"a": {"sha256": "short"}}}',
        '{"version": 1, "files": {"a": {"sha256": null}}}',
        '{"version": 1, "files": {"a": {"size": 3}}}',
        '{"version": 1, "files": []}',
    ],
)
def test_a_damaged_lock_file_is_named_and_kept(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "weights.lock"
    lock.write_text(content)
    with pytest.raises(BadDataError, match=r"weights\.lock: not a valid lock file"):
        record_checksum(ENTRY, ONE, lock)
    assert lock.read_text() == content


def test_a_lock_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match=r"weights\.lock"):
        record_checksum(ENTRY, ONE, tmp_path / "file" / "weights.lock")


def record_several(lock: Path, name: str) -> None:
    for n in range(10):
        record_checksum(replace(ENTRY, file=f"{name}{n}"), ONE, lock)


def test_processes_that_record_at_once_lose_no_checksum(tmp_path: Path) -> None:
    lock = tmp_path / "weights.lock"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=record_several, args=(lock, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_lock(lock)) == 30


@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_files_of_the_package_have_the_checksum_in_the_catalog(kind: str) -> None:
    for entry in catalog(kind).values():
        if not entry.repo:
            assert file_sha256(entry.path) == entry.sha256, "run 'python scripts/pin_weights.py'"


def test_checksums_of_a_lock_file_are_added_to_the_catalog(tmp_path: Path) -> None:
    lock, copy = tmp_path / "weights.lock", tmp_path / "models.yml"
    text = (ROOT / "bids_app" / "catalog" / "models.yml").read_text()
    copy.write_text(text)
    entries = [catalog()["neurostorm-5ds"], catalog()["hcpya-sex"]]
    record_checksum(entries[0], replace(ONE, size=entries[0].size), lock)
    record_checksum(entries[1], OTHER, lock)
    command = [sys.executable, ROOT / "scripts" / "pin_weights.py", lock, "--catalog", copy]
    subprocess.run(command, check=True, capture_output=True)
    added = [line for line in copy.read_text().splitlines() if line not in text.splitlines()]
    assert added == [f"    sha256: {ONE.sha256}", "    size: 10", f"    sha256: {OTHER.sha256}"]
    subprocess.run(command, check=True, capture_output=True)
    assert copy.read_text().count("sha256: 2222") == 1
    content = json.loads(lock.read_text())
    content["files"][source_of(entries[0])]["size"] = 3
    lock.write_text(json.dumps(content))
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "neurostorm-5ds: size 93061240 in the catalog, 3 in" in refused.stderr


def test_commits_and_checksums_are_kept_when_others_are_recorded(tmp_path: Path) -> None:
    lock = tmp_path / "weights.lock"
    record_revision("lab/model@main", "a" * 40, lock)
    record_checksum(ENTRY, ONE, lock)
    record_revision("lab/model@v1", "b" * 40, lock)
    assert read_revisions(lock) == {"lab/model@main": "a" * 40, "lab/model@v1": "b" * 40}
    assert read_lock(lock) == {source_of(ENTRY): ONE}


@pytest.mark.parametrize("revisions", ['{"lab/model@main": "main"}', '{"lab/model@main": 3}', '["main"]', '"x"'])
def test_a_lock_file_with_invalid_commits_is_named_and_kept(tmp_path: Path, revisions: str) -> None:
    lock = tmp_path / "weights.lock"
    lock.write_text(f'{{"version": 1, "files": {{}}, "revisions": {revisions}}}')
    with pytest.raises(BadDataError, match=r"weights\.lock: not a valid lock file"):
        record_revision("lab/model@main", "a" * 40, lock)
    assert revisions in lock.read_text()
