"""Model cards: intended use, training cohort, performance and limits of a model or an adapter.

A card is Markdown text, made from facts under the names of sidecar keys. So a file (`neurostorm-models card`) and the
outputs of a run (the report) give the same card. Missing facts are shown as not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bids_app.catalog.models import Entry

KNOWN = Path(__file__).with_name("cards.yml")
NOT_KNOWN = "not known"

DISCLAIMER = (
    "**Not a medical device.** Predictions are research results, not findings about a person. Do not base decisions "
    "about a person on them."
)
RESEARCH_ONLY = (
    "**For research on groups only.** It predicts a diagnosis, which is not valid as a claim about a person. It is off "
    "until this is acknowledged (`--acknowledge-research-use`)."
)
DEMONSTRATION = (
    "**Demonstration model.** It was trained on simulated scans; its predictions say nothing about a real person."
)
UNTRAINED = "**Untrained model.** Weights of the encoder are random. Use its embeddings as a control only."

SECTIONS: dict[str, dict[str, str]] = {
    "Overview": {
        "Description": "Description",
        "Target": "Target",
        "Task": "Task",
        "Labels": "Labels",
        "Unit": "Unit",
        "Strategy": "Training strategy",
        "LowRankUpdates": "Low-rank updates",
        "ClipAverage": "Prediction of a run",
        "Parameters": "Encoder parameters",
        "Source": "Source",
    },
    "Intended use": {"IntendedUse": ""},
    "Training cohort": {},
    "Inputs and ranges": {"Inputs": "Input", "Normalisation": "Normalisation"},
    "Metrics": {"Metrics": ""},
    "Calibration": {},
    "Limits": {"Limits": ""},
    "Licence": {"License": ""},
    "Citation": {"Citation": ""},
    "Hashes": {
        "EncoderSHA256": "Encoder, SHA-256 of the weights",
        "WeightsSHA256": "Encoder, SHA-256 of the weights",
        "FileSHA256": "File, SHA-256",
    },
}
"""Sections of a card, with the facts of each and their labels; a section without facts says so."""

RANGES = {
    "tr": ("repetition time", "s"),
    "duration": ("duration", "s"),
    "fd_mean": ("mean framewise displacement", "mm"),
    "tsnr": ("temporal SNR", ""),
    "age": ("age", "years"),
}
"""Names and units of the ranges of a training cohort."""

COHORT = ("description", "participants", "scans", "ages", "sexes", "sites", "scanners")
"""Facts that are always shown for a training cohort."""


@cache
def known_facts() -> dict[str, dict[str, Any]]:
    """Read the facts about the catalog's models beyond their files, by name."""
    import yaml

    return yaml.safe_load(KNOWN.read_text(encoding="utf-8"))


def describe_model(entry: Entry, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect the facts for the card of an encoder.

    Parameters
    ----------
    entry : Entry
        Entry of the catalog; of a user-supplied file, only ``info`` is known.
    info : mapping, optional
        Metadata of the file; overrides the catalog.
    """
    facts: dict[str, Any] = {"Model": entry.name, "Description": entry.description, "License": entry.licence}
    if entry.repo:
        facts["Source"] = f"{entry.repo}, revision {entry.revision}, {entry.file}"
    names = {"target": "Target", "task": "Task", "labels": "Labels", "unit": "Unit", "research_only": "ResearchOnly"}
    facts |= {name: entry.head[key] for key, name in names.items() if key in entry.head}
    if not entry.own:
        facts |= known_facts().get(entry.name, {})
    info = info or {}
    cohort = info.get("cohort")
    from_file = {
        "IntendedUse": info.get("intended_use"),
        "License": info.get("licence"),
        "Metrics": info.get("metrics"),
        "TrainingCohort": {"description": cohort} if isinstance(cohort, str) else cohort,
    }
    return facts | {name: value for name, value in from_file.items() if value}


def card_markdown(facts: Mapping[str, Any]) -> str:
    """Write the card of a model or an adapter as Markdown.

    Parameters
    ----------
    facts : mapping
        From `describe_model`, `bids_app.outputs.cards.describe_adapter`, or a sidecar; an adapter has ``Adapter``.
    """
    title = f"Adapter {facts['Adapter']}" if "Adapter" in facts else f"Model {facts.get('Model', NOT_KNOWN)}"
    blocks = [f"# {_line(title)}", DISCLAIMER]
    blocks += [RESEARCH_ONLY] if facts.get("ResearchOnly") else []
    blocks += [DEMONSTRATION] if facts.get("Demonstration") else []
    blocks += [UNTRAINED] if facts.get("Untrained") else []
    for section, names in SECTIONS.items():
        blocks.append(f"## {section}")
        items = list(SPECIAL[section](facts) if section in SPECIAL else _items(facts, names))
        blocks.append("\n".join(f"- {item}" for item in items) or "Not known.")
    return "\n\n".join(blocks) + "\n"


def plain(value: Any) -> str:
    """Format a sidecar value for readers, without braces and quotes."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "n/a"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _items(facts: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """Yield lines for the known facts; an unlabelled dictionary gives one line per entry."""
    for key, name in names.items():
        value = facts.get(key)
        if value in (None, "", [], {}, ()):
            continue
        if isinstance(value, dict) and not name:
            yield from (_line(f"{part}: {plain(item)}") for part, item in value.items())
        else:
            yield _line(f"{name}: {plain(value)}" if name else plain(value))


def _cohort(facts: Mapping[str, Any]) -> Iterator[str]:
    cohort = facts.get("TrainingCohort")
    cohort = cohort if isinstance(cohort, dict) else {"description": cohort} if cohort else {}
    known = {name: cohort.get(name) or NOT_KNOWN for name in COHORT if name != "description" or name in cohort}
    for name, value in (known | cohort).items():
        yield _line(f"{str(name).replace('_', ' ').capitalize()}: {plain(value)}")


def _inputs(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from _items(facts, SECTIONS["Inputs and ranges"])
    ranges = facts.get("Ranges")
    for check, ends in (ranges if isinstance(ranges, dict) else {}).items():
        name, unit = RANGES.get(check, (check, ""))
        shown = " to ".join(map(plain, ends)) if isinstance(ends, list) else plain(ends)
        yield _line(f"Training range of {name}: {shown} {unit}")


def _calibration(facts: Mapping[str, Any]) -> Iterator[str]:
    has_own_head = "Adapter" not in facts and "Task" in facts
    if facts.get("AdapterCalibration"):
        yield from _items(facts, {"AdapterCalibration": ""})
    elif "AdapterCalibration" in facts or has_own_head:
        yield "Not calibrated: no prediction intervals or sets are available."
    elif "Adapter" not in facts:
        yield "An encoder makes no predictions; its adapters are calibrated."


SPECIAL = {"Training cohort": _cohort, "Inputs and ranges": _inputs, "Calibration": _calibration}
"""Sections with a layout of their own."""


def _line(text: str) -> str:
    """Put text on one line, so that it cannot start a heading or list."""
    return " ".join(text.split())
