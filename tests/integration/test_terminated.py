"""SIGTERM, as SLURM and ``docker stop`` send it, and Ctrl-C: the run ends at once, cleanly, and says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def test_a_terminated_run_releases_its_locks_and_ends_its_workers(raw: Path, tmp_path: Path) -> None:
    check_sigterm(raw, tmp_path, "2")


@pytest.mark.slow
def test_a_terminated_run_without_workers_releases_its_locks(raw: Path, tmp_path: Path) -> None:
    check_sigterm(raw, tmp_path, "1")


def check_sigterm(raw: Path, folder: Path, n_procs: str) -> None:
    code, said = stop(raw, folder, n_procs, lambda run: run.send_signal(signal.SIGTERM), "*_examine/done.json")
    assert code == 143
    assert said.count("neurostorm: terminated.") == 1


@pytest.mark.parametrize("n_procs", ["1", "2"])
def test_sigterm_to_all_processes_of_a_run_is_reported_once(raw: Path, tmp_path: Path, n_procs: str) -> None:
    """As from ``scancel`` or ``timeout``; the run, its workers and the supervising process receive it."""

    def terminate_all(run: subprocess.Popen[str]) -> None:
        os.killpg(run.pid, signal.SIGTERM)

    code, said = stop(raw, tmp_path, n_procs, terminate_all, "*_examine/done.json")
    assert code == 143
    assert said.count("neurostorm: terminated.") == 1
    assert said.splitlines()[-1].startswith("neurostorm: terminated.")


@pytest.mark.slow
@pytest.mark.parametrize("n_procs", ["1", "2"])
def test_a_run_is_terminated_during_a_registration_by_ants(tmp_path: Path, n_procs: str) -> None:
    def terminate_later(run: subprocess.Popen[str]) -> None:
        time.sleep(4)  # T1w to template has begun
        run.send_signal(signal.SIGTERM)

    assert phantom([str(tmp_path / "raw"), "--participants", "1", "--size", "small", "--states", "rest"]) == 0
    code, _ = stop(tmp_path / "raw", tmp_path, n_procs, terminate_later, "*_prepare/done.json")
    assert code == 143
    assert not list((tmp_path / "work").glob("neurostorm/*_normalise/done.json"))


@pytest.mark.parametrize("moment", ["", "*_examine/done.json"], ids=["workers start", "workers compute"])
def test_ctrl_c_prints_no_traceback(raw: Path, tmp_path: Path, moment: str) -> None:
    """On a terminal, Ctrl-C reaches all processes of the run, twice if the user is impatient."""

    def press_twice(run: subprocess.Popen[str]) -> None:
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)

    code, said = stop(raw, tmp_path, "2", press_twice, moment)
    assert code == 130
    assert said.splitlines()[-1].startswith("neurostorm: interrupted.")


def stop(raw: Path, folder: Path, n_procs: str, send: Callable[..., None], moment: str) -> tuple[int, str]:
    """Start a run, stop it when a file of its scratch folder exists, and return its exit code and messages."""
    out, work, temporary = folder / "out", folder / "work", folder / "tmp"
    temporary.mkdir()
    call = [sys.executable, "-m", "bids_app.cli.neurostorm", str(raw), str(out), "participant", "--model", "demo"]
    run = subprocess.Popen(
        [*call, "-w", str(work), "--nprocs", n_procs],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 300
    while not list(work.glob(f"neurostorm/{moment}")):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    workers = psutil.Process(run.pid).children(recursive=True)
    send(run)
    _, said = run.communicate(timeout=PATIENCE_S)
    assert "repeat the command to resume" in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert list(temporary.iterdir()) == []
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    assert [path for folder in (out, work) for path in folder.rglob("running*.json")] == []
    return run.returncode, said
