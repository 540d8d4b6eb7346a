"""Conversion of command-line text to settings values, and back."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_app.errors import AnalysisLevelError, BadDataError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, parse_json, read_text

PARTICIPANT, GROUP = "participant", "group"
SIZE_UNITS_GB = {"MB": 1 / 1000, "MIB": 1 / 953.674, "GB": 1.0, "GIB": 1.073742, "TB": 1000.0}


def absolute_path(text: str) -> Path:
    """Return the absolute path."""
    return Path(text).absolute()


def known_level(text: str) -> str:
    """Check the analysis level.

    Raises
    ------
    AnalysisLevelError
        Unknown level.
    """
    if text not in (PARTICIPANT, GROUP):
        raise AnalysisLevelError(f"Unknown analysis level '{text}'.", f"Use '{PARTICIPANT}' or '{GROUP}'.")
    return text


def labels(prefix: str) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """Make a parser of labels that strips a prefix such as ``sub-`` and removes duplicates."""

    def strip(given: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label.removeprefix(prefix) for label in given))

    return strip


def memory_gb(text: str) -> float:
    """Convert a size such as ``8GB`` or ``8000MB`` to GB; a number without a unit is an error."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    if not match or match[2].upper() not in SIZE_UNITS_GB:
        raise argparse.ArgumentTypeError(f"'{text}' has no unit; write 8GB or 8000MB")
    return float(match[1]) * SIZE_UNITS_GB[match[2].upper()]


def write_memory(gigabytes: float) -> str:
    """Write a size that `memory_gb` reads back exactly."""
    return f"{gigabytes!r}GB"


def strip_resolution(space: str) -> str:
    """Strip ``:res-2``, the only available resolution, from the name of a space."""
    name, _, resolution = space.partition(":")
    if resolution not in ("", "res-2", "res-02"):
        raise UsageError(
            f"Invalid value for --output-spaces: {space}; only 2 mm resolution is available.",
            f"Use {name} or {name}:res-2.",
        )
    return name


def output_spaces(given: Sequence[str]) -> tuple[str, ...]:
    """Strip the resolution from names of spaces."""
    return tuple(map(strip_resolution, given))


def file_or_name(text: str) -> str:
    """Make a file path absolute, since steps change the folder; leave names of the catalog unchanged."""
    path = Path(text)
    return str(path.absolute()) if os.sep in text or (path.suffix and os.path.isfile(path)) else text


def files_or_names(given: Sequence[str]) -> tuple[str, ...]:
    """Apply `file_or_name` to each item."""
    return tuple(map(file_or_name, given))


def named_paths(items: Sequence[str]) -> dict[str, Path]:
    """Parse ``NAME=PATH`` items; a path without a name is named after its folder."""
    found: dict[str, Path] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator:
            name, path = Path(item).absolute().name, item
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "raw" or name in found:
            raise UsageError(
                f"Invalid value for --derivatives: {item}; '{name}' is not a valid name.",
                "Write NAME=PATH with unique names of letters, digits, - and _; 'raw' is reserved.",
            )
        found[name] = Path(path).absolute()
    return found


def write_named_paths(paths: Mapping[str, Path]) -> list[str]:
    """Write ``NAME=PATH`` items that `named_paths` reads."""
    return [f"{name}={path}" for name, path in paths.items()]


def read_filters(text: str) -> dict[str, dict[str, Any]]:
    """Read the filters of ``--bids-filter-file``: a path of a JSON file, or JSON text.

    ``neurostorm.toml`` stores the filters as JSON text (TOML has no null), so that a repeated run selects the same
    files even if the filter file was changed or moved.
    """
    is_content = text.lstrip().startswith("{")
    name = "--bids-filter-file" if is_content else text
    try:
        content = parse_json(text if is_content else read_text(Path(text), MAX_OPTIONS_BYTES), name)
    except BadDataError as error:
        raise UsageError(error.message, "See --bids-filter-file in the README.") from error
    if not isinstance(content, dict) or not all(isinstance(filters, dict) for filters in content.values()):
        raise UsageError(
            f"{name}: expected an object of objects.", 'For example: {"bold": {"task": "rest"}, "t1w": {}}'
        )
    return content


def write_filters(filters: Mapping[str, Any]) -> str:
    """Write the filters as JSON; empty text if there are none."""
    return json.dumps(filters, ensure_ascii=False) if filters else ""
