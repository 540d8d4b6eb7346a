"""How far an answer can be trusted: calibrated probabilities, and intervals and sets that hold what they promise.

Everything here is learned from scans that were not trained on, one row a participant's scan, and travels in the
adapter's card as JSON.

- Temperature scaling (Guo et al. 2017): one number that divides all logits, by maximum likelihood.
- Isotonic regression (Zadrozny and Elkan 2002): a rising step function of each class's probability, made to sum to 1.
- Split conformal prediction (Vovk et al. 2005; Lei et al. 2018; Sadinle et al. 2019): the interval, or the set of
  labels, that holds the true answer with at least the promised frequency for scans like those of the calibration; for
  each class by itself too (Mondrian).
- Effective sample size of the clips (Geyer 1992): neighbouring clips resemble each other, so twenty clips are less
  than twenty measurements.

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
"""Promised frequencies for which limits are kept."""
NONE, TEMPERATURE, ISOTONIC = "none", "temperature", "isotonic"
METHODS = (NONE, TEMPERATURE, ISOTONIC)
SMALLEST_ISOTONIC = 100
"""Scans below which isotonic regression fits noise."""
TINY = 1e-12


@dataclass(frozen=True)
class Certainty:
    """The probability of an answer, and the least that the true label had in a share ``level`` of calibration scans."""

    probability: float
    least: float
    level: float


@dataclass(frozen=True)
class Calibration:
    """What was learned from a calibration cohort.

    Attributes
    ----------
    n_scans : int
    method : str
        Of the probabilities; an entry of `METHODS`.
    temperature : float
    steps : tuple
        For each label the places and heights of its isotonic function.
    limits : dict of str to float
        By level: of 1 - p of the true label, or of the absolute error in the adapter's unit; levels that so few scans
        cannot promise are left out.
    class_limits : dict of str to dict
        The same of each label by itself.
    source : str
        Whose scans they were.
    """

    n_scans: int
    method: str = NONE
    temperature: float = 1.0
    steps: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    class_limits: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Fields as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `as_dict` wrote.

        Raises
        ------
        BadDataError
            It is none.
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
        except (TypeError, ValueError, AttributeError) as error:
            raise BadDataError(f"Not a valid calibration: {error}.", "Calibrate the adapter again.") from error
        return made

    def probabilities(self, raw: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (N, K) from an adapter's own (N, K)."""
        if self.method == TEMPERATURE:
            return softmax(np.log(np.maximum(raw, TINY)) / self.temperature, axis=1)
        if self.method == ISOTONIC:
            columns = [np.interp(raw[:, k], x, y) for k, (x, y) in enumerate(self.steps)]
            stacked = np.maximum(np.stack(columns, axis=1), TINY)
            return stacked / stacked.sum(axis=1, keepdims=True)
        return raw

    def interval(self, value: float, level: float) -> tuple[float, float] | None:
        """Limits between which the true value is promised to lie; None where too few scans were seen."""
        limit = self.limits.get(_key(level))
        return None if limit is None else (value - limit, value + limit)

    def certainty(self, probabilities: np.ndarray) -> Certainty | None:
        """How probable the first label (of K) is, beside what calibration saw; None where it kept no limits.

        Where a scan falls short of the strictest limit, its label set would be empty: no label conforms.
        """
        kept = [level for level in LEVELS if _key(level) in self.limits]
        if not kept:
            return None
        return Certainty(float(probabilities.max()), 1 - self.limits[_key(max(kept))], max(kept))

    def label_set(
        self, probabilities: np.ndarray, labels: Sequence[str], level: float, by_class: bool = False
    ) -> tuple[str, ...] | None:
        """Labels among which the true one is promised to be, the most probable first; None where too few were seen.

        An adapter that is right more often than was promised could keep the promise with sets that are empty at times;
        these hold the most probable label instead.

        Parameters
        ----------
        probabilities : np.ndarray, (K,)
            Calibrated.
        by_class : bool
            Keep the promise for each true label by itself, rather than over all scans.
        """
        key = _key(level)
        limits = [(self.class_limits.get(label, {}) if by_class else self.limits).get(key) for label in labels]
        if any(limit is None for limit in limits):
            return None
        order = np.argsort(-probabilities, kind="stable")
        found = tuple(labels[k] for k in order if 1 - probabilities[k] <= (limits[k] or 0.0))
        return found or (labels[order[0]],)


