"""Whether a scan resembles those that an adapter was trained on: how far its embedding lies from theirs.

The distance is Mahalanobis' (1936), with the covariance of the cohort's correlations shrunk towards none (Chen et al.
2010, "oracle approximating"), so that a cohort may have fewer scans than the embedding has features. What distance is
far is not taken from a distribution but from the cohort: each participant's scans are measured against all the others,
and a new scan is far when it lies farther than all but a stated share of these.

    N  scans of the cohort      C  features
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bids_app.errors import BadDataError

SMALLEST_COHORT = 10
"""Participants below which nothing is said: one in eleven scans of their own kind would count as far."""
FALSE_ALARMS = 0.01
"""Share of scans like the cohort's that count as far; with fewer than 99 participants, 1 / (participants + 1)."""
KEPT_DISTANCES = 1000
"""Of a larger cohort as many of its own distances are kept, evenly by rank."""
MIN_SHRINKAGE = 1e-3
"""Directions in which the cohort hardly varies say more of a device's arithmetic than of scans."""
CONSTANT = 1e-8
"""A feature that varies by less than this share of its size does not vary."""


@dataclass(frozen=True)
class Distance:
    """How far a scan lies from a cohort.

    Attributes
    ----------
    value : float
        Mahalanobis distance, in standard deviations of the cohort.
    limit : float
        Beyond which it counts as far.
    false_alarms : float
        Share of scans like the cohort's that lie beyond ``limit``.
    """

    value: float
    limit: float
    false_alarms: float

    @property
    def is_far(self) -> bool:
        """Whether the scan lies beyond the limit."""
        return self.value > self.limit


