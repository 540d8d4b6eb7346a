"""A verdict beside each answer: whether the scan is one that the model, and the adapter, can be asked about.

Every check has a level. ``warn`` says that an answer may be worse than its adapter's card promises; ``refuse``, that it
would mean nothing. What lies outside of the adapter's cohort is warned of or refused, as the user chose. What is not
known is neither passed nor refused: it is named, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bids_app.adapters.calibration import Certainty
from bids_app.adapters.domain import Distance
from bids_app.adapters.file import AdapterCard
from bids_app.bids.orientation import LeftRight, Orientation

PASS, WARN, REFUSE = "pass", "warn", "refuse"
LEVELS = (PASS, WARN, REFUSE)
Facts = Mapping[str, float | bool | Orientation | None]
"""What is known of a scan, by the names of figures in `RULES` and `COHORT_RULES`; also ``orientation``,
``mean_removed`` and ``age``."""


@dataclass(frozen=True)
class Rule:
    """Limits of one figure of a scan.

    Attributes
    ----------
    check, figure : str
        Name of the check, and of the figure that it looks at.
    what, unit : str
        The figure in words, and its unit.
    low, high : float, optional
        Beyond which the level is ``warn``.
    least : float, optional
        Below which it is ``refuse``.
    why : str
        What it means to be beyond them.
    """

    check: str
    figure: str
    what: str
    unit: str
    why: str
    low: float | None = None
    high: float | None = None
    least: float | None = None

    @property
    def limits(self) -> str:
        """The limits of ``pass`` in words."""
        return range_in_words(self.low, self.high, self.unit)


RULES = (
    # The model reads volumes at 0.8 s: above 3 s at least three of four are interpolated. The model's own cohorts were
    # scanned at about 0.7 to 3 s.
    Rule(
        "tr", "tr", "repetition time", "s", "the model reads volumes at 0.8 s and was trained on few such scans", 0.5, 3
    ),
    # One clip is 20 volumes at 0.8 s; with fewer than four, neither their spread nor two halves say much.
    Rule("duration", "seconds", "length", "s", "the answer rests on fewer than four clips of 16 s", 64, least=16),
    # From here on the limits are those that the report judges figures by (reports/spec.yml); the least are our choice:
    # half of the brain not seen; an overlap that no alignment which passed its gates has.
    Rule(
        "field_of_view", "coreg_brain_seen", "share of the brain in the field of view", "", "part of the brain is cut",
        0.8, least=0.5,
    ),
    Rule(
        "coverage", "coverage", "share of the model's brain that has data", "",
        "the model reads background where it expects brain", 0.9, least=0.5,
    ),
    Rule(
        "template_overlap", "coreg_dice", "overlap with the brain it was aligned to (Dice)", "",
        "the alignment may be wrong", 0.9, least=0.8,
    ),
    Rule(
        "template_overlap", "place_similarity", "similarity with the template", "",
        "the image may not lie where it says", 0.35, least=0.2,
    ),
    # Parkes et al. 2018, the lenient criterion.
    Rule("fd_mean", "fd_mean", "mean framewise displacement", "mm", "studies leave out scans with so much motion",
         high=0.55),
    Rule("tsnr", "tsnr", "temporal signal-to-noise ratio", "", "the signal is weak", 25),
)  # fmt: skip
"""Of the model, whatever the adapter."""


JUDGED_SIDES = {
    LeftRight.AS_STORED: (PASS, ""),
    LeftRight.FLIPPED: (
        REFUSE,
        "The brain is more like the mirror image of the template: left and right may be exchanged.",
    ),
}
"""Level and message by what was found of left and right; anything else is not known."""


@dataclass(frozen=True)
class CohortRule:
    """Which end of a cohort's range counts, and how far beyond it a scan may lie, as a share of that end."""

    figure: str
    what: str
    unit: str
    low: bool = True
    high: bool = True
    margin: float = 0.0


COHORT_RULES = {
    "tr": CohortRule("tr", "repetition time", "s", margin=0.1),
    "duration": CohortRule("seconds", "length", "s", high=False, margin=0.1),  # longer is only better
    "fd_mean": CohortRule("fd_mean", "mean framewise displacement", "mm", low=False),
    "tsnr": CohortRule("tsnr", "temporal signal-to-noise ratio", "", high=False),
    "age": CohortRule("age", "age of the participant", "years"),
}
"""By check: what is compared with the range that the adapter's cohort had (`AdapterCard.ranges`)."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    level: str
    value: float | str | None
    limits: str
    message: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of a scan; ``unknown`` names those that could not be made, and why."""

    checks: tuple[Check, ...]
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The worst of all checks."""
        return max((check.level for check in self.checks), key=LEVELS.index, default=PASS)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What was found wrong, the worst first, as sentences."""
        found = sorted(self.checks, key=lambda check: -LEVELS.index(check.level))
        return tuple(check.message for check in found if check.message)


def judge_scan(facts: Facts) -> Verdict:
    """Judge a scan by what the model can read, whatever is asked of it."""
    found, unknown = _by_the_model(facts)
    if facts.get("mean_removed"):
        found["normalisation"] = Check(
            "normalisation", WARN, "mean image removed", "mean image there",
            "The series came without its mean image: under the global normalisation there is no anatomy left to read.",
        )  # fmt: skip
    return Verdict(tuple(found.values()), unknown)


