"""Markdown tables and text from strings of the package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CODE_SPAN = re.compile(r"(`+[^`]+`+)")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; cells are Markdown on one line."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(one_line(cell) for cell in line)} |" for line in lines)


def one_line(text: str) -> str:
    """Put a cell on one line; a vertical line does not end it."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def escape(text: str) -> str:
    """Show plain text as it is: no tags, emphasis or links; text between backticks stays code."""
    parts = CODE_SPAN.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"([\\*_\[\]{}$~^])", r"\\\1", parts[index]).replace("<", "&lt;").replace(">", "&gt;")
    return "".join(parts)


def code(text: str) -> str:
    """Show text as code, also with backticks or vertical lines in it."""
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def anchor(*words: str) -> str:
    """Make the name of an anchor."""
    return "-".join(re.sub(r"[\W_]+", "-", word).strip("-").lower() for word in words)


def sentence(text: str) -> str:
    """Return the first paragraph of a docstring on one line, without reST's double backticks."""
    return " ".join(text.strip().partition("\n\n")[0].replace("``", "`").split())
