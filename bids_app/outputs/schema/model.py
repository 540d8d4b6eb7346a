"""Sidecars of what a model made of a run: embeddings, predictions and vectors, attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bids_app.outputs.schema.readers import WrongValueError, by_name, flag, mapping, number, several, text, whole
from bids_app.outputs.schema.record import Record, columns, inline, key, record
from bids_app.outputs.schema.run import Sidecar
from bids_app.outputs.schema.verdict import REFUSE, Verdict


@dataclass(frozen=True, kw_only=True)
class ModelSidecar(Sidecar):
    """What holds for everything that a model computed: which model it was, and where it ran."""

    model: str | None = key("Model", text)
    weights_sha256: str | None = key("WeightsSHA256", text)
    demonstration: bool | None = key("Demonstration", flag)
    device: str | None = key("Device", text)
    scan_backend: str | None = key("ScanBackend", text)
    threads: int | None = key("Threads", whole)
    template: str | None = key("Template", text)
    slice_timing_corrected: bool | None = key("SliceTimingCorrected", flag)
    start_time: float | None = key("StartTime", number)
    """When in the repetition time a corrected volume counts, s."""


@dataclass(frozen=True, kw_only=True)
class HalfCorrelation(Record):
    """How the mean embeddings of odd and even clips correlate, and what that says of the whole run."""

    correlation: float | None = key("Correlation", number, null=True)
    spearman_brown: float | None = key("SpearmanBrown", number, null=True)
    clips: tuple[int, int] | None = key("Clips", several(whole))
    """How many are odd and even."""


def half_correlation(value: Any) -> HalfCorrelation:
    """Read a correlation of halves; earlier versions wrote the one number alone."""
    if isinstance(value, int | float):
        return HalfCorrelation(spearman_brown=number(value))
    return record(HalfCorrelation)(value)


@dataclass(frozen=True, kw_only=True)
class EmbeddingsSidecar(ModelSidecar):
    """Beside a table of embeddings; also has the facts for the model's card, as `bids_app.catalog.cards` makes them."""

    verdict: Verdict | None = key("Verdict", record(Verdict), null=True)
    split_half: dict[str, HalfCorrelation | None] | None = key("SplitHalf", by_name(half_correlation))
    """By normalisation; None for a run of one clip."""
    columns: dict[str, Any] = columns()
    seconds_dropped: float | None = key("SecondsDropped", number)
    """At the end of the run, which fill no clip."""
    model_card: dict[str, Any] | None = key("ModelCard", mapping)


@dataclass(frozen=True, kw_only=True)
class AdapterFacts(Record):
    """What an adapter says of itself; cohort, ranges, calibration and metrics are as free as in its own card."""

    name: str | None = key("Adapter", text)
    task: str | None = key("Task", text)
    target: str | None = key("Target", text)
    labels: tuple[str, ...] | None = key("Labels", several(text))
    unit: str | None = key("Unit", text)
    normalisation: str | None = key("Normalisation", text)
    strategy: str | None = key("Strategy", text)
    encoder_sha256: str | None = key("EncoderSHA256", text)
    cohort: dict[str, Any] | None = key("TrainingCohort", mapping)
    ranges: dict[str, Any] | None = key("Ranges", mapping)
    calibration: dict[str, Any] | None = key("AdapterCalibration", mapping)
    metrics: dict[str, Any] | None = key("Metrics", mapping)
    intended_use: str | None = key("IntendedUse", text)
    limits: str | None = key("Limits", text)
    licence: str | None = key("License", text)
    demonstration: bool | None = key("Demonstration", flag)
    research_only: bool | None = key("ResearchOnly", flag)


def interval(value: Any) -> tuple[float, float]:
    """Read the two ends of an interval."""
    ends = several(number)(value)
    if len(ends) != 2 or None in ends:
        raise WrongValueError("is not a pair of numbers")
    return ends


@dataclass(frozen=True, kw_only=True)
class PromisedInterval(Record):
    """What is promised of a value; None: the adapter was not calibrated, or on too few scans."""

    interval: tuple[float, float] | None = key("Interval", interval, null=True)


