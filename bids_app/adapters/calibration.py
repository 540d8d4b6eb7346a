"""Calibration of predictions: calibrated probabilities, and conformal prediction intervals and label sets.

A calibration is fitted to scans that were not used for training, one row per scan, and stored in the adapter's card as
JSON.

- Temperature scaling (Guo et al. 2017): one maximum-likelihood divisor of all logits.
- Isotonic regression (Zadrozny and Elkan 2002): a monotonic function of each class's probability, renormalised.
- Split conformal prediction (Vovk et al. 2005; Lei et al. 2018; Sadinle et al. 2019): an interval or label set with at
  least the nominal coverage for scans exchangeable with the calibration scans; also within each class (Mondrian).
- Effective sample size of the clips (Geyer 1992): neighbouring clips are correlated, so twenty clips carry less
  information than twenty independent measurements.

    N  scans      K  labels      n  clips
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from bids_app.errors import BadDataError, UsageError

LEVELS = (0.8, 0.9, 0.95)
"""Nominal coverages for which limits are stored."""
NONE, TEMPERATURE, ISOTONIC = "none", "temperature", "isotonic"
METHODS = (NONE, TEMPERATURE, ISOTONIC)
MIN_ISOTONIC_SCANS = 100
"""Minimum number of scans; with fewer, isotonic regression fits noise."""
TINY = 1e-12


@dataclass(frozen=True)
class Certainty:
    """The top class's probability, and the minimum of the true class in a share ``level`` of calibration scans."""

    probability: float
    minimum: float
    level: float


@dataclass(frozen=True)
class Calibration:
    """A calibration, fitted to a calibration cohort.

    Attributes
    ----------
    n_scans : int
    method : str
        Calibration of probabilities; an entry of `METHODS`.
    temperature : float
    steps : tuple
        For each label, x and y of the thresholds of its isotonic function.
    limits : dict of str to float
        By level: limit of 1 - p of the true label, or of the absolute error in the adapter's unit. Levels that need
        more scans are omitted.
    class_limits : dict of str to dict
        The same within each label.
    source : str
        Description of the calibration scans.
    """

    n_scans: int
    method: str = NONE
    temperature: float = 1.0
    steps: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    class_limits: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Build a calibration from the output of `as_dict`.

        Raises
        ------
        BadDataError
            The values are not a valid calibration.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        try:
            steps = tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in values.get("steps", ()))
            made = cls(**{**values, "steps": steps})
            numbers = [made.temperature, *made.limits.values()]
            numbers += [limit for limits in made.class_limits.values() for limit in limits.values()]
            valid = not unknown and made.method in METHODS and made.temperature > 0 and made.n_scans >= 0
            if not valid or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
                raise ValueError(str(values)[:200])
            if not isinstance(made.n_scans, int) or not isinstance(made.source, str):
                raise TypeError(f"n_scans is {made.n_scans!r}, source is {made.source!r}")
            if not all(map(_is_function, steps)) or not all(float(level) > 0 for level in made.limits):
                raise ValueError("thresholds of an isotonic function, or a level, are no numbers")
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = str(error)[:200]
            raise BadDataError(f"Not a valid calibration: {reason}.", "Calibrate the adapter again.") from error
        return made

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise a `BadDataError` unless there is one isotonic function for each label."""
        if self.method == ISOTONIC and len(self.steps) != len(labels):
            raise BadDataError(
                f"Not a valid calibration: {len(self.steps)} isotonic functions for {len(labels)} labels.",
                "Calibrate the adapter again.",
            )

    def probabilities(self, raw: np.ndarray) -> np.ndarray:
        """Calibrate an adapter's raw probabilities (N, K)."""
        if self.method == TEMPERATURE:
            return softmax(np.log(np.maximum(raw, TINY)) / self.temperature, axis=1)
        if self.method == ISOTONIC:
            columns = [np.interp(raw[:, k], x, y) for k, (x, y) in enumerate(self.steps)]
            stacked = np.maximum(np.stack(columns, axis=1), TINY)
            return stacked / stacked.sum(axis=1, keepdims=True)
        return raw

    def interval(self, value: float, level: float) -> tuple[float, float] | None:
        """Return the prediction interval of a value; None if the calibration had too few scans."""
        limit = self.limits.get(_key(level))
        return None if limit is None else (value - limit, value + limit)

    def certainty(self, probabilities: np.ndarray) -> Certainty | None:
        """Compare the top class's probability (of K) with the calibration scans; None without stored limits.

        Below the strictest limit, the conformal label set would be empty.
        """
        kept = [level for level in LEVELS if _key(level) in self.limits]
        if not kept:
            return None
        return Certainty(float(probabilities.max()), 1 - self.limits[_key(max(kept))], max(kept))

    def label_set(
        self, probabilities: np.ndarray, labels: Sequence[str], level: float, by_class: bool = False
    ) -> tuple[str, ...] | None:
        """Return the conformal label set, most probable label first; None if the calibration had too few scans.

        An empty set is replaced by the most probable label, which only increases the coverage.

        Parameters
        ----------
        probabilities : np.ndarray, (K,)
            Calibrated probabilities.
        by_class : bool
            Guarantee the coverage within each true class, instead of over all scans.
        """
        key = _key(level)
        limits = [(self.class_limits.get(label, {}) if by_class else self.limits).get(key) for label in labels]
        if any(limit is None for limit in limits):
            return None
        order = np.argsort(-probabilities, kind="stable")
        found = tuple(labels[k] for k in order if 1 - probabilities[k] <= (limits[k] or 0.0))
        return found or (labels[order[0]],)


