"""Limits of conformal prediction for people with several scans, and for sites with several people.

Scans of a person are alike, so scans are not exchangeable, but people are. One scan is drawn from each person; the
conformal quantile of these scores has the nominal coverage for a scan of a new person (Vovk et al. 2005; Dunn,
Wasserman and Ramdas 2022, subsampling). The draw is repeated, so that the limit uses all scans: the limits of the
draws are averaged as ranks in the distribution of all scores, in which each person has the same weight. The weighted
quantile of Lee, Barber and Willett (2023) needs no draws, but covers up to 98 % where 90 % is promised
(`benchmarks/calibration.py`).

Dunn, R., Wasserman, L., & Ramdas, A. (2022). Distribution-free prediction sets for two-layer hierarchical models.
*Journal of the American Statistical Association*. https://doi.org/10.1080/01621459.2022.2060112

Lee, Y., Barber, R. F., & Willett, R. (2023). Distribution-free inference with hierarchical data.
https://arxiv.org/abs/2306.06342

    N  scores      K  groups
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_GROUPS = 10
"""Minimum number of people (or sites) for a limit; with fewer than nine, no finite limit has a coverage of 90 %."""
DRAWS = 500
"""Number of draws of one score per group."""


def group_limits(
    scores: np.ndarray,
    groups: Sequence[str],
    levels: Sequence[float],
    members: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[float, float]:
    """Return the limits that a score of a new group does not exceed with given probabilities.

    Parameters
    ----------
    scores : np.ndarray, (N,)
        Nonconformity scores: higher for predictions that are further from the truth.
    groups : sequence of str, (N,)
        Person (or site) of each score.
    levels : sequence of float
        Nominal coverages, 0 to 1.
    members : sequence of str, (N,), optional
        Person of each score if the groups are sites; each person of a site is drawn with the same probability.
    seed : int
        Seed of the draws.

    Returns
    -------
    dict of float to float
        Limit of each level. Without those that need more groups, since (K + 1) level must not exceed K; empty for fewer
        than `MIN_GROUPS` groups. Between two ranks, a limit is interpolated.
    """
    scores = np.asarray(scores, float)
    names, group_of = np.unique(np.asarray(groups, str), return_inverse=True)
    k = len(names)
    ranks = {level: (k + 1) * level - 1e-9 for level in levels}
    possible = {level: rank for level, rank in ranks.items() if k >= MIN_GROUPS and rank <= k}
    if not possible:
        return {}
    weights = _weights(group_of, np.asarray(groups if members is None else members, str))
    drawn = np.sort(_draw(scores, group_of, weights, np.random.default_rng(seed)), axis=1)
    values, which = np.unique(scores, return_inverse=True)
    shares = np.cumsum(np.bincount(which, weights)) / k  # of all scores up to each value
    found = {}
    for level, rank in possible.items():
        lower = max(int(rank), 1)
        limits = drawn[:, lower - 1] + (rank - lower) * (drawn[:, min(lower, k - 1)] - drawn[:, lower - 1])
        found[level] = float(np.interp(np.interp(limits, values, shares).mean(), shares, values))
    return found


def _weights(group_of: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the probability with which each score is drawn from its group, (N,): equal for the members of a group."""
    _, pairs = np.unique(np.char.add(np.char.add(group_of.astype(str), " "), members), return_inverse=True)
    pair_sizes = np.bincount(pairs)
    groups_of_pairs = np.zeros(len(pair_sizes), int)
    groups_of_pairs[pairs] = group_of
    n_members = np.bincount(groups_of_pairs)
    return 1 / (pair_sizes[pairs] * n_members[group_of])


def _draw(scores: np.ndarray, group_of: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one score of each group, `DRAWS` times; (DRAWS, K)."""
    order = np.argsort(group_of, kind="stable")
    ends = np.cumsum(weights[order])  # group k covers the range from k to k + 1
    n_groups = int(group_of.max()) + 1
    places = np.searchsorted(ends, np.arange(n_groups) + rng.uniform(1e-9, 1 - 1e-9, (DRAWS, n_groups)))
    return scores[order][np.minimum(places, len(scores) - 1)]
