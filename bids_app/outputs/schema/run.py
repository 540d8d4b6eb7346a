"""Sidecars of what preprocessing made: images, transforms, quality, and data dictionaries of tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bids_app.bids.orientation import LeftRight
from bids_app.outputs.schema.readers import flag, mapping, member, number, several, text, whole
from bids_app.outputs.schema.record import Record, columns, inline, key, record


@dataclass(frozen=True, kw_only=True)
class DataDictionary(Record):
    """What the columns of a table are, as BIDS wants it; all of a table's sidecar where nothing else is to be said."""

    columns: dict[str, Any] = columns()


@dataclass(frozen=True, kw_only=True)
class Sidecar(Record):
    """What every other sidecar has."""

    sources: tuple[str, ...] | None = key("Sources", several(text))
    """BIDS URIs of what the file was made from."""


@dataclass(frozen=True, kw_only=True)
class MaskSidecar(Sidecar):
    """Beside a mask; ``kind`` is ``Brain``."""

    kind: str | None = key("Type", text)
    raw_sources: tuple[str, ...] | None = key("RawSources", several(text))
    resolution: str | None = key("Resolution", text)


@dataclass(frozen=True, kw_only=True)
class BoldrefSidecar(Sidecar):
    """Beside a reference image."""

    description: str | None = key("Description", text)


@dataclass(frozen=True, kw_only=True)
class T1wSidecar(Sidecar):
    """Beside a T1w image."""

    skull_stripped: bool | None = key("SkullStripped", flag)
    description: str | None = key("Description", text)


@dataclass(frozen=True, kw_only=True)
class MeasuredField(Record):
    """The fieldmap that a run's distortion was found from."""

    readout_s: float | None = key("TotalReadoutTime", number, null=True)
    files: tuple[str, ...] | None = key("Files", several(text))
    """Names without folders."""


@dataclass(frozen=True, kw_only=True)
class DistortionCorrection(Record):
    """How distortion was undone."""

    method: str | None = key("Method", text)
    phase_encoding: str | None = key("PhaseEncodingDirection", text)
    fieldmap: MeasuredField | None = inline(MeasuredField)
    """None where it was found without one."""


@dataclass(frozen=True, kw_only=True)
class TransformSidecar(Sidecar):
    """Beside the displacement field that undoes a run's distortion."""

    description: str | None = key("Description", text)
    distortion_corrected: bool | None = key("DistortionCorrected", flag)
    distortion_correction: DistortionCorrection | None = key("DistortionCorrection", record(DistortionCorrection))


@dataclass(frozen=True, kw_only=True)
class BoldSidecar(Sidecar):
    """Beside a preprocessed series."""

    repetition_time: float | None = key("RepetitionTime", number)
    """s."""
    skull_stripped: bool | None = key("SkullStripped", flag)
    resolution: str | None = key("Resolution", text)
    slice_timing_corrected: bool | None = key("SliceTimingCorrected", flag)
    start_time: float | None = key("StartTime", number)
    """When in the repetition time a corrected volume counts, s."""
    distortion_corrected: bool | None = key("DistortionCorrected", flag)
    distortion_correction: DistortionCorrection | None = key("DistortionCorrection", record(DistortionCorrection))
    task: str | None = key("TaskName", text)
    n_volumes: int | None = key("NumberOfVolumes", whole)


@dataclass(frozen=True, kw_only=True)
class Parameters(Record):
    """What was done to a run with which settings; those of ingested derivatives tell where they came from."""

    random_seed: int | None = key("RandomSeed", whole)
    route: str | None = key("Route", text)
    template: str | None = key("Template", text)
    pipeline: str | None = key("Pipeline", text)
    space: str | None = key("Space", text)
    way_to_model_space: str | None = key("WayToModelSpace", text)
    left_right_in_words: str | None = key("LeftAndRight", text)
    left_right: LeftRight | None = key("LeftRight", member(LeftRight))
    slice_timing_corrected: bool | None = key("SliceTimingCorrected", flag)
    start_time: float | None = key("StartTime", number)
    distortion_corrected: bool | None = key("DistortionCorrected", flag)
    distortion_correction: DistortionCorrection | None = key("DistortionCorrection", record(DistortionCorrection))
    threads: int | None = key("Threads", whole)


@dataclass(frozen=True, kw_only=True)
class QualitySidecar(Sidecar):
    """Beside the table of a run's quality: the same figures, what is to be said of the run, and its settings."""

    route: str | None = key("route", text)
    template: str | None = key("template", text)
    quality: dict[str, Any] | None = key("quality", mapping)
    """Figures by MRIQC's names, or our own; null where one could not be measured."""
    warnings: tuple[str, ...] | None = key("warnings", several(text))
    notes: tuple[str, ...] | None = key("notes", several(text))
    parameters: Parameters | None = key("parameters", record(Parameters))
    columns: dict[str, Any] = columns()
