"""``--check`` prints all faults of all runs, equal ones together, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_app.bids.query import find_runs
from bids_app.cli.neurostorm import CACHES_OF_LIBRARIES, main
from bids_app.settings import QuerySettings
from tests.helpers.datasets import TinyDataset


def check(dataset: TinyDataset, *options: str) -> int:
    base = dataset.root.parent
    folders = [str(dataset.root), str(base / "out"), "participant", "-w", str(base / "work")]
    return main([*folders, "--model", "demo", "--check", *options])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def dataset(tmp_path: Path) -> TinyDataset:
    return TinyDataset(tmp_path / "raw", tuple(f"{number:02}" for number in range(1, 16)))


def test_runs_with_equal_lines_are_printed_together(dataset: TinyDataset, capsys) -> None:
    for label in ("03", "04", "05"):
        cut(dataset.bold_path(label))
    assert check(dataset) == 65
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "task-rest" in line]
    assert len(lines) == 2
    assert lines[0].startswith("ok    12 runs (sub-01_task-rest, sub-02_task-rest, sub-06_task-rest, ")
    assert lines[1].startswith("FAIL  3 runs (sub-03_task-rest, sub-04_task-rest, sub-05_task-rest): sub-*_task-rest_")


def test_a_long_list_of_runs_is_complete_with_v_only(dataset: TinyDataset, capsys) -> None:
    check(dataset, "--dummy-scans", "28")
    said = capsys.readouterr().out
    assert "15 runs (" in said
    assert "and 3 more; -v names all)" in said
    assert "sub-14_task-rest" not in said
    check(dataset, "--dummy-scans", "28", "-v")
    assert "sub-14_task-rest" in capsys.readouterr().out


def test_dummy_scans_beyond_the_length_of_a_run_are_named(dataset: TinyDataset, capsys) -> None:
    dataset.write_bold("02", np.random.default_rng(1).normal(1000, 50, (12, 12, 8, 60)).astype(np.float32))
    assert check(dataset, "--dummy-scans", "40") == 65
    said = capsys.readouterr().out
    assert "FAIL  14 runs" in said
    assert "only 0 volumes (0.0 s) remain after dropping 40 dummy volumes" in said
    assert "ok    sub-02_task-rest: 60 volumes" in said


def test_the_pybids_database_is_used_but_never_written(tmp_path: Path, capsys) -> None:
    dataset = TinyDataset(tmp_path / "raw", ("01",))
    folder = tmp_path / "database"
    before = contents(tmp_path)
    assert check(dataset, "--bids-database-dir", str(folder)) == 0
    folder.mkdir()
    assert check(dataset, "--bids-database-dir", str(folder)) == 0
    assert contents(tmp_path) == before
    find_runs(dataset.root, QuerySettings(database_dir=folder))
    dataset.write_bold("02")  # is not in the database
    before = contents(tmp_path)
    capsys.readouterr()
    assert check(dataset, "--bids-database-dir", str(folder)) == 0
    assert "1 BOLD runs of 1 participants" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_a_check_leaves_the_temporary_folder_and_home_empty(tiny_dataset: TinyDataset, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")}
    for name in ("TMPDIR", "HOME"):
        places[name].mkdir()
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: SLURM\n")
    words = [str(tiny_dataset.root), str(tmp_path / "out"), "participant", "--model", "demo", "--check"]
    done = subprocess.run(
        [sys.executable, "-m", "bids_app.cli.neurostorm", *words, "--use-plugin", str(plugin)],
        env={name: value for name, value in os.environ.items() if name not in CACHES_OF_LIBRARIES}
        | {name: str(place) for name, place in places.items()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("Nothing was written.\n"), done.stdout + done.stderr
    assert done.returncode == 0
    assert [path for place in places.values() for path in place.rglob("*")] == []
    assert not places["TORCHINDUCTOR_CACHE_DIR"].exists()


@pytest.mark.parametrize("device", ["gpu", "gpu:1"])
def test_the_device_that_was_meant_is_named(tiny_dataset, device: str, capsys) -> None:
    assert check(tiny_dataset, "--device", device) == 64
    said = capsys.readouterr().out
    assert f"FAIL  device: Invalid value for --device: '{device}'" in said
    assert f"Use {device.replace('gpu', 'cuda')}, or auto" in said


def test_a_reader_that_ends_is_no_defect(tiny_dataset, tmp_path: Path) -> None:
    where = [str(tiny_dataset.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    command = [sys.executable, "-m", "bids_app.cli.neurostorm", *where, "--model", "demo", "--check"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
