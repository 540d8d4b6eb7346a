"""Re-identification of participants from embeddings across sessions, and detection of swapped runs. Arrays only.

Similarities are computed in blocks of runs; the full matrix is never held in memory.

N  runs      C  features
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bids_app.group.statistics import robust_z

BLOCK, PART = 256, 32
"""Runs per block of the similarity matrix, and per part of a block that is compared at once, to save memory."""
BINS = np.linspace(-1, 1, 81)
"""Bin edges of the similarity histograms."""


@dataclass(frozen=True)
class ReIdentification:
    """Re-identification of participants across sessions.

    Attributes
    ----------
    own, other : np.ndarray, (N,)
        Maximum similarity with a run of another session, same and other participants; NaN if there is none.
    nearest : np.ndarray of int, (N,)
        Most similar run of another participant; -1 if there is none.
    same, different : np.ndarray, (80,)
        Histograms (`BINS`) of the similarity across sessions, within and between participants.
    mean_same, mean_different : float
        Mean similarities within and between participants.
    chance : float
        Rank-1 accuracy by chance: the mean fraction of runs of the same participant among those of other sessions.
    """

    own: np.ndarray
    other: np.ndarray
    nearest: np.ndarray
    same: np.ndarray
    different: np.ndarray
    mean_same: float
    mean_different: float
    chance: float = float("nan")

    @property
    def tried(self) -> np.ndarray:
        """(N,) bool: runs with other sessions of the same and of another participant."""
        return np.isfinite(self.own) & np.isfinite(self.other)

    @property
    def hits(self) -> np.ndarray:
        """(N,) bool: runs whose most similar run of another session is from the same participant."""
        return self.tried & (self.own > self.other)

    def margins(self) -> np.ndarray:
        """Compute how much more similar each run is to another participant than to its own.

        Returns
        -------
        np.ndarray, (N,)
            Similarity with the other minus own participant, in units of the median difference of re-identified runs:
            -1 is usual, 0 undecided, 1 clearly another participant. NaN if undefined.
        """
        gap = self.own - self.other
        usual = np.median(gap[self.hits]) if self.hits.any() else np.nan
        return np.where(self.tried, -gap / usual, np.nan)


@dataclass(frozen=True)
class Suspicion:
    """Pair of participants whose runs may have been swapped."""

    participants: tuple[int, int]
    runs: tuple[int, ...]
    """Runs that are more similar to the other participant."""
    margin: float
    """Maximum of `ReIdentification.margins`."""
    mutual: bool
    """True if runs of both participants are more similar to the other one."""


def standardise(values: np.ndarray, tasks: Sequence[str] | None = None) -> np.ndarray:
    """Standardise features over runs (mean 0, SD 1) and scale each run to unit length; (N, C) float32.

    This removes the component that is common to all runs.

    Parameters
    ----------
    values : np.ndarray, (N, C)
    tasks : sequence of str, (N,), optional
        Features are centred within each task, to remove task effects; a task with one run uses the overall mean.
    """
    values = values.astype(np.float32)
    centre = values.mean(axis=0)
    names = np.asarray(tasks or [""] * len(values))
    for task in set(names.tolist()):
        own = names == task
        values[own] -= values[own].mean(axis=0) if own.sum() > 1 else centre
    deviation = values.std(axis=0)
    varying = deviation > 1e-12
    values /= np.where(varying, deviation, 1)
    values[:, ~varying] = 0
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values


def principal_components(values: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the first components, (N, K), and their fractions of variance, (K,).

    The sign of a component makes its largest weight positive.
    """
    centred = values.astype(np.float64)
    centred -= values.mean(axis=0)
    if len(values) > values.shape[1]:
        variances, axes = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(variances)[::-1][:n_components]
        axes, variances = axes[:, order], np.maximum(variances[order], 0)
    else:
        _, singular, rows = np.linalg.svd(centred, full_matrices=False)
        axes, variances = rows[:n_components].T, singular[:n_components] ** 2
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    total = max(float(np.vdot(centred, centred)), 1e-30)
    return centred @ (axes * np.where(signs == 0, 1, signs)), variances / total


def find_copies(values: np.ndarray, people: np.ndarray) -> list[tuple[int, ...]]:
    """Find the participants (indices) who have a run with the same embedding, (N, C); groups of at least two, once."""
    owners: dict[bytes, dict[int, None]] = {}
    for row, person in zip(values, people.tolist(), strict=True):
        owners.setdefault((row + 0.0).tobytes(), {})[person] = None  # -0 becomes 0
    groups = dict.fromkeys(tuple(sorted(group)) for group in owners.values() if len(group) > 1)
    return sorted(groups)


