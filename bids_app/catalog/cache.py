"""Folder of downloaded files: weights, atlases and files of the hub."""

from __future__ import annotations

import os
from pathlib import Path

from bids_app.settings import home_dir

CACHE_VARIABLE = "NEUROSTORM_CACHE"
"""Environment variable with the folder of downloaded weights."""


def cache_dir() -> Path:
    """Return the folder of downloaded weights: ``NEUROSTORM_CACHE``, or ``neurostorm`` in the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else home_dir() / ".cache") / "neurostorm"
