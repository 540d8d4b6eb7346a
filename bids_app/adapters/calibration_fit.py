"""Fitting of calibrations to scans that were not used for training; see `bids_app.adapters.calibration`.

N  scans      K  labels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bids_app.adapters.calibration import LEVELS, METHODS, TEMPERATURE, TINY, Calibration, level_key
from bids_app.adapters.conformal import group_limits
from bids_app.adapters.domain import lowest_rate
from bids_app.errors import BadDataError, UsageError


@dataclass(frozen=True)
class People:
    """The participants and sites of calibration scans.

    Attributes
    ----------
    participants : sequence of str, (N,)
    sites : sequence of str, (N,)
        Site of each scan; empty if they are not all known.
    """

    participants: Sequence[str]
    sites: Sequence[str] = ()

    @property
    def weights(self) -> np.ndarray:
        """Weight of each scan, (N,): 1 for each participant in total."""
        _, which = np.unique(np.asarray(self.participants, str), return_inverse=True)
        return 1 / np.bincount(which)[which]

    def describe(self) -> dict[str, Any]:
        """Return the numbers of scans, participants, and participants by site, as fields of `Calibration`."""
        by_site = {site: len({p for p, s in self._pairs() if s == site}) for site in sorted(set(self.sites))}
        return {
            "n_scans": len(self.participants),
            "n_participants": len(set(self.participants)),
            "sites": by_site,
        }

    def limits(self, scores: np.ndarray, keep: np.ndarray | None = None) -> dict[str, float]:
        """Return the limits of scores (N,) by level for new participants, from all scans or those to ``keep``."""
        index = range(len(scores)) if keep is None else np.flatnonzero(keep).tolist()
        return _limits(scores[list(index)], [self.participants[i] for i in index])

    def site_limits(self, scores: np.ndarray) -> dict[str, dict[str, float]]:
        """Return the limits of each site with enough participants; empty for fewer than two sites."""
        sites = np.asarray(self.sites, str)
        names = np.unique(sites) if len(set(self.sites)) > 1 else ()
        found = {str(site): self.limits(scores, sites == site) for site in names}
        return {site: limits for site, limits in found.items() if limits}

    def new_site_limits(self, scores: np.ndarray) -> dict[str, float]:
        """Return the limits for participants of a new site; empty for too few sites."""
        return _limits(scores, self.sites, self.participants) if self.sites else {}

    def _pairs(self) -> set[tuple[str, str]]:
        return set(zip(self.participants, self.sites, strict=True)) if self.sites else set()


def calibrate_classes(
    raw: np.ndarray,
    truth: Sequence[str],
    labels: Sequence[str],
    people: People,
    method: str = TEMPERATURE,
    source: str = "",
) -> Calibration:
    """Calibrate probabilities, and compute the limits of conformal label sets.

    A temperature is one parameter, so it is fitted to the same scans as the limits.

    Parameters
    ----------
    raw : np.ndarray, (N, K)
        Mean probabilities over each scan's clips.
    truth : sequence of str, (N,)
    labels : sequence of str, (K,)
    people : People
    """
    if method not in METHODS:
        raise UsageError(f"Unknown calibration method {method!r}.", f"Choose one of {', '.join(METHODS)}.")
    if unknown := sorted(set(truth) - set(labels)):
        raise BadDataError(
            f"Labels unknown to the adapter: {', '.join(unknown)}.", f"Its labels are {', '.join(labels)}."
        )
    index = np.array([list(labels).index(label) for label in truth])
    given = Calibration(method=method, source=source, **people.describe())
    if method == TEMPERATURE:
        given = replace(given, temperature=fit_temperature(raw, index, people.weights))
    scores = 1 - given.probabilities(raw)[np.arange(len(index)), index]
    by_class = {label: people.limits(scores, index == k) for k, label in enumerate(labels)}
    return replace(given, class_limits=by_class, **_all_limits(scores, people))


def calibrate_values(predicted: np.ndarray, truth: np.ndarray, people: People, source: str = "") -> Calibration:
    """Compute the limits of conformal intervals of a regression; both inputs (N,), in the adapter's unit."""
    scores = np.abs(np.asarray(predicted) - np.asarray(truth))
    return Calibration(source=source, **people.describe(), **_all_limits(scores, people))


def _all_limits(scores: np.ndarray, people: People) -> dict[str, Any]:
    """Return the limits over all scans, of each site and for a new site, as fields of `Calibration`."""
    return {
        "limits": people.limits(scores),
        "site_limits": people.site_limits(scores),
        "new_site_limits": people.new_site_limits(scores),
    }


def _limits(scores: np.ndarray, groups: Sequence[str], members: Sequence[str] | None = None) -> dict[str, float]:
    levels = sorted({*LEVELS, 1 - lowest_rate(len(set(groups)))})
    return {level_key(level): limit for level, limit in group_limits(scores, groups, levels, members).items()}


def fit_temperature(raw: np.ndarray, index: np.ndarray, weights: np.ndarray) -> float:
    """Fit a temperature by maximum likelihood to probabilities (N, K), true classes (N,) and weights of scans (N,).

    The true classes are smoothed by 1 / (participants + 2) (Platt 1999), so that a few correctly classified scans do
    not lead to probabilities of 1; the sum of the weights is the number of participants.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import softmax

    logits = np.log(np.maximum(raw, TINY))
    n, k = raw.shape
    smoothing = 1 / (weights.sum() + 2)
    truth = np.full((n, k), smoothing / (k - 1))
    truth[np.arange(n), index] = 1 - smoothing

    def loss(log_temperature: float) -> float:
        p = softmax(logits / math.exp(log_temperature), axis=1)
        return float(-(truth * np.log(np.maximum(p, TINY))).sum(axis=1) @ weights)

    return math.exp(float(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded").x))
