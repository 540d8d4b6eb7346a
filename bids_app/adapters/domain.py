"""Out-of-distribution detection: the distance of a scan from an adapter's training cohort.

A scan has one or more rows: its mean embedding, the embeddings of its clips, or the measures of its signal. The
distance of a scan is the root mean square over its rows. That of clips does not depend on the number of clips, whereas
the mean embedding of a longer run is closer to the cohort's mean.

The Mahalanobis distance (1936) uses a correlation matrix shrunk towards the identity (Chen et al. 2010, oracle
approximating shrinkage), so that a cohort may have fewer scans than the embedding has features. The limit is empirical:
each participant's scans are compared with all other participants, and a new scan is out of distribution if its distance
exceeds all but a given share of these distances.

    N  scans of the cohort      n  rows of a scan      C  features
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bids_app.errors import BadDataError

MIN_COHORT = 10
"""Minimum number of participants; with fewer, more than one in eleven similar scans would be out of distribution."""
FALSE_ALARMS = 0.01
"""False-alarm rate in scans of the cohort's kind; with fewer than 99 participants, 1 / (participants + 1)."""
KEPT_DISTANCES = 1000
"""Maximum number of the cohort's own distances in a file; of larger cohorts, evenly by rank."""
MIN_SHRINKAGE = 1e-3
"""Minimum shrinkage; it damps directions whose variance is numerical noise."""
TAIL_QUANTILE = 0.9
CONSTANT = 1e-8
"""Features with a smaller relative spread count as constant."""


@dataclass(frozen=True)
class Distance:
    """Distance of a scan from a cohort.

    Attributes
    ----------
    value : float
        Mahalanobis distance; of several rows, the root mean square.
    limit : float
        Larger distances are out of distribution.
    false_alarms : float
        Share of scans of the cohort's kind that exceed ``limit``.
    """

    value: float
    limit: float
    false_alarms: float
    tail: float = 0.0
    """Mean excess of the cohort's distances over their 90th percentile, the scale of an exponential tail."""

    @property
    def is_far(self) -> bool:
        """True if the distance exceeds the limit."""
        return self.value > self.limit

    @property
    def evidence(self) -> float:
        """Weight of a prediction, 0 to 1: below the limit 1, beyond it as the tail of the cohort's distances.

        The tail above a high threshold is taken as exponential (Pickands 1975, with shape 0), so that this is the share
        of scans of the cohort's kind beyond the distance, relative to the share beyond the limit.
        """
        if not self.is_far:
            return 1.0
        return math.exp(-(self.value - self.limit) / self.tail) if self.tail > 0 else 0.0


def lowest_rate(participants: int) -> float:
    """Return the rate of false alarms of limits from a number of participants: `FALSE_ALARMS`, or what they allow."""
    return max(FALSE_ALARMS, 1 / (participants + 1))


INVALID = "The shapes or values of the reference statistics are invalid."


