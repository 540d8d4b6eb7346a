"""The verdict on a scan and on each prediction: whether the model and the adapter are valid for the scan.

Each check has a level: ``pass``; ``warn``, where a prediction may be less accurate than its adapter's card states; or
``refuse``, where it would be meaningless. Out-of-distribution scans are warned of or refused, as the user chose. A
check without data has no level; it is reported as unknown, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bids_app.adapters.calibration import Certainty
from bids_app.adapters.cohort_ranges import COHORT_RULES, CohortRule, is_number
from bids_app.adapters.domain import Distance
from bids_app.adapters.file import AdapterCard
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.catalog.normal_ranges import normal_ranges

PASS, WARN, REFUSE = "pass", "warn", "refuse"
LEVELS = (PASS, WARN, REFUSE)
Facts = Mapping[str, float | bool | str | Orientation | None]
"""Measures of a scan, under the names in `RULES` and `COHORT_RULES`; also ``orientation``, ``mean_removed``, ``age``,
``simulated`` (the scan is of neurostorm-phantom; None: unknown), ``omitted`` (sentences on steps that were left out
because they failed), ``doubts`` (sentences on signs that an alignment is wrong; empty: none, absent: not known),
``unusual`` (image quality metrics outside their limits, in words; empty: none, absent: not known), and
``CHECK_unknown`` (why the measure of a check is not known)."""


@dataclass(frozen=True)
class Rule:
    """Limits of one measure of a scan.

    Attributes
    ----------
    check, figure : str
        Name of the check, and of the measure that it uses.
    what, unit : str
        Description of the measure, and its unit.
    low, high : float, optional
        The level is ``warn`` outside this range.
    refuse_below : float, optional
        The level is ``refuse`` below this value.
    why : str
        Consequence of a value outside the range.
    reference : str
        Scans that the range comes from; empty for other limits.
    """

    check: str
    figure: str
    what: str
    unit: str
    why: str
    low: float | None = None
    high: float | None = None
    refuse_below: float | None = None
    reference: str = ""

    @property
    def limits(self) -> str:
        """Range of ``pass`` as text."""
        return range_in_words(self.low, self.high, self.unit)


def _normal(check: str, figure: str, what: str, unit: str, why: str) -> Rule:
    """Make the rule of a measure whose range is that of good scans (`bids_app.catalog.normal_ranges`)."""
    ranges = normal_ranges()
    own = ranges.measures[figure]
    return Rule(check, figure, what, unit, why, own.low, own.high, reference=ranges.reference)


CAUSES = (
    "origin", "normalisation", "template_overlap", "orientation", "alignment", "coverage", "connectivity", "temporal",
)  # fmt: skip
"""Checks whose failure makes others fail, too; their reasons come first."""
ALPHA, ALPHA_OF_ORDER = 0.01, 0.05
"""Significance levels of the tests of the signal. The order matters little in short runs at rest, of 100 s: at 0.01,
6 of 56 good simulated runs would be warned of, at 0.05 there are 3."""
SIGNAL_TESTS = ("connectivity", "temporal")
"""Checks that noise fails; a run that fails both has no signal of a brain."""

RULES = (
    # The model reads volumes at 0.8 s: above 3 s at least three of four are interpolated. The pre-training cohorts were
    # scanned at about 0.7 to 3 s.
    Rule(
        "tr", "tr", "repetition time", "s", "the model resamples to 0.8 s and was trained on few such scans", 0.5, 3
    ),
    # One clip is 20 volumes at 0.8 s; with fewer than four clips, their spread and their halves are unreliable.
    Rule("duration", "seconds", "duration", "s", "the run has fewer than four clips of 16 s", 64, refuse_below=16),
    # The limits below are those of the report (reports/spec.yml). The limits of refusal are our choice: half of the
    # brain outside the field of view, and an overlap below that of any alignment that passes its checks.
    Rule(
        "field_of_view", "coreg_brain_seen", "share of the brain in the field of view", "",
        "part of the brain is cut off", 0.8, refuse_below=0.5,
    ),
    Rule(
        "coverage", "coverage", "share of the model's brain mask with data", "",
        "the model reads background instead of brain", 0.9, refuse_below=0.5,
    ),
    Rule(
        "template_overlap", "coreg_dice", "overlap of the aligned brain masks (Dice)", "",
        "the alignment may be wrong", 0.9, refuse_below=0.8,
    ),
    Rule(
        "template_overlap", "place_similarity", "similarity with the template", "",
        "the affine may be wrong", 0.35, refuse_below=0.2,
    ),
    # Parkes et al. 2018, the lenient criterion.
    Rule("fd_mean", "fd_mean", "mean framewise displacement", "mm", "studies exclude scans with this much motion",
         high=0.55),
    Rule("tsnr", "tsnr", "temporal signal-to-noise ratio", "", "the signal is weak", 25),
    _normal("stillness", "fd_mean", "mean framewise displacement", "mm",
            "living heads move more; the scan may be of an object, or computed"),
    _normal("fluctuation", "sd_percent", "temporal standard deviation", "%",
            "the series hardly changes; its volumes may be copies"),
    _normal("contrast", "gm_wm_mean", "mean of grey matter relative to white matter", "",
            "BOLD images have brighter grey matter; the image may be of another contrast, or misaligned"),
    _normal("smoothness", "neighbour_r", "correlation of voxels 10 mm apart", "",
            "the series was smoothed or parcellated, which the training data were not"),
    _normal("spectrum", "high_frequency", "power from 0.1 to 0.25 Hz, relative to white noise", "",
            "the series was filtered in time, which the training data were not"),
    _normal("global_signal", "global_share", "standard deviation of the global signal, relative to that of regions", "",
            "regions have no signal in common, as in noise or after removal of the global signal, which the training "
            "data kept"),
    # Tests against surrogates of the run itself (preprocess/brain_signal.py): the limit is the false-alarm rate.
    Rule(
        "connectivity", "connectivity_p", "p value of functional connectivity", "",
        "neither homologous regions nor regions of one network correlate more than other regions, as in noise",
        high=ALPHA,
    ),
    Rule(
        "temporal", "order_p", "p value of the order of the volumes", "",
        "the volumes could be in any order, as in noise", high=ALPHA_OF_ORDER,
    ),
    # At 1, the autoencoder is no better than the mean of what it sees.
    Rule(
        "reconstruction", "reconstruction_error",
        "reconstruction error of hidden patches relative to predicting their mean", "",
        "the encoder does not recognise the scan as what it was trained on", high=1,
    ),
)  # fmt: skip
"""Checks of every scan, with any adapter."""

CANCELLED = "The mean over the tokens is 0 up to rounding: the embedding does not describe the run."
"""Message on z-scored volumes as tokens, for example."""
SIMULATED = "simulated"
"""Entry of a card's cohort: whether its scans are simulated; absent: unknown."""

