"""Predictions of adapters with their uncertainty and verdict, read from table and sidecar.

Outputs of earlier versions have no verdict, uncertainty or views; the report then omits them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bids_app.outputs.schema as schema
from bids_app.bids.entities import split_name
from bids_app.catalog.cards import plain
from bids_app.files import read_output_table
from bids_app.outputs.schema import REFUSE, WARN, PredictionSidecar, Reliability, Views

NOT_KNOWN = "unknown"
"""Level of a check that could not be evaluated."""
WITHHELD = "withheld"
"""Text shown instead of a refused prediction."""
MISSING = "n/a"
EMPTY = "empty (no label is probable enough)"
"""Prediction set without a label."""
CALIBRATION_METHODS = {"temperature": "temperature scaling", "isotonic": "isotonic regression"}
"""Names of the calibration methods in the sidecars."""


@dataclass(frozen=True)
class ReportedCheck:
    """Check of a verdict, formatted as text."""

    name: str
    level: str
    value: str
    limits: str
    message: str


@dataclass(frozen=True)
class ReportedVerdict:
    """Verdict on a scan or a prediction, with its checks."""

    level: str
    checks: tuple[ReportedCheck, ...] = ()
    references: tuple[str, ...] = ()
    """Scans that limits of checks come from."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages of the failed checks, most severe first."""
        return tuple(c.message for level in (REFUSE, WARN) for c in self.checks if c.level == level and c.message)


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of a prediction, formatted as text."""

    name: str = ""
    """``90 % prediction interval`` or ``90 % prediction set``."""
    span: str = ""
    """``23.06 to 31.2 years`` or ``rest or visual``; empty if not available."""
    by_class: str = ""
    """Prediction set with class-conditional coverage."""
    effective_clips: float | None = None
    standard_error: float | None = None
    calibration: str = ""
    """Method and data of the calibration; empty if there was none."""
    coverage: str = ""
    """Whom the coverage holds for, or why none is promised."""

    @property
    def missing_reason(self) -> tuple[str, str]:
        """Label and sentence on a missing interval or set."""
        if self.calibration:
            label = "coverage unknown" if self.coverage.startswith("Coverage unknown") else "no coverage promised"
            return label, self.coverage or "The calibration of this adapter allows no prediction interval or set."
        return "not calibrated", "This adapter was not calibrated, so it gives no prediction interval or set."


@dataclass(frozen=True)
class View:
    """Prediction from another view of the run, such as the other normalisation or half of the clips."""

    name: str
    prediction: str
    detail: str = ""


@dataclass(frozen=True)
class ReportedPrediction:
    """Prediction of one adapter for one run."""

    adapter: str
    url: str
    text: str
    """Label, or value with unit; `WITHHELD` if refused."""
    probabilities: tuple[tuple[str, float], ...] = ()
    """Labels with their mean probability over clips, most probable first; empty for a regression."""
    n_clips: int = 0
    agreement: int | None = None
    """Number of clips with the same label as the run."""
    spread: float | None = None
    """Standard deviation of the probability or value over clips."""
    sidecar: PredictionSidecar = field(default_factory=PredictionSidecar)
    verdict: ReportedVerdict | None = None
    uncertainty: Uncertainty | None = None
    views: tuple[View, ...] = ()
    """The prediction itself, then other normalisation, mean image only, and split halves; may be empty."""
    from_mean_image: float | None = None
    """Fraction of the prediction that remains without the dynamics (mean-image baseline)."""
    note: str = ""
    """Reason why the fraction is missing."""

    @property
    def target(self) -> str:
        """Target of the prediction."""
        return self.sidecar.adapter.target or self.adapter

    @property
    def demonstration(self) -> bool:
        """True for a prediction of a demonstration model."""
        return bool(self.sidecar.demonstration)

    @property
    def research_only(self) -> bool:
        """True if the adapter is for research use only."""
        return bool(self.sidecar.adapter.research_only)

    @property
    def withheld(self) -> bool:
        """True if the prediction was refused."""
        return self.text == WITHHELD

    @property
    def views_differ(self) -> bool:
        """True if the two normalisations give different labels."""
        return bool(self.probabilities) and self.other_prediction not in (None, self.text)

    @property
    def other_prediction(self) -> str | None:
        """Prediction under the other normalisation; None if not available."""
        views = self.sidecar.reliability.views if self.sidecar.reliability else None
        return views.other.answer if views and views.other else None


def read_prediction(path: Path, url: str, sidecar: PredictionSidecar) -> ReportedPrediction:
    """Read a table of predictions or of vectors.

    Parameters
    ----------
    path : pathlib.Path
        The table.
    url : str
        URL of the table, relative to the page.
    sidecar : PredictionSidecar

    Raises
    ------
    OSError, ValueError, KeyError, TypeError, StopIteration, csv.Error
        The table is invalid.
    """
    rows = read_output_table(path)
    mean = next(row for row in rows if row["clip"] == "mean")
    clips = [row for row in rows if row["clip"] != "mean"]
    verdict = format_verdict(sidecar.verdict)
    common: dict[str, Any] = {
        "adapter": split_name(path.name)[0]["desc"],
        "url": url,
        "n_clips": len(clips),
        "sidecar": sidecar,
        "verdict": verdict,
    }
    if sidecar.withheld:
        return ReportedPrediction(text=WITHHELD, **common)
    if path.name.endswith("_vectors.tsv"):
        n_dims = sum(key.startswith("e") and key[1:].isdigit() for key in mean)
        return ReportedPrediction(text=f"vector of {n_dims} features", **common)
    unit = f" {sidecar.adapter.unit}" if sidecar.adapter.unit else ""
    reliability = sidecar.reliability or Reliability()
    views = reliability.views or Views()
    common |= {"uncertainty": format_uncertainty(reliability.uncertainty, unit)}
    common |= {"from_mean_image": views.from_mean_image, "note": views.note or ""}
    if "label" not in mean:
        text, spread = f"{float(mean['value']):.3g}{unit}", deviation([float(row["value"]) for row in clips])
        return ReportedPrediction(text=text, spread=spread, views=format_views(sidecar, text, unit), **common)
    label = mean["label"]
    probabilities = {key[2:]: float(mean[key]) for key in mean if key.startswith("p_")}
    return ReportedPrediction(
        text=label,
        probabilities=tuple(sorted(probabilities.items(), key=lambda item: -item[1])),
        agreement=sum(row["label"] == label for row in clips),
        spread=deviation([float(row[f"p_{label}"]) for row in clips]),
        views=format_views(sidecar, label, unit, probabilities),
        **common,
    )


def format_verdict(found: schema.VerdictRecord | None) -> ReportedVerdict | None:
    """Format the verdict of a sidecar, including checks that could not be evaluated; None if there is none."""
    if found is None:
        return None
    checks = [
        ReportedCheck(check.name, check.level, plain(check.value), check.limits or "", check.message or "")
        for check in found.checks or ()
    ]
    checks += [ReportedCheck(name, NOT_KNOWN, MISSING, "", reason) for name, reason in (found.not_known or {}).items()]
    references = (check.reference for check in found.checks or () if check.reference)
    return ReportedVerdict(found.level, tuple(checks), tuple(dict.fromkeys(references)))


def format_uncertainty(found: schema.Uncertainty | None, unit: str = "") -> Uncertainty | None:
    """Format the uncertainty of a sidecar; None if there is none."""
    if found is None:
        return None
    name, span = "", ""
    level = f"{100 * (found.level or 0):.3g} %"
    if found.interval is not None:
        name, span = f"{level} prediction interval", " to ".join(map(plain, found.interval)) + unit
    elif found.labels.label_set is not None:
        name, span = f"{level} prediction set", _join_labels(found.labels.label_set)
    by_class = found.labels.by_class
    return Uncertainty(
        name,
        span,
        "" if by_class is None else _join_labels(by_class),
        found.effective_clips,
        found.standard_error,
        _calibration(found),
        found.coverage or "",
    )


def format_views(
    sidecar: PredictionSidecar, prediction: str, unit: str = "", probabilities: Mapping[str, float] | None = None
) -> tuple[View, ...]:
    """List the prediction and those from other views of the run; empty if there are no other views."""
    reliability = sidecar.reliability or Reliability()
    views, halves = reliability.views or Views(), reliability.split_half or schema.Halves()
    other = views.other.normalisation if views.other else None
    available = {
        f"Whole run, {other or 'other'} normalisation": views.other,
        "Mean image only (no dynamics)": views.mean_image_only,
        "Odd clips only": halves.odd,
        "Even clips only": halves.even,
    }
    others = [_view(name, view, unit) for name, view in available.items() if view]
    name = views.normalisation or sidecar.adapter.normalisation or ""
    own = View(f"Whole run, {name} normalisation", prediction)
    if probabilities:
        own = replace(own, detail=f"{100 * probabilities[prediction]:.0f} %")
        made = reliability.uncertainty
        if made and made.method not in (None, "none") and views.own:
            # the other views are not calibrated either
            own = _view(f"Whole run, {name} normalisation, before calibration", views.own, unit)
    return (own, *others) if others else ()


def _view(name: str, found: schema.View, unit: str) -> View:
    if found.value is not None:
        return View(name, f"{found.value:.3g}{unit}")
    label = found.answer or MISSING
    probability = (found.probabilities or {}).get(label)
    return View(name, label, "" if probability is None else f"{100 * probability:.0f} %")


def _calibration(found: schema.Uncertainty) -> str:
    """Describe the calibration: method, numbers of participants and scans, data set."""
    method = found.method or "none"
    if method == "none" and not found.scans:
        return ""
    by = "" if method == "none" else f" by {CALIBRATION_METHODS.get(method, method)}"
    people = f" of {found.participants} participants" if found.participants else ""
    number_of = f" on {found.scans} scans{people}" if found.scans else ""
    source = f" ({found.source})" if found.source else ""
    return f"calibrated{by}{number_of}{source}"


def _join_labels(labels: Sequence[Any]) -> str:
    """Join the labels of a prediction set, or say that it is empty."""
    return " or ".join(map(str, labels)) or EMPTY


def deviation(values: list[float]) -> float | None:
    """Standard deviation over clips; None for fewer than two clips."""
    return statistics.stdev(values) if len(values) > 1 else None
