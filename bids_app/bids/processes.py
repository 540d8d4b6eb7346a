"""Identity of processes, to tell whether the owner of a lock or of a temporary file still runs.

A process number means something only within its scope: a boot of a machine and a PID namespace. Two containers may have
the same host name and the same process numbers.
"""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def process_scope() -> str:
    """Return the scope of process numbers: this boot of this machine, and this PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def scope_label() -> str:
    """Return a short hash of the scope, for file names."""
    return hashlib.sha256(process_scope().encode()).hexdigest()[:12]


def start_time(pid: int) -> str:
    """Return the kernel start time of a process, since process numbers are reused; empty if it does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "running"
