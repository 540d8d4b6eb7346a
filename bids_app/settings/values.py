"""From the words of the command line to the values that settings hold, and back."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_app.errors import AnalysisLevelError, UsageError

PARTICIPANT, GROUP = "participant", "group"
SIZE_UNITS_GB = {"MB": 1 / 1000, "MIB": 1 / 953.674, "GB": 1.0, "GIB": 1.073742, "TB": 1000.0}


def absolute_path(text: str) -> Path:
    """A path from the root."""
    return Path(text).absolute()


def known_level(text: str) -> str:
    """The level of the analysis.

    Raises
    ------
    AnalysisLevelError
        There is no such level.
    """
    if text not in (PARTICIPANT, GROUP):
        raise AnalysisLevelError(
            f"There is no analysis level '{text}'.", f"The levels are '{PARTICIPANT}' and '{GROUP}'."
        )
    return text


def labels(prefix: str) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """A function that takes labels with or without a prefix such as ``sub-``: each once, in the order given."""

    def strip(given: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label.removeprefix(prefix) for label in given))

    return strip


def memory_gb(text: str) -> float:
    """Gigabytes of a size such as ``8GB`` or ``8000MB``; a bare number is refused, since apps disagree on its unit."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    if not match or match[2].upper() not in SIZE_UNITS_GB:
        raise argparse.ArgumentTypeError(f"'{text}' has no unit; write 8GB or 8000MB")
    return float(match[1]) * SIZE_UNITS_GB[match[2].upper()]


def write_memory(gigabytes: float) -> str:
    """A size that `memory_gb` reads as exactly this number."""
    return f"{gigabytes!r}GB"


def strip_resolution(space: str) -> str:
    """A space's name without ``:res-2``, the one resolution that is written."""
    name, _, resolution = space.partition(":")
    if resolution not in ("", "res-2", "res-02"):
        raise UsageError(
            f"Invalid value for --output-spaces: {space}; only 2 mm is written.", f"Give {name} or {name}:res-2."
        )
    return name


def output_spaces(given: Sequence[str]) -> tuple[str, ...]:
    """Names of spaces, without their resolution."""
    return tuple(map(strip_resolution, given))


def file_or_name(text: str) -> str:
    """A file's path, absolute, since steps run in folders of their own; a name of the catalog as it is."""
    path = Path(text)
    return str(path.absolute()) if path.suffix and path.is_file() else text


def files_or_names(given: Sequence[str]) -> tuple[str, ...]:
    """`file_or_name` of each."""
    return tuple(map(file_or_name, given))


def named_paths(items: Sequence[str]) -> dict[str, Path]:
    """``NAME=PATH`` items as a dictionary; a bare path is named after its folder."""
    found: dict[str, Path] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator:
            name, path = Path(item).absolute().name, item
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "raw" or name in found:
            raise UsageError(
                f"Invalid value for --derivatives: {item}; '{name}' cannot be its name.",
                "Write NAME=PATH; names are letters, digits, - and _, differ from each other, and are not 'raw'.",
            )
        found[name] = Path(path).absolute()
    return found


def write_named_paths(paths: Mapping[str, Path]) -> list[str]:
    """``NAME=PATH`` items, as `named_paths` reads them."""
    return [f"{name}={path}" for name, path in paths.items()]


def read_filters(text: str) -> dict[str, dict[str, Any]]:
    """Filters of a ``--bids-filter-file``: of the JSON file of this name, or of a text that is JSON itself.

    The text is how a run's ``neurostorm.toml`` keeps them (TOML knows no null), so that it selects the same files again
    when the filter file was changed or moved.
    """
    is_content = text.lstrip().startswith("{")
    name = "--bids-filter-file" if is_content else text
    try:
        content = json.loads(text if is_content else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{name}: not a readable JSON file ({error}).", "See --bids-filter-file in the README."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(filters, dict) for filters in content.values()):
        raise UsageError(
            f"{name}: a filter file is an object of objects.", 'For example: {"bold": {"task": "rest"}, "t1w": {}}'
        )
    return content


def write_filters(filters: Mapping[str, Any]) -> str:
    """The filters as JSON; nothing where there are none."""
    return json.dumps(filters, ensure_ascii=False) if filters else ""
