"""Reuse of freed memory between training steps on CPUs."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def reuse_freed_memory() -> bool:
    """Keep freed memory in this process for reuse; for commands that only train.

    A training step on CPUs allocates and frees gigabytes of tensors. By default, the system maps and clears them again
    each time, which takes a fifth of the step.

    Returns
    -------
    bool
        True if the setting was applied (glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
