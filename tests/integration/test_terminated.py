"""SIGTERM, as SLURM and ``docker stop`` send it: the run ends at once, cleanly, and says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bids_app.cli.phantom import main as phantom

PATIENCE_S = 30
"""Between SIGTERM and SIGKILL, by SLURM's default."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("terminated") / "raw"
    arguments = ["--participants", "1", "--size", "small", "--no-t1w", "--states", "rest", "lefthand"]
    assert phantom([str(folder), *arguments]) == 0
    return folder


def start(raw: Path, folder: Path, n_procs: str) -> subprocess.Popen[str]:
    where = [str(raw), str(folder / "out"), "participant", "-w", str(folder / "work")]
    return subprocess.Popen(
        [sys.executable, "-m", "bids_app.cli.neurostorm", *where, "--model", "demo", "--nprocs", n_procs],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run: subprocess.Popen[str], work: Path, step: str) -> None:
    """Wait until a step is done."""
    end = time.monotonic() + 300
    while not list(work.glob(f"neurostorm/*_{step}/done.json")):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def terminate(run: subprocess.Popen[str], folder: Path) -> None:
    """Terminate a run and check how it ends."""
    processes = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 143
    assert "repeat the command to resume" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
    assert list(folder.rglob("running*.json")) == []


@pytest.mark.parametrize("n_procs", ["1", "2"])
def test_a_terminated_run_releases_its_locks_and_ends_its_workers(raw: Path, tmp_path: Path, n_procs: str) -> None:
    run = start(raw, tmp_path, n_procs)
    wait_for_step(run, tmp_path / "work", "examine")
    terminate(run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("n_procs", ["1", "2"])
def test_a_run_is_terminated_during_a_registration_by_ants(tmp_path: Path, n_procs: str) -> None:
    assert phantom([str(tmp_path / "raw"), "--participants", "1", "--size", "small", "--states", "rest"]) == 0
    run = start(tmp_path / "raw", tmp_path, n_procs)
    wait_for_step(run, tmp_path / "work", "prepare")
    time.sleep(4)  # T1w to template has begun
    terminate(run, tmp_path)
    assert not list((tmp_path / "work").glob("neurostorm/*_normalise/done.json"))
