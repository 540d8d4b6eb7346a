"""Output paths and atomic writing."""

import errno
import json
import math
import multiprocessing
import os
import shutil
import socket
import time
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_app.bids import processes
from bids_app.bids import writer as derivatives
from bids_app.bids.entities import as_label, join_name, split_name
from bids_app.bids.processes import scope_label
from bids_app.bids.writer import (
    LEFTOVER_AGE,
    atomic_folder,
    atomic_path,
    copy_file,
    copy_folder,
    dataset_uri,
    output_path,
    remove_leftovers,
    write_columns,
    write_json,
    write_text,
    write_tsv,
)
from bids_app.errors import BadDataError, CannotCreateError, InputOutputError

RUN = {"sub": "01", "ses": "a", "task": "rest", "run": "02"}


@pytest.mark.parametrize(
    ("arguments", "extra", "expected"),
    [
        (("mask", ".nii.gz"), {"desc": "brain"}, "ses-a/func/{stem}_desc-brain_mask.nii.gz"),
        (
            ("bold", ".nii.gz"),
            {"desc": "preproc", "res": "2", "space": "MNI152NLin6Asym"},
            "ses-a/func/{stem}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        ),
        (
            ("xfm", ".txt"),
            {"from_": "orig", "to": "boldref", "mode": "image", "desc": "hmc"},
            "ses-a/func/{stem}_from-orig_to-boldref_mode-image_desc-hmc_xfm.txt",
        ),
        (("bold", ".svg"), {"desc": "carpet", "datatype": "figures"}, "figures/{stem}_desc-carpet_bold.svg"),
        (("mask", ".json"), {"desc": "brain", "space": None}, "ses-a/func/{stem}_desc-brain_mask.json"),
    ],
)
def test_outputs_are_named_by_their_entities(arguments, extra, expected):
    expected = expected.format(stem="sub-01_ses-a_task-rest_run-02")
    assert output_path(Path("out"), RUN, *arguments, **extra) == Path("out/sub-01") / expected


def test_invalid_label_raises_value_error():
    with pytest.raises(ValueError, match="space-MNI_2"):
        output_path(Path("out"), RUN, "bold", ".nii.gz", space="MNI_2")


def test_split_name_and_join_name_are_inverse():
    name = "sub-01_ses-a_task-rest_acq-hi_run-1_echo-2_space-T1w_res-2_desc-preproc_bold.nii.gz"
    assert join_name(*split_name(name)) == name
    assert split_name("sub-01_scans.tsv") == ({"sub": "01"}, "scans", ".tsv")
    assert split_name("bold") == ({}, "bold", "")


def test_model_names_become_labels():
    assert as_label("neurostorm-5ds v1.0") == "neurostorm5dsv10"
    with pytest.raises(ValueError, match="no letter or digit"):
        as_label("--")


def test_sources_are_bids_uris_for_nested_datasets():
    raw, out = Path("/data"), Path("/data/derivatives/neurostorm")
    datasets = {"": out, "raw": raw}
    assert dataset_uri(raw / "sub-01/x y.nii.gz", datasets) == "bids:raw:sub-01/x%20y.nii.gz"
    assert dataset_uri(out / "sub-01/z.nii.gz", datasets) == "bids::sub-01/z.nii.gz"
    with pytest.raises(ValueError, match="none of the datasets"):
        dataset_uri(Path("/elsewhere/a"), datasets)


def test_text_is_written_with_default_permissions(tmp_path):
    path = write_text(tmp_path / "new" / "file.txt", "größer\n")
    assert path.read_text(encoding="utf-8") == "größer\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_file_with_the_same_content_is_not_touched(tmp_path):
    path = write_text(tmp_path / "file.txt", "same")
    source = write_text(tmp_path / "source.txt", "same")
    os.utime(path, ns=(1, 1))
    write_text(path, "same")
    copy_file(source, path)
    assert path.stat().st_mtime_ns == 1
    write_text(path, "else")
    assert path.read_text() == "else"


def test_failed_write_keeps_the_old_file_only(tmp_path):
    path = write_text(tmp_path / "file.nii.gz", "old")

    def fail():
        with atomic_path(path) as temporary:
            assert temporary.name.endswith("file.nii.gz")
            temporary.write_text("half")
            raise BadDataError("in the middle")

    with pytest.raises(BadDataError):
        fail()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        (errno.ENOSPC, InputOutputError, "no space left"),
        (errno.EROFS, CannotCreateError, "cannot be written"),
        (errno.EACCES, CannotCreateError, "permissions"),
        (errno.EIO, InputOutputError, "writing failed"),
    ],
)
def test_system_error_becomes_an_error_with_a_hint(tmp_path, monkeypatch, number, expected, words):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(derivatives.os, "replace", fail)
    with pytest.raises(expected, match=words) as caught:
        write_text(tmp_path / "file.txt", "text")
    assert "file.txt" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_writing_below_a_file_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match="cannot be written"):
        write_text(tmp_path / "file" / "inner.txt", "text")


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"a": []},
        {"a": ["x", "", "n/a"], "b": [1, 2, 3]},
        {"a": [1, 2.5, 2**53 + 1, None]},
        {"a": [1, None], "b": [None, None], "c": [0.1, None]},
        {"a": ["x", 1, 2.0, True, None, math.nan]},
        {"a": [True, False], "b": [1, True]},
        {"a": ['with "quotes"', "with\ta tab"], "b": ["on two\nlines", "carriage\rreturn"]},
        {"a": [1e16, 1e15, 1e-4, 1e-5, 5e-324, -0.0, math.inf, math.nan, 0.1 + 0.2]},
        {"a": (10.0 ** np.random.default_rng(0).uniform(-20, 20, 2000)).tolist()},
    ],
)
def test_columns_are_written_as_pandas_writes_them(columns, tmp_path):
    assert (
        write_columns(tmp_path / "a.tsv", columns).read_bytes() == write_tsv(tmp_path / "b.tsv", columns).read_bytes()
    )


