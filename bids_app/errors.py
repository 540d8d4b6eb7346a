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

    Attributes
    ----------
    exit_code : int
    cause, remedy : str
        Usual cause and what to do, for the documentation; each class has its own.
    """

    exit_code = EXIT_SOFTWARE
    cause = ""
    remedy = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both in args, so that the error survives pickling
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidBIDSError(NeurostormError):
    """The input is not a valid BIDS dataset."""

    exit_code = 16
    cause = (
        "The folder is no BIDS dataset, or a file of the dataset that is needed for the description is missing or "
        "not valid."
    )
    remedy = (
        "Check the dataset with the BIDS validator, and correct the file that the message names. "
        "`--skip-bids-validation` continues without a readable `dataset_description.json`."
    )


class AnalysisLevelError(NeurostormError):
    """Unknown analysis level."""

    exit_code = 17
    cause = "The third argument is neither `participant` nor `group`."
    remedy = "Use `participant` to process runs, and `group` for tables over all runs."


class NoMatchError(NeurostormError):
    """Labels or filters that match no data, or only part of what was requested."""

    exit_code = 18
    cause = "Participants, sessions, tasks or filters select no run, or some of the labels do not exist."
    remedy = "Compare the labels with the names of the files. `--check` lists what is selected."


class UsageError(NeurostormError):
    """Invalid or conflicting options."""

    exit_code = 64
    cause = "An option has an invalid value, contradicts another one, or has no effect with it."
    remedy = "Change the options that the message names; `--help` describes them."


class BadDataError(NeurostormError):
    """Unusable file content: truncated, empty, wrong shape, contradictory."""

    exit_code = 65
    cause = (
        "A file can be read, but its content cannot be used: truncated, empty, of the wrong shape, or in "
        "contradiction to its sidecar."
    )
    remedy = (
        "Correct or replace the file that the message names. Other runs are processed; repeat the command for this one."
    )


class RegistrationError(BadDataError):
    """Failed registration: similarity, brain volume or overlap is outside its limits."""

    cause = "An alignment is outside its limits of similarity, brain volume or overlap, also after it was repeated."
    remedy = (
        "Open the images side by side: wrong orientation, another person, a field of view that cuts the brain, or "
        "strong artefacts are the usual causes."
    )


class NoInputError(NeurostormError):
    """Missing input: dataset, weights or template."""

    exit_code = 66
    cause = "A dataset, file, template, atlas or model is not on this machine. Nothing is downloaded during a run."
    remedy = "Correct the path, or fetch the weights (`neurostorm-models fetch`) or templates before the run."


class CannotCreateError(NeurostormError):
    """The output or scratch folder cannot be created or written."""

    exit_code = 73
    cause = "The output or scratch folder cannot be created or written, or it has the outputs of another program."
    remedy = "Choose another folder, or change its permissions."


class InputOutputError(NeurostormError):
    """Failed reading or writing: disk full, device error."""

    exit_code = 74
    cause = (
        "Reading or writing failed: the disk is full, a quota is used up, or a device or network file system has "
        "an error."
    )
    remedy = "Free some space or check the file system, then repeat the command; finished steps are kept."


class TemporaryError(NeurostormError):
    """Failure that may disappear on a retry: out of memory, participant locked by another run."""

    exit_code = 75
    cause = (
        "Something failed that may succeed later: too little memory, a killed process, a participant that another "
        "process works on, or a server that does not answer."
    )
    remedy = (
        "Repeat the command, with more memory (`--mem`) or fewer processes (`--nprocs`) if the message says so. "
        "Finished steps are kept."
    )


class SelfTestError(NeurostormError):
    """The installation computes wrong numbers."""

    cause = "The installation computes other numbers than those that were recorded for the demonstration model."
    remedy = (
        "Install the versions of `requirements/constraints.txt` in a new environment. If it fails again, report "
        "it with the output of `neurostorm --self-test`."
    )
