"""Markdown to HTML for the subset of Markdown in our own texts; all other text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

LINK = re.compile(r"\[([^\]]+)\]\((https?://[^\s)]+)\)")
INLINE = ((re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"), (re.compile(r"\*(.+?)\*"), r"<em>\1</em>"))
CODE = re.compile(r"`([^`]+)`")


def to_html(text: str, top_level: int = 1) -> str:
    """Convert headings, paragraphs, lists, links, emphasis and code to HTML.

    Parameters
    ----------
    text : str
        Markdown.
    top_level : int
        HTML heading level of ``#``.
    """
    return "\n".join(_blocks(text, top_level))


def page(text: str, title: str) -> str:
    """Render a self-contained HTML page."""
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.6 system-ui,sans-serif;max-width:46rem;margin:2rem auto;"
        "padding:0 1rem}"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{to_html(text)}\n</body>\n</html>\n"
    )


def _blocks(text: str, top_level: int) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text.strip()):
        if not block.strip():
            continue
        lines = block.splitlines()
        heading = re.match(r"(#+)\s+(.*)", block)
        if heading:
            level = min(6, len(heading[1]) + top_level - 1)
            yield f"<h{level}>{_inline(heading[2])}</h{level}>"
            rest = "\n".join(lines[1:])
            if rest.strip():
                yield from _blocks(rest, top_level)
        elif all(line.startswith(("- ", "  ")) for line in lines):
            items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
            yield "<ul>" + "".join(f"<li>{_inline(' '.join(item.split()))}</li>" for item in items) + "</ul>"
        else:
            yield f"<p>{_inline(' '.join(block.split()))}</p>"


def _inline(text: str) -> str:
    """Convert inline markup; code and links are replaced by placeholders so that their content is not converted."""
    kept: list[str] = []

    def keep(html: str) -> str:
        kept.append(html)
        return f"\0{len(kept) - 1}\0"

    text = CODE.sub(lambda match: keep(f"<code>{escape(match[1])}</code>"), text.replace("\0", ""))
    text = LINK.sub(lambda match: keep(f'<a href="{escape(match[2])}">{escape(match[1])}</a>'), text)
    text = escape(text, quote=False)
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text)