@dataclass(frozen=True, kw_only=True)
class PromisedLabels(Record):
    """What is promised of a label: the set that holds the true one, over all scans and within each class."""

    label_set: tuple[str, ...] | None = key("LabelSet", several(text), null=True)
    by_class: tuple[str, ...] | None = key("LabelSetByClass", several(text), null=True)


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Record):
    """How sure an answer is: spread over clips, and what the adapter's calibration promises."""

    effective_clips: float | None = key("EffectiveClips", number)
    standard_error: float | None = key("StandardError", number, null=True)
    level: float | None = key("Level", number)
    """Frequency with which a promise holds."""
    promise: PromisedInterval | PromisedLabels | None = inline(PromisedInterval, PromisedLabels)
    """None for vectors."""
    method: str | None = key("Calibration", text)
    scans: int | None = key("CalibrationScans", whole)
    source: str | None = key("CalibrationSource", text)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The promised interval, where there is one."""
        return self.promise.interval if isinstance(self.promise, PromisedInterval) else None

    @property
    def labels(self) -> PromisedLabels:
        """The promised sets; empty where the answer is no label."""
        return self.promise if isinstance(self.promise, PromisedLabels) else PromisedLabels()


@dataclass(frozen=True, kw_only=True)
class View(Record):
    """The same question, answered from a part or another preparation of the run; of vectors only their cosine."""

    normalisation: str | None = key("Normalisation", text)
    """Of the twin; None where it is the adapter's own."""
    answer: str | None = key("Answer", text)
    value: float | None = key("Value", number)
    probabilities: dict[str, float] | None = key("Probabilities", by_name(number))
    cosine: float | None = key("Cosine", number)


@dataclass(frozen=True, kw_only=True)
class Views(Record):
    """The answer before calibration, from the other normalisation, and from the mean image alone."""

    normalisation: str | None = key("Normalisation", text)
    own: View | None = key("Own", record(View))
    other: View | None = key("Other", record(View), null=True)
    mean_image_only: View | None = key("MeanImageOnly", record(View), null=True)
    from_mean_image: float | None = key("FromMeanImage", number, null=True)
    """Share of the answer that stays without dynamics, 0 to 1."""
    note: str | None = key("Note", text)


@dataclass(frozen=True, kw_only=True)
class Halves(Record):
    """The answers from odd and from even clips, and by how much they differ."""

    odd: View | None = key("Odd", record(View))
    even: View | None = key("Even", record(View))
    difference: float | None = key("Difference", number)


@dataclass(frozen=True, kw_only=True)
class Reliability(Record):
    """How sure an answer is, and what it rests on."""

    agreement: float | None = key("Agreement", number, null=True)
    """Share of clips whose label is that of the run."""
    uncertainty: Uncertainty | None = key("Uncertainty", record(Uncertainty))
    views: Views | None = key("Views", record(Views))
    split_half: Halves | None = key("SplitHalf", record(Halves), null=True)


@dataclass(frozen=True, kw_only=True)
class PredictionSidecar(ModelSidecar):
    """Beside a table of predictions or vectors."""

    adapter: AdapterFacts = inline(AdapterFacts, always=True)
    verdict: Verdict | None = key("Verdict", record(Verdict))
    columns: dict[str, Any] = columns()
    reliability: Reliability | None = inline(Reliability)
    """None where the answer is withheld."""
    disclaimer: str | None = key("Disclaimer", text)

    @property
    def withheld(self) -> bool:
        """Whether the answer was refused."""
        return self.verdict is not None and self.verdict.level == REFUSE


@dataclass(frozen=True, kw_only=True)
class AttributionSidecar(ModelSidecar):
    """Beside a table, or a map, of what regions contribute to an answer."""

    atlas: str | None = key("Atlas", text)
    atlas_is_known_copy: bool | None = key("AtlasIsKnownCopy", flag)
    method: str | None = key("Method", text)
    measure: str | None = key("Measure", text)
    answer: str | None = key("Answer", text)
    clips: tuple[int, ...] | None = key("Clips", several(whole))
    regions_without_token: int | None = key("RegionsWithoutToken", whole)
    columns: dict[str, Any] = columns()
    disclaimer: str | None = key("Disclaimer", text)