def test_copy_has_the_same_content(tmp_path):
    data = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "a").write_bytes(data)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    (tmp_path / "a").write_bytes(data[:-1] + b"x")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes()[-1:] == b"x"


def test_values_are_converted_to_plain_json(tmp_path):
    content = {
        "nan": math.nan, "list": [np.float32(0.5), math.inf], "array": np.arange(3), "n": np.int64(3),
        "b": np.bool_(True), "path": Path("a/b"), "deep": {"x": (1, None)}, "text": "é",
    }  # fmt: skip
    assert json.loads(write_json(tmp_path / "x.json", content).read_text(encoding="utf-8")) == {
        "nan": None, "list": [0.5, None], "array": [0, 1, 2], "n": 3, "b": True,
        "path": "a/b", "deep": {"x": [1, None]}, "text": "é",
    }  # fmt: skip


def test_missing_values_are_written_as_n_a(tmp_path):
    path = write_tsv(tmp_path / "x.tsv", {"clip": ["mean", 0], "fd": [math.nan, 0.25], "label": ["rest", None]})
    assert path.read_text() == "clip\tfd\tlabel\nmean\tn/a\trest\n0\t0.25\tn/a\n"


def test_tables_keep_single_precision(tmp_path):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    read = pd.read_csv(write_tsv(tmp_path / "x.tsv", pd.DataFrame({"e": values})), sep="\t")
    np.testing.assert_array_equal(read["e"].to_numpy(np.float32), values)


def write_temporary(folder: Path, pid: int, scope: str) -> Path:
    path = folder / f".neurostorm-{pid}-{scope}-{uuid.uuid4().hex[:8]}-file.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    return path


def test_temporary_files_of_dead_processes_are_removed(tmp_path):
    dead = write_temporary(tmp_path / "sub-01", 999_999_999, scope_label())
    alive = write_temporary(tmp_path, os.getpid(), scope_label())
    notes = tmp_path / ".neurostorm-notes.txt"
    notes.write_text("")
    assert remove_leftovers(tmp_path) == [dead]
    assert alive.exists()
    assert notes.exists()


def test_temporary_folders_of_dead_processes_are_removed(tmp_path):
    folder = tmp_path / "sub-01" / ".neurostorm-999999999-x-0123abcd-entry"
    folder = folder.with_name(folder.name.replace("-x-", f"-{processes.scope_label()}-"))
    folder.mkdir(parents=True)
    (folder / "values.npy").write_text("half of it")
    assert remove_leftovers(tmp_path) == [folder]
    assert not folder.exists()


def test_a_folder_is_copied_as_a_whole(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "out" / "entry"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_text("old")
    copy_folder(source, target)
    inode = target.stat().st_ino
    assert copy_folder(source, target).stat().st_ino == inode  # the same content is not touched
    for name in ("a", "b"):
        (source / name).write_text("new")
    copy = shutil.copyfile
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda one, other: copy(one, other) if one.name == "a" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy_folder(source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "old", "b": "old"}
    copy_folder(source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "new", "b": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["entry"]


def test_a_killed_writer_of_a_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "entry"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("old")

    def write_half() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "a").write_text("new")
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=write_half)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert (target / "a").read_text() == "old"
    assert len(remove_leftovers(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "a").write_bytes(bytes(1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    with atomic_folder(target) as temporary:
        (temporary / "b").write_text("new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"b": "new"}


@pytest.mark.parametrize("clock_s", [-60, 0, 60])
def test_only_old_temporary_files_of_another_scope_are_removed(tmp_path, clock_s: float):
    """Another machine or container, whose file system may have another clock."""
    fresh = write_temporary(tmp_path, 999_999_999, "0123456789ab")
    old = write_temporary(tmp_path, os.getpid(), "0123456789ab")
    os.utime(fresh, (time.time() + clock_s,) * 2)
    os.utime(old, (time.time() + clock_s - LEFTOVER_AGE - 120,) * 2)
    assert remove_leftovers(tmp_path) == [old]
    assert fresh.exists()


def test_a_container_with_the_same_host_name_keeps_the_temporary_files_of_another(tmp_path, monkeypatch):
    with atomic_path(tmp_path / "file.txt") as being_written:
        being_written.write_text("half of it")
        monkeypatch.setattr(processes, "process_scope", lambda: f"{socket.gethostname()}:pid:[4026532999]")
        monkeypatch.setattr(derivatives, "start_time", lambda pid: "")  # its processes are not visible from here
        assert remove_leftovers(tmp_path) == []
    assert (tmp_path / "file.txt").read_text() == "half of it"


N_LETTERS = 2_000_000
"""So many that a file is read in the middle of its writing, if it is written in place."""


def _write_many(path: Path, letter: str) -> None:
    for _ in range(50):
        write_text(path, letter * N_LETTERS)


def test_readers_never_see_half_a_file(tmp_path):
    path = write_text(tmp_path / "file.txt", "a" * N_LETTERS)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, letter)) for letter in "bc"]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == N_LETTERS
        assert len(set(text)) == 1
        reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 0
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_raises(tmp_path):
    def fill():
        with atomic_path(tmp_path / "file") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x" * 10_000_000)

    with pytest.raises(InputOutputError, match="no space left"):
        fill()
