"""Preparation of clip stores from derivatives."""

from __future__ import annotations

import gzip
import os
import signal
import threading
import time
import tracemalloc
from multiprocessing import active_children, get_context

import numpy as np
import pytest

from bids_app.errors import NoMatchError, Terminated, UsageError
from bids_app.preprocess.io import volumes
from bids_app.training.data import sources
from bids_app.training.data.scan import new_scan
from bids_app.training.data.sources import Message, find_series, prepare, sum_up
from bids_app.training.data.store import ClipStore
from tests.helpers.datasets import write_ukb_run


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
    with pytest.raises(NoMatchError, match="no usable series of 1") as caught:
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


def test_labels_times_and_scanner_are_those_of_the_run(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    folder = tmp_path / "out" / "sub-a" / "ses-pre" / "func"
    folder.mkdir(parents=True)
    for path in (tmp_path / "out" / "sub-a" / "func").iterdir():
        path.rename(folder / path.name.replace("sub-a_task-rest", "sub-a_ses-pre_task-rest_run-2"))
    (sidecar,) = folder.glob("*_bold.json")
    sidecar.write_text('{"RepetitionTime": 0.75, "StartTime": 0.3, "ManufacturersModelName": "Prisma"}')
    (scan,) = prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"), report=lambda _: None)
    assert scan.name == "sub-a_ses-pre_task-rest_run-2"
    assert (scan.participant, scan.session, scan.labels) == ("a", "pre", {"task": "rest", "run": "2"})
    assert (scan.start, scan.quality["tr"]) == (pytest.approx(0.3), pytest.approx(0.75))
    assert scan.scanner == {"ManufacturersModelName": "Prisma"}
    sidecar.write_text('{"RepetitionTime": 0.75, "StartTime": "early"}')
    messages = []
    with pytest.raises(NoMatchError, match="StartTime is early"):
        prepare(tmp_path / "out", ClipStore(tmp_path / "other", "voxel"), report=messages.append)


def test_a_changed_series_is_prepared_again_and_others_are_kept(tmp_path, write_derivative):
    store = ClipStore(tmp_path / "store", "voxel")
    for label in "ab":
        write_derivative(tmp_path / "out", label, "MNI152NLin6Asym")
    written = [scan.shard for scan in prepare(tmp_path / "out", store, report=lambda _: None)]
    assert written[0].file == written[1].file  # one shard for both
    write_derivative(tmp_path / "out", "b", "MNI152NLin6Asym", n_vols=33)
    scans = prepare(tmp_path / "out", store, report=lambda _: None)
    assert [scan.n_vols for scan in scans] == [28, 33]
    assert [scan.shard == old for scan, old in zip(scans, written, strict=True)] == [True, False]


def test_a_series_in_the_space_of_the_scan_without_its_transform_is_omitted_with_the_reason(tmp_path, standard_brain):
    bold = write_ukb_run(tmp_path / "ukb", standard_brain)
    (bold.parent / "reg" / "example_func2standard_warp.nii.gz").unlink()
    with pytest.raises(NoMatchError) as caught:
        prepare(tmp_path / "ukb", ClipStore(tmp_path / "store", "voxel"), report=lambda _: None)
    assert "sub-1234567_ses-2_task-rest" in caught.value.hint
    assert "in the space of the scan, without its transform to the template" in caught.value.hint


def test_runs_without_a_usable_series_are_named(tmp_path, write_derivative):
    write_derivative(tmp_path, "a", "MNI152NLin6Asym", n_vols=2)
    write_derivative(tmp_path, "b", "fsaverage", n_vols=2)
    found = find_series(tmp_path)
    assert [series.name for series in found.series] == ["sub-a_task-rest"]
    (line,) = sum_up(found.messages)
    assert line.startswith("omitted: sub-b_task-rest: only sub-b_task-rest_space-fsaverage")


def test_equal_messages_are_summed_up():
    names = [f"sub-{k}_task-rest" for k in range(4)]
    alike = [Message("omitted", name, "too short.", f"{name}_bold.nii.gz") for name in names]
    other = Message("note", "sub-9_task-rest", "no mask.", "sub-9_bold.nii.gz")
    assert sum_up([*alike, other]) == [
        "omitted: sub-0_task-rest, sub-1_task-rest and 2 more: too short.",
        "note: sub-9_task-rest (sub-9_bold.nii.gz): no mask.",
    ]


@pytest.mark.slow
def test_the_whole_series_is_never_in_memory(tmp_path, write_derivative, monkeypatch):
    monkeypatch.setattr(volumes, "CHUNK_BYTES", 2**22)
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym", n_vols=420)
    store = ClipStore(tmp_path / "store", "voxel")
    tracemalloc.start()
    (scan,) = prepare(tmp_path / "out", store, report=lambda _: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    codes = scan.n_vols * len(scan.voxel_indices)
    assert peak < codes + 2.5e8 < 4 * codes  # the float32 series has 4 bytes per value


@pytest.mark.slow
def test_several_processes_prepare_one_store(tmp_path, write_derivative):
    for label in "abcd":
        write_derivative(tmp_path / "out", label, "MNI152NLin6Asym")
    store = ClipStore(tmp_path / "store", "voxel")
    first = prepare(tmp_path / "out", store, shard=(1, 2))
    assert [s.participant for s in first] == ["b", "d"]
    assert [s.participant for s in prepare(tmp_path / "out", store, n_procs=2)] == list("abcd")


def test_a_terminated_build_ends_its_processes_and_keeps_their_complete_scans(
    tmp_path, monkeypatch, write_derivative, invented_series
):
    def prepare_one(series, generation, store, writer):
        if series.name.startswith(("sub-b", "sub-d")):
            (tmp_path / series.name).touch()
            time.sleep(60)
        writer.add(new_scan(series.name, invented_series(), "voxel", series.name[4]), generation)
        return []

    def terminate():
        while len(list(tmp_path.glob("sub-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    def raise_terminated(*_):
        raise Terminated

    for label in "abcd":
        write_derivative(tmp_path / "out", label, "MNI152NLin6Asym", n_vols=1)
    monkeypatch.setattr(sources, "get_context", lambda _: get_context("fork"))  # which inherits what is set here
    monkeypatch.setattr(sources, "_prepare_or_reason", prepare_one)
    before = signal.signal(signal.SIGTERM, raise_terminated)
    threading.Thread(target=terminate).start()
    started = time.monotonic()
    try:
        with pytest.raises(Terminated):
            prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"), n_procs=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - started < 30
    assert active_children() == []
    assert ClipStore(tmp_path / "store").names() == ["sub-a_task-rest", "sub-c_task-rest"]
    assert len(list((tmp_path / "store" / "shards").iterdir())) == 4


def test_a_volume_is_smaller_than_two_megabytes(tmp_path, write_derivative):
    write_derivative(tmp_path / "out", "a", "MNI152NLin6Asym")
    (scan,) = prepare(tmp_path / "out", ClipStore(tmp_path / "store", "voxel"))
    used = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert len(scan.voxel_indices) < used / scan.n_vols < 2e6  # one byte per voxel
