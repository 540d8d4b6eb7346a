"""Sidecars of preprocessing outputs: images, transforms, image quality metrics, and data dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bids_app.bids.orientation import LeftRight
from bids_app.outputs.schema.readers import by_name, flag, mapping, member, number, several, text, whole
from bids_app.outputs.schema.record import Record, columns, inline, key, record

CONFIGURATION_KEY = "ConfigurationHash"
"""Key of the configuration in all sidecars."""
GENERATED_BY, DIGEST = "GeneratedBy", "Digest"
"""Keys of the provenance in sidecars, by BIDS-Prov."""


@dataclass(frozen=True, kw_only=True)
class DataDictionary(Record):
    """BIDS data dictionary of the columns of a table, as a sidecar of its own."""

    configuration: str | None = key(CONFIGURATION_KEY, text)
    generated_by: str | None = key(GENERATED_BY, text)
    digest: dict[str, str] | None = key(DIGEST, by_name(text))

    columns: dict[str, Any] = columns()


@dataclass(frozen=True, kw_only=True)
class Sidecar(Record):
    """Base of all other sidecars."""

    sources: tuple[str, ...] | None = key("Sources", several(text))
    """BIDS URIs of the sources of the file."""
    configuration: str | None = key(CONFIGURATION_KEY, text)
    """Hash of the options that decide the numbers, with the version; added when the file is published."""
    generated_by: str | None = key(GENERATED_BY, text)
    """Activity that made the file (``--provenance``); added when the file is published."""
    digest: dict[str, str] | None = key(DIGEST, by_name(text))
    """Checksum of the file (``--provenance``), by algorithm; added when the file is published."""


@dataclass(frozen=True, kw_only=True)
class ImageSidecar(Sidecar):
    """Sidecar of an image in a space."""

    spatial_reference: str | None = key("SpatialReference", text)
    """BIDS URI or address of the image whose grid and space the file has."""
    template: str | None = key("Template", text)
    """Template through which the file was brought to its space; None: its space needs no template."""


@dataclass(frozen=True, kw_only=True)
class MaskSidecar(ImageSidecar):
    """Sidecar of a mask; ``kind`` is ``Brain``."""

    description: str | None = key("Description", text)
    kind: str | None = key("Type", text)
    raw_sources: tuple[str, ...] | None = key("RawSources", several(text))
    resolution: str | None = key("Resolution", text)


@dataclass(frozen=True, kw_only=True)
class BoldrefSidecar(ImageSidecar):
    """Sidecar of a boldref."""

    raw_sources: tuple[str, ...] | None = key("RawSources", several(text))
    description: str | None = key("Description", text)


@dataclass(frozen=True, kw_only=True)
class T2starSidecar(ImageSidecar):
    """Sidecar of a T2* map."""

    units: str | None = key("Units", text)
    raw_sources: tuple[str, ...] | None = key("RawSources", several(text))


@dataclass(frozen=True, kw_only=True)
class T1wSidecar(ImageSidecar):
    """Sidecar of a T1w image."""

    skull_stripped: bool | None = key("SkullStripped", flag)
    description: str | None = key("Description", text)


@dataclass(frozen=True, kw_only=True)
class MeasuredField(Record):
    """Fieldmap of a distortion correction."""

    readout_s: float | None = key("TotalReadoutTime", number, null=True)
    files: tuple[str, ...] | None = key("Files", several(text))
    """File names without folders."""


@dataclass(frozen=True, kw_only=True)
class DistortionCorrection(Record):
    """Susceptibility distortion correction of a run."""

    method: str | None = key("Method", text)
    phase_encoding: str | None = key("PhaseEncodingDirection", text)
    fieldmap: MeasuredField | None = inline(MeasuredField)
    """None for fieldmap-less correction."""


@dataclass(frozen=True, kw_only=True)
class TransformSidecar(Sidecar):
    """Sidecar of a transform."""

    template: str | None = key("Template", text)
    """Template that the image was registered to; None for transforms without one."""
    description: str | None = key("Description", text)
    distortion_corrected: bool | None = key("DistortionCorrected", flag)
    distortion_correction: DistortionCorrection | None = key("DistortionCorrection", record(DistortionCorrection))


@dataclass(frozen=True, kw_only=True)
class BoldSidecar(ImageSidecar):
    """Sidecar of a preprocessed series."""

    description: str | None = key("Description", text)
    raw_sources: tuple[str, ...] | None = key("RawSources", several(text))
    repetition_time: float | None = key("RepetitionTime", number)
    """s."""
    skull_stripped: bool | None = key("SkullStripped", flag)
    resolution: str | None = key("Resolution", text)
    slice_timing_corrected: bool | None = key("SliceTimingCorrected", flag)
    start_time: float | None = key("StartTime", number)
    """Reference time of slice-timing correction within the TR, s."""
    distortion_corrected: bool | None = key("DistortionCorrected", flag)
    distortion_correction: DistortionCorrection | None = key("DistortionCorrection", record(DistortionCorrection))
    task: str | None = key("TaskName", text)
    n_volumes: int | None = key("NumberOfVolumes", whole)


@dataclass(frozen=True, kw_only=True)
class DenoisedSidecar(BoldSidecar):
    """Sidecar of a series from which confounds were regressed out."""

    strategy: str | None = key("DenoisingStrategy", text)
    """Name in nilearn."""
    software: str | None = key("DenoisingSoftware", text)
    confounds: tuple[str, ...] | None = key("ConfoundColumns", several(text))
    """Columns of the confounds table that were regressed out, with linear trends."""
    left_out: tuple[int, ...] | None = key("VolumesLeftOut", several(whole))
    """Volumes of the preprocessed series that are not in this one, from 0."""


@dataclass(frozen=True, kw_only=True)
class Parameters(Record):
    """Processing parameters of a run; for ingested derivatives with their origin."""

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
    """Sidecar of the table of image quality metrics: metrics, warnings, notes and parameters."""

    route: str | None = key("route", text)
    template: str | None = key("template", text)
    quality: dict[str, Any] | None = key("quality", mapping)
    """Metrics by MRIQC name, or our own; null if not available."""
    warnings: tuple[str, ...] | None = key("warnings", several(text))
    notes: tuple[str, ...] | None = key("notes", several(text))
    parameters: Parameters | None = key("parameters", record(Parameters))
    columns: dict[str, Any] = columns()
