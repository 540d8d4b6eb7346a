"""Reading of input files: odd ones are named within seconds, and their size and depth are limited."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bids_app import files
from bids_app.bids.sidecars import missing_content, read_json
from bids_app.catalog.atlases import find_atlas
from bids_app.catalog.lock import read_lock
from bids_app.catalog.models import find_model, weights_path
from bids_app.cli.config_file import read_config_file
from bids_app.errors import BadDataError, NeurostormError, NoInputError, UsageError
from bids_app.files import (
    MAX_ROWS,
    check_plain,
    open_regular,
    parse_json,
    read_file,
    read_output,
    read_rows,
    read_text,
)
from bids_app.preprocess.ingest.confounds import read_table as read_confounds
from bids_app.preprocess.io.headers import load_nifti
from bids_app.settings.values import read_filters
from bids_app.training.data.examples import read_images, read_weights
from bids_app.training.data.labels import Target, read_events, read_table
from bids_app.training.data.splits import read_split
from bids_app.workflow.engine import read_plugin_file
from bids_app.workflow.nodes import last_onset
from tests.helpers.odd_files import ODD_FILES, make_deep, make_giant

SECONDS = 5
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a sidecar": ("x_bold.json", read_json),
    "an image": ("x_bold.nii.gz", load_nifti),
    "a plain image": ("x_bold.nii", load_nifti),
    "events": ("x_events.tsv", last_onset),
    "confounds": ("x_timeseries.tsv", lambda path: read_confounds(path, None, 30, "x_bold.nii.gz")),
    "confounds of HCP": ("Movement_Regressors.txt", lambda path: read_confounds(path, None, 30, "x.nii.gz")),
    "filters": ("filters.json", lambda path: read_filters(str(path))),
    "options": ("neurostorm.toml", read_config_file),
    "a plugin": ("plugin.yml", read_plugin_file),
    "labels": ("participants.tsv", lambda path: read_table(path, "sex")),
    "events with labels": ("x_events.tsv", lambda path: read_events(path, "trial_type")),
    "a split": ("split.tsv", read_split),
    "a split in JSON": ("split.json", read_split),
    "labels of a training": ("labels.tsv", lambda path: Target.parse(f"{path}:sex", path.parent)),
    "an atlas": ("atlas.nii.gz", find_atlas),
    "checksums": ("weights.lock", read_lock),
    "vectors of images": ("images.tsv", read_images),
    "weights of regions": ("weights.tsv", read_weights),
    "a model": ("a.ckpt", lambda path: weights_path(find_model(str(path)))),
}
"""For each kind of input, a name and its reader."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Interrupt a test that waits."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_an_odd_file_is_named_by_every_reader(tmp_path: Path, reader: str, kind: str) -> None:
    (name, read), (make, words) = READERS[reader], ODD_FILES[kind]
    make(tmp_path / name)
    with pytest.raises(NoInputError, match=words) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.exit_code == 66


