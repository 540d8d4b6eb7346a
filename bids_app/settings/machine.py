"""What the machine gives: processors, memory and scratch that this process may use, by affinity and control groups."""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRATCH_VARIABLE = "NEUROSTORM_SCRATCH"
"""Environment variable: the folder under which scratch goes when ``--work-dir`` is not given."""

CACHES = "caches"
"""Folder in scratch for what libraries would write into HOME."""

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux tells the limits of control groups, and the group of this process."""


def default_cpus() -> int:
    """Processors that this process may use, by its affinity and its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for line in _limits("cpu.max"):
        quota = line.split()
        if len(quota) == 2 and quota[0].isdigit():
            allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def default_memory_gb() -> float:
    """Nine tenths of the memory that this process may use, GB, by the machine, its control groups and ``ulimit``."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit, _ = resource.getrlimit(kind)
        total = total if limit == resource.RLIM_INFINITY else min(total, limit)
    for text in (*_limits("memory.max"), _first_line(CGROUPS / "memory" / "memory.limit_in_bytes")):
        if text.isdigit():
            total = min(total, int(text))
    return round(0.9 * total / 1e9, 2)


def home_dir() -> Path:
    """The user's home; for a user whom the system does not know (as in containers) a folder that does not exist."""
    return Path(os.path.expanduser("~"))


def own_scratch() -> Path:
    """Scratch of this user where no place is named: under a known name among the temporary files of all users."""
    return Path(tempfile.gettempdir()) / f"neurostorm-{os.getuid()}"


def default_work_dir(out_dir: Path) -> Path:
    """A scratch folder that the same output folder finds again."""
    return (
        Path(os.environ.get(SCRATCH_VARIABLE) or own_scratch())
        / hashlib.sha256(str(out_dir.absolute()).encode()).hexdigest()[:16]
    )


def _limits(name: str) -> Iterator[str]:
    """What a control file says in this process's control group and in all above it; a job of SLURM has its own."""
    own = _first_line(OWN_CGROUP)
    folder = CGROUPS / own.removeprefix("0::").strip("/") if own.startswith("0::") else CGROUPS
    while folder.is_relative_to(CGROUPS):
        yield _first_line(folder / name)
        folder = folder.parent


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
