"""``summary.json`` of a participant's log: how an invocation and each of its runs ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from bids_app.outputs.schema.readers import by_name, mapping, number, several, text, whole
from bids_app.outputs.schema.record import Record, key, record

OK, FAILED = "ok", "failed"


@dataclass(frozen=True, kw_only=True)
class RunOutcome(Record):
    """How one run ended."""

    stem: str = key("stem", text, required=True)
    status: str = key("status", text, default=OK)
    """`OK` or `FAILED`."""
    step: str = key("step", text, default="")
    """The step that failed."""
    reason: str = key("reason", text, default="")
    hint: str = key("hint", text, default="")
    exit_code: int | None = key("exit_code", whole)
    """None: the log does not say."""
    steps: dict[str, dict[str, float]] = key("steps", by_name(mapping), factory=dict)
    """Seconds and peak memory (MB) of each step, as last run."""
    outputs: tuple[str, ...] = key("outputs", several(text), default=())
    """Files of this run, relative to the output folder."""
    inputs: dict[str, str] = key("inputs", by_name(text), factory=dict)
    """The sha256 of each image and table that it was made from, by BIDS URI."""
    trace: str = field(default="", repr=False)
    """Where it crashed; in a file of its own."""


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """How an invocation went for one participant."""

    run_id: str | None = key("run_id", text)
    participant: str | None = key("participant", text)
    status: str | None = key("status", text)
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
    """The sha256 of the files of encoder and adapters, by their paths."""
    runs: tuple[RunOutcome, ...] | None = key("runs", several(record(RunOutcome)))
