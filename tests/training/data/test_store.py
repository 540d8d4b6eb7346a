"""Clip stores: clips are restored within half a quantisation step."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.clips import ClipReader, GridSeries
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.phantom.grid_scans import NO_ERRORS, simulated_series
from bids_app.training.data.augmentation import mirror
from bids_app.training.data.store import ClipStore
from tests.helpers.odd_files import ODD_FILES


@pytest.mark.parametrize("normalisation", ["global", "voxel"])
def test_a_stored_clip_equals_the_clip_within_half_a_step(tmp_path, normalisation, invented_series):
    series = invented_series(n_vols=30)
    scan = ClipStore(tmp_path, normalisation).add("a", series, "01")
    expected = ClipReader(series).volumes(5, 25, normalisation)
    stored = scan.clip(5)[0]
    inside = torch.from_numpy(series.mask)
    clipped = expected.abs() > 127 * scan.scale
    assert (stored - expected)[inside][~clipped[inside]].abs().max() <= 0.51 * scan.scale
    assert clipped[inside].float().mean() < 2e-3
    assert (stored[~inside] == scan.background).all()
    assert (expected[~inside] == scan.background).all()


def test_voxels_without_signal_are_background(tmp_path, invented_series):
    series = invented_series(n_vols=25)
    values = np.array(series.values)
    values[:, :100] = 0.0
    scan = ClipStore(tmp_path, "voxel").add("a", dataclasses.replace(series, values=values), "01")
    indices = np.flatnonzero(series.mask)[:100]
    assert (scan.clip(0).reshape(-1, 20)[indices] == scan.background).all()


def test_an_outlier_does_not_reduce_the_precision(tmp_path, invented_series):
    series = invented_series(n_vols=25)
    plain = ClipStore(tmp_path, "global").add("plain", series, "01")
    values = np.array(series.values)
    values[3, 7] = 1e6
    outlier = ClipStore(tmp_path / "b", "voxel").add("odd", dataclasses.replace(series, values=values), "01")
    assert outlier.scale < 6 / 127
    assert plain.scale < 6 / 127


def test_a_store_keeps_scans_and_their_labels(tmp_path, invented_series):
    ClipStore(tmp_path, "voxel").add("a", invented_series(n_vols=44), "01", "pre", {"state": "rest"}, "there.nii.gz")
    scans = list(ClipStore(tmp_path))
    assert [s.name for s in scans] == ["a"]
    assert (scans[0].participant, scans[0].session, scans[0].labels) == ("01", "pre", {"state": "rest"})
    assert (scans[0].n_vols, scans[0].n_clips) == (44, 2)


def test_an_existing_scan_is_kept(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    store.add("a", invented_series(seed=1), "01")
    before = (tmp_path / "a" / "values.npy").read_bytes()
    store.add("a", invented_series(seed=2), "02")
    assert (tmp_path / "a" / "values.npy").read_bytes() == before
    assert store["a"].participant == "01"


def test_a_killed_writer_leaves_no_partial_scan(tmp_path, monkeypatch, invented_series):
    store = ClipStore(tmp_path, "voxel")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.add("a", invented_series(), "01")
    monkeypatch.undo()
    assert list(ClipStore(tmp_path)) == []
    assert store.add("a", invented_series(), "01").name == "a"


def test_two_writers_can_add_the_same_scan(tmp_path, monkeypatch, invented_series):
    store, other = ClipStore(tmp_path, "voxel"), ClipStore(tmp_path, "voxel")
    rename = os.rename

    def other_writes_first(old, new):
        monkeypatch.undo()
        other.add("a", invented_series(seed=2), "02")
        rename(old, new)

    monkeypatch.setattr(os, "rename", other_writes_first)
    assert store.add("a", invented_series(seed=1), "01").participant == "02"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".a")] == []


def test_another_normalisation_raises(tmp_path):
    ClipStore(tmp_path, "voxel")
    with pytest.raises(UsageError, match="voxel"):
        ClipStore(tmp_path, "global")


def test_a_folder_that_is_not_a_store_raises(tmp_path):
    with pytest.raises(NoInputError, match=str(tmp_path)):
        ClipStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "other"}')
    with pytest.raises(BadDataError, match=r"store\.json"):
        ClipStore(tmp_path)


FILES = ("store.json", "a/scan.json", "a/values.npy", "a/mask.npy", "a/mean.npy")


def read_all(folder: Path) -> None:
    (scan,) = ClipStore(folder)
    scan.clip(0)
    scan.rows()
    scan.mean_image()


@pytest.fixture(scope="module")
def unchanged_store(tmp_path_factory, invented_series):
    folder = tmp_path_factory.mktemp("store")
    ClipStore(folder, "voxel").add("a", invented_series(n_vols=25), "01")
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


def test_a_scan_is_made_again_only_if_its_stamp_changed(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    first = store.add("a", invented_series(seed=0), "01", stamp="one")
    assert store.add("a", invented_series(seed=1), "02", stamp="one").participant == "01"
    changed = store.add("a", invented_series(seed=1, n_vols=30), "02", stamp="two")
    assert (changed.participant, changed.n_vols, changed.stamp) == ("02", 30, "two")
    assert changed.folder == first.folder
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_clips_beyond_the_end_of_the_scan_raise(tmp_path, invented_series):
    scan = ClipStore(tmp_path, "voxel").add("a", invented_series(n_vols=30), "01")
    with pytest.raises(IndexError, match="volumes 11 to 31 of 30"):
        scan.clip(11)


def test_mirroring_is_about_x_0_mm():
    clips = torch.zeros(1, 1, 96, 96, 96, 1)
    clips[0, 0, 48] = 1.0  # x = 0 mm
    clips[0, 0, 40, 10, 20] = 2.0  # x = 16 mm
    out = mirror(clips)
    assert out[0, 0, 56, 10, 20] == 2.0
    assert (out[0, 0, 48] == 1.0).all()
    assert out.sum() == clips.sum()


def test_simulated_scans_are_aligned_with_the_model_grid():
    from bids_app.clips import MODEL_GRID_AFFINE
    from bids_app.phantom.protocol import Protocol
    from bids_app.phantom.tissues import template_tissues

    protocol = Protocol(voxel_mm=(4.0, 4.0, 4.0), matrix=(50, 56, 40), n_volumes=10, motion_mm=0.2)
    series = simulated_series("visual", 1, "a", protocol=protocol, errors=NO_ERRORS)
    assert isinstance(series, GridSeries)
    assert 190_000 < series.mask.sum() < 260_000
    mean = series.values.mean(axis=0)
    maps = template_tissues(2)
    from bids_app.catalog.templates import MODEL_SPACE, space
    from bids_app.phantom.geometry import apply, sample
    from bids_app.phantom.tissues import TEMPLATE

    to_template = space(MODEL_SPACE).pull_to(space(TEMPLATE)) @ MODEL_GRID_AFFINE
    points = apply(to_template, np.argwhere(series.mask).astype(float))
    fluid = sample(maps.fractions["csf"], maps.affine, points)
    white = sample(maps.fractions["wm"], maps.affine, points)
    deep = np.linalg.norm(points - np.array([0, -18, 15]), axis=1) < 35  # ventricles and white matter
    assert np.median(mean[deep & (fluid > 0.8)]) > 1.15 * np.median(mean[deep & (white > 0.9)])
