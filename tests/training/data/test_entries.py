"""Scans in folders of their own: each file is checked, and a killed writer leaves nothing."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bids_app.errors import BadDataError, NoInputError
from bids_app.training.data.entries import add_entry
from bids_app.training.data.store import ClipStore
from tests.helpers.odd_files import ODD_FILES


def test_a_folder_of_entries_is_read_as_a_store(tmp_path, invented_series):
    entry = add_entry(tmp_path, "a", invented_series(n_vols=44), "voxel", "01", session="pre", labels={"state": "rest"})
    (scan,) = ClipStore(tmp_path)
    assert scan == entry
    assert (scan.participant, scan.session, scan.labels, scan.n_clips) == ("01", "pre", {"state": "rest"}, 2)
    in_shard = ClipStore(tmp_path / "store", "voxel").add("a", invented_series(n_vols=44), "01")
    assert (scan.clip(3) == in_shard.clip(3)).all()
    assert (scan.mean_image() == in_shard.mean_image()).all()


def test_a_killed_writer_leaves_no_partial_entry(tmp_path, monkeypatch, invented_series):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        add_entry(tmp_path, "a", invented_series(), "voxel", "01")
    assert list(ClipStore(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_entries_may_be_read_by_those_whom_the_umask_lets(tmp_path, invented_series):
    before = os.umask(0o027)
    try:
        add_entry(tmp_path, "a", invented_series(), "voxel", "01")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {0o640}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


FILES = ("store.json", "a/scan.json", "a/values.npy", "a/mask.npy", "a/mean.npy")


def read_all(folder: Path) -> None:
    (scan,) = ClipStore(folder)
    scan.clip(0)
    scan.rows()
    scan.mean_image()


@pytest.fixture(scope="module")
def unchanged_store(tmp_path_factory, invented_series):
    folder = tmp_path_factory.mktemp("store")
    add_entry(folder, "a", invented_series(n_vols=25), "voxel", "01")
    read_all(folder)
    return folder


@pytest.fixture
def store_folder(tmp_path, unchanged_store):
    """A copy of a store with one scan."""
    return shutil.copytree(unchanged_store, tmp_path / "store")


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_store_that_is_no_regular_file_is_named(store_folder, name, kind):
    make, words = ODD_FILES[kind]
    (store_folder / name).unlink()
    make(store_folder / name)
    with pytest.raises(NoInputError, match=rf"{re.escape(name)}: .*{words}"):
        read_all(store_folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_of_a_store_is_named(store_folder, name):
    content = (store_folder / name).read_bytes()
    for n_bytes in (0, 5, len(content) // 2, len(content) - 1):
        (store_folder / name).write_bytes(content[:n_bytes])
        with pytest.raises(BadDataError, match=re.escape(name)):
            read_all(store_folder)


def npy_bytes(shape, dtype="|i1"):
    """Make an array file with a header and 20 bytes of data."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue() + bytes(20)


@pytest.mark.parametrize("name", FILES[2:])
@pytest.mark.parametrize("shape", [(10**9, 10**9), (20,), (4, 5), (), (10**30,)], ids=str)
def test_an_array_of_another_size_than_that_of_the_scan_is_refused(store_folder, name, shape):
    for dtype in ("|i1", "|u1", "<f2", "|O"):
        (store_folder / name).write_bytes(npy_bytes(shape, dtype))
        with pytest.raises(BadDataError, match=re.escape(name)):
            read_all(store_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"n_vols": 10**9}, {"n_vols": "25"}, {"n_vols": 2.5}, {"scale": 0.0}, {"scale": float("nan")}, {"scale": None},
        {"background": float("inf")}, {"participant": 1}, {"labels": []}, {"confounds": {"fd": "x"}}, {"other": 1},
        {"start": "0"}, {"confounds": None}, {"quality": {"tr": None}}, {"stamp": 1}, {"scanner": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_scan_with_an_invalid_description_is_named(store_folder, change):
    path = store_folder / "a" / "scan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadDataError, match=r"a/(scan\.json|values\.npy)"):
        read_all(store_folder)
