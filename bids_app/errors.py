"""Exceptions and exit codes.

Every error that a user can cause or fix is a `NeurostormError`: a message that names the file, a `hint` and the exit
code of the draft BIDS execution specification. Any other exception is a bug of this program (`EXIT_SOFTWARE`).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_UNKNOWN_OPTION = 2
EXIT_SOFTWARE = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143

EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_UNKNOWN_OPTION: "unknown option",
    16: "invalid BIDS",
    17: "unknown analysis level",
    18: "labels or filters matched nothing",
    64: "invalid or conflicting options",
    65: "invalid data",
    66: "missing input",
    EXIT_SOFTWARE: "internal error",
    73: "cannot create output",
    74: "input/output error",
    75: "temporary failure, try again",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_BROKEN_PIPE: "the reader of the output ended",
    EXIT_TERMINATED: "terminated",
}
"""Exit codes of the command and their meanings. After several failures, the first one sets the exit code."""


class Terminated(BaseException):
    """SIGTERM, from a job scheduler or ``docker stop``."""


class NeurostormError(Exception):
    """Base of the errors shown to users.

    Parameters
    ----------
    message : str
        What happened, naming the file.
    hint : str
        What to do next; one or two sentences.
    """

    exit_code = EXIT_SOFTWARE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both in args, so that the error survives pickling
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidBIDSError(NeurostormError):
    """The input is not a valid BIDS dataset."""

    exit_code = 16


class AnalysisLevelError(NeurostormError):
    """Unknown analysis level."""

    exit_code = 17


class NoMatchError(NeurostormError):
    """Labels or filters that match no data, or only part of what was requested."""

    exit_code = 18


class UsageError(NeurostormError):
    """Invalid or conflicting options."""

    exit_code = 64


class BadDataError(NeurostormError):
    """Unusable file content: truncated, empty, wrong shape, contradictory."""

    exit_code = 65


class RegistrationError(BadDataError):
    """Failed registration: similarity, brain volume or overlap is outside its limits."""


class NoInputError(NeurostormError):
    """Missing input: dataset, weights or template."""

    exit_code = 66


class CannotCreateError(NeurostormError):
    """The output or scratch folder cannot be created or written."""

    exit_code = 73


class InputOutputError(NeurostormError):
    """Failed reading or writing: disk full, device error."""

    exit_code = 74


class TemporaryError(NeurostormError):
    """Failure that may disappear on a retry: out of memory, participant locked by another run."""

    exit_code = 75


class SelfTestError(NeurostormError):
    """The installation computes wrong numbers."""