def reidentify(units: np.ndarray, people: np.ndarray, sessions: np.ndarray) -> ReIdentification:
    """Re-identify the participant of each run among the runs of other sessions.

    Parameters
    ----------
    units : np.ndarray, (N, C)
        Output of `standardise`.
    people, sessions : np.ndarray of int, (N,)
        Indices of participants and sessions. Without sessions in the dataset, each run is its own session.
    """
    own, other = np.full((2, len(units)), np.nan, np.float32)
    nearest = np.full(len(units), -1)
    counts = np.zeros((2, len(BINS) - 1), np.int64)
    sums = np.zeros(2)
    share = np.full(len(units), np.nan)
    for rows, similar in _blocks(units):
        elsewhere = sessions[rows, None] != sessions
        same_person = people[rows, None] == people
        of_own, of_other = elsewhere & same_person, elsewhere & ~same_person
        for kind, pairs in enumerate((of_own, of_other)):
            values = similar[pairs]
            counts[kind] += np.bincount(_bin_of(values), minlength=len(BINS) - 1)
            sums[kind] += values.sum(dtype=np.float64)
        n_own, n_other = of_own.sum(axis=1), of_other.sum(axis=1)
        tried = (n_own > 0) & (n_other > 0)
        share[rows] = np.where(tried, n_own / np.maximum(n_own + n_other, 1), np.nan)
        best_own = np.where(of_own, similar, -np.inf).max(axis=1)
        only_others = np.where(of_other, similar, -np.inf)
        best = only_others.argmax(axis=1)
        best_other = only_others[np.arange(len(best)), best]
        own[rows] = np.where(np.isfinite(best_own), best_own, np.nan)
        other[rows] = np.where(np.isfinite(best_other), best_other, np.nan)
        nearest[rows] = np.where(np.isfinite(best_other), best, -1)
    n_pairs = counts.sum(axis=1)
    means = np.divide(sums, n_pairs, out=np.full(2, np.nan), where=n_pairs > 0)
    chance = float(np.nanmean(share)) if np.isfinite(share).any() else float("nan")
    return ReIdentification(own, other, nearest, counts[0], counts[1], float(means[0]), float(means[1]), chance)


def suspected_swaps(found: ReIdentification, people: np.ndarray, min_margin: float) -> list[Suspicion]:
    """Find pairs of participants whose runs may have been swapped, clearest first.

    A margin must also be an outlier (Bonferroni-corrected at 0.05 over runs): with poor re-identification, some runs
    resemble other participants by chance.

    Parameters
    ----------
    found : ReIdentification
    people : np.ndarray of int, (N,)
        Indices of participants, as for `reidentify`.
    min_margin : float
        Minimum of `ReIdentification.margins`.
    """
    from scipy.stats import norm

    margins = found.margins()
    beyond_chance = robust_z(margins) > norm.isf(0.05 / max(1, int(found.tried.sum())))
    pairs: dict[tuple[int, int], list[int]] = {}
    for run in np.flatnonzero((margins >= min_margin) & beyond_chance):
        one, two = sorted((int(people[run]), int(people[found.nearest[run]])))
        pairs.setdefault((one, two), []).append(int(run))
    suspicions = [
        Suspicion(pair, tuple(runs), float(margins[runs].max()), len({int(people[run]) for run in runs}) == 2)
        for pair, runs in pairs.items()
    ]
    return sorted(suspicions, key=lambda s: (not s.mutual, -s.margin))


def _bin_of(similar: np.ndarray) -> np.ndarray:
    """Return the index of the histogram bin (`BINS`) of each similarity."""
    return np.clip(((similar + 1) * ((len(BINS) - 1) / 2)).astype(np.int64), 0, len(BINS) - 2)


def _blocks(units: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the similarities of some runs with all runs, (B, N)."""
    for start in range(0, len(units), BLOCK):
        block = units[start : start + BLOCK] @ units.T
        for part in range(0, len(block), PART):
            similar = block[part : part + PART]
            yield slice(start + part, start + part + len(similar)), similar


def sample_for_matrix(people: np.ndarray, max_runs: int) -> np.ndarray:
    """Select runs for the similarity matrix: random participants (fixed seed), preferably with several runs.

    Parameters
    ----------
    people : np.ndarray of int, (N,)
        Indices of participants; runs sorted by participant.
    max_runs : int
        Maximum number of runs.

    Returns
    -------
    np.ndarray of int
        Indices of the selected runs, ascending.
    """
    if len(people) <= max_runs:
        return np.arange(len(people))
    names, sizes = np.unique(people, return_counts=True)
    if (sizes > 1).sum() > 1:
        names, sizes = names[sizes > 1], sizes[sizes > 1]
    order = np.random.default_rng(0).permutation(len(names))
    n_fitting = int((np.cumsum(sizes[order]) <= max_runs).sum())
    return np.flatnonzero(np.isin(people, names[order[:n_fitting]]))
