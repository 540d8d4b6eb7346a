"""The process that starts the workers of a run: it imports what steps need once, and workers are copies of it.

The command starts it before its own imports, so that both import at the same time on two processors.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

from bids_app.settings import Settings
from bids_app.workflow import sockets

IMPORTED = ("bids_app.workflow.worker_imports",)
"""Modules that the fork server of a run imports."""


def start_for(settings: Settings) -> None:
    """Start the fork server of a run, if it will have workers."""
    if settings.check or settings.boilerplate_only or settings.reports_only:
        return
    if settings.resources.plugin is None and settings.resources.n_procs > 1:
        start_fork_server(IMPORTED)


def start_fork_server(modules: Sequence[str] = ()) -> None:
    """Start the fork server, unless it runs; return at once.

    Parameters
    ----------
    modules : sequence of str
        Modules that it imports. They must not start threads, since workers are forked.
    """
    sockets.mark()
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
    if modules:
        forkserver.set_forkserver_preload(list(modules))
    with interrupts_blocked():
        forkserver.ensure_running()  # its children, the workers, inherit the signal mask


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in the processes started meanwhile: the main process ends its workers itself.

    On a terminal, Ctrl-C reaches all processes; those that still import modules would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
