"""Who a run looks like: similarity of embeddings over sessions, re-identification, and runs that may have been swapped.

Nothing here holds all pairs at once: similarities are made a block of runs at a time. Arrays only.

N  runs      C  features
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.group.statistics import robust_z

BLOCK = 256
"""Runs whose similarities with all others are held at once."""
BINS = np.linspace(-1, 1, 81)
"""Edges of the histograms of similarities."""


@dataclass(frozen=True)
class ReIdentification:
    """How well runs find their own participant in other sessions.

    Attributes
    ----------
    own, other : np.ndarray, (N,)
        Largest similarity with a run of another session, of the same participant and of others; NaN where none is.
    nearest : np.ndarray of int, (N,)
        That other participant's run; -1 where there is none.
    same, different : np.ndarray, (80,)
        Pairs of runs of different sessions, of one participant and of two, by their similarity; see `BINS`.
    mean_same, mean_different : float
        Means of those similarities.
    """

    own: np.ndarray
    other: np.ndarray
    nearest: np.ndarray
    same: np.ndarray
    different: np.ndarray
    mean_same: float
    mean_different: float

    @property
    def tried(self) -> np.ndarray:
        """(N,) bool: runs that have both their own participant and another to be found in other sessions."""
        return np.isfinite(self.own) & np.isfinite(self.other)

    @property
    def hits(self) -> np.ndarray:
        """(N,) bool: runs whose nearest run of another session is their own participant's."""
        return self.tried & (self.own > self.other)

    def margins(self) -> np.ndarray:
        """How much more each run looks like another participant than like its own.

        Returns
        -------
        np.ndarray, (N,)
            In units of what a run that is found usually looks more like its own participant: -1 is usual, 0 undecided,
            1 as clearly somebody else as others are themselves. NaN where it cannot be told.
        """
        gap = self.own - self.other
        usual = np.median(gap[self.hits]) if self.hits.any() else np.nan
        return np.where(self.tried, -gap / usual, np.nan)


@dataclass(frozen=True)
class Suspicion:
    """Two participants whose runs may have been exchanged."""

    participants: tuple[int, int]
    runs: tuple[int, ...]
    """Those that look like the other of the two."""
    margin: float
    """The largest of `ReIdentification.margins`."""
    mutual: bool
    """Whether each of the two looks like the other."""