LEFT_RIGHT_LEVELS = {
    LeftRight.AS_STORED: (PASS, ""),
    LeftRight.FLIPPED: (
        REFUSE,
        "The brain is more similar to the mirrored template: the image may be left-right flipped.",
    ),
}
"""Level and message by left-right orientation; any other orientation is unknown."""


COMPARED = {
    "embedding": "its embedding",
    "clips": "the embeddings of its clips",
    "signal": "the measures of its signal",
}
"""What is compared with the adapter's cohort, by check."""


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    level: str
    value: float | str | None
    limits: str
    message: str = ""
    reference: str = ""
    """Scans that the limits come from; empty if they come from elsewhere."""


@dataclass(frozen=True)
class Verdict:
    """All checks of a scan; ``unknown`` gives the reason for each check without data."""

    checks: tuple[Check, ...]
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """Worst level of all checks."""
        return max((check.level for check in self.checks), key=LEVELS.index, default=PASS)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages of all checks that did not pass, worst first."""
        found = sorted(self.checks, key=lambda check: -LEVELS.index(check.level))
        return tuple(check.message for check in found if check.message)

    @classmethod
    def of(cls, found: Mapping[str, Check], unknown: Mapping[str, str]) -> Verdict:
        """Make a verdict of checks by name; causes come before what follows from them (`CAUSES`)."""
        ordered = sorted(found, key=lambda name: CAUSES.index(name) if name in CAUSES else len(CAUSES))
        return cls(tuple(found[name] for name in ordered), unknown)


def judge_scan(facts: Facts) -> Verdict:
    """Judge a scan by the checks that hold for every adapter."""
    found, unknown = _check_scan(facts)
    if (unusual := facts.get("unusual")) is not None:
        level, value = (WARN, str(unusual)) if unusual else (PASS, "within their limits")
        message = f"Image quality metrics are outside their limits: {unusual}." if unusual else ""
        found["metrics"] = Check("metrics", level, value, "limits of the report", message)
    if facts.get("mean_removed"):
        found["normalisation"] = Check(
            "normalisation", WARN, "mean image removed", "mean image present",
            "The series has no mean image: under the global normalisation, the model has no anatomical information.",
        )  # fmt: skip
    if facts.get("random_weights"):
        found["weights"] = Check(
            "weights", WARN, str(facts["random_weights"]), "trained",
            "The encoder is untrained: its weights are random. Use its embeddings as a control only.",
        )  # fmt: skip
    if (share := facts.get("token_mean")) is not None:
        level, message = (WARN, CANCELLED) if facts.get("tokens_cancel") else (PASS, "")
        found["tokens"] = Check("tokens", level, float(str(share)), "tokens do not cancel", message)
    return Verdict.of(found, unknown)


def judge_prediction(
    facts: Facts,
    card: AdapterCard,
    distances: Mapping[str, Distance],
    on_out_of_domain: str,
    certainty: Certainty | None = None,
) -> Verdict:
    """Judge whether an adapter is valid for a scan.

    Parameters
    ----------
    facts : mapping
    card : AdapterCard
    distances : mapping of str to Distance
        Distances from the adapter's cohort, by `bids_app.adapters.file.DOMAINS`; without those that are unknown.
    on_out_of_domain : str
        ``warn`` or ``refuse``: level of out-of-distribution scans.
    certainty : Certainty, optional
        Certainty of a calibrated classification.
    """
    found, unknown = _check_scan(facts)
    if facts.get("mean_removed") and card.normalisation == "global":
        found["normalisation"] = Check(
            "normalisation", REFUSE, "mean image removed", "mean image present",
            "The series has no mean image, which this adapter requires (global normalisation).",
        )  # fmt: skip
    if "orientation" in unknown and names_sides(card.labels):
        found["orientation"] = Check(
            "orientation", WARN, "unknown", "as in the template",
            "Left and right could not be checked. If the image is left-right flipped, the prediction is reversed.",
        )  # fmt: skip
        del unknown["orientation"]
    for name, rule in COHORT_RULES.items():
        value = facts.get(rule.figure)
        if name not in card.ranges:
            if name == "age":
                unknown[name] = "The adapter's card has no age range of its cohort."
        elif not is_number(value):
            unknown.setdefault(name, f"The {rule.what} is unknown.")
        else:
            _add(found, _check_against_cohort(name, rule, float(value), card.ranges[name], on_out_of_domain))  # type: ignore[arg-type]
            unknown.pop(name, None)
    cohort = card.cohort.get(SIMULATED)
    if (origin := _check_origin(facts.get("simulated"), cohort if isinstance(cohort, bool) else None)) is not None:
        found["origin"] = origin
    for name, what in COMPARED.items():
        if name in distances:
            found[name] = _check_distance(name, what, distances[name], on_out_of_domain)
    if "embedding" not in distances:
        unknown["embedding"] = "The adapter has no reference statistics of its cohort."
    if certainty is not None:
        found["certainty"] = _check_certainty(certainty)
    return Verdict.of(found, unknown)


def names_sides(labels: Sequence[str]) -> bool:
    """Tell whether labels name both sides, as ``lefthand`` and ``righthand``, so that a flipped image reverses them."""
    lower = [label.lower() for label in labels]
    return any("left" in label and label.replace("left", "right") in lower for label in lower)


def _check_scan(facts: Facts) -> tuple[dict[str, Check], dict[str, str]]:
    """Run the checks that do not depend on the adapter; return them by name, and the reasons of unknown ones."""
    found: dict[str, Check] = {}
    unknown: dict[str, str] = {}
    for rule in RULES:
        value = facts.get(rule.figure)
        if is_number(value):
            found[rule.check] = _check_rule(rule, float(value))  # type: ignore[arg-type]
            unknown.pop(rule.check, None)
        elif rule.check not in found:
            unknown[rule.check] = str(facts.get(f"{rule.check}_unknown") or f"The {rule.what} was not measured.")
    failed = [name for name in SIGNAL_TESTS if name in found and found[name].level != PASS]
    if len(failed) == len(SIGNAL_TESTS):
        found |= {name: replace(found[name], level=REFUSE) for name in failed}
    orientation = facts.get("orientation")
    if not isinstance(orientation, Orientation):
        unknown["orientation"] = "Left and right: not checked."
    elif orientation.left_right in LEFT_RIGHT_LEVELS:
        level, message = LEFT_RIGHT_LEVELS[orientation.left_right]
        found["orientation"] = Check("orientation", level, orientation.in_words, "as in the template", message)
    else:
        unknown["orientation"] = f"Left and right: {orientation.in_words}."
    if facts.get("omitted"):
        message = str(facts["omitted"])
        found["preprocessing"] = Check("preprocessing", WARN, "steps were left out", "all steps succeeded", message)
    if facts.get("doubts"):
        found["alignment"] = Check("alignment", WARN, "doubtful", "no sign of an error", str(facts["doubts"]))
    if facts.get("mean_removed") is None:
        unknown["normalisation"] = "It is unknown whether the series was normalised before."
    else:
        words = "mean image removed" if facts["mean_removed"] else "as measured"
        found["normalisation"] = Check("normalisation", PASS, words, "mean image present, or not used")
    return found, unknown


def _check_rule(rule: Rule, value: float) -> Check:
    below, above = _is_below(value, rule.low), _is_above(value, rule.high)
    if not (below or above):
        return Check(rule.check, PASS, value, rule.limits, reference=rule.reference)
    level, crossed = (REFUSE, rule.refuse_below) if _is_below(value, rule.refuse_below) else (WARN, rule.low)
    limits = rule.limits
    if rule.refuse_below is not None:
        limits += f"; refused below {_number(rule.refuse_below, rule.unit)}"
    end = f"below {_number(crossed, rule.unit)}" if below else f"above {_number(rule.high, rule.unit)}"
    message = f"The {rule.what} is {_number(value, rule.unit)}, {end}: {rule.why}."
    return Check(rule.check, level, value, limits, message, rule.reference)


def _check_against_cohort(name: str, rule: CohortRule, value: float, cohort: Sequence[float], level: str) -> Check:
    low, high = rule.limits(cohort)
    limits = f"{range_in_words(low, high, rule.unit)} by the adapter's cohort"
    if not rule.excess(value, cohort):
        return Check(name, PASS, value, limits)
    below = low is not None and value < low
    end = f"below {_number(low, rule.unit)}" if below else f"above {_number(high, rule.unit)}"
    margin = f" (with a margin of {rule.margin:.0%})" if rule.margin else ""
    seen = range_in_words(float(cohort[0]), float(cohort[1]), rule.unit)
    message = f"The {rule.what} is {_number(value, rule.unit)}, {end}{margin}: in the adapter's training cohort it was "
    return Check(name, level, value, limits, f"{message}{seen}.")


def _add(found: dict[str, Check], new: Check) -> None:
    """Add a check to those of a scan: of two limits of a measure the stricter decides; both are listed if both do."""
    old = found.get(new.name)
    if old is not None and old.level == new.level:
        message = " ".join(filter(None, (old.message, new.message)))
        limits = f"{old.limits}; {new.limits}" if old.value == new.value else new.limits  # else of another measure
        new = replace(new, limits=limits, message=message)
    if old is None or LEVELS.index(new.level) >= LEVELS.index(old.level):
        found[new.name] = new


def _check_origin(scan: object, cohort: bool | None) -> Check | None:
    """Compare scan and cohort: adapters of a simulated cohort are valid for simulated scans only, and the reverse.

    None if it is unknown whether the cohort is simulated, or if the scan's origin is unknown and the cohort is not
    simulated: nearly all scans are of people.
    """
    if cohort is None or (scan is None and not cohort):
        return None
    limits = "simulated, as the adapter's cohort" if cohort else "of a person, as the adapter's cohort"
    value = "not known to be simulated" if scan is None else "simulated" if scan else "not simulated"
    if bool(scan) == cohort:
        return Check("origin", PASS, value, limits)
    message = (
        "The adapter was trained on simulated scans only; its predictions from a real scan are meaningless."
        if cohort
        else "The scan is simulated; the adapter was trained on scans of people."
    )
    return Check("origin", REFUSE, value, limits, message)


def _check_distance(name: str, what: str, distance: Distance, level: str) -> Check:
    limits = f"at most {distance.limit:.3g}, exceeded by {distance.false_alarms:.1%} of scans of the cohort's kind"
    if not distance.is_far:
        return Check(name, PASS, distance.value, limits)
    return Check(
        name, level, distance.value, limits,
        f"The scan is out of distribution for this adapter: the Mahalanobis distance of {what} from the training "
        f"cohort is {distance.value:.3g}; {distance.false_alarms:.1%} of similar scans exceed {distance.limit:.3g}.",
    )  # fmt: skip


def _check_certainty(found: Certainty) -> Check:
    limits = f"at least {found.minimum:.0%}, as for the true label in {found.level:.0%} of the calibration scans"
    if found.probability >= found.minimum:
        return Check("certainty", PASS, found.probability, limits)
    return Check(
        "certainty", WARN, found.probability, limits,
        f"Low confidence: the top class has {found.probability:.0%} probability; the true class had at least "
        f"{found.minimum:.0%} in {found.level:.0%} of the calibration scans.",
    )  # fmt: skip


def range_in_words(low: float | None, high: float | None, unit: str) -> str:
    """Format a range: ``0.5 to 3 s``, ``at least 25``, ``at most 0.55 mm``."""
    if low is not None and high is not None:
        return f"{low:.3g} to {_number(high, unit)}"
    return f"at most {_number(high, unit)}" if low is None else f"at least {_number(low, unit)}"


def _number(value: float | None, unit: str) -> str:
    return f"{value:.3g} {unit}".strip()


def _is_below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _is_above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
