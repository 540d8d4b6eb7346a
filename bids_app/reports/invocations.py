"""Which invocations made the outputs in a report: other configurations, and outputs older than the last invocation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bids_app.outputs.schema import OK, RunFiles, RunOutcome, differing_options


@dataclass(frozen=True)
class Configuration:
    """Configuration with which outputs of the participant were made."""

    name: str
    """Its hash, as in the sidecars."""
    options: dict[str, str]
    """Its options that differ from those of the other configurations."""
    runs: tuple[str, ...]
    """Titles of its runs."""


def find_configurations(titles: Mapping[str, str], known: Mapping[str, RunFiles]) -> tuple[Configuration, ...]:
    """Return the configurations of the outputs of runs.

    Parameters
    ----------
    titles : mapping
        Titles of the runs, by name.
    known : mapping
        What the manifests say, by name of the run.
    """
    options: dict[str, dict[str, str]] = {}
    runs: dict[str, dict[str, None]] = {}
    for stem, title in titles.items():
        for manifest in known.get(stem, RunFiles()).parts.values():
            if manifest.files and manifest.configuration:
                options[manifest.configuration] = manifest.options
                runs.setdefault(manifest.configuration, {})[title] = None
    names = differing_options(options.values())
    return tuple(
        Configuration(name, {key: own.get(key, "n/a") for key in names}, tuple(runs[name]))
        for name, own in options.items()
    )


def describe_earlier(shown: Collection[str], known: RunFiles | None, outcome: RunOutcome | None, finished: str) -> str:
    """Return a sentence on the outputs of a failed run that an earlier invocation made; empty if there are none.

    Parameters
    ----------
    shown : collection of str
        Outputs of the run that the report shows, relative to the output folder.
    known : RunFiles or None
        What the manifests say.
    outcome : RunOutcome or None
        Outcome in the last invocation.
    finished : str
        End of the last invocation, ISO 8601.
    """
    if outcome is None or outcome.status == OK:
        return ""
    older = set(shown).difference(outcome.outputs)
    if not older:
        return ""
    dates = sorted(m.published for m in (known or RunFiles()).parts.values() if older.intersection(m.files))
    of_date = f" of {as_words(dates[0])}" if dates else ""
    last = f" of {as_words(finished)}" if finished else ""
    return (
        f"The run failed in the invocation{last}. The following was made by an earlier invocation{of_date}, perhaps "
        "with other options or data."
    )


def as_words(time: str) -> str:
    """Format an ISO 8601 time for the report."""
    return time.replace("T", " ")