def standardise(values: np.ndarray, tasks: Sequence[str] | None = None) -> np.ndarray:
    """Embeddings with each feature's mean 0 and deviation 1 over runs, as vectors of length 1; (N, C) float32.

    What all runs share would otherwise make all of them alike.

    Parameters
    ----------
    values : np.ndarray, (N, C)
    tasks : sequence of str, (N,), optional
        Means are taken over the runs of each, so that it does not matter what somebody did; a task of one run keeps
        the mean of all.
    """
    values = values.astype(np.float32)
    centred = values - values.mean(axis=0)
    for task in set(tasks or ()):
        own = np.asarray(tasks) == task
        if own.sum() > 1:
            centred[own] = values[own] - values[own].mean(axis=0)
    values = centred
    deviation = values.std(axis=0)
    values = np.divide(values, deviation, out=np.zeros_like(values), where=deviation > 1e-12)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def principal_components(values: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the first components, (N, K), and the share of the variance of each, (K,).

    A component's sign is that which makes its largest weight positive.
    """
    centred = values.astype(np.float64) - values.mean(axis=0)
    if len(values) > values.shape[1]:
        variances, axes = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(variances)[::-1][:n_components]
        axes, variances = axes[:, order], np.maximum(variances[order], 0)
    else:
        _, singular, rows = np.linalg.svd(centred, full_matrices=False)
        axes, variances = rows[:n_components].T, singular[:n_components] ** 2
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    total = max(float((centred**2).sum()), 1e-30)
    return centred @ (axes * np.where(signs == 0, 1, signs)), variances / total


def reidentify(units: np.ndarray, people: np.ndarray, sessions: np.ndarray) -> ReIdentification:
    """Look for each run's participant among the runs of other sessions.

    Parameters
    ----------
    units : np.ndarray, (N, C)
        From `standardise`.
    people, sessions : np.ndarray of int, (N,)
        Numbers of participants and of sessions. Where a dataset has no sessions, each run is one of its own.
    """
    own, other = np.full((2, len(units)), np.nan, np.float32)
    nearest = np.full(len(units), -1)
    counts = np.zeros((2, len(BINS) - 1), np.int64)
    sums = np.zeros(2)
    for rows, similar in _blocks(units):
        elsewhere = sessions[rows, None] != sessions
        same_person = people[rows, None] == people
        of_own, of_other = elsewhere & same_person, elsewhere & ~same_person
        for kind, pairs in enumerate((of_own, of_other)):
            values = similar[pairs]
            counts[kind] += np.bincount(_bin_of(values), minlength=len(BINS) - 1)
            sums[kind] += values.sum(dtype=np.float64)
        best_own = np.where(of_own, similar, -np.inf).max(axis=1)
        only_others = np.where(of_other, similar, -np.inf)
        best = only_others.argmax(axis=1)
        best_other = only_others[np.arange(len(best)), best]
        own[rows] = np.where(np.isfinite(best_own), best_own, np.nan)
        other[rows] = np.where(np.isfinite(best_other), best_other, np.nan)
        nearest[rows] = np.where(np.isfinite(best_other), best, -1)
    n_pairs = counts.sum(axis=1)
    means = np.divide(sums, n_pairs, out=np.full(2, np.nan), where=n_pairs > 0)
    return ReIdentification(own, other, nearest, counts[0], counts[1], float(means[0]), float(means[1]))


def suspected_swaps(found: ReIdentification, people: np.ndarray, least_margin: float) -> list[Suspicion]:
    """Pairs of participants, the clearest first, of whom a run looks like the other by at least so much.

    A run's margin must also lie farther from the median than chance brings about in one of twenty cohorts as large:
    where runs are found again with difficulty, some look like others without having been swapped.

    Parameters
    ----------
    found : ReIdentification
    people : np.ndarray of int, (N,)
        As they were given to `reidentify`.
    least_margin : float
        Of `ReIdentification.margins`.
    """
    from scipy.stats import norm

    margins = found.margins()
    beyond_chance = robust_z(margins) > norm.isf(0.05 / max(1, int(found.tried.sum())))
    pairs: dict[tuple[int, int], list[int]] = {}
    for run in np.flatnonzero((margins >= least_margin) & beyond_chance):
        one, two = sorted((int(people[run]), int(people[found.nearest[run]])))
        pairs.setdefault((one, two), []).append(int(run))
    suspicions = [
        Suspicion(pair, tuple(runs), float(margins[runs].max()), len({int(people[run]) for run in runs}) == 2)
        for pair, runs in pairs.items()
    ]
    return sorted(suspicions, key=lambda s: (not s.mutual, -s.margin))


def _bin_of(similar: np.ndarray) -> np.ndarray:
    """Number of the bin of `BINS` that each similarity falls into."""
    return np.clip(((similar + 1) * ((len(BINS) - 1) / 2)).astype(np.int64), 0, len(BINS) - 2)


def _blocks(units: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Similarities of some runs with all, (B, N), for all runs in turn."""
    for start in range(0, len(units), BLOCK):
        rows = slice(start, min(start + BLOCK, len(units)))
        yield rows, units[rows] @ units.T


def sample_for_matrix(people: np.ndarray, most: int) -> np.ndarray:
    """Runs to show in a matrix, whole participants drawn with a fixed seed, of those with several runs if any.

    Parameters
    ----------
    people : np.ndarray of int, (N,)
        Runs of a participant stand together.
    most : int
        Runs at most.

    Returns
    -------
    np.ndarray of int
        In the order of the runs.
    """
    if len(people) <= most:
        return np.arange(len(people))
    names, sizes = np.unique(people, return_counts=True)
    if (sizes > 1).sum() > 1:
        names, sizes = names[sizes > 1], sizes[sizes > 1]
    order = np.random.default_rng(0).permutation(len(names))
    n_fitting = int((np.cumsum(sizes[order]) <= most).sum())
    return np.flatnonzero(np.isin(people, names[order[:n_fitting]]))
