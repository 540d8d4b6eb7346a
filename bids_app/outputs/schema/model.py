"""Sidecars of model outputs: embeddings, predictions, vectors and attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bids_app.outputs.schema.readers import WrongValueError, by_name, flag, mapping, number, several, text, whole
from bids_app.outputs.schema.record import Record, columns, inline, key, record
from bids_app.outputs.schema.run import Sidecar
from bids_app.outputs.schema.verdict import REFUSE, VerdictRecord


@dataclass(frozen=True, kw_only=True)
class ModelSidecar(Sidecar):
    """Base of the sidecars of model outputs: model and device."""

    model: str | None = key("Model", text)
    weights_sha256: str | None = key("WeightsSHA256", text)
    demonstration: bool | None = key("Demonstration", flag)
    untrained: bool | None = key("Untrained", flag)
    """True if weights of the encoder are random; else absent."""
    device: str | None = key("Device", text)
    scan_backend: str | None = key("ScanBackend", text)
    threads: int | None = key("Threads", whole)
    template: str | None = key("Template", text)
    slice_timing_corrected: bool | None = key("SliceTimingCorrected", flag)
    start_time: float | None = key("StartTime", number)
    """Reference time of slice-timing correction within the TR, s."""


@dataclass(frozen=True, kw_only=True)
class HalfCorrelation(Record):
    """Correlation of the mean embeddings of odd and even clips, and the estimate for the whole run."""

    correlation: float | None = key("Correlation", number, null=True)
    spearman_brown: float | None = key("SpearmanBrown", number, null=True)
    clips: tuple[int, int] | None = key("Clips", several(whole))
    """Numbers of odd and even clips."""


def half_correlation(value: Any) -> HalfCorrelation:
    """Read a split-half correlation; earlier versions wrote a single number."""
    if isinstance(value, int | float):
        return HalfCorrelation(spearman_brown=number(value))
    return record(HalfCorrelation)(value)


@dataclass(frozen=True, kw_only=True)
class ReconstructionRecord(Record):
    """Reconstruction of hidden patches, see `bids_app.adapters.reconstruction`."""

    error: float | None = key("Error", number)
    """Squared error relative to that of predicting the mean of the visible voxels."""
    dynamics: float | None = key("ErrorOfDynamics", number)
    """Squared error relative to that of predicting the mean of each voxel over the clip."""
    clips: tuple[int, ...] | None = key("Clips", several(whole))
    mask: str | None = key("Mask", text)
    reason: str | None = key("NotMeasured", text)


@dataclass(frozen=True, kw_only=True)
class EmbeddingsSidecar(ModelSidecar):
    """Sidecar of an embeddings table, including the model card of `bids_app.catalog.cards`."""

    verdict: VerdictRecord | None = key("Verdict", record(VerdictRecord), null=True)
    split_half: dict[str, HalfCorrelation | None] | None = key("SplitHalf", by_name(half_correlation))
    """By normalisation; None for a run of one clip."""
    reconstruction: ReconstructionRecord | None = key("Reconstruction", record(ReconstructionRecord))
    columns: dict[str, Any] = columns()
    seconds_dropped: float | None = key("SecondsDropped", number)
    """Time at the end of the run that fills no clip, s."""
    model_card: dict[str, Any] | None = key("ModelCard", mapping)


@dataclass(frozen=True, kw_only=True)
class AdapterFacts(Record):
    """Description of an adapter; cohort, ranges, calibration and metrics are free-form as in its card."""

    name: str | None = key("Adapter", text)
    task: str | None = key("Task", text)
    target: str | None = key("Target", text)
    labels: tuple[str, ...] | None = key("Labels", several(text))
    unit: str | None = key("Unit", text)
    normalisation: str | None = key("Normalisation", text)
    strategy: str | None = key("Strategy", text)
    low_rank: str | None = key("LowRankUpdates", text)
    """Rank, scale and layers of low-rank updates; absent for other strategies."""
    clip_average: str | None = key("ClipAverage", text)
    """How the prediction of a run was computed from those of its clips."""
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
    """Read the limits of an interval."""
    ends = several(number)(value)
    if len(ends) != 2 or None in ends:
        raise WrongValueError("is not a pair of numbers")
    return ends


@dataclass(frozen=True, kw_only=True)
class PromisedInterval(Record):
    """Prediction interval; None: the adapter is not calibrated, or no coverage is promised."""

    interval: tuple[float, float] | None = key("Interval", interval, null=True)


@dataclass(frozen=True, kw_only=True)
class PromisedLabels(Record):
    """Prediction sets of labels, over all scans and within each class; empty: no label is probable enough."""

    label_set: tuple[str, ...] | None = key("LabelSet", several(text), null=True)
    by_class: tuple[str, ...] | None = key("LabelSetByClass", several(text), null=True)


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Record):
    """Uncertainty of a prediction: spread over clips, and calibrated interval or label sets."""

    effective_clips: float | None = key("EffectiveClips", number)
    standard_error: float | None = key("StandardError", number, null=True)
    level: float | None = key("Level", number)
    """Coverage of interval and label sets, 0 to 1."""
    promise: PromisedInterval | PromisedLabels | None = inline(PromisedInterval, PromisedLabels)
    """None for vectors."""
    coverage: str | None = key("Coverage", text)
    """Whom the coverage holds for, or why none is promised."""
    method: str | None = key("Calibration", text)
    participants: int | None = key("CalibrationParticipants", whole)
    scans: int | None = key("CalibrationScans", whole)
    source: str | None = key("CalibrationSource", text)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Prediction interval, if there is one."""
        return self.promise.interval if isinstance(self.promise, PromisedInterval) else None

    @property
    def labels(self) -> PromisedLabels:
        """Prediction sets of labels; empty if the prediction is not a label."""
        return self.promise if isinstance(self.promise, PromisedLabels) else PromisedLabels()


