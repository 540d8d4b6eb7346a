"""``neurostorm-train store``: building, verifying and converting stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bids_app.cli.train import main
from bids_app.training.data.entries import add_entry
from bids_app.training.data.scan import new_scan
from bids_app.training.data.store import ClipStore
from bids_app.workflow.locks import Locks


@pytest.fixture(scope="module")
def store_of_three(tmp_path_factory, invented_series):
    """A store with a shard of two scans and one of one scan."""
    store = ClipStore(tmp_path_factory.mktemp("three") / "store", "voxel")
    with store.writer() as writer:
        for label in "ab":
            writer.add(new_scan(f"sub-{label}_task-rest", invented_series(n_vols=25), "voxel", label))
    store.add("sub-c_task-rest", invented_series(n_vols=45), "c")
    store.write_index()
    return store.folder


@pytest.fixture
def folder(tmp_path, store_of_three):
    return Path(shutil.copytree(store_of_three, tmp_path / "store"))


def shard_of(folder: Path, name: str) -> Path:
    store = ClipStore(folder)
    return Path(store.place.path(store[name].shard.file))


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_an_intact_store_is_verified(folder, capsys):
    assert main(["store", "verify", str(folder), "--nprocs", "2"]) == 0
    assert "3 scans in 2 shards" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["values_at", "mask_at", "mean_at"])
def test_a_changed_bit_names_the_scan_and_its_shard(folder, capsys, part):
    path = shard_of(folder, "sub-b_task-rest")
    flip(path, getattr(ClipStore(folder)["sub-b_task-rest"].shard, part) + 100)
    assert main(["store", "verify", str(folder)]) == 65
    printed = capsys.readouterr()
    assert f"damaged: sub-b_task-rest in shards/{path.name}: its checksum differs" in printed.out
    assert "sub-a_task-rest" not in printed.out
    assert "store build" in printed.err


def test_a_changed_byte_between_scans_names_the_shard(folder, capsys):
    path = shard_of(folder, "sub-c_task-rest")
    flip(path, path.stat().st_size - 1)
    assert main(["store", "verify", str(folder)]) == 65
    assert f"damaged: shards/{path.name}: " in capsys.readouterr().out


def test_truncated_and_missing_shards_are_named(folder, capsys):
    two, one = shard_of(folder, "sub-a_task-rest"), shard_of(folder, "sub-c_task-rest")
    with open(two, "r+b") as file:
        file.truncate(two.stat().st_size // 2 + 10_000)
    one.unlink()
    assert main(["store", "verify", str(folder)]) == 65
    out = capsys.readouterr().out
    assert f"damaged: sub-b_task-rest in shards/{two.name}: truncated" in out
    assert "damaged: sub-a_task-rest" not in out
    assert f"damaged: sub-c_task-rest in shards/{one.name}: missing" in out
    assert main(["store", "info", str(folder)]) == 0
    assert f"Missing: {one.stem}" in capsys.readouterr().out
    assert (
        main(["pretrain", str(folder), "--output", str(folder.parent / "e.safetensors"), "--normalisation", "voxel"])
        == 66
    )
    assert "store index" in capsys.readouterr().err
    two.unlink()
    assert main(["store", "index", str(folder)]) == 0
    assert main(["store", "verify", str(folder)]) == 0


def test_a_damaged_scan_in_a_folder_is_named(tmp_path, invented_series, capsys):
    add_entry(tmp_path, "sub-a_task-rest", invented_series(), "voxel", "a")
    (tmp_path / "sub-a_task-rest" / "values.npy").write_bytes(b"")
    assert main(["store", "verify", str(tmp_path)]) == 65
    assert "damaged: sub-a_task-rest" in capsys.readouterr().out


def test_info_counts_scans_and_what_was_replaced(folder, capsys, invented_series):
    ClipStore(folder).add("sub-a_task-rest", invented_series(n_vols=60), "a", stamp="other")
    assert main(["store", "info", str(folder)]) == 0
    rows = {line[:28].strip(): line[28:].strip() for line in capsys.readouterr().out.splitlines()}
    assert (rows["scans"], rows["participants"], rows["normalisation"]) == ("3", "3", "voxel")
    assert rows["clips of 20 volumes"] == "6"
    assert rows["shards"].startswith("3, ")
    assert rows["of replaced scans"] != "0.0 MB"


def test_a_store_of_format_1_is_read_and_converted_without_loss(tmp_path, invented_series, capsys):
    for label in "ab":
        facts = {"session": "x", "labels": {"task": "rest"}, "confounds": {"fd": 0.1}, "stamp": label}
        add_entry(tmp_path / "old", f"sub-{label}_task-rest", invented_series(n_vols=30), "voxel", label, **facts)
    assert main(["store", "info", str(tmp_path / "old")]) == 0
    assert "store convert" in capsys.readouterr().out
    assert main(["store", "convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    old, new = list(ClipStore(tmp_path / "old")), list(ClipStore(tmp_path / "new"))
    assert [scan.name for scan in old] == [scan.name for scan in new]
    for one, two in zip(old, new, strict=True):
        assert (one.clip(4) == two.clip(4)).all()
        assert (one.mean_image() == two.mean_image()).all()
        for fact in (
            "participant",
            "session",
            "labels",
            "confounds",
            "signal",
            "stamp",
            "scale",
            "background",
            "n_vols",
        ):
            assert getattr(one, fact) == getattr(two, fact), fact
    assert len(list((tmp_path / "new" / "shards").iterdir())) == 2
    assert json.loads((tmp_path / "new" / "store.json").read_text())["version"] == 2


def test_converting_leaves_out_withdrawn_participants_and_replaced_scans(folder, tmp_path, invented_series, capsys):
    ClipStore(folder).add("sub-a_task-rest", invented_series(n_vols=60), "a", stamp="other")
    (tmp_path / "withdrawn.txt").write_text("sub-b\nz\n")
    command = ["store", "convert", str(folder), str(tmp_path / "new"), "--exclude", str(tmp_path / "withdrawn.txt")]
    assert main(command) == 0
    assert "2 scans, 2 of them copied now; 1 left out" in capsys.readouterr().out
    assert [(scan.participant, scan.n_vols) for scan in ClipStore(tmp_path / "new")] == [("a", 60), ("c", 45)]
    assert b"sub-b" not in next((tmp_path / "new" / "shards").glob("*.tar")).read_bytes()
    assert main(command) == 0  # nothing to do
    assert "0 of them copied now" in capsys.readouterr().out
    assert main(["store", "convert", str(folder), str(folder)]) == 64


def test_an_empty_list_of_withdrawn_participants_is_said_to_leave_out_nobody(folder, tmp_path, capsys):
    (tmp_path / "withdrawn.txt").write_text("\n")
    command = ["store", "convert", str(folder), str(tmp_path / "new"), "--exclude", str(tmp_path / "withdrawn.txt")]
    assert main(command) == 0
    assert "withdrawn.txt: lists no participants; all scans are copied" in capsys.readouterr().out


def test_a_dataset_is_built_in_parts_and_completed(tmp_path, write_derivative, capsys):
    for label in "ab":
        write_derivative(tmp_path / "out", label, "MNI152NLin6Asym")
    build = ["store", "build", str(tmp_path / "out"), str(tmp_path / "store"), "--normalisation", "voxel"]
    assert main([*build, "--part", "2/2"]) == 0
    assert [scan.participant for scan in ClipStore(tmp_path / "store")] == ["b"]
    assert main(build) == 0
    assert "2 scans, 1 of them new" in capsys.readouterr().out
    assert main(build) == 0
    assert "2 scans, 0 of them new" in capsys.readouterr().out
    assert len((tmp_path / "store" / "index.jsonl").read_text().splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["index.jsonl", "shards", "store.json"]
    assert main([*build, "--part", "9/9"]) == 0
    assert "Nothing in this part" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_a_part_that_does_not_exist_is_refused(tmp_path, capsys, text):
    with pytest.raises(SystemExit, match="2"):
        main(["store", "build", str(tmp_path), str(tmp_path / "store"), "--part", text])
    assert "is not K/N" in capsys.readouterr().err


def test_a_damaged_scan_is_not_copied(folder, tmp_path, capsys):
    path = shard_of(folder, "sub-b_task-rest")
    flip(path, ClipStore(folder)["sub-b_task-rest"].shard.values_at + 100)
    assert main(["store", "convert", str(folder), str(tmp_path / "new")]) == 65
    assert f"{path.name}: sub-b_task-rest is damaged" in capsys.readouterr().err
    assert "sub-b_task-rest" not in ClipStore(tmp_path / "new")


@pytest.mark.parametrize("file", ["index.jsonl", "shards/*.json"])
@pytest.mark.parametrize("key", ['"scale": 0.', '"participant": "', '"n_vols": 2'])
def test_a_changed_digit_in_an_index_is_found_before_it_is_used(folder, tmp_path, capsys, file, key):
    path = next(path for path in folder.glob(file) if key.encode() in path.read_bytes())
    flip(path, path.read_bytes().index(key.encode()) + len(key))
    if file != "index.jsonl":
        (folder / "index.jsonl").unlink()
    assert main(["store", "verify", str(folder)]) == 65
    output = ["--output", str(tmp_path / "e.safetensors"), "--normalisation", "voxel"]
    assert main(["pretrain", str(folder), *output]) == 65
    assert capsys.readouterr().err.count(f"{path.name}") == 2


def test_a_damaged_index_of_a_shard_is_found_although_the_index_of_all_is_intact(folder, capsys):
    path = next((folder / "shards").glob("*.json"))
    flip(path, 200)
    assert main(["store", "verify", str(folder)]) == 65
    assert f"shards/{path.name}: {path}: damaged" in capsys.readouterr().out
    assert main(["store", "index", str(folder)]) == 65
    assert path.name in capsys.readouterr().err


def test_a_shard_without_its_tar_file_is_missed_also_without_the_index_of_all(folder, tmp_path, capsys):
    path = shard_of(folder, "sub-c_task-rest")
    path.unlink()
    (folder / "index.jsonl").unlink()
    assert main(["store", "verify", str(folder)]) == 65
    assert f"damaged: sub-c_task-rest in shards/{path.name}: missing" in capsys.readouterr().out
    output = ["--output", str(tmp_path / "e.safetensors"), "--normalisation", "voxel"]
    assert main(["pretrain", str(folder), *output]) == 66


def test_a_tar_file_without_an_index_is_named_and_not_read(folder, capsys):
    (folder / "shards" / "x.tar").write_bytes(b"")
    assert len(ClipStore(folder).names()) == 3
    assert main(["store", "verify", str(folder)]) == 65
    assert "shards/x.tar: no index" in capsys.readouterr().out


def test_a_copy_of_another_store_is_not_completed(folder, tmp_path, invented_series, capsys):
    assert main(["store", "convert", str(folder), str(tmp_path / "new")]) == 0
    ClipStore(tmp_path / "other", "voxel").add("sub-a_task-rest", invented_series(seed=9, n_vols=25), "a")
    shutil.rmtree(tmp_path / "new" / "shards")
    (tmp_path / "new" / "index.jsonl").unlink()
    assert main(["store", "convert", str(tmp_path / "other"), str(tmp_path / "new")]) == 0
    ClipStore(tmp_path / "third", "voxel").add("sub-a_task-rest", invented_series(seed=8, n_vols=25), "a")
    assert main(["store", "convert", str(tmp_path / "third"), str(tmp_path / "new")]) == 64
    assert "has another scan sub-a_task-rest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        ("sub-a,sub-b", 65, "not the label of a participant: 'sub-a,sub-b'"),
        ('"sub-a"', 65, "not the label"),
        ("sub-a_task-rest", 65, "not the label"),
        ("sub-A\n02", 18, "no scan of sub-02, sub-A"),
        ("participant_id\nsub-a # withdrawn\nzz\n", 0, "Not in the store: sub-zz"),
        ("sub-a\tb\n", 65, "not the label"),
        ("participant_id\tage\nsub-a\tb\nsub-zz\t20\n", 0, "Not in the store: sub-zz\n"),
    ],
)
def test_withdrawn_participants_that_are_not_in_the_store_are_named(folder, tmp_path, capsys, content, code, named):
    (tmp_path / "list.txt").write_text(content)
    command = ["store", "convert", str(folder), str(tmp_path / "new"), "--exclude", str(tmp_path / "list.txt")]
    assert main(command) == code
    printed = capsys.readouterr()
    assert named in printed.out + printed.err
    if code == 0:
        assert [scan.participant for scan in ClipStore(tmp_path / "new")] == ["b", "c"]


def test_a_url_of_a_local_folder_is_a_path(folder, tmp_path, capsys):
    assert main(["store", "convert", f"file://{folder}", f"file://{tmp_path / 'new'}"]) == 0
    assert len(ClipStore(tmp_path / "new").names()) == 3
    with pytest.raises(SystemExit):
        main(["store", "verify", ""])
    assert "the path is empty" in capsys.readouterr().err


def test_a_part_that_is_being_built_is_not_built_twice_at_once(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    store = ClipStore(tmp_path / "store", "global").folder
    command = ["store", "build", str(tmp_path / "out"), str(store), "--part"]
    with Locks() as locks:
        locks.acquire(store / "building-2-of-3.json")
        assert main([*command, "2/3"]) == 75
        assert "building-2-of-3.json: another run is building this part of the store" in capsys.readouterr().err
        assert main([*command, "1/3"]) == 0
    assert main([*command, "2/3"]) == 0
    assert [path.name for path in store.glob("building*")] == []
