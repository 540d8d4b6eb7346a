"""Sidecars of tables by region of an atlas: series, correlations and coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bids_app.outputs.schema.readers import flag, number, several, text, whole
from bids_app.outputs.schema.record import columns, key
from bids_app.outputs.schema.run import Sidecar


@dataclass(frozen=True, kw_only=True)
class RegionSidecar(Sidecar):
    """Base of the sidecars of tables by region: the atlas, and its coverage by the run."""

    atlas: str | None = key("Atlas", text)
    atlas_sha256: str | None = key("AtlasSHA256", text)
    atlas_is_known_copy: bool | None = key("AtlasIsKnownCopy", flag)
    """True if the atlas is identical to the one in the catalog."""
    space: str | None = key("Space", text)
    resolution: str | None = key("Resolution", text)
    min_coverage: float | None = key("MinimumCoverage", number)
    """Share of the voxels of a region with data below which it has no series."""
    regions_without_series: tuple[str, ...] | None = key("RegionsWithoutSeries", several(text))
    """Names of the regions below this coverage."""


@dataclass(frozen=True, kw_only=True)
class CoverageSidecar(RegionSidecar):
    """Sidecar of the table of regions and their coverage."""

    warnings: tuple[str, ...] | None = key("Warnings", several(text))
    """Why there are no series."""
    columns: dict[str, Any] = columns()


@dataclass(frozen=True, kw_only=True)
class TimeseriesSidecar(RegionSidecar):
    """Sidecar of a table of mean series of regions."""

    statistic: str | None = key("Statistic", text)
    sampling_frequency: float | None = key("SamplingFrequency", number)
    """Hz."""
    repetition_time: float | None = key("RepetitionTime", number)
    """s."""
    start_time: float | None = key("StartTime", number)
    """Time of the first row, relative to the first volume of the raw run, s."""
    n_volumes: int | None = key("NumberOfVolumes", whole)
    left_out: tuple[int, ...] | None = key("VolumesLeftOut", several(whole))
    """Volumes of the run without a row, from 0."""
    left_out_in_words: str | None = key("VolumesLeftOutDescription", text)
    denoised: bool | None = key("Denoised", flag)
    strategy: str | None = key("DenoisingStrategy", text)
    """Name in nilearn."""
    software: str | None = key("DenoisingSoftware", text)
    confounds: tuple[str, ...] | None = key("ConfoundColumns", several(text))
    """Columns of the confounds table that were regressed out, with linear trends."""
    columns: dict[str, Any] = columns()


@dataclass(frozen=True, kw_only=True)
class RelmatSidecar(RegionSidecar):
    """Sidecar of a matrix of correlations between regions, with the keys of BIDS extension proposal 17."""

    measure: str | None = key("RelationshipMeasure", text)
    measure_in_words: str | None = key("MeasureDescription", text)
    weighted: bool | None = key("Weighted", flag)
    directed: bool | None = key("Directed", flag)
    non_negative: bool | None = key("NonNegative", flag)
    valid_diagonal: bool | None = key("ValidDiagonal", flag)
    storage_format: str | None = key("StorageFormat", text)
    n_volumes: int | None = key("NumberOfVolumes", whole)
    denoised: bool | None = key("Denoised", flag)
    strategy: str | None = key("DenoisingStrategy", text)
    columns: dict[str, Any] = columns()
