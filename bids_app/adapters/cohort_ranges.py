"""Ranges of an adapter's training cohort: which measures of a scan are compared, and the weight of a scan beyond them.

The distances of `bids_app.adapters.domain` compare embeddings and signals; these ranges compare what is known of the
acquisition, the participant and the quality of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RANGE_IN_SD = 4.0
"""Width of a cohort's range in standard deviations (Hozo et al. 2005)."""
MIN_SPREAD = 0.1
"""Minimum standard deviation, relative to the limit: a cohort of one protocol has none."""
WRITTEN = 1e-6
"""Relative tolerance of these comparisons: ranges come from tables with eight digits."""


@dataclass(frozen=True)
class CohortRule:
    """Which ends of a cohort's range are checked, and the relative margin beyond them."""

    figure: str
    what: str
    unit: str
    low: bool = True
    high: bool = True
    margin: float = 0.0

    def limits(self, cohort: Sequence[float]) -> tuple[float | None, float | None]:
        """Return the limits of a range (low, high) with the margin; None at an end that is not checked."""
        low, high = float(cohort[0]), float(cohort[1])
        return low * (1 - self.margin) if self.low else None, high * (1 + self.margin) if self.high else None

    def excess(self, value: float, cohort: Sequence[float]) -> float:
        """Return how far a value is beyond the limits, in standard deviations of the cohort; 0 within them."""
        below, above = self.limits(cohort)
        away, limit = 0.0, 0.0
        if below is not None and value < below - WRITTEN * abs(below):
            away, limit = below - value, below
        if above is not None and value > above + WRITTEN * abs(above):
            away, limit = value - above, above
        spread = max((float(cohort[1]) - float(cohort[0])) / RANGE_IN_SD, MIN_SPREAD * abs(limit))
        return away / spread if away and spread > 0 else math.inf if away else 0.0


COHORT_RULES = {
    "tr": CohortRule("tr", "repetition time", "s", margin=0.1),
    "duration": CohortRule("seconds", "duration", "s", high=False, margin=0.1),  # longer is better
    "fd_mean": CohortRule("fd_mean", "mean framewise displacement", "mm", low=False),
    "tsnr": CohortRule("tsnr", "temporal signal-to-noise ratio", "", high=False),
    "age": CohortRule("age", "age of the participant", "years"),
    "reconstruction": CohortRule(
        "reconstruction_dynamics",
        "reconstruction error of hidden patches relative to predicting the mean of each voxel",
        "",
        margin=0.1,
    ),
}
"""Measures compared with the range of the adapter's cohort (`AdapterCard.ranges`), by check."""


def range_evidence(facts: Mapping[str, object], ranges: Mapping[str, Sequence[float]]) -> float:
    """Return the weight of a prediction, 0 to 1: within all ranges 1, beyond them falling as an exponential tail.

    Of several measures, the one that is furthest beyond its range decides; unknown measures do not count.

    Parameters
    ----------
    facts : mapping
        Measures of the scan.
    ranges : mapping of str to (low, high)
        Of the cohort, by check.
    """
    known = {name: (rule, facts.get(rule.figure)) for name, rule in COHORT_RULES.items() if name in ranges}
    away = [rule.excess(float(v), ranges[name]) for name, (rule, v) in known.items() if is_number(v)]  # type: ignore[arg-type]
    return math.exp(-max(away, default=0.0))


def is_number(value: object) -> bool:
    """Return True for a number that is not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
