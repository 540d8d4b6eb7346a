"""Schema of ``summary.json`` in the log of a participant: outcome of an invocation and its runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from bids_app.outputs.schema.readers import by_name, mapping, number, several, text, whole
from bids_app.outputs.schema.record import Record, key, record

OK, FAILED = "ok", "failed"
RUNNING = "running"
"""Status of an invocation whose runs have not all ended; it stays if the invocation is killed."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome(Record):
    """Outcome of one run."""

    stem: str = key("stem", text, required=True)
    status: str = key("status", text, default=OK)
    """`OK` or `FAILED`."""
    step: str = key("step", text, default="")
    """The step that failed."""
    reason: str = key("reason", text, default="")
    hint: str = key("hint", text, default="")
    exit_code: int | None = key("exit_code", whole)
    """None: not in the log."""
    steps: dict[str, dict[str, float]] = key("steps", by_name(mapping), factory=dict)
    """Run time (s) and peak memory (MB) of each step, from its last run."""
    outputs: tuple[str, ...] = key("outputs", several(text), default=())
    """Output files of this run, relative to the output folder."""
    removed: tuple[str, ...] | None = key("removed", several(text))
    """Files of earlier invocations that this one does not make, and that were removed."""
    warnings: tuple[str, ...] | None = key("warnings", several(text))
    """Warnings of preprocessing, and reasons for the verdict on the scan."""
    inputs: dict[str, str] = key("inputs", by_name(text), factory=dict)
    """SHA-256 of each input file, by BIDS URI."""
    trace: str = field(default="", repr=False)
    """Traceback; written to a separate file."""


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """Summary of an invocation for one participant."""

    run_id: str | None = key("run_id", text)
    participant: str | None = key("participant", text)
    status: str | None = key("status", text)
    """`OK`, `FAILED` or `RUNNING`."""
    exit_code: int | None = key("exit_code", whole)
    started: str | None = key("started", text)
    finished: str | None = key("finished", text)
    seconds: float | None = key("seconds", number)
    peak_memory_mb: float | None = key("peak_memory_mb", number, null=True)
    command: tuple[str, ...] | None = key("command", several(text))
    random_seed: int | None = key("random_seed", whole)
    threads: int | None = key("threads", whole)
    versions: dict[str, str] | None = key("versions", by_name(text))
    weights: dict[str, str] | None = key("weights", by_name(text))
    """SHA-256 of the encoder and adapter files, by path."""
    runs: tuple[RunOutcome, ...] | None = key("runs", several(record(RunOutcome)))
    """Runs that have ended."""
    unfinished: tuple[str, ...] | None = key("unfinished", several(text))
    """Runs that have not ended yet; None if all have."""
