"""What an adapter answers for a run: the answer, how sure it is, and whether it can be trusted.

Read from the adapter's table and its sidecar. Outputs of earlier versions lack verdict, uncertainty and views; then the
report says nothing of them.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bids_app.outputs.schema as schema
from bids_app.bids.entities import split_name
from bids_app.catalog.cards import plain
from bids_app.outputs.schema import REFUSE, WARN, PredictionSidecar, Reliability, Views

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
    sidecar: PredictionSidecar = field(default_factory=PredictionSidecar)
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
        return self.sidecar.adapter.target or self.adapter

    @property
    def demonstration(self) -> bool:
        """Whether the answer must not be taken for one about a person."""
        return bool(self.sidecar.demonstration)

    @property
    def research_only(self) -> bool:
        """Whether it is of a kind that is off until research use is acknowledged."""
        return bool(self.sidecar.adapter.research_only)

    @property
    def withheld(self) -> bool:
        """Whether it was refused."""
        return self.answer == WITHHELD

    @property
    def views_differ(self) -> bool:
        """Whether the two normalisations give different labels."""
        return bool(self.probabilities) and self.other_answer not in (None, self.answer)

    @property
    def other_answer(self) -> str | None:
        """What the other normalisation says; None where it was not asked."""
        views = self.sidecar.reliability.views if self.sidecar.reliability else None
        return views.other.answer if views and views.other else None


def read_prediction(path: Path, url: str, sidecar: PredictionSidecar) -> Prediction:
    """Read a table of predictions, or of vectors.

    Parameters
    ----------
    path : pathlib.Path
        The table.
    url : str
        Where the page finds it.
    sidecar : PredictionSidecar

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error
        It is not such a table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    mean = next(row for row in rows if row["clip"] == "mean")
    clips = [row for row in rows if row["clip"] != "mean"]
    verdict = show_verdict(sidecar.verdict)
    common: dict[str, Any] = {
        "adapter": split_name(path.name)[0]["desc"],
        "url": url,
        "n_clips": len(clips),
        "sidecar": sidecar,
        "verdict": verdict,
    }
    if sidecar.withheld:
        return Prediction(answer=WITHHELD, **common)
    if path.name.endswith("_vectors.tsv"):
        n_dims = sum(key.startswith("e") and key[1:].isdigit() for key in mean)
        return Prediction(answer=f"a vector of {n_dims} numbers, to be compared with others", **common)
    unit = f" {sidecar.adapter.unit}" if sidecar.adapter.unit else ""
    reliability = sidecar.reliability or Reliability()
    told = reliability.views or Views()
    common |= {"uncertainty": show_uncertainty(reliability.uncertainty, unit)}
    common |= {"from_mean_image": told.from_mean_image, "note": told.note or ""}
    if "label" not in mean:
        answer, spread = f"{float(mean['value']):.3g}{unit}", deviation([float(row["value"]) for row in clips])
        return Prediction(answer=answer, spread=spread, views=show_views(sidecar, answer, unit), **common)
    label = mean["label"]
    probabilities = {key[2:]: float(mean[key]) for key in mean if key.startswith("p_")}
    return Prediction(
        answer=label,
        probabilities=tuple(sorted(probabilities.items(), key=lambda item: -item[1])),
        agreement=sum(row["label"] == label for row in clips),
        spread=deviation([float(row[f"p_{label}"]) for row in clips]),
        views=show_views(sidecar, label, unit, probabilities),
        **common,
    )


def show_verdict(found: schema.Verdict | None) -> Verdict | None:
    """A sidecar's verdict, with what is not known among its checks; None where there is none."""
    if found is None:
        return None
    checks = [
        Check(check.name, check.level, plain(check.value), check.limits or "", check.message or "")
        for check in found.checks or ()
    ]
    checks += [Check(name, NOT_KNOWN, MISSING, "", reason) for name, reason in (found.not_known or {}).items()]
    return Verdict(found.level, tuple(checks))


def show_uncertainty(found: schema.Uncertainty | None, unit: str = "") -> Uncertainty | None:
    """A sidecar's uncertainty; None where there is none."""
    if found is None:
        return None
    name, span = "", ""
    level = f"{100 * (found.level or 0):.3g} %"
    if found.interval is not None:
        name, span = f"{level} interval", " to ".join(map(plain, found.interval)) + unit
    elif found.labels.label_set is not None:
        name, span = f"{level} set", _either(found.labels.label_set)
    by_class = found.labels.by_class
    return Uncertainty(
        name,
        span,
        "" if by_class is None else _either(by_class),
        found.effective_clips,
        found.standard_error,
        _calibration(found),
    )


def show_views(
    sidecar: PredictionSidecar, answer: str, unit: str = "", probabilities: Mapping[str, float] | None = None
) -> tuple[View, ...]:
    """The answer beside those of the other normalisation, the mean image alone, and each half; empty without them."""
    reliability = sidecar.reliability or Reliability()
    views, halves = reliability.views or Views(), reliability.split_half or schema.Halves()
    other = views.other.normalisation if views.other else None
    told = {
        f"The other normalisation ({other or ''})": views.other,
        "The mean image alone, without dynamics": views.mean_image_only,
        "Its odd clips alone": halves.odd,
        "Its even clips alone": halves.even,
    }
    others = [_view(name, view, unit) for name, view in told.items() if view]
    name = views.normalisation or sidecar.adapter.normalisation or ""
    own = View(f"The answer ({name} normalisation)", answer)
    if probabilities:
        own = replace(own, detail=f"{100 * probabilities[answer]:.0f} %")
        made = reliability.uncertainty
        if made and made.method not in (None, "none") and views.own:
            # the others are not calibrated either
            own = _view(f"The answer before calibration ({name} normalisation)", views.own, unit)
    return (own, *others) if others else ()


def _view(name: str, found: schema.View, unit: str) -> View:
    if found.value is not None:
        return View(name, f"{found.value:.3g}{unit}")
    label = found.answer or MISSING
    probability = (found.probabilities or {}).get(label)
    return View(name, label, "" if probability is None else f"{100 * probability:.0f} %")


def _calibration(found: schema.Uncertainty) -> str:
    """How, on how many scans, and which."""
    method = found.method or "none"
    if method == "none" and not found.scans:
        return ""
    by = "" if method == "none" else f" by {method}"
    number_of = f" on {found.scans} scans" if found.scans else ""
    source = f" ({found.source})" if found.source else ""
    return f"calibrated{by}{number_of}{source}"


def _either(labels: Sequence[Any]) -> str:
    """Labels of a set in words; a set may be empty."""
    return " or ".join(map(str, labels)) or "none of the labels"


def deviation(values: list[float]) -> float | None:
    """Standard deviation over clips; None when there are fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None
