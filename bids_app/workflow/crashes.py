"""Errors of processes that a signal ended, and that could not report anything themselves."""

from __future__ import annotations

import signal

from bids_app import PLEASE_REPORT
from bids_app.errors import InputOutputError, NeurostormError, TemporaryError


def error_of_crash(what: str, number: signal.Signals, more_memory: str) -> NeurostormError:
    """Return the error of a process that a signal ended.

    Parameters
    ----------
    what : str
        ``run``, or the name of a step.
    number : signal.Signals
    more_memory : str
        How to give it more memory, as the start of a sentence.
    """
    if number == signal.SIGKILL:
        return TemporaryError(
            f"The {what} was killed, probably out of memory.",
            f"{more_memory}, and repeat the command: finished steps are kept.",
        )
    if number == signal.SIGBUS:
        return InputOutputError(
            f"The {what} crashed (SIGBUS): a file became shorter while it was read, or its disk failed.",
            "Check that no other program changes the dataset or the scratch folder, and repeat the command: finished "
            "steps are kept.",
        )
    return NeurostormError(
        f"The {what} crashed ({number.name}). {PLEASE_REPORT}", "Repeat the command: finished steps are kept."
    )
