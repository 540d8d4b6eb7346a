"""Stores in object storage, by the file system in memory of fsspec; `benchmarks/store_s3.py` uses a server of S3."""

from __future__ import annotations

import argparse
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from bids_app.cli.train import main
from bids_app.errors import BadDataError, InputOutputError, NoInputError, UsageError
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.places import MAX_OPEN_FILES, Place
from bids_app.training.data.store import ClipStore
from bids_app.training.store_commands import convert


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of object storage that lives in this process."""
    url = f"memory://{uuid.uuid4().hex}/store"
    yield url
    files = fsspec.filesystem("memory")
    for path in files.find(url.removesuffix("/store")):
        files.rm_file(path)


def test_a_store_in_object_storage_gives_the_same_clips(memory, tmp_path, invented_series, capsys):
    stores = [ClipStore(place, "voxel") for place in (memory, tmp_path / "local")]
    for store in stores:
        for label in "ab":
            store.add(f"sub-{label}_task-rest", invented_series(n_vols=45), label, labels={"task": "rest"})
        store.write_index()
    remote, local = (tuple(ClipStore(store.place.url)) for store in stores)
    assert [scan.name for scan in remote] == [scan.name for scan in local]
    assert [dict(scan.signal) for scan in remote] == [dict(scan.signal) for scan in local]
    assert (remote[0].mean_image() == local[0].mean_image()).all()
    for one, two in zip(ClipBatches(remote, 2).epoch(0), ClipBatches(local, 2).epoch(0), strict=True):
        assert torch.equal(one.clips, two.clips)
    assert main(["store", "verify", memory]) == 0
    assert "2 scans in 2 shards" in capsys.readouterr().out
    convert(argparse.Namespace(folder=tmp_path / "local", new=f"{memory}2", exclude=None, shard_size=1.0))
    assert [scan.name for scan in ClipStore(f"{memory}2")] == [scan.name for scan in local]
    assert not list(Path.cwd().glob("memory:*"))


def test_an_encoder_is_trained_from_object_storage(memory, tmp_path, invented_series, tiny_config, capsys):
    store = ClipStore(memory, "global")
    for label in "ab":
        store.add(f"sub-{label}_task-rest", invented_series(n_vols=25), label)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    output = ["--output", str(tmp_path / "e.safetensors"), "--config", str(tmp_path / "config.json")]
    assert main(["pretrain", memory, *output, "--epochs", "1", "--batch-size", "1", "--normalisation", "global"]) == 0
    assert (tmp_path / "e.safetensors").is_file()


def test_damage_in_object_storage_is_named(memory, invented_series, capsys):
    scan = ClipStore(memory, "voxel").add("sub-a_task-rest", invented_series(n_vols=25), "a")
    path = scan.shard.place.path(scan.shard.file)
    content = bytearray(fsspec.filesystem("memory").cat_file(path))
    content[scan.shard.values_at + 9] ^= 1
    fsspec.filesystem("memory").pipe_file(path, bytes(content))
    assert main(["store", "verify", memory]) == 65
    assert "damaged: sub-a_task-rest" in capsys.readouterr().out
    fsspec.filesystem("memory").pipe_file(path, bytes(content[: scan.shard.values_at + 100]))
    with pytest.raises(BadDataError, match="truncated"):
        scan.clip(0)


def test_what_is_missing_or_unknown_is_named(tmp_path):
    with pytest.raises(NoInputError, match="memory://nowhere: not a clip store"):
        ClipStore("memory://nowhere")
    with pytest.raises(NoInputError, match="memory://nowhere/x: no such file"):
        Place("memory://nowhere").read("x", 10)
    with pytest.raises(UsageError, match="sorcery://bucket"):
        ClipStore("sorcery://bucket")


def test_a_server_that_does_not_answer_is_no_missing_store():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/store"  # nothing listens
        with pytest.raises(InputOutputError, match=r"store\.json: .*onnect"):
            ClipStore(url)


@pytest.mark.parametrize(("scheme", "hint"), [("s3", "neurostorm[s3]"), ("gs", "package that the message names")])
def test_the_package_of_a_kind_of_storage_is_named(scheme, hint, monkeypatch):
    def missing(url):
        raise ImportError(f"Install a package to access {url}")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UsageError) as caught:
        ClipStore(f"{scheme}://bucket/store")
    assert hint in caught.value.hint


def test_an_upload_that_fails_is_an_error_with_the_url(memory, monkeypatch):
    def unreachable(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", unreachable)
    with pytest.raises(InputOutputError, match=rf"{memory}/store\.json: RuntimeError: no route to host"):
        ClipStore(memory, "voxel")


def test_few_files_are_open_at_a_time(tmp_path):
    place = Place(str(tmp_path))
    for number in range(MAX_OPEN_FILES + 20):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 3)
    before = len(os.listdir("/proc/self/fd"))
    found = [place.read_range(str(number), 1, 2).tolist() for number in range(MAX_OPEN_FILES + 20)]
    assert found == np.repeat(np.arange(MAX_OPEN_FILES + 20), 2).reshape(-1, 2).tolist()
    assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN_FILES
