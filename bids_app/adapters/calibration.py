"""Calibration of predictions: calibrated probabilities, and conformal prediction intervals and label sets.

A calibration is fitted to scans that were not used for training (see `bids_app.adapters.calibration_fit`), and stored
in the adapter's card as JSON. Participants are counted and weighted, not scans: all scans of a participant together
weigh as much as those of any other.

- Temperature scaling (Guo et al. 2017): one maximum-likelihood divisor of all logits.
- Conformal prediction (Vovk et al. 2005; Lei et al. 2018; Sadinle et al. 2019): an interval or label set with the
  nominal coverage for new participants of the same sites, also within each class (Mondrian); for one site, if it has
  enough participants; and for a new site, if there are enough sites. See `bids_app.adapters.conformal`.
- Effective sample size of the clips (Geyer 1992): neighbouring clips are correlated, so twenty clips carry less
  information than twenty independent measurements.

    N  scans      K  labels      n  clips
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from bids_app.adapters.conformal import MIN_GROUPS
from bids_app.errors import BadDataError
from bids_app.terminal import count_of, first_of

LEVELS = (0.8, 0.9, 0.95)
"""Nominal coverages for which limits are stored, beside the highest one (`bids_app.adapters.calibration_fit`)."""
NONE, TEMPERATURE, ISOTONIC = "none", "temperature", "isotonic"
METHODS = (NONE, TEMPERATURE)
METHODS_READ = (*METHODS, ISOTONIC)
"""Isotonic regression (Zadrozny and Elkan 2002) is in adapters of earlier versions only."""
TINY = 1e-12
MAX_NAMED = 5
"""Maximum number of sites to name in a sentence."""
Limits = Mapping[str, float]
"""Limits of 1 - p of the true label, or of the absolute error in the adapter's unit, by level."""


@dataclass(frozen=True)
class Certainty:
    """The top class's probability, and the minimum of the true class in a share ``level`` of calibration scans."""

    probability: float
    minimum: float
    level: float


@dataclass(frozen=True)
class Promise:
    """Limits that hold for a scan, and a sentence on the people for whom they hold.

    Attributes
    ----------
    coverage : str
        Whom the coverage holds for, or why none is promised.
    limits : dict of str to float
        Empty if no coverage is promised.
    class_limits : dict of str to dict
        The same within each label; empty if there are none for this scan.
    """

    coverage: str
    limits: Limits = field(default_factory=dict)
    class_limits: Mapping[str, Limits] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[float, ...]:
        """Nominal coverages with a limit, ascending."""
        return tuple(sorted(map(float, self.limits)))

    def interval(self, value: float, level: float) -> tuple[float, float] | None:
        """Return the prediction interval of a value; None without a limit at this level."""
        limit = self.limits.get(level_key(level))
        return None if limit is None else (value - limit, value + limit)

    def certainty(self, probabilities: np.ndarray) -> Certainty | None:
        """Compare the top class's probability (of K) with the calibration scans; None without limits.

        Below the strictest limit, the label set is empty.
        """
        if not self.levels:
            return None
        highest = self.levels[-1]
        return Certainty(float(probabilities.max()), 1 - self.limits[level_key(highest)], highest)

    def label_set(
        self,
        probabilities: np.ndarray,
        labels: Sequence[str],
        level: float,
        by_class: bool = False,
        evidence: float = 1.0,
    ) -> tuple[str, ...] | None:
        """Return the conformal label set, most probable label first; None without a limit at this level.

        The set is empty if no label is probable enough.

        Parameters
        ----------
        probabilities : np.ndarray, (K,)
            Calibrated probabilities.
        by_class : bool
            Guarantee the coverage within each true class, instead of over all scans.
        evidence : float
            Weight of the scan, 0 to 1; the limits move to 1, where no label is excluded, as it falls.
        """
        key = level_key(level)
        limits = [(self.class_limits.get(label, {}) if by_class else self.limits).get(key) for label in labels]
        if any(limit is None for limit in limits):
            return None
        grown = [1 - evidence * (1 - (limit or 0.0)) for limit in limits]
        order = np.argsort(-probabilities, kind="stable")
        return tuple(labels[k] for k in order if 1 - probabilities[k] <= grown[k])


