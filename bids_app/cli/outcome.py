"""End of a command: its error in two lines, and its exit code; the same for all commands."""

from __future__ import annotations

import errno
import logging
import multiprocessing.util
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn, TextIO

from bids_app import PLEASE_REPORT
from bids_app.bids.full_disk import NO_SPACE, hide_errors_of_freed_files, says_full
from bids_app.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOFTWARE,
    EXIT_TERMINATED,
    InputOutputError,
    NeurostormError,
    TemporaryError,
    Terminated,
)
from bids_app.terminal import indented

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
"""Error numbers of disk problems, which are not bugs of this program."""
INTERRUPTED = {EXIT_INTERRUPTED: "interrupted", EXIT_TERMINATED: "terminated"}
"""Exit codes of a command that a signal asked to end, and the word of the message."""
AGAIN_SECONDS = 0.02
"""Time after which a signal that Python dropped is sent again."""
RESUME = "Finished steps are kept: repeat the command to resume."


def exit_code_of(program: str, command: Callable[[], int | None], resume: str = RESUME) -> int:
    """Run a command and return its exit code; errors are printed.

    Parameters
    ----------
    program : str
        Name of the program, for messages.
    command : callable
        Returns an exit code, or None for 0.
    resume : str
        How to go on after an interruption; empty: the interruption is reported elsewhere.
    """
    hide_errors_of_freed_files()
    try:
        try:
            return _reported(program, command, resume)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_ended(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it again at exit
        return EXIT_BROKEN_PIPE


def raise_when_terminated() -> None:
    """Have SIGTERM raise `Terminated`, and SIGINT `KeyboardInterrupt`, so that locks are released and workers end."""

    def stop(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):  # once is enough: what follows must not be cut short
            signal.signal(each, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def install() -> None:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    ignore = sys.unraisablehook

    def send_again(found: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised while it frees an object, for example: the signal would be lost."""
        if issubclass(found.exc_type, Terminated | KeyboardInterrupt):
            install()
            number = signal.SIGTERM if issubclass(found.exc_type, Terminated) else signal.SIGINT
            threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
        else:
            ignore(found)

    if threading.current_thread() is threading.main_thread():
        install()
        sys.unraisablehook = send_again


def hide_warnings_of_resource_trackers() -> None:
    """Have processes that are started from now on not warn of what a killed process leaves; it is removed."""
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))


def leave(code: int) -> NoReturn:
    """Exit with a code.

    After an interruption or on a full disk the process ends at once: HDF5 would crash on files that ANTs could not
    close, and on a busy machine unloading the libraries takes longer than a job scheduler waits.
    """
    if code in (InputOutputError.exit_code, *INTERRUPTED):
        logging.shutdown()
        multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]  # temporary folders, semaphores
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _reported(program: str, command: Callable[[], int | None], resume: str) -> int:
    try:
        return command() or EXIT_OK
    except (KeyboardInterrupt, Terminated) as interruption:
        code = EXIT_TERMINATED if isinstance(interruption, Terminated) else EXIT_INTERRUPTED
        if resume:
            print(f"{program}: {INTERRUPTED[code]}. {resume}", file=sys.stderr)
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_ended(sys.stdout):
            raise
        known = _known(error)
        if known is not None:
            print(indented(f"{program}: error: {known.message}\n{known.hint}"), file=sys.stderr)
            return known.exit_code
        print(f"{program}: internal error. {PLEASE_REPORT} Include this traceback:", file=sys.stderr)
        traceback.print_exc()
        return EXIT_SOFTWARE


def _known(error: Exception) -> NeurostormError | None:
    """Convert an exception to an error with a hint; None if it is a bug."""
    if isinstance(error, NeurostormError):
        return error
    if isinstance(error, MemoryError):
        return TemporaryError("Out of memory.", "Use a larger machine or job.")
    hint = "Check the disk, its quota and its mount, then repeat the command: finished steps are kept."
    if isinstance(error, OSError) and error.errno in DISK_ERRORS and (error.filename or error.errno not in NO_SPACE):
        return InputOutputError(f"{error.filename or 'a file'}: {error.strerror}.", hint)
    if says_full(error):
        return InputOutputError(f"no space left on the disk, or the quota is exceeded ({error}).", hint)
    return None


def _reader_has_ended(stream: TextIO) -> bool:
    """Return whether an output stream is a pipe without a reader, as after ``| head``."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
