"""Group statistics: outliers, correlations, group differences and reliability. Arrays only.

N  runs or participants      S  sites      K  sessions      C  features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAD_TO_SD = 1.4826
"""Ratio of SD to median absolute deviation for a normal distribution."""
MEAN_DEVIATION_TO_SD = 1.2533
"""Ratio of SD to mean absolute deviation for a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """Estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Sample size."""
    p: float = float("nan")


@dataclass(frozen=True)
class Reliability:
    """Single-measurement intraclass correlations (Shrout and Fleiss, 1979), with 95 % confidence intervals."""

    agreement: Estimate
    """ICC(2,1), absolute agreement: random sessions, differences between sessions count as error."""
    consistency: Estimate
    """ICC(3,1), consistency: fixed sessions, mean differences between sessions are ignored."""
    n_sessions: int


@dataclass(frozen=True)
class Difference:
    """Difference between groups: effect size and test."""

    effect: float
    """Fraction of variance explained by group, bias-adjusted: 0 expected by chance, maximum 1."""
    p: float
    n: int
    n_groups: int


def robust_z(values: np.ndarray) -> np.ndarray:
    """Compute robust z-scores from median and median absolute deviation.

    If more than half of the values are equal, the mean absolute deviation is used instead (Iglewicz and Hoaglin, 1993).

    Parameters
    ----------
    values : np.ndarray, (N,)
        NaN stays NaN.

    Returns
    -------
    np.ndarray, (N,)
        All 0 if the values are constant.
    """
    away = values - np.nanmedian(values)
    scale = MAD_TO_SD * np.nanmedian(np.abs(away)) or MEAN_DEVIATION_TO_SD * np.nanmean(np.abs(away))
    return away / scale if scale > 0 else np.where(np.isnan(values), np.nan, 0.0)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Compute Spearman's correlation with its confidence interval (Bonett and Wright, 2000).

    Parameters
    ----------
    x, y : np.ndarray, (N,)
        Pairs with a NaN are ignored.

    Returns
    -------
    Estimate
        NaN for fewer than 5 pairs or constant values.
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
    """Run a Kruskal-Wallis test with eta squared as effect size; NaN if undefined.

    Parameters
    ----------
    values : np.ndarray, (N,)
        NaN are ignored.
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
    """Run a permutational multivariate analysis of variance (PERMANOVA; Anderson, 2001).

    Parameters
    ----------
    points : np.ndarray, (N, C)
    groups : sequence of str, (N,)
    n_permutations : int
        Number of permutations of the group labels; fixed seed.

    Returns
    -------
    Difference
        The effect size is the adjusted R squared: the between-group fraction of the total sum of squares, adjusted for
        the number of groups.
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
    # tolerance for rounding: permutations that keep the groups give the same sum of squares
    as_large = sum(between(rng.permutation(len(points))) >= own * (1 - 1e-9) for _ in range(n_permutations))
    effect = 1 - (1 - own / total) * (len(points) - 1) / (len(points) - len(names))
    return Difference(effect, (1 + as_large) / (1 + n_permutations), len(points), len(names))


def false_discovery_rate(p: Sequence[float]) -> np.ndarray:
    """Adjust p values by the Benjamini-Hochberg procedure; NaN stay NaN and do not count as tests."""
    from scipy.stats import false_discovery_control

    values = np.asarray(p, float)
    known = np.isfinite(values)
    adjusted = np.full(len(values), np.nan)
    adjusted[known] = false_discovery_control(values[known])
    return adjusted


def intraclass(table: np.ndarray) -> Reliability:
    """Compute intraclass correlations from a complete table.

    Confidence intervals follow McGraw and Wong (1996).

    Parameters
    ----------
    table : np.ndarray, (N, K)
        One row per participant and one column per session; no NaN.
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
    """Average values by unit, such as the runs of a participant.

    Parameters
    ----------
    values : np.ndarray, (N,) or (N, C)
        NaN are ignored; a unit with only NaN is NaN.
    units : sequence of str, (N,)

    Returns
    -------
    tuple
        Names of the units and their means, (M,) or (M, C).
    """
    names, which = np.unique(np.asarray(units), return_inverse=True)
    known = np.isfinite(values)
    sums = np.zeros((len(names), *values.shape[1:]))
    counts = np.zeros_like(sums)
    np.add.at(sums, which, np.where(known, values, 0))
    np.add.at(counts, which, known)
    return names.tolist(), np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def proportion(hits: int, n: int) -> Estimate:
    """Compute a proportion with its Wilson confidence interval."""
    from scipy.stats import binomtest

    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0)
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)
