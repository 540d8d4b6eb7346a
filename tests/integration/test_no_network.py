"""Participants are processed without network access, by this package or its libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.cli.phantom import main as phantom

WATCH = """
import socket, sys, threading

def watch(event, arguments):
    if event == "socket.getaddrinfo" or event.startswith("socket.gethostby"):
        tell(event, arguments[0])
    elif event in ("socket.connect", "socket.sendto") and arguments[0].family != socket.AF_UNIX:
        tell(event, arguments[1])

def tell(event, where):
    with open({log!r}, "a") as file:
        file.write(f"{{event}} {{where!r}} by {{sys.argv}} in {{threading.current_thread().name}}\\n")
    raise OSError("no network in this test")

sys.addaudithook(watch)
"""
REPORTERS = ("NO_ET", "NIPYPE_NO_ET", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
"""Environment variables that disable telemetry of libraries; the app has to set them itself."""


@pytest.fixture
def watched(tmp_path: Path):
    """Run a command in a process whose sockets, and those of its children, are recorded and refused."""
    log, place = tmp_path / "asked.txt", tmp_path / "watch"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    silent = {name: value for name, value in os.environ.items() if name not in REPORTERS}
    environment = silent | {"PYTHONPATH": str(place), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def run(
        *arguments: object, code: str = "from bids_app.cli.neurostorm import main; sys.exit(main())"
    ) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, log.read_text() if log.exists() else "", done.stderr

    return run


def test_a_network_request_is_detected(watched) -> None:
    code, asked, _ = watched(code="import urllib.request; urllib.request.urlopen('http://localhost:9/x')")
    assert code != 0
    assert "localhost" in asked


def test_a_failed_run_makes_no_network_request(watched, tiny_dataset, tmp_path: Path) -> None:
    where = [tiny_dataset.root, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    code, asked, said = watched(*where, "--model", "demo", "--nprocs", 1, "--mem", "8GB")
    assert asked == ""
    assert code == 65, said  # noise, in which no head is found
    assert (tmp_path / "out" / "sub-01.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_participant_and_group_level_make_no_network_request(watched, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert phantom([str(raw), "--participants", "2", "--size", "small", "--states", "rest"]) == 0
    shared = ["-w", tmp_path / "work", "--mem", "6GB", "--nprocs", 2]
    code, asked, said = watched(raw, out, "participant", "--model", "demo", *shared)
    assert (code, asked) == (0, ""), said
    code, asked, said = watched(raw, out, "group", *shared)
    assert (code, asked) == (0, ""), said
