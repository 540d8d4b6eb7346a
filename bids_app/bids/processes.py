"""Identity of processes, to tell whether the owner of a lock or of a temporary file still runs, and the end of workers.

A process number means something only within its scope: a boot of a machine and a PID namespace. Two containers may have
the same host name and the same process numbers.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing.connection
import os
import signal
import socket
from functools import cache
from multiprocessing import parent_process
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


def end_with_main_process() -> None:
    """Have the kernel end this process with the main process, since a later run may use the same scratch folder.

    A thread could not: ANTs blocks all threads for minutes. The main process holds the other end of a pipe.
    """
    main = parent_process()
    if main is None:
        return
    pipe = main.sentinel
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # ends the process
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if multiprocessing.connection.wait([pipe], timeout=0):  # it has ended already
        os._exit(1)
