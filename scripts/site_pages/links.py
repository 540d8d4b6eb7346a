"""Links between files of the repository, as links between pages of the site.

Pages are written so that their links work where the repository is read. On the site, a link to a file that is no page
leads to its copy (`ASSETS`), or to the repository; without a public address of the repository, only its name is shown.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from bids_app import REPOSITORY

ROOT = Path(__file__).parents[2]
ROOT_PAGES = {
    "README.md": "docs/index.md",
    "CONTRIBUTING.md": "docs/development.md",
    "CHANGELOG.md": "docs/changelog.md",
    "SECURITY.md": "docs/security.md",
    "benchmarks/README.md": "docs/benchmarks.md",
}
"""Pages that are made from files outside ``docs``; the README is replaced by the first page of the site."""
TEXT_PAGES = {"LICENSE": "docs/license.md", "NOTICE": "docs/notice.md"}
"""Pages that are made from plain text."""
ASSETS = (".webp", ".png", ".svg", ".bib", ".yml", ".sbatch", ".cff")
"""Endings of files that the site has a copy of."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def links_of(text: str) -> list[str]:
    """Return the targets of the links of a page, without those in code."""
    return [found[3] for found in LINK.finditer(CODE.sub("", text))]


def is_relative(target: str) -> bool:
    """Return whether a link leads to another file."""
    return not re.match(r"[a-z][a-z+.-]*:|#|//", target)


def site_links(text: str, source: str) -> tuple[str, set[str]]:
    """Rewrite the links of a page for the site.

    Parameters
    ----------
    text : str
        Markdown.
    source : str
        Path of the page in the repository.

    Returns
    -------
    tuple
        The text, and the paths of the files of the repository outside ``docs`` that it shows or links to.
    """
    copied: set[str] = set()
    page = {**ROOT_PAGES, **TEXT_PAGES}.get(source, source)

    def rewrite(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        if not is_relative(target):
            return found[0]
        path, sign, fragment = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
        goal = {**ROOT_PAGES, **TEXT_PAGES}.get(path, path)
        if not goal.startswith("docs/"):
            if not goal.endswith(ASSETS):
                return f"{mark}[{words}]({REPOSITORY}/blob/main/{goal})" if REPOSITORY else words
            copied.add(goal)
            goal = f"docs/{goal}"
        return f"{mark}[{words}]({posixpath.relpath(goal, posixpath.dirname(page))}{sign}{fragment})"

    parts, start = [], 0
    for code in CODE.finditer(text):
        parts += [LINK.sub(rewrite, text[start : code.start()]), code[0]]
        start = code.end()
    return "".join([*parts, LINK.sub(rewrite, text[start:])]), copied
