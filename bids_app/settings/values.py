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
FUNC_SPACE, T1W_SPACE = "func", "T1w"
"""Output spaces without a template: the grid of the run, and the T1w image."""
NAMES_OF_SPACES = {
    "boldref": FUNC_SPACE,
    "bold": FUNC_SPACE,
    "run": FUNC_SPACE,
    "native": FUNC_SPACE,
    "anat": T1W_SPACE,
}
"""Other names for them; fMRIPrep's are ``func``, ``bold``, ``boldref``, ``run`` and ``T1w``, ``anat``."""
FILTERED_KINDS = ("bold", "t1w", "fmap", "sbref", "roi")
"""Kinds of file that ``--bids-filter-file`` selects."""
OTHER_KINDS = ("flair", "t2w", "dwi", "asl", "pet", "events")
"""Kinds of file that filter files of BABS and other pipelines name too, and that are not used here."""
SIZE_UNITS_GB = {"M": 1 / 1000, "MI": 1 / 953.674, "G": 1.0, "GI": 1.073742, "T": 1000.0}
DEFAULT_MODEL = "neurostorm-5ds"
"""Encoder that is used unless another one is given."""
HUB_PREFIX = "hf:"
"""Start of references to files of the Hugging Face Hub: ``hf:owner/name@revision:path``."""
BRAINMARKS_PREFIX = "brainmarks:"
"""Start of the names of encoders that are registered with Brainmarks."""
MIN_BARE_MB = 1000
"""Smallest memory limit without a unit, MB; a smaller number was meant in GB, as in MRIQC."""


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
    """Convert a size such as ``8GB``, ``8G`` or ``8000MB`` to GB; a number without a unit is in MB, as in fMRIPrep."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    if match and not match[2]:
        if float(match[1]) < MIN_BARE_MB:
            meant = text if float(match[1]) else "8"
            raise argparse.ArgumentTypeError(f"'{text}' has no unit and is too little in MB; write {meant}GB")
        return float(match[1]) / 1000
    unit = match[2].upper().removesuffix("B") if match else ""
    if not match or unit not in SIZE_UNITS_GB:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write 8GB or 8000MB")
    return float(match[1]) * SIZE_UNITS_GB[unit]


def write_memory(gigabytes: float) -> str:
    """Write a size that `memory_gb` reads back exactly."""
    return f"{gigabytes!r}GB"


def output_space(space: str) -> str:
    """Strip ``:res-2``, the only available resolution, from the name of a space, and resolve other names."""
    name, _, resolution = space.partition(":")
    name = NAMES_OF_SPACES.get(name, name)
    if name in (FUNC_SPACE, T1W_SPACE) and resolution:
        raise UsageError(
            f"Invalid value for --output-spaces: {space}; the space {name} has no resolution.", f"Use {name}."
        )
    if resolution not in ("", "res-2", "res-02"):
        raise UsageError(
            f"Invalid value for --output-spaces: {space}; only 2 mm resolution is available.",
            f"Use {name} or {name}:res-2.",
        )
    return name


def output_spaces(given: Sequence[str]) -> tuple[str, ...]:
    """Normalise names of spaces; each is kept once."""
    return tuple(dict.fromkeys(map(output_space, given)))


def file_or_name(text: str) -> str:
    """Make a file path absolute, since steps change the folder; names of the catalog and references are unchanged."""
    if text.startswith((HUB_PREFIX, BRAINMARKS_PREFIX)):
        return text
    path = Path(text)
    is_file = os.sep in text or path.suffix[1:2].isalpha()  # names of the catalog end in numbers at most: ratio0.5
    return str(path.absolute()) if is_file else text


def files_or_names(given: Sequence[str]) -> tuple[str, ...]:
    """Apply `file_or_name` to each item."""
    return tuple(map(file_or_name, given))


def key_values(items: Sequence[str]) -> tuple[str, ...]:
    """Check ``KEY=VALUE`` items, make file paths absolute, and sort the items by key."""
    found: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key.isidentifier() or key in found:
            raise UsageError(
                f"Invalid value for --model-options: {item}.", "Write KEY=VALUE, each key once: ckpt_path=encoder.pt"
            )
        found[key] = f"{key}={file_or_name(value) if value else value}"
    return tuple(found[key] for key in sorted(found))


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
        if not path:
            raise UsageError(f"Invalid value for --derivatives: {item}; the path is empty.", "Is a variable unset?")
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
        raise UsageError(error.message, "See --bids-filter-file in docs/usage.md.") from error
    if not isinstance(content, dict) or not all(isinstance(filters, dict) for filters in content.values()):
        raise UsageError(
            f"{name}: expected an object of objects.", 'For example: {"bold": {"task": "rest"}, "t1w": {}}'
        )
    unknown = [kind for kind in content if kind not in (*FILTERED_KINDS, *OTHER_KINDS)]
    if unknown:
        raise UsageError(
            f"{name}: unknown kinds of file: {', '.join(map(repr, unknown))}.",
            f"Filters apply to {', '.join(FILTERED_KINDS)}, in lower case; others that are accepted, without effect: "
            f"{', '.join(OTHER_KINDS)}.",
        )
    return content


def write_filters(filters: Mapping[str, Any]) -> str:
    """Write the filters as JSON; empty text if there are none."""
    return json.dumps(filters, ensure_ascii=False) if filters else ""