@dataclass(frozen=True)
class Calibration:
    """A calibration, fitted to a calibration cohort.

    Attributes
    ----------
    n_scans, n_participants : int
        Participants are 0 if unknown: adapters of earlier versions were calibrated by scans.
    method : str
        Calibration of probabilities; an entry of `METHODS_READ`.
    temperature : float
    steps : tuple
        For each label, x and y of the thresholds of its isotonic function.
    limits : dict of str to float
        By level: limit of 1 - p of the true label, or of the absolute error in the adapter's unit. Levels that need
        more participants are omitted.
    class_limits : dict of str to dict
        The same within each label.
    source : str
        Description of the calibration scans.
    sites : dict of str to int
        Participants of each site; empty if the sites are unknown.
    site_limits : dict of str to dict
        ``limits`` of each site with enough participants.
    new_site_limits : dict of str to float
        Limits for participants of a new site, from the differences between sites; empty for too few sites.
    """

    n_scans: int
    method: str = NONE
    temperature: float = 1.0
    steps: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    class_limits: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = ""
    n_participants: int = 0
    sites: dict[str, int] = field(default_factory=dict)
    site_limits: dict[str, dict[str, float]] = field(default_factory=dict)
    new_site_limits: dict[str, float] = field(default_factory=dict)

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
            kept = [made.limits, made.new_site_limits, *made.class_limits.values(), *made.site_limits.values()]
            numbers = [made.temperature, *(limit for limits in kept for limit in limits.values())]
            counts = [made.n_scans, made.n_participants, *made.sites.values()]
            valid = not unknown and made.method in METHODS_READ and made.temperature > 0
            if not valid or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
                raise ValueError(str(values)[:200])
            if not all(isinstance(n, int) and n >= 0 for n in counts) or not isinstance(made.source, str):
                raise TypeError(f"the numbers of scans and participants are {counts}, source is {made.source!r}")
            if not all(map(_is_function, steps)) or not all(float(level) > 0 for limits in kept for level in limits):
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
        """Calibrate an adapter's raw probabilities (N, K).

        Isotonic functions are bounded away from 0 and 1 by 1 / (scans + 2): a few scans cannot exclude a label.
        """
        if self.method == TEMPERATURE:
            from scipy.special import softmax

            return softmax(np.log(np.maximum(raw, TINY)) / self.temperature, axis=1)
        if self.method == ISOTONIC:
            bound = 1 / (self.n_scans + 2)
            columns = [np.interp(raw[:, k], x, y) for k, (x, y) in enumerate(self.steps)]
            stacked = np.clip(np.stack(columns, axis=1), bound, 1 - bound)
            return stacked / stacked.sum(axis=1, keepdims=True)
        return raw

    def promise(self, site: str | None = None) -> Promise:
        """Return the limits that hold for a scan, and for whom they hold.

        Parameters
        ----------
        site : str, optional
            Site of the scan, as in the calibration; None if unknown.
        """
        if self.n_participants < MIN_GROUPS:
            return self.promise_at_own_sites()
        known = first_of(list(self.sites), MAX_NAMED)
        if site in self.site_limits:
            people = count_of(self.sites[site], "participant")
            about = f"The coverage holds for new participants of the site {site} ({people})."
            return Promise(about, self.site_limits[site])
        if self.new_site_limits and site not in self.sites:
            about = (
                f"The coverage holds for a site like the {len(self.sites)} of the calibration, with their differences."
            )
            return Promise(about, self.new_site_limits)
        if self.sites and site is None:
            return Promise(
                "Coverage unknown here: the site of the participant is not known (column site of participants.tsv); "
                f"the calibration is of {known}."
            )
        if self.sites and site not in self.sites:
            return Promise(
                f"Coverage unknown here: the site {site} is not in the calibration ({known}). "
                "Calibrate the adapter with participants of this site."
            )
        return self.promise_at_own_sites()

    def promise_at_own_sites(self) -> Promise:
        """Return the limits that hold for new participants of the calibration's sites, whatever their site."""
        if not self.n_participants:
            return Promise(
                "No coverage is promised: the adapter was calibrated by scans, not by participants. Calibrate it again."
            )
        if self.n_participants < MIN_GROUPS:
            return Promise(
                f"No coverage is promised: the calibration has {count_of(self.n_participants, 'participant')}, and "
                f"at least {MIN_GROUPS} are required."
            )
        sites = first_of(list(self.sites), MAX_NAMED)
        where = f"of the calibration's sites ({sites})" if self.sites else "like those of the calibration"
        about = f"The coverage holds for new participants {where}; it is unknown at other sites."
        return Promise(about, self.limits, self.class_limits)


def _is_function(step: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Return True if x and y of an isotonic function are finite and ascending."""
    x, y = step
    ascending = all(list(values) == sorted(values) for values in step)
    return 0 < len(x) == len(y) and ascending and all(map(math.isfinite, (*x, *y)))


def level_key(level: float) -> str:
    """Return the key of a level in the limits: ``0.9``."""
    return f"{level:g}"


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
