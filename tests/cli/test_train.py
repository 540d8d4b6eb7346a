"""Arguments of ``neurostorm-train`` that cannot work are refused before any work."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bids_app.cli import train
from bids_app.cli.train import main
from bids_app.workflow.locks import Locks
from tests.helpers.odd_files import ODD_FILES

ADAPT = ["adapt", "derivatives", "--target", "participants.tsv:sex"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--nprocs", "0"),
        ("--seed", "-1"),
        ("--ridge", "-0.1"),
        ("--ridge", "nan"),
        ("--device", "gpu"),
        ("--seed", "x"),
        ("--epochs", "0"),
        ("--output", ""),
        ("--store", ""),
        ("--raw", ""),
    ],
)
def test_a_value_that_cannot_work_is_named(option: str, value: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*ADAPT, f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--folds", "1"), ("--seed", str(2**32)), ("--format", "csv")])
def test_a_value_of_export_that_cannot_work_is_named(option: str, value: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "out", "--format", "parquet", f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named_before_the_data_are_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "x.safetensors", Path("/proc/x.safetensors")):
        assert main([*ADAPT, "--output", str(output)]) == 73
        assert f"{output}: cannot be written" in capsys.readouterr().err


def test_an_output_without_a_name_is_refused(capsys) -> None:
    assert main([*ADAPT, "--output", "."]) == 64
    assert "Invalid value for --output: . is a folder." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code"), [(["--batch-size", "8"], 66), (["--learning-rate", "1e30"], 64), (["--mask-ratio", "2"], 64)]
)
def test_refused_options_leave_no_folders(options: list[str], code: int, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept").mkdir()
    for output in ("new/folder/x.safetensors", "kept/x.safetensors"):
        assert main(["pretrain", "none", "--output", output, *options]) == code
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert list(Path("kept").iterdir()) == []


def test_a_store_in_memory_is_refused_as_an_output(capsys) -> None:
    for words in (["convert", "store", "memory://new"], ["build", "derivatives", "memory://new"]):
        with pytest.raises(SystemExit) as caught:
            main(["store", *words])
        assert caught.value.code == 2
        assert "is lost when the command ends" in capsys.readouterr().err


EVALUATE = ["evaluate", *ADAPT[1:]]
CALIBRATE = ["calibrate", "a.safetensors", *ADAPT[1:], "--output", "b.safetensors"]
PRETRAIN = ["pretrain", "derivatives", "--output", "b.safetensors", "--atlas", "aal3"]
FILE_OPTIONS = {
    "adapt --split": ([*ADAPT, "--split"], "split.tsv"),
    "adapt --images": ([*ADAPT, "--images"], "images.tsv"),
    "adapt --model": ([*ADAPT, "--model"], "model.ckpt"),
    "evaluate --images": ([*EVALUATE, "--images"], "images.tsv"),
    "evaluate --atlas": ([*EVALUATE, "--atlas"], "atlas.nii.gz"),
    "calibrate --split": ([*CALIBRATE, "--split"], "split.json"),
    "calibrate ADAPTER": ([*CALIBRATE[2:], "--"], "adapter.safetensors"),
    "pretrain --config": ([*PRETRAIN, "--config"], "config.json"),
    "pretrain --start-from": ([*PRETRAIN, "--start-from"], "model.safetensors"),
    "pretrain --region-weights": ([*PRETRAIN, "--region-weights"], "weights.tsv"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("option", FILE_OPTIONS)
def test_an_odd_file_is_named_before_the_data_are_read(option: str, kind: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (words, name), (make, said) = FILE_OPTIONS[option], ODD_FILES[kind]
    make(tmp_path / name)
    path = str(tmp_path / name)
    assert main(["calibrate", path, *words[:-1]] if words[-1] == "--" else [*words, path]) == 66
    assert f"{tmp_path / name}: {said}" in capsys.readouterr().err


def test_the_table_of_an_array_of_images_is_needed_from_the_start(tmp_path: Path, capsys) -> None:
    (tmp_path / "images.npy").touch()
    assert main([*ADAPT, "--images", str(tmp_path / "images.npy"), "--output", str(tmp_path / "a.safetensors")]) == 66
    assert f"{tmp_path / 'images.tsv'}: no such file" in capsys.readouterr().err


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ODD_FILES)
def test_an_option_file_that_is_no_regular_file_is_named(kind: str, tmp_path: Path, capsys) -> None:
    make, said = ODD_FILES[kind]
    make(tmp_path / "options.txt")
    assert main(["adapt", f"@{tmp_path / 'options.txt'}"]) == 66
    assert said in capsys.readouterr().err


def test_options_are_read_from_files_that_name_files(tmp_path: Path, capsys) -> None:
    (tmp_path / "inner.txt").write_text("--seed -1  # not valid\n")
    (tmp_path / "outer.txt").write_text(f"derivatives --target 'participants.tsv:sex'\n@{tmp_path / 'inner.txt'}\n")
    with pytest.raises(SystemExit):
        main(["adapt", f"@{tmp_path / 'outer.txt'}"])
    assert "argument --seed: -1" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["--name 'x", "@{path}"], ids=["quotation mark", "itself"])
def test_an_option_file_that_cannot_be_used_is_named(content: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "options.txt"
    path.write_text(content.format(path=path))
    assert main(["adapt", f"@{path}"]) == 64
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_of_the_training_loop_releases_the_lock(
    number: int, code: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    lock = tmp_path / "running.json"
    seen = []

    def run(*_: object) -> None:
        with Locks() as locks:
            locks.acquire(lock)
            seen.append(lock.exists())
            signal.raise_signal(number)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)
    monkeypatch.setattr("sys.argv", ["neurostorm-train", "store", "info", str(tmp_path)])
    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(train, "leave", sys.exit)
    monkeypatch.setenv("PYTHONWARNINGS", "")
    try:
        with pytest.raises(SystemExit) as caught:
            main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert caught.value.code == code
    assert os.environ["PYTHONWARNINGS"] == "ignore:resource_tracker"  # what is left is removed without a word
    assert seen == [True]
    assert not lock.exists()
    assert "Run the same command to resume." in capsys.readouterr().err
