"""Parts of the documentation that are made from the package when the site is built.

A page of ``docs/`` marks each of them with a comment; what stands below the comment up to `END` is shown where the page
is read in the repository, and is replaced on the site:

    <!-- generated: options neurostorm -->
    `neurostorm --help` lists all options.
    <!-- end -->

Only the package is needed, not the program that builds the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from site_pages import catalog, columns, interface, messages, metrics, options, references, sidecars

PARTS: dict[str, Callable[[], str]] = {
    **{f"options {name}": partial(options.describe_command, name) for name in options.COMMANDS},
    "exit codes": messages.exit_codes,
    "error classes": messages.error_classes,
    "error messages": messages.error_messages,
    "columns": columns.describe_tables,
    "sidecars": sidecars.describe_sidecars,
    "summary": sidecars.describe_summary,
    "manifest": sidecars.describe_manifest,
    "quality metrics": metrics.quality_metrics,
    "checks": metrics.checks,
    "figures": metrics.figures,
    "models": catalog.models,
    "adapters": catalog.adapters,
    "atlases": catalog.atlases,
    "templates": catalog.templates,
    "cards": catalog.cards,
    "python interface": interface.public_names,
    "references": references.bibliography,
    "methods text": references.methods_text,
}
"""Text of each part, by its name in the comment."""

MARKED = re.compile(r"^<!-- generated: ([\w -]+) -->\n(.*?)^<!-- end -->\n", re.MULTILINE | re.DOTALL)


def fill(text: str) -> str:
    """Replace the marked parts of a page.

    Raises
    ------
    KeyError
        A part that is not known.
    """
    return MARKED.sub(lambda found: PARTS[found[1]]().strip("\n") + "\n", text)


def parts_of(text: str) -> list[str]:
    """Return the names of the marked parts of a page."""
    return [found[1] for found in MARKED.finditer(text)]