def calibrate_classes(
    raw: np.ndarray, truth: Sequence[str], labels: Sequence[str], method: str = TEMPERATURE, source: str = ""
) -> Calibration:
    """Calibrate probabilities, and keep the limits of conformal sets.

    Probabilities and limits are learned from the same scans only where that costs the promise nothing: a temperature
    is one number. With isotonic regression, every second scan gives the function and the others the limits.

    Parameters
    ----------
    raw : np.ndarray, (N, K)
        Probabilities of each scan, the mean over its clips.
    truth : sequence of str, (N,)
    labels : sequence of str, (K,)
    """
    if method not in METHODS:
        raise UsageError(f"There is no calibration {method!r}.", f"Choose one of {', '.join(METHODS)}.")
    if unknown := sorted(set(truth) - set(labels)):
        raise BadDataError(f"The adapter does not know {', '.join(unknown)}.", f"Its labels are {', '.join(labels)}.")
    index = np.array([list(labels).index(label) for label in truth])
    given = Calibration(len(index), method, source=source)
    rest = np.arange(len(index))
    if method == TEMPERATURE:
        given = replace(given, temperature=fit_temperature(raw, index))
    elif method == ISOTONIC:
        if len(index) < SMALLEST_ISOTONIC:
            raise UsageError(
                f"{len(index)} scans are too few for isotonic regression.",
                f"It needs {SMALLEST_ISOTONIC}; choose {TEMPERATURE}.",
            )
        rest = rest[1::2]
        given = replace(given, steps=fit_isotonic(raw[::2], index[::2]))
    scores = 1 - given.probabilities(raw)[np.arange(len(index)), index]
    by_class = {label: _limits(scores[rest][index[rest] == k]) for k, label in enumerate(labels)}
    return replace(given, limits=_limits(scores[rest]), class_limits=by_class)


def calibrate_values(predicted: np.ndarray, truth: np.ndarray, source: str = "") -> Calibration:
    """Keep the limits of conformal intervals of a regression; (N,) both, in the adapter's unit."""
    return Calibration(len(truth), limits=_limits(np.abs(np.asarray(predicted) - np.asarray(truth))), source=source)


def conformal_limit(scores: np.ndarray, level: float) -> float | None:
    """The score (N,) below which the next scan lies with a frequency of at least ``level``; None where N is too small.

    The ceil((N + 1) level)-th smallest, which holds at any N and for any distribution of exchangeable scores.
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def _limits(scores: np.ndarray) -> dict[str, float]:
    found = {_key(level): conformal_limit(scores, level) for level in LEVELS}
    return {key: limit for key, limit in found.items() if limit is not None}


def _key(level: float) -> str:
    return f"{level:g}"


def fit_temperature(raw: np.ndarray, index: np.ndarray) -> float:
    """The temperature of maximum likelihood for probabilities (N, K) and true classes (N,).

    Of each truth, 1 / (N + 2) is given to the other classes (as Platt 1999 does), so that a few scans that are all
    right do not make every answer certain.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.maximum(raw, TINY))
    n, k = raw.shape
    doubt = 1 / (n + 2)
    truth = np.full((n, k), doubt / (k - 1))
    truth[np.arange(n), index] = 1 - doubt

    def loss(log_temperature: float) -> float:
        p = softmax(logits / math.exp(log_temperature), axis=1)
        return float(-(truth * np.log(np.maximum(p, TINY))).sum(axis=1).mean())

    return math.exp(float(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded").x))


def fit_isotonic(raw: np.ndarray, index: np.ndarray) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """For each class, places and heights of the rising function from its probability to its frequency."""
    from sklearn.isotonic import IsotonicRegression

    found = []
    for k in range(raw.shape[1]):
        fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw[:, k], index == k)
        found.append((tuple(fit.X_thresholds_.tolist()), tuple(fit.y_thresholds_.tolist())))
    return tuple(found)


def effective_sample_size(values: np.ndarray) -> float:
    """How many independent measurements the clips (n,) of a run are worth, from 1 to n.

    Autocorrelations are summed in pairs for as long as the sum of a pair is above 0 (Geyer's initial positive
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
    """Of the mean over clips (n,), by their effective sample size; nan for a single clip."""
    n = len(values)
    return float("nan") if n < 2 else float(values.std(ddof=1) / math.sqrt(effective_sample_size(values)))
