"""Table of all runs within a page: its columns, as compact JSON that the script of the page sorts, filters and shows.

The page holds the values only; the script creates the elements of the runs that are shown, so that 10,000 runs stay
usable. Text is inserted as text, never as HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bids_app.reports.contents import format_limit, spec

TEXT, CATEGORY, NUMBER = "text", "category", "number"
DATA_LIMIT = 4_000_000
"""Maximum size of the values on a page, bytes."""
MAX_LEVELS = 1000
"""Maximum levels of a category."""
DIGITS = 4
"""Significant digits of numbers."""


@dataclass(frozen=True)
class Column:
    """Column of the table of runs."""

    name: str
    """Key of the column, also in links to the page."""
    title: str
    values: Sequence[Any]
    """(N,) texts, or numbers with None for missing ones."""
    kind: str = TEXT
    """`TEXT`, `CATEGORY` or `NUMBER`."""
    levels: tuple[str, ...] = ()
    """Order of the levels of a category; others follow in order of their names."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """``good``, ``warn`` or ``bad`` by level, for badges."""
    shown: bool = False
    """True to show the column without asking."""
    filtered: bool = False
    """True for a menu that filters by its levels."""
    digits: int | None = None
    factor: float = 1
    unit: str = ""
    help: str = ""
    limit: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what the script needs to know."""
        found: dict[str, Any] = {"name": self.name, "title": self.title, "kind": self.kind}
        if self.kind == CATEGORY:
            known = {value for value in self.values if value}
            levels = [*(level for level in self.levels if level in known), *sorted(known - set(self.levels))]
            codes = {level: index for index, level in enumerate(levels)}
            found |= {"levels": levels, "values": [codes.get(value, -1) for value in self.values]}
        elif self.kind == NUMBER:
            found["values"] = [_short(value) for value in self.values]
        else:
            found["values"] = list(self.values)
        extra = {
            "colours": dict(self.colours), "shown": self.shown, "filtered": self.filtered, "digits": self.digits,
            "factor": self.factor if self.factor != 1 else None, "unit": self.unit, "help": self.help,
            "limit": self.limit,
        }  # fmt: skip
        return found | {key: value for key, value in extra.items() if value or (key == "digits" and value is not None)}


@dataclass(frozen=True)
class RunTable:
    """All runs of a page.

    Attributes
    ----------
    pages : sequence of str, (N,)
        URLs of the reports, relative to the page; empty for runs without one.
    runs : sequence of str, (N,)
        Names of the runs.
    columns : sequence of Column
        Those that come last are left out where the page would become too large.
    figures : sequence of str, (N,)
        For each kind of thumbnail the index of its figure, from 1; 0 without one, x for one that cannot be read.
        Empty without thumbnails.
    kinds : sequence of dict
        Title and ``desc-`` labels of each kind of thumbnail.
    folder : str
        URL of the folder of thumbnails.
    maps : sequence of dict
        Maps of embeddings, see `bids_app.group.similarity`.
    noun : str
        What a row is, for headings.
    """

    runs: Sequence[str]
    pages: Sequence[str]
    columns: Sequence[Column]
    figures: Sequence[str] = ()
    kinds: Sequence[Mapping[str, Any]] = ()
    folder: str = ""
    maps: Sequence[Mapping[str, Any]] = ()
    noun: str = "run"

    def to_json(self, limit: int = DATA_LIMIT) -> str:
        """Return the table as JSON for a script element."""
        content: dict[str, Any] = {
            "runs": list(self.runs),
            "page": Column("page", "", self.pages, CATEGORY).to_json(),
            "figures": Column("figures", "", self.figures, CATEGORY).to_json() if self.figures else None,
            "kinds": list(self.kinds),
            "folder": self.folder,
            "maps": list(self.maps),
            "noun": self.noun,
            "columns": [],
            "left_out": [],
        }
        size = len(as_script(content))
        for column in self.columns:
            described = column.to_json()
            own = len(as_script(described)) + 1
            too_many = column.kind == CATEGORY and len(described["levels"]) > MAX_LEVELS
            if too_many or size + own > limit:
                content["left_out"].append(column.title)
                continue
            size += own
            content["columns"].append(described)
        return as_script(content)


def metric_column(name: str, values: Sequence[float | None], shown: bool = False) -> Column:
    """Return the column of an image quality metric, in the units of the reports."""
    entry = spec()["quality"].get(name, {})
    return Column(
        name=name,
        title=entry.get("label", name.replace("_", " ")),
        values=values,
        kind=NUMBER,
        shown=shown,
        digits=entry.get("digits"),
        factor=entry.get("factor", 1),
        unit=entry.get("unit", ""),
        help=entry.get("help", ""),
        limit=format_limit(name),
    )


def guess_column(name: str, title: str, texts: Sequence[str]) -> Column:
    """Return a column of numbers if all texts are numbers or empty, of categories otherwise."""
    try:
        numbers = [float(text) if text else None for text in texts]
    except ValueError:
        return Column(name, title, texts, CATEGORY)
    known = {number for number in numbers if number is not None}
    if not known or len(known) <= 2:
        return Column(name, title, texts, CATEGORY)  # such as the codes of a group
    return Column(name, title, numbers, NUMBER)


def as_script(content: Any) -> str:
    """Format a value as JSON that may stand in a script element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(value: float | None) -> float | int | None:
    """Round to `DIGITS` significant digits; None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short
