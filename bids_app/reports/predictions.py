"""What an adapter answers for a run: the answer, how sure it is, and whether it can be trusted.

Read from the adapter's table and its sidecar. Outputs of earlier versions lack verdict, uncertainty and views; then the
report says nothing of them.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_app.bids.entities import split_name
from bids_app.catalog.cards import plain

PASS, WARN, REFUSE = LEVELS = ("pass", "warn", "refuse")
NOT_KNOWN = "not known"
"""Level of a check that could not be made."""
WITHHELD = "withheld"
"""Stands where an answer would, when it was refused."""
MISSING = "n/a"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at before an answer was given; all texts."""

    name: str
    level: str
    value: str
    limits: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """Whether a scan is one that the model, or an adapter, may answer for."""

    level: str
    checks: tuple[Check, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass, the worst first."""
        return tuple(c.message for level in (REFUSE, WARN) for c in self.checks if c.level == level and c.message)


@dataclass(frozen=True)
class Uncertainty:
    """How sure an answer is."""

    name: str = ""
    """``90 % interval`` or ``90 % set``."""
    span: str = ""
    """``23.06 to 31.2 years`` or ``rest or visual``; empty where nothing is promised."""
    by_class: str = ""
    """The set whose share of misses holds within each class."""
    effective_clips: float | None = None
    standard_error: float | None = None
    calibration: str = ""
    """How, and on what, in words; empty where it was not."""

    @property
    def lack(self) -> tuple[str, str]:
        """Where nothing is promised, that in two words and in a sentence."""
        if self.calibration:
            return "no promise", "The scans that this adapter was calibrated on are too few for an interval or a set."
        return "not calibrated", "No interval can be promised: this adapter has seen no scans to calibrate it by."


@dataclass(frozen=True)
class View:
    """The same question, asked of the run in another way."""

    name: str
    answer: str
    detail: str = ""


@dataclass(frozen=True)
class Prediction:
    """What one adapter answers for a run."""

    adapter: str
    url: str
    answer: str
    """The label, or the value with its unit; `WITHHELD` where it was refused."""
    probabilities: tuple[tuple[str, float], ...] = ()
    """Labels with their means over clips, the most probable first; empty for a regression."""
    n_clips: int = 0
    agreement: int | None = None
    """Clips whose label is that of the run."""
    spread: float | None = None
    """Standard deviation over clips, of the probability or the value."""
    card: dict[str, Any] = field(default_factory=dict)
    """The sidecar."""
    verdict: Verdict | None = None
    uncertainty: Uncertainty | None = None
    views: tuple[View, ...] = ()
    """The answer itself, then those of the other normalisation, the mean image alone, and each half; may be empty."""
    from_mean_image: float | None = None
    """Share of the answer that stays when dynamics are removed."""
    note: str = ""
    """Why there is no such share."""

    @property
    def target(self) -> str:
        """What is predicted."""
        return str(self.card.get("Target") or self.adapter)

    @property
    def demonstration(self) -> bool:
        """Whether the answer must not be taken for one about a person."""
        return bool(self.card.get("Demonstration"))

    @property
    def research_only(self) -> bool:
        """Whether it is of a kind that is off until research use is acknowledged."""
        return bool(self.card.get("ResearchOnly"))

    @property
    def withheld(self) -> bool:
        """Whether it was refused."""
        return self.answer == WITHHELD

    @property
    def views_differ(self) -> bool:
        """Whether the two normalisations give different labels."""
        other = as_dict(as_dict(self.card.get("Views")).get("Other")).get("Answer", self.answer)
        return bool(self.probabilities) and other != self.answer


def read_prediction(path: Path, url: str, card: dict[str, Any]) -> Prediction:
    """Read a table of predictions, or of vectors.

    Parameters
    ----------
    path : pathlib.Path
        The table.
    url : str
        Where the page finds it.
    card : dict
        Its sidecar.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error
        It is not such a table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    mean = next(row for row in rows if row["clip"] == "mean")
    clips = [row for row in rows if row["clip"] != "mean"]
    verdict = read_verdict(card.get("Verdict"))
    common: dict[str, Any] = {
        "adapter": split_name(path.name)[0]["desc"],
        "url": url,
        "n_clips": len(clips),
        "card": card,
        "verdict": verdict,
    }
    if verdict and verdict.level == REFUSE:
        return Prediction(answer=WITHHELD, **common)
    if path.name.endswith("_vectors.tsv"):
        n_dims = sum(key.startswith("e") and key[1:].isdigit() for key in mean)
        return Prediction(answer=f"a vector of {n_dims} numbers, to be compared with others", **common)
    unit = f" {card['Unit']}" if card.get("Unit") else ""
    common |= {"uncertainty": read_uncertainty(card.get("Uncertainty"), unit)}
    told = as_dict(card.get("Views"))
    common |= {"from_mean_image": number(told.get("FromMeanImage")), "note": str(told.get("Note") or "")}
    if "label" not in mean:
        answer, spread = f"{float(mean['value']):.3g}{unit}", deviation([float(row["value"]) for row in clips])
        return Prediction(answer=answer, spread=spread, views=read_views(card, answer, unit), **common)
    label = mean["label"]
    probabilities = {key[2:]: float(mean[key]) for key in mean if key.startswith("p_")}
    return Prediction(
        answer=label,
        probabilities=tuple(sorted(probabilities.items(), key=lambda item: -item[1])),
        agreement=sum(row["label"] == label for row in clips),
        spread=deviation([float(row[f"p_{label}"]) for row in clips]),
        views=read_views(card, label, unit, probabilities),
        **common,
    )


def read_verdict(content: Any) -> Verdict | None:
    """A sidecar's ``Verdict``; None where there is none that can be read."""
    content = as_dict(content)
    if content.get("Level") not in LEVELS:
        return None
    made = content.get("Checks")
    checks = [_check(check) for check in (made if isinstance(made, list) else []) if isinstance(check, dict)]
    unknown = as_dict(content.get("NotKnown")).items()
    checks += [Check(name, NOT_KNOWN, MISSING, "", str(reason)) for name, reason in unknown]
    return Verdict(content["Level"], tuple(checks))


def read_uncertainty(content: Any, unit: str = "") -> Uncertainty | None:
    """A sidecar's ``Uncertainty``; None where there is none."""
    content = as_dict(content)
    if not content:
        return None
    interval, labels = content.get("Interval"), content.get("LabelSet")
    name, span = "", ""
    level = f"{100 * (number(content.get('Level')) or 0):.3g} %"
    if isinstance(interval, list) and len(interval) == 2:
        name, span = f"{level} interval", " to ".join(map(plain, interval)) + unit
    elif isinstance(labels, list):
        name, span = f"{level} set", _either(labels)
    by_class = content.get("LabelSetByClass")
    return Uncertainty(
        name,
        span,
        _either(by_class) if isinstance(by_class, list) else "",
        number(content.get("EffectiveClips")),
        number(content.get("StandardError")),
        _calibration(content),
    )


def read_views(
    card: Mapping[str, Any], answer: str, unit: str = "", probabilities: Mapping[str, float] | None = None
) -> tuple[View, ...]:
    """The answer beside those of the other normalisation, the mean image alone, and each half; empty without them."""
    content, halves = as_dict(card.get("Views")), as_dict(card.get("SplitHalf"))
    other = as_dict(content.get("Other"))
    told = {
        f"The other normalisation ({other.get('Normalisation', '')})": other,
        "The mean image alone, without dynamics": as_dict(content.get("MeanImageOnly")),
        "Its odd clips alone": as_dict(halves.get("Odd")),
        "Its even clips alone": as_dict(halves.get("Even")),
    }
    others = [_view(name, view, unit) for name, view in told.items() if view]
    name = str(content.get("Normalisation") or card.get("Normalisation") or "")
    own = View(f"The answer ({name} normalisation)", answer)
    if probabilities:
        own = replace(own, detail=f"{100 * probabilities[answer]:.0f} %")
        if as_dict(card.get("Uncertainty")).get("Calibration", "none") != "none" and content.get("Own"):
            # the others are not calibrated either
            own = _view(f"The answer before calibration ({name} normalisation)", as_dict(content["Own"]), unit)
    return (own, *others) if others else ()


def _check(content: Mapping[str, Any]) -> Check:
    name, level, limits, message = (str(content.get(key) or "") for key in ("Check", "Level", "Limits", "Message"))
    return Check(name, level, plain(content.get("Value")), limits, message)


def _view(name: str, content: Mapping[str, Any], unit: str) -> View:
    value = number(content.get("Value"))
    if value is not None:
        return View(name, f"{value:.3g}{unit}")
    label = str(content.get("Answer", MISSING))
    probability = number(as_dict(content.get("Probabilities")).get(label))
    return View(name, label, "" if probability is None else f"{100 * probability:.0f} %")


def _calibration(content: Mapping[str, Any]) -> str:
    """How, on how many scans, and which."""
    method, scans = str(content.get("Calibration") or "none"), content.get("CalibrationScans")
    if method == "none" and not scans:
        return ""
    by = "" if method == "none" else f" by {method}"
    number_of = f" on {scans} scans" if scans else ""
    source = f" ({content['CalibrationSource']})" if content.get("CalibrationSource") else ""
    return f"calibrated{by}{number_of}{source}"


def _either(labels: Sequence[Any]) -> str:
    """Labels of a set in words; a set may be empty."""
    return " or ".join(map(str, labels)) or "none of the labels"


def as_dict(value: Any) -> dict[str, Any]:
    """A value that should be a dictionary, or an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A value that should be a finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def deviation(values: list[float]) -> float | None:
    """Standard deviation over clips; None when there are fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None
