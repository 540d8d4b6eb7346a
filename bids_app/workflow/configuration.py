"""Configuration of a run: the options that decide its numbers, with the version of the program, and their hash.

The hash is in all sidecars. Options that only decide which files are written, or how fast, are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.query import BoldRun
from bids_app.catalog.fetch import file_sha256
from bids_app.workflow.context import RunContext

WITHOUT_EFFECT = {
    "output_spaces",
    "denoise",
    "timeseries",
    "output_clips",
    "device",
    "embeddings_only",
    "acknowledge_research_use",
    "allow_untrained",
    "fail_without_t1w",
}
"""Fields of the settings of preprocessing and model that change no number of a file."""
HASH_LENGTH = 8
"""Hexadecimal digits, as in fMRIPrep's output layout ``multiverse``."""


def number_options(run: BoldRun, context: RunContext) -> dict[str, str]:
    """Return the options that decide the numbers of a run, as text.

    Parameters
    ----------
    run : BoldRun
    context : RunContext

    Returns
    -------
    dict
        By name of the option; ``version`` is that of the program, ``input`` the pipeline of ingested derivatives.
    """
    settings = context.settings
    found: dict[str, Any] = {
        "version": __version__,
        "input": run.derived.pipeline if run.derived else "raw",
        "template": context.template,
    }
    for section in (settings.preprocess, settings.model):
        found |= {part.name: getattr(section, part.name) for part in fields(section)}
    hashes, adapters = context.model.hashes, {str(path) for path in context.model.adapters}
    # files count by their content, not by their names
    found["model"] = " ".join(sha for path, sha in hashes.items() if path not in adapters)
    if (wrapper := context.model.wrapper) is not None:
        own = (wrapper.title, wrapper.version, wrapper.source_sha256, wrapper.weights_sha256)
        found["model"] = " ".join((*own, found["model"]))
        found["model_options"] = tuple(option for option in wrapper.options if not _names_file(option))
    else:
        del found["model_options"]
    found["adapters"] = " ".join(sorted(sha for path, sha in hashes.items() if path in adapters))
    found["atlas"] = _content_hash(context.atlas.path, context.atlas_stamp) if context.atlas else ""
    if settings.preprocess.timeseries and settings.preprocess.denoise:
        found["timeseries_denoise"] = settings.preprocess.denoise  # tables of other strategies have the same names
    return {name: as_text(value) for name, value in found.items() if name not in WITHOUT_EFFECT}


def _names_file(option: str) -> bool:
    """Return whether the value of ``KEY=VALUE`` is a file, whose content counts."""
    return os.path.isabs(option.partition("=")[2])


def configuration_hash(options: Mapping[str, str]) -> str:
    """Return the short hash of a configuration."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def as_text(value: Any) -> str:
    """Return the text of an option: ``none`` if it is not set, lists sorted."""
    if value is None or value == () or value == "":
        return "none"
    return " ".join(sorted(map(str, value))) if isinstance(value, tuple) else str(value)


@cache
def _content_hash(path: Path, stamp: str) -> str:
    """Hash a file once for all runs, until its stamp changes."""
    return file_sha256(path)
