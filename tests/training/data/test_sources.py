"""Preparation of clip stores from derivatives."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from bids_app.errors import NoMatchError, UsageError
from bids_app.training.data.sources import find_raw_dataset, find_series, prepare
from bids_app.training.data.store import ClipStore


def test_derivatives_are_resampled_by_their_affines(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    write_derivative(tmp_path / "out", "b", "MNI152NLin2009aSym")
    store = ClipStore(tmp_path / "store", "voxel")
    scans = prepare(tmp_path / "out", store)
    assert [s.name for s in scans] == ["sub-a_task-rest", "sub-b_task-rest"]
    assert [(s.n_vols, s.labels, s.participant) for s in scans] == [(28, {"task": "rest"}, p) for p in "ab"]
    assert len(scans[0].voxel_indices) > 200_000
    assert scans[0].quality["tr"] == pytest.approx(0.8)
    assert prepare(tmp_path / "out", store)[0].folder == scans[0].folder
    assert [p.name for p in (tmp_path / "store").iterdir() if p.name.startswith(".series")] == []


def test_an_unsupported_space_raises(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "fsaverage")
    with pytest.raises(UsageError, match="fsaverage"):
        prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"))


def test_a_dataset_without_series_raises(tmp_path):
    with pytest.raises(NoMatchError, match="--output-spaces"):
        prepare(tmp_path, ClipStore(tmp_path / "store", "voxel"))


def test_the_model_space_is_preferred(tmp_path, write_derivative):
    for space in ("T1w", "MNI152NLin2009aSym", "MNI152NLin6Asym"):
        write_derivative(tmp_path, "a", space, n_vols=2)
    (found,) = find_series(tmp_path).series
    assert (found.name, found.run.derived.space) == ("sub-a_task-rest", "MNI152NLin6Asym")


def test_unusable_series_are_omitted_with_the_reason(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    write_derivative(tmp_path / "out", "b", "MNI152NLin6Asym", n_vols=3)
    messages = []
    scans = prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"), report=messages.append)
    assert [s.participant for s in scans] == ["a"]
    (omitted,) = [message for message in messages if message.startswith("omitted")]
    assert "sub-b_task-rest" in omitted
    assert "3 volumes, too few" in omitted


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def too_large(content: bytes) -> bytes:
    """Have the header claim 10^12 voxels."""
    image = bytearray(gzip.decompress(content))
    image[42:48] = np.array([10_000] * 3, "<i2").tobytes()
    return gzip.compress(bytes(image))


@pytest.mark.parametrize("damage", [truncated, too_large])
@pytest.mark.parametrize("suffix", ["desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz"])
def test_a_damaged_image_omits_its_series_and_is_named(tmp_path, write_derivative, damage, suffix):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    (path,) = tmp_path.glob(f"out/sub-a/func/*_{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NoMatchError, match="all 1 series are unusable") as caught:
        prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"), report=lambda _: None)
    assert path.name in caught.value.hint
    assert not list((tmp_path / "store").glob("sub-*"))


@pytest.mark.parametrize("suffix", ["desc-preproc_bold.json", "desc-brain_mask.nii.gz", "desc-preproc_bold.nii.gz"])
def test_a_pipe_in_place_of_a_file_omits_its_series_and_is_named(tmp_path, write_derivative, suffix):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    (path,) = tmp_path.glob(f"out/sub-a/func/*_{suffix}")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(NoMatchError) as caught:
        prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"), report=lambda _: None)
    assert f"{path.name}: is a named pipe" in caught.value.hint


def test_non_steady_state_volumes_are_removed_and_confounds_summarised(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym", n_vols=30)
    table = tmp_path / "out" / "sub-a" / "func" / "sub-a_task-rest_desc-confounds_timeseries.tsv"
    rows = ["n/a\t1\t0", "9.0\t0\t1", *["0.1\t0\t0", "0.3\t0\t0"] * 14]
    header = "framewise_displacement\tnon_steady_state_outlier00\tnon_steady_state_outlier01"
    table.write_text("\n".join([header, *rows]) + "\n")
    (scan,) = prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"))
    assert (scan.n_vols, scan.start) == (28, pytest.approx(1.6))
    fd = [scan.confounds[f"framewise_displacement_{k}"] for k in ("mean", "std", "max")]
    assert fd == pytest.approx([0.2, 0.1, 0.3])


@pytest.mark.slow
def test_several_processes_prepare_one_store(tmp_path, write_derivative):
    for label in "abcd":
        write_derivative(tmp_path / "out", label, "MNI152NLin6Asym")
    store = ClipStore(tmp_path / "store", "voxel")
    first = prepare(tmp_path / "out", store, shard=(1, 2))
    assert [s.participant for s in first] == ["b", "d"]
    assert [s.participant for s in prepare(tmp_path / "out", store, n_procs=2)] == list("abcd")


def test_a_volume_is_smaller_than_two_megabytes(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    (scan,) = prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"))
    used = sum(path.stat().st_size for path in scan.folder.iterdir())
    assert used / scan.n_vols < 2e6
    stored = np.load(scan.folder / "values.npy", mmap_mode="r")
    assert isinstance(stored, np.memmap)
    assert stored.dtype == np.int8


def test_the_raw_dataset_is_found_in_a_parent_folder(tmp_path):
    out = tmp_path / "raw" / "derivatives" / "out"
    out.mkdir(parents=True)
    assert find_raw_dataset(out) is None
    (tmp_path / "raw" / "dataset_description.json").write_text("{}")
    assert find_raw_dataset(out) == tmp_path / "raw"
