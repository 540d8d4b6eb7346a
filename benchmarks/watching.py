"""Time and memory of a command and its child processes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil

KCMP = {"x86_64": 312, "aarch64": 272}
"""Number of the system call ``kcmp`` (Linux)."""
KCMP_VM = 1
"""Its type that compares memory (linux/kcmp.h)."""


@dataclass(frozen=True)
class Cost:
    """Wall and CPU time (s), peak memory (GB, shared pages counted once), and exit code of a command.

    The CPU time is that of all processes when they were last sampled: workers that a fork server started are not among
    the children that the system accounts for.
    """

    seconds: float
    cpu_seconds: float
    peak_gb: float
    code: int


def watch(command: list[str], every: float = 0.5, **options: Any) -> Cost:
    """Run a command with options of `subprocess.Popen`, sample its memory every few seconds, and return its cost."""
    started = time.perf_counter()
    process = subprocess.Popen(command, **options)
    peak = 0
    used: dict[tuple[int, float], float] = {}
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        parent = psutil.Process(process.pid)
        while not done.wait(every):
            total = 0
            try:
                members = [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in members:
                try:
                    if not shares_memory(member.pid, member.ppid()):
                        total += member.memory_full_info().pss
                    times = member.cpu_times()
                    used[member.pid, member.create_time()] = times.user + times.system
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=sample)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return Cost(seconds, sum(used.values()), peak / 1e9, code)


def shares_memory(process: int, parent: int) -> bool:
    """Return whether a process still uses the memory of its parent, as one that is being started; False if unknown."""
    number = KCMP.get(platform.machine())
    return number is not None and ctypes.CDLL(None).syscall(number, process, parent, KCMP_VM, 0, 0) == 0