def _is_function(step: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Return True if x and y of an isotonic function are finite and ascending."""
    x, y = step
    ascending = all(list(values) == sorted(values) for values in step)
    return 0 < len(x) == len(y) and ascending and all(map(math.isfinite, (*x, *y)))


def calibrate_classes(
    raw: np.ndarray, truth: Sequence[str], labels: Sequence[str], method: str = TEMPERATURE, source: str = ""
) -> Calibration:
    """Calibrate probabilities, and compute the limits of conformal label sets.

    A temperature is one parameter, so it is fitted to the same scans as the limits. With isotonic regression, every
    second scan is used for the function and the others for the limits.

    Parameters
    ----------
    raw : np.ndarray, (N, K)
        Mean probabilities over each scan's clips.
    truth : sequence of str, (N,)
    labels : sequence of str, (K,)
    """
    if method not in METHODS:
        raise UsageError(f"Unknown calibration method {method!r}.", f"Choose one of {', '.join(METHODS)}.")
    if unknown := sorted(set(truth) - set(labels)):
        raise BadDataError(
            f"Labels unknown to the adapter: {', '.join(unknown)}.", f"Its labels are {', '.join(labels)}."
        )
    index = np.array([list(labels).index(label) for label in truth])
    given = Calibration(len(index), method, source=source)
    rest = np.arange(len(index))
    if method == TEMPERATURE:
        given = replace(given, temperature=fit_temperature(raw, index))
    elif method == ISOTONIC:
        if len(index) < MIN_ISOTONIC_SCANS:
            raise UsageError(
                f"Isotonic regression has too few scans ({len(index)}).",
                f"At least {MIN_ISOTONIC_SCANS} are required; use {TEMPERATURE}.",
            )
        rest = rest[1::2]
        given = replace(given, steps=fit_isotonic(raw[::2], index[::2]))
    scores = 1 - given.probabilities(raw)[np.arange(len(index)), index]
    by_class = {label: _limits(scores[rest][index[rest] == k]) for k, label in enumerate(labels)}
    return replace(given, limits=_limits(scores[rest]), class_limits=by_class)


def calibrate_values(predicted: np.ndarray, truth: np.ndarray, source: str = "") -> Calibration:
    """Compute the limits of conformal intervals of a regression; both inputs (N,), in the adapter's unit."""
    return Calibration(len(truth), limits=_limits(np.abs(np.asarray(predicted) - np.asarray(truth))), source=source)


def conformal_limit(scores: np.ndarray, level: float) -> float | None:
    """Return the conformal quantile of nonconformity scores (N,) at ``level``; None if N is too small.

    This is the ceil((N + 1) level)-th smallest score; it is valid for any N and any exchangeable scores.
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def _limits(scores: np.ndarray) -> dict[str, float]:
    found = {_key(level): conformal_limit(scores, level) for level in LEVELS}
    return {key: limit for key, limit in found.items() if limit is not None}


def _key(level: float) -> str:
    return f"{level:g}"


def fit_temperature(raw: np.ndarray, index: np.ndarray) -> float:
    """Fit a temperature by maximum likelihood to probabilities (N, K) and true classes (N,).

    The true classes are smoothed by 1 / (N + 2) (Platt 1999), so that a few correctly classified scans do not lead to
    probabilities of 1.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.maximum(raw, TINY))
    n, k = raw.shape
    smoothing = 1 / (n + 2)
    truth = np.full((n, k), smoothing / (k - 1))
    truth[np.arange(n), index] = 1 - smoothing

    def loss(log_temperature: float) -> float:
        p = softmax(logits / math.exp(log_temperature), axis=1)
        return float(-(truth * np.log(np.maximum(p, TINY))).sum(axis=1).mean())

    return math.exp(float(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded").x))


def fit_isotonic(raw: np.ndarray, index: np.ndarray) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """Fit each class's isotonic function from probability to frequency; return x and y of its thresholds."""
    from sklearn.isotonic import IsotonicRegression

    found = []
    for k in range(raw.shape[1]):
        fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw[:, k], index == k)
        found.append((tuple(fit.X_thresholds_.tolist()), tuple(fit.y_thresholds_.tolist())))
    return tuple(found)


def effective_sample_size(values: np.ndarray) -> float:
    """Estimate the effective sample size of the clips (n,) of a run, from 1 to n.

    Autocorrelations are summed in pairs while the sum of a pair is positive (Geyer's initial positive
    sequence).
    """
    n = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / n
    if n < 3 or variance <= TINY:
        return float(n)
    correlations = np.array([float(centred[: n - lag] @ centred[lag:]) / n / variance for lag in range(n)])
    total = 0.0
    for lag in range(0, n - 1, 2):
        pair = correlations[lag] + correlations[lag + 1]
        if pair <= 0:
            break
        total += pair
    return float(min(n, max(1.0, n / max(2 * total - 1, TINY))))


def standard_error(values: np.ndarray) -> float:
    """Estimate the standard error of the mean over clips (n,) by their effective sample size; nan for one clip."""
    n = len(values)
    return float("nan") if n < 2 else float(values.std(ddof=1) / math.sqrt(effective_sample_size(values)))
