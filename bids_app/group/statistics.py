"""Outliers, associations, differences and reliability: what is computed of a group's numbers. Arrays only.

N  runs or participants      S  sites      K  sessions      C  features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
MEAN_DEVIATION_TO_SD = 1.2533
"""The same over its mean absolute deviation."""


@dataclass(frozen=True)
class Estimate:
    """A coefficient with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Units that it was computed from."""
    p: float = float("nan")


@dataclass(frozen=True)
class Reliability:
    """Intraclass correlations of one measurement (Shrout and Fleiss, 1979), with their 95 % intervals."""

    agreement: Estimate
    """ICC(2,1): sessions are drawn from many, and their differences count as error."""
    consistency: Estimate
    """ICC(3,1): the same sessions for all; what they add to everybody does not count."""
    n_sessions: int


@dataclass(frozen=True)
class Difference:
    """How much of a measure goes with groups, and the test of it."""

    effect: float
    """Share of the variance: about 0 by chance, whatever the number of groups; 1 all."""
    p: float
    n: int
    n_groups: int


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance of each value from the median, in robust standard deviations.

    Where more than half of the values are the same, the mean absolute deviation takes the place of the median one
    (Iglewicz and Hoaglin, 1993).

    Parameters
    ----------
    values : np.ndarray, (N,)
        NaN stays NaN.

    Returns
    -------
    np.ndarray, (N,)
        All 0 where the values do not differ.
    """
    away = values - np.nanmedian(values)
    scale = MAD_TO_SD * np.nanmedian(np.abs(away)) or MEAN_DEVIATION_TO_SD * np.nanmean(np.abs(away))
    return away / scale if scale > 0 else np.where(np.isnan(values), np.nan, 0.0)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Spearman's correlation with its interval (Bonett and Wright, 2000); NaN for fewer than 5 pairs or none that vary.

    Parameters
    ----------
    x, y : np.ndarray, (N,)
        Pairs with a NaN are left out.
    """
    from scipy.stats import spearmanr

    known = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[known], y[known], int(known.sum())
    if n < 5 or not np.ptp(x) or not np.ptp(y):
        return Estimate(np.nan, np.nan, np.nan, n)
    found = spearmanr(x, y)
    r = float(np.clip(found.statistic, -0.999999, 0.999999))
    half = 1.959964 * np.sqrt((1 + r**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
    return Estimate(float(found.statistic), float(low), float(high), n, float(found.pvalue))


def difference_of_groups(values: np.ndarray, groups: Sequence[str]) -> Difference:
    """Kruskal and Wallis' test, with eta squared of the ranks as its effect; NaN where nothing can be told.

    Parameters
    ----------
    values : np.ndarray, (N,)
        NaN are left out.
    groups : sequence of str, (N,)
    """
    from scipy.stats import kruskal

    known = np.isfinite(values)
    values, names = values[known], np.asarray(groups)[known]
    parts = [values[names == name] for name in np.unique(names)]
    if not 1 < len(parts) < len(values) or not np.ptp(values):
        return Difference(np.nan, np.nan, len(values), len(parts))
    found = kruskal(*parts)
    effect = (found.statistic - len(parts) + 1) / (len(values) - len(parts))
    return Difference(float(effect), float(found.pvalue), len(values), len(parts))


def difference_of_points(points: np.ndarray, groups: Sequence[str], n_permutations: int = 999) -> Difference:
    """Whether groups differ in many features at once (Anderson's permutational analysis of variance, 2001).

    Parameters
    ----------
    points : np.ndarray, (N, C)
    groups : sequence of str, (N,)
    n_permutations : int
        Of the groups' names; drawn with a fixed seed.

    Returns
    -------
    Difference
        Its effect is the share of the squared distances from the mean that lies between groups, adjusted for their
        number.
    """
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    centred = points - points.mean(axis=0)
    total = float((centred**2).sum())
    if len(names) < 2 or len(points) <= len(names) or not total:
        return Difference(np.nan, np.nan, len(points), len(names))
    member = np.eye(len(names))[which]  # (N, S)
    sizes = member.sum(axis=0)

    def between(order: np.ndarray) -> float:
        sums = member.T @ centred[order]  # (S, C)
        return float(((sums**2).sum(axis=1) / sizes).sum())

    rng = np.random.default_rng(0)
    own = between(np.arange(len(points)))
    # a hair of tolerance: orders that leave the groups as they are give the same sum, but for rounding
    as_large = sum(between(rng.permutation(len(points))) >= own * (1 - 1e-9) for _ in range(n_permutations))
    effect = 1 - (1 - own / total) * (len(points) - 1) / (len(points) - len(names))
    return Difference(effect, (1 + as_large) / (1 + n_permutations), len(points), len(names))


def false_discovery_rate(p: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p values; NaN stay NaN and do not count as tests."""
    from scipy.stats import false_discovery_control

    values = np.asarray(p, float)
    known = np.isfinite(values)
    adjusted = np.full(len(values), np.nan)
    adjusted[known] = false_discovery_control(values[known])
    return adjusted


def intraclass(table: np.ndarray) -> Reliability:
    """Reliability of one measurement, from a full table.

    Intervals are McGraw and Wong's (1996).

    Parameters
    ----------
    table : np.ndarray, (N, K)
        A row a participant, a column a session; no NaN.
    """
    from scipy.stats import f as f_distribution

    n, k = table.shape
    unknown = Estimate(np.nan, np.nan, np.nan, n)
    if n < 3 or k < 2 or not np.ptp(table):
        return Reliability(unknown, unknown, k)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    residual = table - rows[:, None] - columns + table.mean()
    of_rows = k * rows.var(ddof=1)
    of_columns = n * columns.var(ddof=1)
    error = max(float((residual**2).sum()) / ((n - 1) * (k - 1)), 1e-12 * float(table.var()))
    alpha = 0.05

    consistency = (of_rows - error) / (of_rows + (k - 1) * error)
    ratio, free = of_rows / error, (n - 1, (n - 1) * (k - 1))
    low = ratio / f_distribution.ppf(1 - alpha / 2, *free)
    high = ratio * f_distribution.ppf(1 - alpha / 2, *free[::-1])
    third = Estimate(consistency, (low - 1) / (low + k - 1), (high - 1) / (high + k - 1), n)

    agreement = (of_rows - error) / (of_rows + (k - 1) * error + k * (of_columns - error) / n)
    a = k * agreement / (n * (1 - agreement))
    b = 1 + k * agreement * (n - 1) / (n * (1 - agreement))
    spread = (a * of_columns + b * error) ** 2
    v = spread / ((a * of_columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    f_low = f_distribution.ppf(1 - alpha / 2, n - 1, v)
    f_high = f_distribution.ppf(1 - alpha / 2, v, n - 1)
    rest = k * of_columns + (k * n - k - n) * error
    low = n * (of_rows - f_low * error) / (f_low * rest + n * of_rows)
    high = n * (f_high * of_rows - error) / (rest + n * f_high * of_rows)
    return Reliability(Estimate(float(agreement), float(low), float(high), n), third, k)


def mean_by(values: np.ndarray, units: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Mean of the values of each unit, so that nobody counts twice.

    Parameters
    ----------
    values : np.ndarray, (N,) or (N, C)
        NaN are left out; a unit of nothing else is NaN.
    units : sequence of str, (N,)

    Returns
    -------
    tuple
        The units' names, and their means, (M,) or (M, C).
    """
    names, which = np.unique(np.asarray(units), return_inverse=True)
    known = np.isfinite(values)
    sums = np.zeros((len(names), *values.shape[1:]))
    counts = np.zeros_like(sums)
    np.add.at(sums, which, np.where(known, values, 0))
    np.add.at(counts, which, known)
    return names.tolist(), np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def proportion(hits: int, n: int) -> Estimate:
    """A share with Wilson's interval."""
    from scipy.stats import binomtest

    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0)
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)
