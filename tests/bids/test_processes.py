"""Identity of processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bids_app.bids.processes import process_scope, scope_label, start_time
from tests.helpers.scripts import ENVIRONMENT


def test_a_process_has_a_start_time_while_it_runs() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert start_time(process.pid) != ""
    process.kill()
    process.wait()
    assert start_time(process.pid) == ""
    assert start_time(os.getpid()) == start_time(os.getpid()) != ""


def test_a_pid_namespace_is_a_scope_of_its_own() -> None:
    call = ["unshare", "-r", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*call, "true"], capture_output=True, check=False).returncode:
        pytest.skip("PID namespaces are not allowed here")
    code = "from bids_app.bids.processes import process_scope, scope_label; print(process_scope(), scope_label())"
    done = subprocess.run(
        [*call, sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    scope, label = done.stdout.split()
    assert scope != process_scope()
    assert label != scope_label()
