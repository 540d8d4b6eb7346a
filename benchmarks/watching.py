"""Time and memory of a command and its child processes."""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class Cost:
    """Wall and CPU time (s), peak memory (GB, shared pages counted once), and exit code of a command."""

    seconds: float
    cpu_seconds: float
    peak_gb: float
    code: int


def watch(command: list[str], every: float = 0.5, **options: Any) -> Cost:
    """Run a command with options of `subprocess.Popen`, sample its memory every few seconds, and return its cost."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, **options)
    peak = 0
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
                    total += member.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=sample)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu_seconds, peak / 1e9, code)
