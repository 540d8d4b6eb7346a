"""Clip stores: clips are restored within half a quantisation step."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from bids_app.bids.writer import remove_leftovers
from bids_app.clips import ClipReader, GridSeries
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.phantom.grid_scans import NO_ERRORS, simulated_series
from bids_app.training.data import shards
from bids_app.training.data.augmentation import mirror
from bids_app.training.data.scan import new_scan
from bids_app.training.data.store import ClipStore


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
    first = store.add("a", invented_series(seed=1), "01")
    again = store.add("a", invented_series(seed=2), "02")
    assert again == first
    assert len(store.shards) == 1


def test_shards_are_archives_of_named_arrays(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    with store.writer() as writer:
        for name in ("sub-01_task-rest", "sub-02_task-rest"):
            writer.add(new_scan(name, invented_series(n_vols=25), "voxel", name[4:6]))
    first, second = store
    assert [path.suffix for path in sorted((tmp_path / "shards").iterdir())] == [".json", ".tar"]
    with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:4] == [f"sub-01_task-rest.{end}" for end in ("json", "mask.npy", "mean.npy", "values.npy")]
    for scan in (first, second):
        values = np.load(tmp_path / "out" / f"{scan.name}.values.npy")
        assert np.array_equal(values, scan.codes(scan.voxel_indices))
        mask = np.load(tmp_path / "out" / f"{scan.name}.mask.npy")
        assert np.array_equal(np.flatnonzero(np.unpackbits(mask)), scan.voxel_indices)
        assert json.loads((tmp_path / "out" / f"{scan.name}.json").read_text())["participant"] == scan.participant


def test_a_shard_is_closed_at_its_size(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    scan = new_scan("a", invented_series(), "voxel", "01")
    with store.writer(shard_bytes=2 * scan.codes.nbytes) as writer:
        for name in "abcde":
            writer.add(dataclasses.replace(scan, name=name))
    assert [each.name for each in store] == list("abcde")
    assert sorted(len(shard.scans) for shard in store.shards.values()) == [1, 2, 2]


KILLED_WRITER = """
import sys, time
from pathlib import Path
from bids_app.training.data.scan import copy_of
from bids_app.training.data import shards
from bids_app.training.data.scan import new_scan
from bids_app.training.data.store import ClipStore
source, store = ClipStore(sys.argv[1]), ClipStore(sys.argv[2], "voxel")
(scan,) = source
writer = store.writer()
writer.add(copy_of(scan, ""))
print("writing", flush=True)
time.sleep(60)
"""


def test_a_killed_writer_leaves_nothing_that_is_read_and_its_leftovers_are_removed(tmp_path, invented_series):
    ClipStore(tmp_path / "source", "voxel").add("a", invented_series(), "01")
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "source"), str(tmp_path / "store")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.kill()
    process.wait()
    process.stdout.close()
    store = ClipStore(tmp_path / "store")
    assert list(store) == []
    assert len(list((tmp_path / "store" / "shards").iterdir())) == 1
    remove_leftovers(tmp_path / "store")
    assert list((tmp_path / "store" / "shards").iterdir()) == []


def interrupted(*_):
    raise KeyboardInterrupt


def write(store, *scans, then=lambda: None):
    with store.writer() as writer:
        for scan in scans:
            writer.add(scan)
        then()


def test_an_interrupted_writer_publishes_its_complete_scans(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    with pytest.raises(KeyboardInterrupt):
        write(store, new_scan("a", invented_series(), "voxel", "01"), then=interrupted)
    assert [each.name for each in store] == ["a"]


def test_a_shard_with_an_incomplete_scan_is_not_published(tmp_path, monkeypatch, invented_series):
    store, scan = ClipStore(tmp_path, "voxel"), new_scan("a", invented_series(), "voxel", "01")
    monkeypatch.setattr(shards, "_npy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(store, scan)
    assert list(store) == []
    assert list((tmp_path / "shards").iterdir()) == []


def test_scans_before_an_incomplete_one_are_kept(tmp_path, monkeypatch, invented_series):
    store = ClipStore(tmp_path, "voxel")
    scans = [new_scan(name, invented_series(), "voxel", "01") for name in "ab"]
    parts = iter([shards._npy] * 5 + [interrupted])  # mask, mean image and values of each
    monkeypatch.setattr(shards, "_npy", lambda array: next(parts)(array))
    with pytest.raises(KeyboardInterrupt):
        write(store, *scans)
    assert [each.name for each in store] == ["a"]
    assert [list(shards.damaged_scans(store.place, shard)) for shard in store.shards.values()] == [[]]


def test_two_writers_can_add_the_same_scan(tmp_path, invented_series):
    store, other = ClipStore(tmp_path, "voxel"), ClipStore(tmp_path, "voxel")
    assert "a" not in store  # reads what there is
    other.add("a", invented_series(seed=2), "02")
    store.add("a", invented_series(seed=2), "02")
    (scan,) = store
    assert scan == next(iter(ClipStore(tmp_path)))
    assert len(store.shards) == 2


def test_what_other_writers_add_is_seen(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    assert store.names() == []
    ClipStore(tmp_path).add("a", invented_series(), "01")
    assert [scan.name for scan in store] == ["a"]


@pytest.mark.parametrize("group", [0o077, 0o027, 0o002])
def test_files_have_the_permissions_of_the_umask(tmp_path, invented_series, group):
    before = os.umask(group)
    try:
        store = ClipStore(tmp_path / "store", "voxel")
        store.add("a", invented_series(), "01")
        store.write_index()
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~group}
    assert (tmp_path / "store" / "shards").stat().st_mode & 0o777 == 0o777 & ~group


def test_folders_have_the_group_of_a_parent_with_the_setgid_bit(tmp_path, invented_series):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    ClipStore(tmp_path / "shared" / "store", "voxel").add("a", invented_series(), "01")
    for folder in ("store", "store/shards"):
        assert (tmp_path / "shared" / folder).stat().st_mode & 0o2000


def make_shards(folder, invented_series, names="abc"):
    store = ClipStore(folder, "voxel")
    for name in names:
        store.add(name, invented_series(n_vols=25), f"0{name}")
    return store


def test_the_index_gives_the_same_scans_and_may_be_old(tmp_path, invented_series):
    store = make_shards(tmp_path, invented_series)
    found = list(store)
    store.write_index()
    assert list(ClipStore(tmp_path)) == found
    shard = found[0].shard
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 3
    for path in (tmp_path / "shards").glob("*.json"):
        path.rename(path.with_suffix(".away"))
    assert list(ClipStore(tmp_path)) == found  # the index of each shard is not read
    for path in (tmp_path / "shards").glob("*.away"):
        path.rename(path.with_suffix(".json"))
    store.add("d", invented_series(n_vols=25), "0d")
    assert [scan.name for scan in ClipStore(tmp_path)] == list("abcd")
    assert shard is not None


def test_a_missing_shard_is_an_error_until_the_index_is_written_again(tmp_path, invented_series):
    store = make_shards(tmp_path, invented_series)
    store.write_index()
    lost = (
        next(name for name, shard in store.shards.items() if shard.scans[0].scan.name == "b") if store.names() else ""
    )
    (tmp_path / "shards" / f"{lost}.tar").unlink()
    with pytest.raises(NoInputError, match=rf"{lost}\.tar: missing, with 1 scan such as b"):
        list(ClipStore(tmp_path))
    assert ClipStore(tmp_path).names() == ["a", "c"]  # it can still be built
    ClipStore(tmp_path).write_index()
    assert [scan.name for scan in ClipStore(tmp_path)] == ["a", "c"]


DAMAGES = {
    "truncated": lambda text: text[: len(text) // 2],
    "another key": lambda text: text.replace('"span"', '"spam"'),
    "a list": lambda text: "[]",
    "beyond the end": lambda text: text.replace('"n_voxels": ', '"n_voxels": 9'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", ["index.jsonl", "shards/*.json"])
def test_a_damaged_index_is_named(tmp_path, invented_series, file, damage):
    store = make_shards(tmp_path, invented_series, "a")
    if file == "index.jsonl":
        store.write_index()
    (path,) = tmp_path.glob(file)
    path.write_text(damage(path.read_text()))
    with pytest.raises(BadDataError, match=path.name) as caught:
        list(ClipStore(tmp_path))
    assert "index" in f"{caught.value}{caught.value.hint}"


def test_a_truncated_shard_is_named(tmp_path, invented_series):
    (scan,) = make_shards(tmp_path, invented_series, "a")
    (path,) = (tmp_path / "shards").glob("*.tar")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadDataError, match=rf"{path.name}: truncated"):
        scan.clip(5)


def test_a_mask_that_does_not_fit_the_values_is_named(tmp_path, invented_series):
    (scan,) = make_shards(tmp_path, invented_series, "a")
    (path,) = (tmp_path / "shards").glob("*.tar")
    with open(path, "r+b") as file:
        file.seek(scan.shard.mask_at)
        file.write(b"\xff")
    with pytest.raises(BadDataError, match=rf"{path.name}: the mask of a has"):
        scan.clip(0)


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


def test_a_scan_is_made_again_only_if_its_stamp_changed(tmp_path, invented_series):
    store = ClipStore(tmp_path, "voxel")
    first = store.add("a", invented_series(seed=0), "01", stamp="one")
    assert store.add("a", invented_series(seed=1), "02", stamp="one").participant == "01"
    changed = store.add("a", invented_series(seed=1, n_vols=30), "02", stamp="two")
    assert (changed.participant, changed.n_vols, changed.stamp) == ("02", 30, "two")
    assert changed.name == first.name
    assert changed.folder != first.folder  # embeddings of the replaced scan are not used
    assert next(iter(ClipStore(tmp_path))) == changed


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
