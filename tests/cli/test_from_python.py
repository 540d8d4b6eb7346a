"""The command as a function: the same settings, checks and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bids_app
from bids_app.cli import from_python
from bids_app.cli.neurostorm import parse_settings
from bids_app.errors import AnalysisLevelError, NeurostormError, UsageError
from tests.helpers.scripts import ENVIRONMENT


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the process by its end with exit code 66, and return the arguments that it would have."""
    started: list[list[str]] = []

    def wait(command: list[str]) -> int:
        started.append(command[4:])
        return 66

    monkeypatch.setattr(from_python, "_wait", wait)
    return started


def test_options_are_those_of_the_command(tmp_path: Path, commands: list[list[str]]) -> None:
    code = bids_app.run(
        tmp_path / "raw",
        str(tmp_path / "out"),
        participant_label=("01", "02"),
        task_id="rest",
        model="demo",
        omp_nthreads=2,
        work_dir=tmp_path / "work",
        verbose=2,
        low_mem=True,
        check=False,
        adapter=None,
    )
    words = ["--participant-label", "01", "02", "--task-id", "rest", "--model", "demo", "--omp-nthreads", "2", "-vv"]
    expected = [str(tmp_path / "raw"), str(tmp_path / "out"), "participant", *words]
    assert code == 66
    assert parse_settings(commands[0]) == parse_settings([*expected, "--low-mem", "-w", str(tmp_path / "work")])


def test_names_that_begin_with_a_dash_are_not_options(commands: list[list[str]]) -> None:
    bids_app.run("-v", "--check", "group")
    settings = parse_settings(commands[0])
    assert (settings.bids_dir.name, settings.out_dir.name, settings.level) == ("-v", "--check", "group")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_procs": 4}, "n_procs"),
        ({"fs_no_reconall": True}, "fs.no.reconall"),
        ({"nprocs": "many"}, "nprocs"),
        ({"low_mem": "yes"}, "low_mem"),
        ({"model": ["demo"]}, "model"),
        ({"participant_label": []}, "participant_label is empty"),
        ({"on_out_of_domain": "ignore"}, "ignore"),
        ({"work_dir": ""}, "work-dir"),
        ({"bids_filter_file": Path("no_such_file.json")}, "no_such_file.json"),
    ],
)
def test_invalid_options_raise_and_nothing_is_started(
    options: dict[str, Any], named: str, commands: list[list[str]]
) -> None:
    with pytest.raises(NeurostormError, match=named):
        bids_app.run("raw", "out", **options)
    assert not commands


def test_empty_folders_and_unknown_levels_raise(commands: list[list[str]]) -> None:
    with pytest.raises(UsageError, match="empty"):
        bids_app.run("", "out")
    with pytest.raises(UsageError, match="output_dir is of type NoneType"):
        bids_app.run("raw", None)  # type: ignore[arg-type]
    with pytest.raises(AnalysisLevelError):
        bids_app.run("raw", "out", "session")
    assert not commands


def test_the_exit_code_of_the_process_is_returned() -> None:
    assert from_python._wait([sys.executable, "-c", "raise SystemExit(18)"]) == 18
    assert from_python._wait([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_an_interrupted_caller_waits_for_the_end_of_the_app(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "try:\n    (folder / 'started').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5); (folder / 'ended').touch()\n"
    )
    caller = (
        f"import sys; from bids_app.cli.from_python import _wait; _wait([sys.executable, '-c', {child!r}, sys.argv[1]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", caller, str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)  # only the caller, as from a notebook
    process.wait(30)
    assert (tmp_path / "ended").exists()
