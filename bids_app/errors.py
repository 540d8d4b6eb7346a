"""What can go wrong, said so that a user knows which file it is and what to do next.

Every error that a user can cause or mend is a `NeurostormError` with a `hint` and the exit code of the
draft BIDS execution specification. Anything else is a defect of ours and ends in `EXIT_SOFTWARE`.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOFTWARE = 70
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = {
    EXIT_OK: "done",
    2: "unknown option",
    16: "invalid BIDS",
    17: "unknown analysis level",
    18: "labels or filters matched nothing",
    64: "options that cannot be, or cannot go together",
    65: "bad data",
    66: "no input",
    EXIT_SOFTWARE: "a defect of the program",
    73: "cannot create output",
    74: "input/output error",
    75: "temporary failure, try again",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated",
}
"""What the command's exit codes mean; of several failures the first gives the code."""


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
    """The input is not a BIDS dataset, or breaks its rules in a way that stops us."""

    exit_code = 16


class AnalysisLevelError(NeurostormError):
    """An analysis level that this app does not have."""

    exit_code = 17


class NoMatchError(NeurostormError):
    """Labels or filters that match nothing, or not everything that was asked for."""

    exit_code = 18


class UsageError(NeurostormError):
    """Options that cannot be, or cannot go together."""

    exit_code = 64


class BadDataError(NeurostormError):
    """A file whose content cannot be used: truncated, empty, wrong shape, contradictory."""

    exit_code = 65


class RegistrationError(BadDataError):
    """An alignment that did not pass its gates of similarity, volume and overlap."""


class NoInputError(NeurostormError):
    """An input (dataset, weights, template) that is not where it should be."""

    exit_code = 66


class CannotCreateError(NeurostormError):
    """An output or scratch place that cannot be made or written."""

    exit_code = 73


class InputOutputError(NeurostormError):
    """Reading or writing failed midway: disk full, device error."""

    exit_code = 74


class TemporaryError(NeurostormError):
    """Something that may pass when tried again: out of memory, a lock held by another run."""

    exit_code = 75


class SelfTestError(NeurostormError):
    """An installation that does not compute what it should."""
