"""Volume-wise head motion and signal of a run, compact enough to be embedded in the page.

The carpet plot is a separate file; with these series the reader can step through it volume by volume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.files import read_output, read_output_table

SPAN = re.compile(r'<svg\b[^>]*\bdata-span="([\d.]+) ([\d.]+)"')
HEAD = 2000
"""Characters of an SVG file that are searched for `SPAN`."""

Series = list[float | None]


@dataclass(frozen=True)
class Trace:
    """Volume-wise series of a run; one entry per volume, None for missing values.

    Attributes
    ----------
    url : str
        URL of the figure they belong to.
    tr : float
        Repetition time, s; 0 if unknown.
    fd, dvars, signal : list of float or None
        Framewise displacement (mm), DVARS, and global signal (percent change from its mean over the run).
    dvars_name : str
        ``std. DVARS`` or ``DVARS``.
    left, right : float
        Start of the first and end of the last volume in the figure, as fractions of its width; 0 if unknown.
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
        """Number of volumes."""
        return len(self.fd)


@dataclass(frozen=True)
class Compact:
    """Trace as HTML attributes: comma-separated hundredths, empty for missing values."""

    trace: Trace
    per_point: int
    """Volumes per point."""
    fd: str
    dvars: str
    signal: str

    @property
    def n_points(self) -> int:
        """Number of points of each series."""
        return -(-self.trace.n_volumes // self.per_point)


def read_trace(confounds: Path, figure: Path, url: str, tr: float | None) -> Trace:
    """Read the volume-wise series of a run.

    Parameters
    ----------
    confounds : pathlib.Path
        Confounds table of the run.
    figure : pathlib.Path
        SVG file of the carpet plot, with the position of its time axis.
    url : str
        URL of the figure, relative to the page.
    tr : float or None
        Repetition time, s.

    Raises
    ------
    OSError, ValueError, csv.Error
        The confounds table cannot be read.
    """
    rows = read_output_table(confounds)
    dvars = "std_dvars" if rows and "std_dvars" in rows[0] else "dvars"
    signal = _column(rows, "global_signal")
    known = [value for value in signal if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    found = SPAN.search(read_output(figure)[:HEAD].decode(errors="replace"))
    return Trace(
        url,
        tr or 0.0,
        _column(rows, "framewise_displacement"),
        _column(rows, dvars),
        [None if value is None or not mean else 100 * (value / mean - 1) for value in signal],
        "std. DVARS" if dvars == "std_dvars" else "DVARS",
        *(map(float, found.groups()) if found else (0.0, 0.0)),
    )


def compact(trace: Trace, max_points: int) -> Compact:
    """Reduce a trace to a maximum number of points.

    Each point keeps the maximum of FD and DVARS and the mean of the global signal over its volumes.
    """
    per_point = max(1, -(-trace.n_volumes // max(1, max_points)))

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return Compact(
        trace,
        per_point,
        _hundredths(trace.fd, per_point, max),
        _hundredths(trace.dvars, per_point, max),
        _hundredths(trace.signal, per_point, mean),
    )


def _hundredths(series: Series, per_point: int, reduce: Callable[[Sequence[float]], float]) -> str:
    points = []
    for start in range(0, len(series), per_point):
        known = [value for value in series[start : start + per_point] if value is not None]
        points.append(str(round(100 * reduce(known))) if known else "")
    return ",".join(points)


def _column(rows: Sequence[dict[str, str]], name: str) -> Series:
    """Read a numeric column; ``n/a`` and non-finite values become None."""
    values = [row.get(name) or "n/a" for row in rows]
    numbers = [None if value == "n/a" else float(value) for value in values]
    return [value if value is not None and math.isfinite(value) else None for value in numbers]