@dataclass(frozen=True)
class Domain:
    """Reference statistics of a cohort.

    Attributes
    ----------
    mean : np.ndarray, (C,)
    covariance : np.ndarray, (C, C)
        Shrunk; positive definite.
    distances : np.ndarray, (n,)
        Distances of the cohort's own scans from all other participants, ascending.
    participants : int
    """

    mean: np.ndarray
    covariance: np.ndarray
    distances: np.ndarray
    participants: int

    def __post_init__(self) -> None:
        n = len(self.mean)
        fits = self.mean.shape == (n,) and self.covariance.shape == (n, n) and self.distances.ndim == 1
        fits = fits and n > 0 and len(self.distances) > 0 and self.participants > 0
        if not fits or not all(np.isfinite(array).all() for array in self._arrays().values()):
            raise BadDataError(INVALID, "Download the adapter's file again.")
        if np.diag(self.covariance).min() <= 0 or np.linalg.eigvalsh(self._correlation).min() <= 0:
            raise BadDataError(
                "The reference covariance is not positive definite.", "Download the adapter's file again."
            )

    @cached_property
    def _correlation(self) -> np.ndarray:
        """Correlation matrix of the features, (C, C)."""
        scale = np.sqrt(np.diag(self.covariance))
        return self.covariance / np.outer(scale, scale)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "covariance": self.covariance, "distances": self.distances}

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that a file stores, in float32."""
        count = np.array(self.participants, np.int64)
        stored = {name: array.astype(np.float32) for name, array in self._arrays().items()}
        distances = stored["distances"]  # rounded upwards, because they are limits
        stored["distances"] = np.where(
            distances < self.distances, np.nextafter(distances, np.float32(np.inf)), distances
        )
        return stored | {"participants": count}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Domain:
        """Build a domain from the output of `as_arrays`.

        Raises
        ------
        BadDataError
            The arrays are not valid reference statistics.
        """
        if set(arrays) != {"mean", "covariance", "distances", "participants"}:
            raise BadDataError(
                f"Unexpected arrays in the reference statistics: {', '.join(sorted(arrays))}.",
                "Download the adapter's file again.",
            )
        mean, covariance, distances = (
            np.asarray(arrays[name], np.float64) for name in ("mean", "covariance", "distances")
        )
        if mean.ndim != 1 or distances.ndim != 1 or arrays["participants"].size != 1:
            raise BadDataError(INVALID, "Download the adapter's file again.")
        return cls(mean, covariance, np.sort(distances), int(arrays["participants"].reshape(-1)[0]))

    @classmethod
    def fit(cls, scans: np.ndarray | Sequence[np.ndarray], participants: Sequence[str]) -> Domain:
        """Compute the reference statistics of a cohort.

        Parameters
        ----------
        scans : np.ndarray, (N, C), or sequence of np.ndarray, (n, C)
            One row, or several rows, of each of N scans.
        participants : sequence of str, (N,)
            Participant of each scan.

        Raises
        ------
        BadDataError
            Fewer than `MIN_COHORT` participants.
        """
        groups = [np.flatnonzero(np.array(participants) == label) for label in dict.fromkeys(participants)]
        if len(groups) < MIN_COHORT:
            raise BadDataError(
                f"{len(groups)} participants are too few for reference statistics.",
                f"At least {MIN_COHORT} participants are required.",
            )
        rows = [np.atleast_2d(np.asarray(scan, np.float64)) for scan in scans]
        values, of_scan = np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(scan) for scan in rows])
        centre, scale = values.mean(axis=0), _spread(values)
        standard = (values - centre) / scale
        sums, products = standard.sum(axis=0), standard.T @ standard
        mean, covariance = _moments(sums, products, len(values))
        distances = np.empty(len(rows))
        for own in groups:  # leave this participant out
            theirs = [standard[of_scan == index] for index in own]
            left_out = np.concatenate(theirs)
            others = _moments(
                sums - left_out.sum(axis=0), products - left_out.T @ left_out, len(values) - len(left_out)
            )
            distances[own] = [_mahalanobis(scan, *others) for scan in theirs]
        ranks = np.linspace(0, len(distances) - 1, min(len(distances), KEPT_DISTANCES)).round().astype(int)
        return cls(centre + scale * mean, covariance * np.outer(scale, scale), np.sort(distances)[ranks], len(groups))

    @cached_property
    def limit(self) -> tuple[float, float]:
        """Limit of the distance, and the share of scans of the cohort's kind that exceed it."""
        rate = lowest_rate(self.participants)
        rank = math.ceil((len(self.distances) + 1) * (1 - rate) - 1e-9)
        return float(self.distances[min(rank, len(self.distances)) - 1]), rate

    @cached_property
    def tail(self) -> float:
        """Mean excess of the cohort's distances over their 90th percentile."""
        threshold = float(np.quantile(self.distances, TAIL_QUANTILE))
        above = self.distances[self.distances > threshold]
        return float((above - threshold).mean()) if len(above) else 0.0

    def measure(self, scan: np.ndarray) -> Distance:
        """Measure the distance of a scan, (C,) or (n, C).

        Raises
        ------
        BadDataError
            The number of features differs.
        """
        rows = np.atleast_2d(np.asarray(scan, np.float64))
        if rows.shape[1:] != self.mean.shape:
            raise BadDataError(
                f"The embedding has {rows.shape[1]} features, the reference statistics have {self.mean.size}.",
                "Download the adapter's file again.",
            )
        standard = (rows - self.mean) / np.sqrt(np.diag(self.covariance))
        limit, rate = self.limit
        return Distance(_mahalanobis(standard, np.zeros_like(self.mean), self._correlation), limit, rate, self.tail)


def _spread(values: np.ndarray) -> np.ndarray:
    """Return each feature's standard deviation; its size, or at least 1, if it is constant."""
    spread = values.std(axis=0)
    constant = spread <= CONSTANT * np.maximum(np.abs(values).max(axis=0), 1e-30)
    return np.where(constant, np.maximum(np.abs(values).max(axis=0), 1.0), spread)


def _moments(sums: np.ndarray, products: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean (C,) and shrunk covariance (C, C) of n standardised scans from their sums and products."""
    mean = sums / n
    return mean, shrink(products / n - np.outer(mean, mean), n)


def shrink(covariance: np.ndarray, n: int) -> np.ndarray:
    """Shrink a sample covariance (C, C) of n scans towards a scaled identity (Chen et al. 2010)."""
    c = len(covariance)
    trace, squares = float(np.trace(covariance)), float((covariance**2).sum())
    above = (1 - 2 / c) * squares + trace**2
    below = (n + 1 - 2 / c) * (squares - trace**2 / c)
    share = 1.0 if below <= 0 else min(1.0, max(MIN_SHRINKAGE, above / below))
    return (1 - share) * covariance + share * max(trace / c, 1e-12) * np.eye(c)


def _mahalanobis(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Compute the root mean square of the Mahalanobis distances of rows (n, C) from a mean."""
    from scipy.linalg import cho_factor, cho_solve

    away = rows - mean
    return math.sqrt(float(np.einsum("nc,cn->n", away, cho_solve(cho_factor(covariance), away.T)).mean()))
