"""A run stays within its processors and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bids_app.cli.phantom import main as phantom


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_procs", [1, 2])
def test_a_run_stays_within_its_processors_and_memory(tmp_path: Path, n_procs: int) -> None:
    arguments = ["--participants", "2", "--size", "small", "--no-t1w", "--states", "rest"]
    assert phantom([str(tmp_path / "raw"), *arguments]) == 0
    command = [
        sys.executable,
        "-m",
        "bids_app.cli.neurostorm",
        tmp_path / "raw",
        tmp_path / "out",
        "participant",
        "--model",
        "demo",
    ]
    command += ["--nprocs", str(n_procs), "--mem", "3GB", "--work-dir", tmp_path / "work"]
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=free, stderr=subprocess.DEVNULL)
    peak, spent = 0, {}
    while process.poll() is None:
        used = 0
        for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                used += member.memory_full_info().pss
                times = member.cpu_times()
                spent[member.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, used)
        time.sleep(0.3)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    assert peak < 3e9
    # a tenth for the process that waits for the others, and for threads that hand over
    assert sum(spent.values()) < 1.1 * n_procs * seconds
