"""Verdict on a scan or a prediction, as in sidecars."""

from __future__ import annotations

from dataclasses import dataclass

from bids_app.outputs.schema.readers import by_name, one_of, several, text, value_or_text
from bids_app.outputs.schema.record import Record, key, record

LEVELS = PASS, WARN, REFUSE = ("pass", "warn", "refuse")
"""From best to worst."""


@dataclass(frozen=True, kw_only=True)
class CheckRecord(Record):
    """Result of one check; ``value`` is a number or text."""

    name: str = key("Check", text, required=True)
    level: str = key("Level", one_of(*LEVELS), required=True)
    value: float | str | None = key("Value", value_or_text, null=True)
    limits: str | None = key("Limits", text)
    message: str | None = key("Message", text)
    reference: str | None = key("Reference", text)
    """Scans that the limits come from."""


@dataclass(frozen=True, kw_only=True)
class VerdictRecord(Record):
    """Worst level of all checks, the checks, and those that were not possible with the reason."""

    level: str = key("Level", one_of(*LEVELS), required=True)
    checks: tuple[CheckRecord, ...] | None = key("Checks", several(record(CheckRecord)))
    not_known: dict[str, str] | None = key("NotKnown", by_name(text))

    @property
    def failed(self) -> tuple[CheckRecord, ...]:
        """Checks that did not pass."""
        return tuple(check for check in self.checks or () if check.level != PASS)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages of failed checks, worst first."""
        return tuple(c.message for level in (REFUSE, WARN) for c in self.failed if c.level == level and c.message)
