"""Models, adapters, atlases and templates of the catalog, and their cards."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bids_app.catalog import atlases as known_atlases
from bids_app.catalog import templates as known_templates
from bids_app.catalog.cards import card_markdown, describe_model
from bids_app.catalog.models import Entry, catalog
from site_pages.markdown import anchor, code, escape, table


def models() -> str:
    """List the encoders of the catalog, and fine-tuned files with a head."""
    return _entries(catalog("models").values())


def adapters() -> str:
    """List the adapters of the catalog."""
    return _entries(catalog("adapters").values())


def _entries(entries: Iterable[Entry]) -> str:
    rows = [
        [
            f"[{code(entry.name)}](#{card_anchor(entry)})",
            escape(entry.description),
            f"{entry.size / 1e6:.0f} MB" if entry.size else "",
            escape(str(entry.licence or "")),
            code(f"{entry.repo}@{entry.revision[:7]}:{entry.file}") if entry.repo else "part of the package",
        ]
        for entry in entries
    ]
    return table(["name", "content", "size", "licence", "source"], rows)


def card_anchor(entry: Entry) -> str:
    """Return the anchor of a card on the page."""
    return anchor("card", entry.name)


def cards() -> str:
    """Write the cards of all models and adapters.

    Facts in the files are those of the package only, so that the page is the same on every machine.
    """
    from bids_app.outputs.cards import adapter_facts, model_facts

    parts = []
    for kind, entries, from_file in (
        ("Model", catalog("models"), model_facts),
        ("Adapter", catalog("adapters"), adapter_facts),
    ):
        for entry in entries.values():
            facts = describe_model(entry) if entry.repo else from_file(entry)
            text = card_markdown(facts).partition("\n")[2].strip()
            text = re.sub(r"^## (.+)$", r"**\1**", text, flags=re.MULTILINE)
            parts.append(f"### {kind} {code(entry.name)} {{ #{card_anchor(entry)} }}\n\n{text}")
    return "\n\n".join(parts)


def atlases() -> str:
    """List the atlases of the catalog."""
    rows = [
        [code(name), escape(entry["title"]), escape(entry["licence"]), code(" ".join(entry["get"].split()))]
        for name, entry in known_atlases.catalog().items()
    ]
    return table(["name", "content", "licence", "how to get it"], rows)


def templates() -> str:
    """List the templates of the catalog."""
    rows = [
        [code(name), escape(str(entry.get("title", ""))), escape(str(entry.get("accuracy", "exact")))]
        for name, entry in known_templates.catalog().items()
    ]
    return table(["name", "content", "mapping to the model's space"], rows)
