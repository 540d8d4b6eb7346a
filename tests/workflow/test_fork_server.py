"""The fork server of a run imports what its workers need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bids_app.settings import settings_from
from bids_app.workflow import fork_server

CODE = """
import multiprocessing, sys
from bids_app.workflow.fork_server import start_fork_server

def imported(name):
    return name in sys.modules

if __name__ == "__main__":
    start_fork_server(["wave"])
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        print(pool.apply(imported, ["wave"]), imported("wave"))
"""


def test_workers_have_the_modules_that_the_fork_server_imported(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CODE)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize(
    ("options", "starts"),
    [({}, True), ({"nprocs": 1}, False), ({"check": True}, False), ({"reports_only": True}, False)],
)
def test_it_is_started_only_for_runs_with_workers(tmp_path, monkeypatch, options, starts) -> None:
    started = []
    monkeypatch.setattr(fork_server, "start_fork_server", started.append)
    given = {"bids_dir": tmp_path, "output_dir": tmp_path, "analysis_level": "participant", "nprocs": 2}
    fork_server.start_for(settings_from({}, given | options))
    assert bool(started) == starts