@pytest.mark.parametrize("make", [make_giant, make_deep], ids=["giant", "deep"])
@pytest.mark.parametrize("reader", ["a sidecar", "filters", "options", "a plugin", "a split in JSON", "events"])
def test_a_giant_or_deep_file_is_refused_by_name(tmp_path: Path, reader: str, make) -> None:
    name, read = READERS[reader]
    make(tmp_path / name)
    if reader == "events" and make is make_deep:
        (tmp_path / name).write_text("onset\n" + "x" * 200_000)  # longer than a field may be
    with pytest.raises((BadDataError, UsageError), match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_an_output_that_is_no_regular_file_is_a_system_error(tmp_path: Path, kind: str) -> None:
    make, words = ODD_FILES[kind]
    make(tmp_path / "x.tsv")
    with pytest.raises(OSError, match=words):
        read_output(tmp_path / "x.tsv")


def test_an_output_of_gigabytes_is_a_system_error(tmp_path: Path) -> None:
    with (tmp_path / "x.tsv").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(OSError, match="too large"):
        read_output(tmp_path / "x.tsv")


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_without_read_permission_is_named(tmp_path: Path, locked: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "x_bold.json"
    path.write_text("{}")
    (path if locked == "file" else folder).chmod(0)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    # the package may be in a folder that nobody else can read, so it is imported before the user changes
    code = (
        "import os, sys; from pathlib import Path; from bids_app.bids.sidecars import read_json, missing_content\n"
        "from bids_app.errors import NeurostormError\n"
        "os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
        "path = Path(sys.argv[1])\n"
        "try: read_json(path)\n"
        "except NeurostormError as error: print(error.exit_code, error.message, missing_content(path).exit_code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    folder.chmod(0o700)
    assert result.stdout.strip() == f"66 {path}: no read permission. 66", result.stderr


def test_a_missing_file_and_a_broken_link_are_named(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(NoInputError, match="link target nowhere does not exist"):
        read_file(link, 10)
    with pytest.raises(NoInputError, match="no such file"):
        read_file(tmp_path / "none", 10)
    with pytest.raises(NoInputError, match="too long"):
        read_file(tmp_path / ("a" * 300), 10)
    with pytest.raises(NoInputError, match="null byte"):
        open_regular(Path("a\0b"))


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"1" * 10)

    def open_and_grow(path: Path):
        file = open_regular(path)
        size = os.fstat(file.fileno())
        monkeypatch.setattr(files.os, "fstat", lambda _: size)
        path.write_bytes(b"1" * 1000)
        return file

    monkeypatch.setattr(files, "open_regular", open_and_grow)
    with pytest.raises(BadDataError, match="too large"):
        read_file(path, 100)


def test_a_file_that_becomes_a_pipe_while_it_is_opened_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.json"
    os.mkfifo(path)
    monkeypatch.setattr(files, "check_regular", lambda path: None)
    with pytest.raises(NoInputError, match="was replaced"):
        open_regular(path)


def test_reading_takes_the_memory_of_the_file_and_not_of_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"1" * 1000)
    tracemalloc.start()
    read_file(path, 10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_a_file_up_to_its_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"\xef\xbb\xbfa\tb\n1\t2\t3\n4\n")
    assert read_text(path, 20).startswith("a\t")
    assert read_rows(path) == [{"a": "1", "b": "2"}, {"a": "4", "b": None}]
    assert missing_content(path) is None
    with pytest.raises(BadDataError, match="too large"):
        read_text(path, path.stat().st_size - 1)


@pytest.mark.parametrize("text", ["a\n" + "1\n" * (MAX_ROWS + 1), "a\t" * 20_001 + "\n"], ids=["rows", "columns"])
def test_tables_have_a_limited_number_of_rows_and_columns(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(BadDataError, match=r"x\.tsv: .* too many"):
        read_rows(tmp_path / "x.tsv")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[]] * 2_000_001, "more than 2,000,000 values"),
        ({"a": {"b": [2**63]}}, "more than 64 bits"),
        ({"a": ["\udc80"]}, r"U\+DC80"),
        ({"\ud800": 1}, r"U\+D800"),
        ({"a": {1, 2}}, "contains a set"),
    ],
    ids=["many", "digits", "surrogate", "surrogate in a key", "set"],
)
def test_values_that_are_not_plain_are_refused(value: object, words: str) -> None:
    with pytest.raises(BadDataError, match=f"x.json: .*{words}"):
        check_plain(value, "x.json")


def test_plain_values_are_accepted() -> None:
    content = {"a": [1, -2.5, None, True, "ä", {"b": float("inf")}], "c": 2**63 - 1}
    assert parse_json(json.dumps(content), "x.json") == content
    assert parse_json(str(10**400), "x.json", max_integer=None) == 10**400
    with pytest.raises(NeurostormError, match="not valid JSON"):
        parse_json("1" * 5000, "x.json", max_integer=None)


def test_a_quotation_mark_that_would_join_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text('participant_id\tsite\nsub-01\t"x\nsub-02\ty\n')
    with pytest.raises(BadDataError, match="a quotation mark is not closed, before 'x'"):
        read_rows(path)
    path.write_text('participant_id\tsite\nsub-01\t"x"\nsub-02\ty\n')  # as spreadsheets write it
    assert [row["site"] for row in read_rows(path)] == ["x", "y"]