def judge_prediction(
    facts: Facts,
    card: AdapterCard,
    distance: Distance | None,
    on_out_of_domain: str,
    certainty: Certainty | None = None,
) -> Verdict:
    """Judge whether an adapter can be asked about a scan.

    Parameters
    ----------
    facts : mapping
    card : AdapterCard
    distance : Distance, optional
        From the adapter's cohort; None: the adapter has no reference statistics.
    on_out_of_domain : str
        ``warn`` or ``refuse``: the level of what lies outside of the adapter's cohort.
    certainty : Certainty, optional
        Of a calibrated classification.
    """
    found, unknown = _by_the_model(facts)
    if facts.get("mean_removed") and card.normalisation == "global":
        found["normalisation"] = Check(
            "normalisation", REFUSE, "mean image removed", "mean image there",
            "The series came without its mean image, which the global normalisation of this adapter keeps and reads.",
        )  # fmt: skip
    for name, rule in COHORT_RULES.items():
        value = facts.get(rule.figure)
        if name not in card.ranges:
            if name == "age":
                unknown[name] = "The adapter does not say which ages its cohort had."
        elif not _is_number(value):
            unknown[name] = f"The {rule.what} is not known."
        else:
            beside = _beside_the_cohort(name, rule, float(value), card.ranges[name], on_out_of_domain)  # type: ignore[arg-type]
            if name not in found or LEVELS.index(beside.level) > LEVELS.index(found[name].level):
                found[name] = beside
            unknown.pop(name, None)
    if distance is None:
        unknown["embedding"] = "The adapter has no reference statistics of its cohort."
    else:
        found["embedding"] = _by_distance(distance, on_out_of_domain)
    if certainty is not None:
        found["certainty"] = _by_certainty(certainty)
    return Verdict(tuple(found.values()), unknown)


def _by_the_model(facts: Facts) -> tuple[dict[str, Check], dict[str, str]]:
    """Checks that do not depend on the adapter, by name; and those that cannot be made."""
    found: dict[str, Check] = {}
    unknown: dict[str, str] = {}
    for rule in RULES:
        value = facts.get(rule.figure)
        if _is_number(value):
            found[rule.check] = _by_rule(rule, float(value))  # type: ignore[arg-type]
            unknown.pop(rule.check, None)
        elif rule.check not in found:
            unknown[rule.check] = f"The {rule.what} was not measured."
    orientation = facts.get("orientation")
    if not isinstance(orientation, Orientation):
        unknown["orientation"] = "Left and right: not examined."
    elif orientation.left_right in JUDGED_SIDES:
        level, message = JUDGED_SIDES[orientation.left_right]
        found["orientation"] = Check("orientation", level, orientation.in_words, "as in the template", message)
    else:
        unknown["orientation"] = f"Left and right: {orientation.in_words}."
    if facts.get("mean_removed") is None:
        unknown["normalisation"] = "Whether the series was normalised before is not known."
    else:
        words = "mean image removed" if facts["mean_removed"] else "as measured"
        found["normalisation"] = Check("normalisation", PASS, words, "mean image there, or not read")
    return found, unknown


def _by_rule(rule: Rule, value: float) -> Check:
    below, above = _is_below(value, rule.low), _is_above(value, rule.high)
    if not (below or above):
        return Check(rule.check, PASS, value, rule.limits)
    level = REFUSE if _is_below(value, rule.least) else WARN
    limits = rule.limits
    if rule.least is not None:
        limits += f"; refused below {_number(rule.least, rule.unit)}"
    end = f"below {_number(rule.low, rule.unit)}" if below else f"above {_number(rule.high, rule.unit)}"
    return Check(
        rule.check, level, value, limits, f"The {rule.what} is {_number(value, rule.unit)}, {end}: {rule.why}."
    )


def _beside_the_cohort(name: str, rule: CohortRule, value: float, seen: Any, level: str) -> Check:
    low, high = float(seen[0]), float(seen[1])
    limits = range_in_words(low if rule.low else None, high if rule.high else None, rule.unit)
    below = rule.low and value < low * (1 - rule.margin)
    above = rule.high and value > high * (1 + rule.margin)
    if not (below or above):
        return Check(name, PASS, value, f"{limits} in the adapter's cohort")
    return Check(
        name, level, value, f"{limits} in the adapter's cohort",
        f"The {rule.what} is {_number(value, rule.unit)}; in the cohort that the adapter learned from it was {limits}.",
    )  # fmt: skip


def _by_distance(distance: Distance, level: str) -> Check:
    limits = f"at most {distance.limit:.3g}, which {distance.false_alarms:.1%} of scans like the cohort's exceed"
    if not distance.is_far:
        return Check("embedding", PASS, distance.value, limits)
    return Check(
        "embedding", level, distance.value, limits,
        f"The scan is unlike those that the adapter learned from: its embedding lies {distance.value:.3g} standard "
        f"deviations away, and only {distance.false_alarms:.1%} of scans like theirs lie beyond {distance.limit:.3g}.",
    )  # fmt: skip


def _by_certainty(found: Certainty) -> Check:
    limits = f"at least {found.least:.0%}, as the true label had in {found.level:.0%} of the calibration scans"
    if found.probability >= found.least:
        return Check("certainty", PASS, found.probability, limits)
    return Check(
        "certainty", WARN, found.probability, limits,
        f"No answer is probable enough: the first has {found.probability:.0%}, and the true one had at least "
        f"{found.least:.0%} in {found.level:.0%} of the scans that calibrated the adapter.",
    )  # fmt: skip


def range_in_words(low: float | None, high: float | None, unit: str) -> str:
    """``0.5 to 3 s``, ``at least 25``, ``at most 0.55 mm``."""
    if low is not None and high is not None:
        return f"{low:.3g} to {_number(high, unit)}"
    return f"at most {_number(high, unit)}" if low is None else f"at least {_number(low, unit)}"


def _number(value: float | None, unit: str) -> str:
    return f"{value:.3g} {unit}".strip()


def _is_below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _is_above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
