"""Small file systems."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_on_small_disk(folder: Path, megabytes: int, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with a small file system mounted on a folder; skip if mounting is not allowed."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    script = f'mount -t tmpfs -o size={megabytes}m none "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, str(folder), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)
