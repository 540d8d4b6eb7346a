"""Pool of worker processes: steps end also where workers or their fork server are killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bids_app.settings import ResourceSettings
from bids_app.workflow.engine import Engine
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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("at", ["alone", "and the worker"])
def test_all_steps_end_after_the_fork_server_was_killed(tmp_path: Path, monkeypatch, at: str) -> None:
    """As by the system, out of memory."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers import steps by module and name
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for function in (kill_the_fork_server, wait_and_add):
        monkeypatch.setattr(function, "__module__", Path(__file__).stem)
    graph = Graph()
    first = graph.step("first", kill_the_fork_server, marker=tmp_path / "killed", at=at)
    others = [graph.step(f"other{n}", wait_and_add, value=n) for n in range(3)]
    last = graph.step("last", wait_and_add, value=first)
    (tmp_path / "crash").mkdir()
    engine = Engine(graph, tmp_path / "work", ResourceSettings(n_procs=2))
    engine.run(crash_dir=tmp_path / "crash")
    assert [engine.error_of(step) for step in (*others, last)] == [None] * 4
    assert [engine.result_of(step) for step in (*others, last)] == [1, 2, 3, 2]
