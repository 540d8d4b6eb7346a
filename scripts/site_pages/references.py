"""References and the sentences of the methods text, from ``boilerplate.bib`` and ``methods.yml``."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from bids_app.outputs.boilerplate import bibliography as known
from site_pages.markdown import code, escape, table

CITED = re.compile(r"\[@([^\]]+)\]")


def bibliography() -> str:
    """List all references in alphabetical order, with anchors ``ref-KEY``."""
    found = sorted(known().values(), key=lambda each: each.full.casefold())
    return "\n".join(f'- <a id="ref-{reference.key}"></a>{reference.full}' for reference in found)


def methods_text() -> str:
    """List the sentences of the methods text by section; braces are values of a run."""
    content = _content()
    parts = []
    for section, names in content["sections"].items():
        rows = [[code(name), _linked(content["steps"][name])] for name in names]
        parts += [f"**{section}**", table(["step", "sentences"], rows)]
    return "\n\n".join(parts)


def _content() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(files("bids_app.outputs").joinpath("methods.yml").read_text(encoding="utf-8"))


def _linked(text: str) -> str:
    """Link citations to the list of references; those that depend on the run stay as they are."""
    parts = CITED.split(text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            parts[index] = escape(part)
        elif part in known():
            parts[index] = f"([{escape(known()[part].short)}](#ref-{part}))"
        else:
            parts[index] = f"({code(part)})"
    return "".join(parts)
