"""Ranges of the measures of the signal in good scans, with the scans that they come from (``normal_ranges.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bids_app.errors import BadDataError

PATH = Path(__file__).with_name("normal_ranges.json")


@dataclass(frozen=True)
class NormalRange:
    """Range of a measure in good scans; None: no limit at this end."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class NormalRanges:
    """Ranges by measure, and their origin.

    Attributes
    ----------
    version : str
    measures : mapping of str to NormalRange
    origin : str
        Which scans the ranges come from, in words.
    """

    version: str
    measures: Mapping[str, NormalRange]
    origin: str

    @property
    def reference(self) -> str:
        """Name, version and origin of the ranges, for sidecars."""
        return f"normal_ranges.json, version {self.version}: {self.origin}"


@cache
def normal_ranges() -> NormalRanges:
    """Read ``normal_ranges.json``."""
    return parse_ranges(json.loads(PATH.read_text(encoding="utf-8")))


def parse_ranges(content: Mapping[str, Any]) -> NormalRanges:
    """Read the content of ``normal_ranges.json``.

    Raises
    ------
    BadDataError
        Entries are missing, or a range is empty.
    """
    try:
        measures = {
            name: NormalRange(entry.get("low"), entry.get("high")) for name, entry in content["measures"].items()
        }
        real, simulated = content["real"], content["simulated"]
        scanners = list(dict.fromkeys(str(run["scanner"]) for run in real))
        origin = f"{len(real)} real runs ({'; '.join(scanners)}) and {int(simulated['runs'])} simulated ones"
        version = str(content["version"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadDataError(f"{PATH.name}: {error!r}.", "Install neurostorm again.") from error
    for name, found in measures.items():
        if found.low is not None and found.high is not None and found.low >= found.high:
            raise BadDataError(f"{PATH.name}: the range of {name} is empty.", "Install neurostorm again.")
    return NormalRanges(version, measures, origin)
