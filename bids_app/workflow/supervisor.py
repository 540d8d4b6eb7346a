"""Supervision of a run by the process that the user started; the run itself is its child.

ANTs holds the lock of Python's interpreter for minutes. Meanwhile a process neither reacts to SIGTERM nor touches its
lock files, and a process that the system kills reports nothing. The supervising process does nothing else: it touches
the locks of the run, passes signals on, kills a run that does not end `GRACE_SECONDS` after SIGTERM (SLURM and
``docker stop`` kill both soon after), removes locks and sockets that are left, and reports the end of a run that was
killed. A run that crashed on a full disk (HDF5 and ANTs may crash on files that they cannot write) is reported as such.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bids_app.bids.full_disk import CRASH_PROBE_BYTES, is_full, no_space
from bids_app.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, NeurostormError
from bids_app.workflow import sockets
from bids_app.workflow.crashes import error_of_crash
from bids_app.workflow.locks import BEAT_SECONDS, list_locks_on, listed_locks, release, touch

GRACE_SECONDS = 5.0
"""Time that a run has to end by itself after SIGTERM or SIGINT; ``docker stop`` waits 10 s, SLURM 30 s."""
REQUESTS = {signal.SIGTERM: (EXIT_TERMINATED, "terminated"), signal.SIGINT: (EXIT_INTERRUPTED, "interrupted")}
"""Signals that ask a run to end: exit code, and the word of the message."""
SIGNALS = {*REQUESTS, signal.SIGCHLD}
PR_SET_PDEATHSIG = 1
"""Option of ``prctl`` (linux/prctl.h)."""


def supervise(folders: Sequence[Path]) -> int | None:
    """Fork: the child goes on as the run, and this process supervises it.

    Call it before threads are started and large packages are imported.

    Parameters
    ----------
    folders : sequence of pathlib.Path
        Folders that the run writes to; after a crash, they are checked for space.

    Returns
    -------
    int or None
        The exit code of the run, in the supervising process. None in the run itself, and where supervision is not
        possible: outside Linux, and in a process with threads.
    """
    if not (hasattr(signal, "sigtimedwait") and hasattr(os, "memfd_create")) or threading.active_count() > 1:
        return None
    board = os.memfd_create("locks")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, there is no exit status to wait for
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    own, run = os.getpid(), os.fork()
    if run:
        return _exit_code(*_wait_for(run, board), folders)
    die_with_parent(own)
    list_locks_on(board)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return None


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even while ANTs blocks it (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(EXIT_TERMINATED)


def _wait_for(run: int, board: int) -> tuple[int, signal.Signals | None]:
    """Supervise a run until it ends; return its wait status and the first signal that asked it to end."""
    request: signal.Signals | None = None
    deadline, next_beat = float("inf"), time.monotonic() + BEAT_SECONDS
    while True:
        wait = max(0.0, min(deadline, next_beat) - time.monotonic())
        received = signal.sigtimedwait(SIGNALS, wait)
        ended, status = os.waitpid(run, os.WNOHANG)
        if ended:
            break
        if received and received.si_signo in REQUESTS:
            if request is None:
                request, deadline = signal.Signals(received.si_signo), time.monotonic() + GRACE_SECONDS
            if received.si_code <= 0:  # from a process; a terminal sends to the run itself, too
                os.kill(run, received.si_signo)
        if time.monotonic() >= deadline:
            os.kill(run, signal.SIGKILL)
            deadline = float("inf")
        if time.monotonic() >= next_beat:
            touch(listed_locks(board))
            next_beat = time.monotonic() + BEAT_SECONDS
    if os.WIFSIGNALED(status):
        release(listed_locks(board))
        sockets.remove_abandoned()
    return status, request


def _exit_code(status: int, request: signal.Signals | None, folders: Sequence[Path]) -> int:
    """Return the exit code for the wait status of a run; report a run that could not do so itself."""
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    if request is not None:
        code, word = REQUESTS[request]
        print(f"neurostorm: {word}. Finished steps are kept: repeat the command to resume.", file=sys.stderr)
        return code
    error = _error_of_crash(signal.Signals(os.WTERMSIG(status)), folders)
    print(f"neurostorm: error: {error.message}\n  {error.hint}", file=sys.stderr)
    return error.exit_code


def _error_of_crash(number: signal.Signals, folders: Sequence[Path]) -> NeurostormError:
    """Return the error of a run that a signal ended."""
    full = next((folder for folder in folders if folder.is_dir() and is_full(folder, CRASH_PROBE_BYTES)), None)
    if full is not None:
        return no_space(full, f"the run crashed, {number.name}")
    return error_of_crash("run", number, "Use a larger machine or job, or --low-mem")