@dataclass(frozen=True, kw_only=True)
class View(Record):
    """Prediction from a part or another normalisation of the run; for vectors only the cosine similarity."""

    normalisation: str | None = key("Normalisation", text)
    """Normalisation of the other head; None for that of the adapter."""
    answer: str | None = key("Answer", text)
    value: float | None = key("Value", number)
    probabilities: dict[str, float] | None = key("Probabilities", by_name(number))
    cosine: float | None = key("Cosine", number)


@dataclass(frozen=True, kw_only=True)
class Views(Record):
    """Predictions before calibration, from the other normalisation, and from the mean image alone."""

    normalisation: str | None = key("Normalisation", text)
    own: View | None = key("Own", record(View))
    other: View | None = key("Other", record(View), null=True)
    mean_image_only: View | None = key("MeanImageOnly", record(View), null=True)
    from_mean_image: float | None = key("FromMeanImage", number, null=True)
    """Share of the prediction that the mean image alone explains, 0 to 1."""
    note: str | None = key("Note", text)


@dataclass(frozen=True, kw_only=True)
class Halves(Record):
    """Predictions from odd and even clips, and their difference."""

    odd: View | None = key("Odd", record(View))
    even: View | None = key("Even", record(View))
    difference: float | None = key("Difference", number)


@dataclass(frozen=True, kw_only=True)
class Reliability(Record):
    """Reliability of a prediction."""

    agreement: float | None = key("Agreement", number, null=True)
    """Fraction of clips with the same label as the run."""
    uncertainty: Uncertainty | None = key("Uncertainty", record(Uncertainty))
    views: Views | None = key("Views", record(Views))
    split_half: Halves | None = key("SplitHalf", record(Halves), null=True)


@dataclass(frozen=True, kw_only=True)
class PredictionSidecar(ModelSidecar):
    """Sidecar of a table of predictions or vectors."""

    adapter: AdapterFacts = inline(AdapterFacts, always=True)
    verdict: VerdictRecord | None = key("Verdict", record(VerdictRecord))
    columns: dict[str, Any] = columns()
    reliability: Reliability | None = inline(Reliability)
    """None if the prediction is withheld."""
    disclaimer: str | None = key("Disclaimer", text)

    @property
    def withheld(self) -> bool:
        """True if the prediction is withheld."""
        return self.verdict is not None and self.verdict.level == REFUSE


@dataclass(frozen=True, kw_only=True)
class AttributionSidecar(ModelSidecar):
    """Sidecar of an attribution table or map."""

    atlas: str | None = key("Atlas", text)
    atlas_is_known_copy: bool | None = key("AtlasIsKnownCopy", flag)
    method: str | None = key("Method", text)
    measure: str | None = key("Measure", text)
    answer: str | None = key("Answer", text)
    mask_token: str | None = key("MaskToken", text)
    """Spatial mask of the pre-training, whose token hides a region (reconstruction)."""
    hidden: str | None = key("Mask", text)
    """What the mask hides (reconstruction)."""
    clips: tuple[int, ...] | None = key("Clips", several(whole))
    regions_without_token: int | None = key("RegionsWithoutToken", whole)
    unresolved_regions: tuple[str, ...] | None = key("UnresolvedRegions", several(text))
    """Names of the regions without a token."""
    regions_outside: tuple[str, ...] | None = key("RegionsOutsideBrain", several(text))
    """Names of the regions of the atlas without a voxel with signal."""
    control: str | None = key("Control", text)
    """``random``, ``permuted``, or absent."""
    control_in_words: str | None = key("ControlDescription", text)
    control_heads: int | None = key("ControlHeads", whole)
    """Number of heads of permuted labels behind z and p."""
    control_correlation: float | None = key("ControlCorrelation", number)
    """Rank correlation of the map with that of the control, over regions."""
    control_correlation_of_sizes: float | None = key("ControlCorrelationOfSizes", number)
    """The same, of absolute values."""
    columns: dict[str, Any] = columns()
    disclaimer: str | None = key("Disclaimer", text)
