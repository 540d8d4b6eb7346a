"""Programs of ANTs (``antsRegistration``, ``N4BiasFieldCorrection``), each run in a process of its own.

ITK reads its number of threads once in a process, but not all programs may use the same number: the result of a sampled
or linear metric depends in its last bits on the order in which threads finish. The programs are functions of the
extension module of antspyx, which takes 0.05 s to load; the package around it takes 2 s.

This file is also the script of that process. It imports the standard library only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

LOGGER = logging.getLogger(__name__)
ENVIRONMENT = {"ITK_GLOBAL_DEFAULT_THREADER": "Platform", "HDF5_USE_FILE_LOCKING": "FALSE"}
"""Threads with fixed shares of the work, instead of a pool whose threads take what is left; no locks of HDF5 files."""
N_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
PROCESSORS = "NEUROSTORM_PROCESSORS"
"""Environment variable with the processors of a run (``--nprocs``); without it, those that this process may use."""
PR_SET_PDEATHSIG = 1
"""Option of ``prctl`` (linux/prctl.h)."""


def processors() -> int:
    """Return the number of processors that the programs of a step may use at the same time."""
    from bids_app.settings import default_cpus

    return int(os.environ.get(PROCESSORS) or default_cpus())


def run_ants(program: str, arguments: Sequence[str], threads: int = 1) -> None:
    """Run a program of ANTs, and wait for its end.

    If a signal ends it, as when the memory is used up, this process ends in the same way: the step is then repeated or
    reported as one that was killed.

    Parameters
    ----------
    program : str
        Name of the program, such as ``antsRegistration``.
    arguments : sequence of str
        Its arguments.
    threads : int
        Number of threads. The result depends on it, so that they share the processors if there are fewer.

    Raises
    ------
    RuntimeError
        The program failed.
    """
    shared = "shared" if threads > processors() else "own"
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), shared, str(extension()), program, *arguments]
    done = subprocess.run(
        command,
        env=os.environ | ENVIRONMENT | {N_THREADS: str(threads)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    messages = done.stderr.decode(errors="replace").strip()
    LOGGER.debug("%s: exit code %d\n%s", program, done.returncode, messages)
    if done.returncode < 0:
        os.kill(os.getpid(), -done.returncode)
    if done.returncode != 0:
        reason = next(reversed(messages.splitlines()), "") or f"exit code {done.returncode}"
        raise RuntimeError(f"{program}: {reason.strip()}")


def extension() -> Path:
    """Return the path of the extension module of antspyx.

    Raises
    ------
    ModuleNotFoundError
        antspyx is not installed.
    """
    package = importlib.util.find_spec("ants")
    folders = (package and package.submodule_search_locations) or ()
    found = [path for folder in folders for path in Path(folder).glob("lib.*")]
    if not found:
        raise ModuleNotFoundError("antspyx is not installed, or has no extension module.", name="ants")
    return found[0]


def load_extension(path: str) -> Any:
    """Load the extension module of antspyx without its package, in place of which this process has an empty one."""
    package = ModuleType("ants")
    package.__path__ = [str(Path(path).parent)]
    sys.modules["ants"] = package
    from ants import lib

    return lib


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def use_one_processor() -> None:
    """Have all threads of this process share one of its processors, chosen at random (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, random.sample(sorted(os.sched_getaffinity(0)), 1))


def main(parent: str, processor: str, path: str, program: str, *arguments: str) -> int:
    """Run a program in this process, and return its exit code."""
    end_with_parent(int(parent))
    if processor == "shared":
        use_one_processor()
    return int(getattr(load_extension(path), program)(list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
