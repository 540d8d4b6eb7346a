"""The supervising process: signals, locks and reports for a run that cannot do these things itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bids_app.bids.processes import start_time
from bids_app.workflow.supervisor import GRACE_SECONDS
from tests.helpers.machine import run_on_small_disk
from tests.helpers.scripts import ENVIRONMENT

RUN = """
import ctypes, os, signal, sys
from pathlib import Path
from bids_app.workflow import supervisor
from bids_app.workflow.locks import Locks

supervisor.GRACE_SECONDS, supervisor.BEAT_SECONDS = 0.3, 0.1
lock, end = Path(sys.argv[1]), sys.argv[2]
code = supervisor.supervise([lock.parent])
if code is not None:
    sys.exit(code)
with Locks() as locks:
    locks.acquire(lock)
    if end == "block":  # all threads, as ANTs does, and signals do not interrupt it
        signal.pthread_sigmask(signal.SIG_BLOCK, {2, 15})
    lock.with_name("run").write_text(str(os.getpid()))
    if end == "block":
        lock_mutex, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock_mutex(mutex)
        lock_mutex(mutex)
    if end.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[end])
sys.exit(int(end))
"""


class Supervised:
    """A supervised run of a script, in a session of its own."""

    def __init__(self, folder: Path, end: str) -> None:
        script = folder / "run.py"
        script.write_text(RUN)
        self.lock, self.marker = folder / "running.json", folder / "run"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self.lock), end],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run_pid(self) -> int:
        """Wait for the run to hold its lock; return its process number."""
        wait_until(lambda: self.marker.is_file() and self.marker.read_text())
        return int(self.marker.read_text())

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit code and messages."""
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[[str], Supervised]]:
    started = []

    def start(end: str) -> Supervised:
        started.append(Supervised(tmp_path, end))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.communicate()


@pytest.mark.parametrize("code", [0, 65])
def test_the_exit_code_is_that_of_the_run(supervised, code: int) -> None:
    run = supervised(str(code))
    assert run.end() == (code, "")
    assert not run.lock.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_blocked_run_is_ended_and_its_lock_is_released(supervised, number: int, code: int) -> None:
    run = supervised("block")
    pid = run.run_pid()
    run.process.send_signal(number)
    ended, said = run.end()
    assert ended == code
    assert "repeat the command to resume" in said
    assert "Traceback" not in said
    assert not run.lock.exists()
    assert start_time(pid) == ""


def test_a_run_ends_well_before_a_scheduler_kills_it() -> None:
    assert GRACE_SECONDS <= 6  # of the 10 s of docker stop


def test_the_lock_of_a_blocked_run_is_touched(supervised) -> None:
    run = supervised("block")
    run.run_pid()
    os.utime(run.lock, (0, 0))
    wait_until(lambda: run.lock.stat().st_mtime > 1000)


def test_a_run_that_the_system_kills_is_reported_and_its_lock_is_released(supervised) -> None:
    run = supervised("block")
    os.kill(run.run_pid(), signal.SIGKILL)
    code, said = run.end()
    assert code == 75
    assert "killed, probably out of memory" in said
    assert "repeat the command" in said
    assert not run.lock.exists()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("SIGSEGV", 70, "Please report it"),
        ("SIGABRT", 70, "Please report it"),
        ("SIGBUS", 74, "a file became shorter while it was read, or its disk failed"),
    ],
)
def test_a_run_that_crashes_is_reported(supervised, name: str, code: int, words: str) -> None:
    run = supervised(name)
    ended, said = run.end()
    assert ended == code
    assert f"({name})" in said
    assert words in said
    assert "repeat the command" in said.lower()
    assert not run.lock.exists()


CRASH = """
import os
from pathlib import Path
from bids_app.workflow.supervisor import supervise

code = supervise([Path({roomy!r}), Path({missing!r}), Path({full!r})])
if code is None:
    try:
        Path({full!r}, "x").write_bytes(bytes({megabytes} * 2**20))
    except OSError:
        pass
    os.kill(os.getpid(), {number})
raise SystemExit(code)
"""


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL])
@pytest.mark.parametrize("full", [True, False])
def test_a_crash_on_a_full_disk_is_reported_as_a_full_disk(tmp_path: Path, number: signal.Signals, full: bool) -> None:
    """Of a file that does not fit, nothing may be left: 20 MB are free where the disk is taken for full."""
    folder = tmp_path / "small"
    folder.mkdir()
    code = CRASH.format(
        roomy=str(tmp_path), missing=str(tmp_path / "none"), full=str(folder), number=int(number),
        megabytes=60 if full else 1,
    )  # fmt: skip
    done = run_on_small_disk(code, folder, megabytes=80)
    assert (done.returncode == 74) == (full or number == signal.SIGBUS), done.stderr
    assert (f"{folder}: no space left on the disk" in done.stderr) == full


def test_a_run_ends_with_the_process_that_supervises_it(supervised) -> None:
    run = supervised("block")
    pid = run.run_pid()
    run.process.kill()
    run.process.wait()
    wait_until(lambda: start_time(pid) == "")
