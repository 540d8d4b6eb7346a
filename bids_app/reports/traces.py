"""Motion and signal of a run, volume by volume, small enough to stand in the page itself.

The picture of them is a file beside the page; these numbers let a reader go through it volume by volume.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SPAN = re.compile(r'<svg\b[^>]*\bdata-span="([\d.]+) ([\d.]+)"')
HEAD = 2000
"""Characters of a picture in which its `SPAN` is looked for."""

Series = list[float | None]


@dataclass(frozen=True)
class Trace:
    """What a volume's reader is told; lists have an entry a volume, None where nothing is known.

    Attributes
    ----------
    url : str
        Of the picture that they belong to.
    tr : float
        s; 0 where it is not known.
    fd, dvars, signal : list of float or None
        Framewise displacement (mm), DVARS, and the brain's mean signal (percent above its mean over the run).
    dvars_name : str
        ``std. DVARS`` or ``DVARS``.
    left, right : float
        Where the first volume begins and the last one ends in the picture, as shares of its width; 0 where it does not
        say.
    """

    url: str
    tr: float
    fd: Series
    dvars: Series
    signal: Series
    dvars_name: str = "std. DVARS"
    left: float = 0.0
    right: float = 0.0

    @property
    def n_volumes(self) -> int:
        """Of the run."""
        return len(self.fd)


@dataclass(frozen=True)
class Compact:
    """A trace as attributes of the page: hundredths, separated by commas; nothing where nothing is known."""

    trace: Trace
    per_point: int
    """Volumes that a point stands for."""
    fd: str
    dvars: str
    signal: str

    @property
    def n_points(self) -> int:
        """Points of each series."""
        return -(-self.trace.n_volumes // self.per_point)


def read_trace(confounds: Path, picture: Path, url: str, tr: float | None) -> Trace:
    """Read what belongs to the picture of a run's motion.

    Parameters
    ----------
    confounds : pathlib.Path
        The run's table of confounds.
    picture : pathlib.Path
        The SVG file, which says where in it the volumes are.
    url : str
        Where the page finds it.
    tr : float or None
        s.

    Raises
    ------
    OSError, ValueError, csv.Error
        The table cannot be read.
    """
    with confounds.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    dvars = "std_dvars" if rows and "std_dvars" in rows[0] else "dvars"
    signal = _column(rows, "global_signal")
    known = [value for value in signal if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    with picture.open(encoding="utf-8", errors="replace") as file:
        found = SPAN.search(file.read(HEAD))
    return Trace(
        url,
        tr or 0.0,
        _column(rows, "framewise_displacement"),
        _column(rows, dvars),
        [None if value is None or not mean else 100 * (value / mean - 1) for value in signal],
        "std. DVARS" if dvars == "std_dvars" else "DVARS",
        *(map(float, found.groups()) if found else (0.0, 0.0)),
    )


def compact(trace: Trace, most: int) -> Compact:
    """A trace in at most so many points.

    Of the volumes that a point stands for, the largest displacement and change are kept, for they are what is looked
    for, and the mean of the signal.
    """
    per_point = max(1, -(-trace.n_volumes // max(1, most)))

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Compact(
        trace,
        per_point,
        _hundredths(trace.fd, per_point, max),
        _hundredths(trace.dvars, per_point, max),
        _hundredths(trace.signal, per_point, mean),
    )


def _hundredths(series: Series, per_point: int, join: Callable[[Sequence[float]], float]) -> str:
    points = []
    for start in range(0, len(series), per_point):
        known = [value for value in series[start : start + per_point] if value is not None]
        points.append(str(round(100 * join(known))) if known else "")
    return ",".join(points)


def _column(rows: Sequence[dict[str, str]], name: str) -> Series:
    """A column of numbers; ``n/a`` and whatever is not finite become None."""
    values = [row.get(name) or "n/a" for row in rows]
    numbers = [None if value == "n/a" else float(value) for value in values]
    return [value if value is not None and math.isfinite(value) else None for value in numbers]
