"""Pool of worker processes: steps end, and say why, also where workers or their fork server are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.preprocess.io.volumes import Volumes
from bids_app.settings import ResourceSettings
from bids_app.workflow.engine import Engine, StepError
from bids_app.workflow.graph import Graph


def kill_the_fork_server(marker: Path, at: str, out_dir: Path) -> int:
    """Kill the process that starts workers, the first time; ``at`` is what else is killed."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        if at == "and the worker":
            os.kill(os.getpid(), signal.SIGKILL)
    return 1


def wait_and_add(value: int, out_dir: Path) -> int:
    time.sleep(0.2)
    return value + 1


def read_while_it_is_shortened(path: Path, out_dir: Path) -> float:
    """Map an image to memory, as a step of preprocessing, and shorten it before its voxels are read."""
    source = Volumes(path)
    os.truncate(path, 4096)
    return float(source.read(0, source.shape[3]).mean())


def crash(number: int, out_dir: Path) -> None:
    os.kill(os.getpid(), number)


def crash_the_first_time(marker: Path, out_dir: Path) -> int:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@pytest.fixture
def importable(monkeypatch) -> Callable[..., None]:
    """Return a function that lets workers import functions of this file by module and name."""

    def allow(*functions: Callable[..., object]) -> None:
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        for function in functions:
            monkeypatch.setattr(function, "__module__", Path(__file__).stem)

    return allow


def run_two(folder: Path, function: Callable[..., object], **arguments: object) -> StepError | None:
    """Run a step and another one in a pool, and return the error of the first."""
    graph = Graph()
    step = graph.step("first", function, **arguments)
    other = graph.step("other", wait_and_add, value=1)
    (folder / "crash").mkdir()
    engine = Engine(graph, folder / "work", ResourceSettings(n_procs=2))
    engine.run(crash_dir=folder / "crash")
    assert engine.result_of(other) == 2
    return engine.error_of(step)


@pytest.mark.timeout(120)
def test_a_step_whose_worker_was_killed_is_repeated_once(tmp_path: Path, importable) -> None:
    importable(crash_the_first_time, wait_and_add)
    assert run_two(tmp_path, crash_the_first_time, marker=tmp_path / "killed") is None


@pytest.mark.timeout(120)
def test_an_image_that_is_shortened_while_it_is_read_is_named(tmp_path: Path, importable) -> None:
    importable(read_while_it_is_shortened, wait_and_add)
    path = tmp_path / "sub-01_bold.nii"
    nib.save(nib.Nifti1Image(np.ones((32, 32, 16, 30), np.float32), np.eye(4)), path)
    error = run_two(tmp_path, read_while_it_is_shortened, path=path)
    assert error.exit_code == 65
    assert "sub-01_bold.nii: truncated" in error.message
    assert "4,096" in error.message


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("SIGKILL", 75, "The step first was killed, probably out of memory"),
        ("SIGBUS", 74, "The step first crashed (SIGBUS): a file became shorter while it was read"),
        ("SIGSEGV", 70, "The step first crashed (SIGSEGV)"),
    ],
)
def test_a_step_whose_workers_crash_says_by_which_signal(
    tmp_path: Path, importable, name: str, code: int, words: str
) -> None:
    importable(crash, wait_and_add)
    error = run_two(tmp_path, crash, number=int(signal.Signals[name]))
    assert error.exit_code == code
    assert words in error.message
    assert "epeat the command" in error.hint
    (report,) = (tmp_path / "crash").glob("crash-*")
    assert name in report.read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("at", ["alone", "and the worker"])
def test_all_steps_end_after_the_fork_server_was_killed(tmp_path: Path, importable, at: str) -> None:
    """As by the system, out of memory."""
    importable(kill_the_fork_server, wait_and_add)
    graph = Graph()
    first = graph.step("first", kill_the_fork_server, marker=tmp_path / "killed", at=at)
    others = [graph.step(f"other{n}", wait_and_add, value=n) for n in range(3)]
    last = graph.step("last", wait_and_add, value=first)
    (tmp_path / "crash").mkdir()
    engine = Engine(graph, tmp_path / "work", ResourceSettings(n_procs=2))
    engine.run(crash_dir=tmp_path / "crash")
    assert [engine.error_of(step) for step in (*others, last)] == [None] * 4
    assert [engine.result_of(step) for step in (*others, last)] == [1, 2, 3, 2]
