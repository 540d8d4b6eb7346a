"""Directives of mkdocstrings for the public interface in Python; docstrings are read without importing the package."""

from __future__ import annotations

from bids_app import _HOMES


def public_names() -> str:
    """Return a directive for each public function and class."""
    return "\n\n".join(f"::: {home}.{name}" for name, home in sorted(_HOMES.items(), key=lambda item: item[0].lower()))