@dataclass(frozen=True)
class Domain:
    """Reference statistics of a cohort.

    Attributes
    ----------
    mean : np.ndarray, (C,)
    covariance : np.ndarray, (C, C)
        Shrunk; positive definite.
    distances : np.ndarray, (n,)
        Of the cohort's own scans from all other participants', rising.
    participants : int
    """

    mean: np.ndarray
    covariance: np.ndarray
    distances: np.ndarray
    participants: int

    def __post_init__(self) -> None:
        n = len(self.mean)
        fits = self.mean.shape == (n,) and self.covariance.shape == (n, n) and self.distances.ndim == 1
        fits = fits and len(self.distances) > 0 and self.participants > 0
        if not fits or not all(np.isfinite(array).all() for array in self._arrays().values()):
            raise BadDataError("Reference statistics that do not fit each other.", "Get the adapter's file again.")
        if np.diag(self.covariance).min() <= 0 or np.linalg.eigvalsh(self._correlation).min() <= 0:
            raise BadDataError("The reference covariance is not positive definite.", "Get the adapter's file again.")

    @cached_property
    def _correlation(self) -> np.ndarray:
        """The covariance of features in units of their own spread, (C, C); sizes of features may be far apart."""
        scale = np.sqrt(np.diag(self.covariance))
        return self.covariance / np.outer(scale, scale)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "covariance": self.covariance, "distances": self.distances}

    def as_arrays(self) -> dict[str, np.ndarray]:
        """What a file keeps of it, in float32."""
        count = np.array(self.participants, np.int64)
        return {name: array.astype(np.float32) for name, array in self._arrays().items()} | {"participants": count}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Domain:
        """The domain that `as_arrays` gave.

        Raises
        ------
        BadDataError
            It is none.
        """
        if set(arrays) != {"mean", "covariance", "distances", "participants"}:
            raise BadDataError(f"Reference statistics of {', '.join(sorted(arrays))}.", "Get the adapter's file again.")
        mean, covariance, distances = (
            np.asarray(arrays[name], np.float64) for name in ("mean", "covariance", "distances")
        )
        return cls(mean, covariance, np.sort(distances), int(arrays["participants"]))

    @classmethod
    def fit(cls, embeddings: np.ndarray, people: Sequence[str]) -> Domain:
        """Learn a cohort.

        Parameters
        ----------
        embeddings : np.ndarray, (N, C)
            Of each scan, the mean over its clips.
        people : sequence of str, (N,)
            Whose scans they are.

        Raises
        ------
        BadDataError
            Of fewer than `SMALLEST_COHORT` participants.
        """
        groups = [np.flatnonzero(np.array(people) == person) for person in dict.fromkeys(people)]
        if len(groups) < SMALLEST_COHORT:
            raise BadDataError(
                f"Scans of {len(groups)} participants are too few for reference statistics.",
                f"{SMALLEST_COHORT} are the least.",
            )
        values = np.asarray(embeddings, np.float64)
        centre, scale = values.mean(axis=0), _spread(values)
        standard = (values - centre) / scale
        sums, products = standard.sum(axis=0), standard.T @ standard
        mean, covariance = _moments(sums, products, len(values))
        distances = np.empty(len(values))
        for own in groups:  # as if this participant had not been in the cohort
            rows = standard[own]
            others = _moments(sums - rows.sum(axis=0), products - rows.T @ rows, len(values) - len(own))
            distances[own] = _mahalanobis(rows, *others)
        ranks = np.linspace(0, len(distances) - 1, min(len(distances), KEPT_DISTANCES)).round().astype(int)
        return cls(centre + scale * mean, covariance * np.outer(scale, scale), np.sort(distances)[ranks], len(groups))

    @cached_property
    def limit(self) -> tuple[float, float]:
        """The distance beyond which a scan counts as far, and the share of scans like the cohort's that do."""
        rate = max(FALSE_ALARMS, 1 / (self.participants + 1))
        rank = math.ceil((len(self.distances) + 1) * (1 - rate) - 1e-9)
        return float(self.distances[min(rank, len(self.distances)) - 1]), rate

    def measure(self, embedding: np.ndarray) -> Distance:
        """How far a scan's mean embedding (C,) lies.

        Raises
        ------
        BadDataError
            It has another number of features.
        """
        if embedding.shape != self.mean.shape:
            raise BadDataError(
                f"An embedding of {embedding.size} features against a reference of {self.mean.size}.",
                "Get the adapter's file again.",
            )
        row = (np.asarray(embedding, np.float64) - self.mean) / np.sqrt(np.diag(self.covariance))
        (value,) = _mahalanobis(row[None], np.zeros_like(row), self._correlation)
        limit, rate = self.limit
        return Distance(float(value), limit, rate)


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each feature; 1 where it does not vary."""
    spread = values.std(axis=0)
    constant = spread <= CONSTANT * np.maximum(np.abs(values).max(axis=0), 1e-30)
    return np.where(constant, np.maximum(np.abs(values).max(axis=0), 1.0), spread)


def _moments(sums: np.ndarray, products: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C,) and shrunk covariance (C, C) of n standardised scans, from their sums and products."""
    mean = sums / n
    return mean, shrink(products / n - np.outer(mean, mean), n)


def shrink(covariance: np.ndarray, n: int) -> np.ndarray:
    """Shrink a sample covariance (C, C) of n scans towards a ball of the same size (Chen et al. 2010)."""
    c = len(covariance)
    trace, squares = float(np.trace(covariance)), float((covariance**2).sum())
    above = (1 - 2 / c) * squares + trace**2
    below = (n + 1 - 2 / c) * (squares - trace**2 / c)
    share = 1.0 if below <= 0 else min(1.0, max(MIN_SHRINKAGE, above / below))
    return (1 - share) * covariance + share * max(trace / c, 1e-12) * np.eye(c)


def _mahalanobis(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Of rows (n, C) from a mean; (n,)."""
    from scipy.linalg import cho_factor, cho_solve

    away = rows - mean
    return np.sqrt(np.einsum("nc,cn->n", away, cho_solve(cho_factor(covariance), away.T)))
