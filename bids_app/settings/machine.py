"""Resources of this machine: processors, memory and scratch that this process may use."""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRATCH_VARIABLE = "NEUROSTORM_SCRATCH"
"""Environment variable with the parent of the scratch folder when ``--work-dir`` is not given."""

CACHES = "caches"
"""Scratch subfolder for files that libraries would write into HOME."""

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Linux files with the limits of control groups, and the control group of this process."""


def default_cpus() -> int:
    """Return the number of processors that this process may use, from its affinity and control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _own_cgroups("cpu"):
        quota = _first_line(group / "cpu.max").split() or [
            _first_line(group / "cpu.cfs_quota_us"),
            _first_line(group / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and all(text.isdigit() and int(text) for text in quota):  # not "max", nor -1 of version 1
            allowed = min(allowed, max(1, int(quota[0]) // int(quota[1])))
    return allowed


def default_memory_gb() -> float:
    """Return 90 % of the memory that this process may use (GB), from the machine, control groups and ``ulimit``."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit, _ = resource.getrlimit(kind)
        total = total if limit == resource.RLIM_INFINITY else min(total, limit)
    for group in _own_cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _first_line(group / name)
            total = min(total, int(text)) if text.isdigit() else total
    return round(0.9 * total / 1e9, 2)


def home_dir() -> Path:
    """Return the home folder; for a user unknown to the system (in containers) it does not exist."""
    return Path(os.path.expanduser("~"))


def own_scratch() -> Path:
    """Return the default scratch folder of this user, in the system's temporary folder."""
    return Path(tempfile.gettempdir()) / f"neurostorm-{os.getuid()}"


def default_work_dir(out_dir: Path) -> Path:
    """Return the default scratch folder of an output folder; the same output folder gives the same scratch folder."""
    return (
        Path(os.environ.get(SCRATCH_VARIABLE) or own_scratch())
        / hashlib.sha256(os.fsencode(out_dir.absolute())).hexdigest()[:16]
    )


def _own_cgroups(controller: str) -> Iterator[Path]:
    """Yield the control groups of this process and all their parents, of version 2 and of a version 1 controller.

    A SLURM job has its own group. In a container without its own namespace, ``/proc/self/cgroup`` has the path on the
    host, which does not exist inside: the limits are then those of the root folder.
    """
    roots = {CGROUPS: CGROUPS, CGROUPS / controller: CGROUPS / controller}
    for line in _read(OWN_CGROUP).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots[CGROUPS] = CGROUPS / path.strip("/")
        elif controller in controllers.split(","):
            roots[CGROUPS / controller] = CGROUPS / controller / path.strip("/")
    for root, folder in roots.items():
        while folder.is_relative_to(root):
            yield folder
            folder = folder.parent


def _first_line(path: Path) -> str:
    return _read(path).partition("\n")[0]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
