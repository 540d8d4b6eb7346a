"""Commands under real conditions: without the privileges of root, and with small file systems."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.scripts import ENVIRONMENT

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Start of a command of root that permissions of files apply to, as to any user."""


def run_python(code: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run Python code after the words of another command."""
    call = [*before, sys.executable, "-c", code]
    return subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def run_without_privileges(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a process that is bound by the permissions of files, also if the tests run as root."""
    return run_python(code, *(UNPRIVILEGED if os.getuid() == 0 else ()))


def run_on_small_disk(code: str, place: Path, megabytes: int) -> subprocess.CompletedProcess[str]:
    """Run Python code with a file system of the given size mounted on a folder; skips if mounting is not allowed."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    mount = f'mount -t tmpfs -o size={megabytes}m none "$0" && exec "$@"'
    return run_python(code, "unshare", "-rm", "sh", "-c", mount, str(place))
