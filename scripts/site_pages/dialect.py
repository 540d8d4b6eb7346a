"""Lists and tables as Python-Markdown reads them.

Code hosts accept less indentation, and lists and tables directly below a paragraph or a block of code.
"""

from __future__ import annotations

import re

ITEM = re.compile(r"( *)([-*+]|\d+[.)])( +)(?=\S)")
FENCE = re.compile(r" *(```|~~~)")
STEP = 4
"""Spaces of a level."""


def for_python_markdown(text: str) -> str:
    """Indent the content of lists by four spaces for each level, and put a blank line before lists and tables."""
    found: list[str] = []
    contents: list[int] = []  # column at which the content of each open level starts
    fence, before, was_item, is_loose = "", "", False, False
    for line in text.splitlines():
        stripped = line.lstrip(" ")
        column = len(line) - len(stripped)
        if not stripped:
            found.append("")
            before, is_loose = "", bool(contents)
            continue
        item = None if fence else ITEM.match(line)
        if not fence:
            lazy = before and not item and contents and not FENCE.match(line)  # continues the paragraph above
            while contents and column < contents[-1] and not lazy:
                contents.pop()
        inside = contents[-1] if contents else 0
        indent = " " * (STEP * len(contents) + max(0, column - inside))
        if item:
            contents.append(len(item[0]))
            if before and (is_loose or (not was_item and len(contents) == 1)):
                found.append("")
            rest = line[len(item[0]) :]
            found.append(f"{' ' * (STEP * (len(contents) - 1))}{(item[2] + ' ').ljust(STEP)}{rest}")
        else:
            if stripped.startswith("|") and not fence and before and not before.lstrip().startswith("|"):
                found.append("")
            found.append(indent + stripped)
        mark = FENCE.match(line)
        if mark:
            fence = "" if fence else mark[1]
        was_item = bool(item) or (was_item and bool(contents))
        is_loose = is_loose and bool(contents)
        before = line
    return "\n".join(found) + "\n"
