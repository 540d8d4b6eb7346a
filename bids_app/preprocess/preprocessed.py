"""Preprocessed runs: the common result of preprocessing and ingestion, and the input of clips and derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bids_app.bids.orientation import Orientation
from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.images import open_series
from bids_app.preprocess.io.timing import SliceTimes
from bids_app.preprocess.io.volumes import VolumeSource
from bids_app.preprocess.sdc.apply import SdcField


@dataclass(frozen=True)
class Origin:
    """Provenance of ingested derivatives."""

    pipeline: str
    transform_to_model: str
    """Description of the transform from their space to the model's."""
    slice_timing_corrected: bool | None = None
    start_time: float | None = None
    """Reference time of volumes within the repetition time, s."""
    denoised: bool = False
    """True if confounds were regressed out of the series."""


@dataclass(frozen=True, kw_only=True)
class AlignedSeries:
    """A series and its alignment with the template: all that resampling needs.

    See `transforms.py` for the conventions of transforms.
    """

    source: Path
    """The input file, for messages and sidecars."""
    bold: Path
    """4D series, uncompressed: raw, or already in a standard space."""
    tr: float
    """s."""
    n_volumes: int
    n_dummy: int
    """Non-steady-state volumes at the start."""
    motion: Path | None
    """(T, 4, 4) float64 ``.npy``: boldref point to point of volume t; None: already motion-corrected."""
    chain: Path | None
    """`Chain` from template to boldref; None: the series is in template space."""
    template: str
    """Space where ``chain`` starts."""
    data_mask: Path
    """Voxels that vary over time, on the grid of the series."""
    sdc: SdcField | None = None
    """Susceptibility distortion correction, applied after ``chain`` and before ``motion``; None: no correction."""
    slices: SliceTimes | None = None
    """Slice times; None: no slice timing correction."""
    offset: float = 0.0
    """Added to a series without its mean image, because the model requires values of at least 0."""

    @property
    def start_time(self) -> float | None:
        """Reference time of volumes after slice timing correction, s; None without the correction."""
        return None if self.slices is None else round(self.slices.reference, 6)

    def open(self) -> VolumeSource:
        """Open the series, with slice timing correction if slice times are known."""
        return open_series(self.bold, self.slices, self.tr, self.n_dummy)


@dataclass(frozen=True, kw_only=True)
class PreprocessedRun(AlignedSeries):
    """One preprocessed run."""

    boldref: Path
    brain_mask: Path
    dseg: Path | None
    """1 grey matter, 2 white matter, 3 CSF, on the boldref's grid."""
    confounds: Path
    confounds_meta: Path
    carpet: Path | None
    """(T, V) float32 ``.npy``: the motion-corrected series in ``brain_mask``."""
    route: str
    """``t1w``, ``direct`` or ``derivatives``."""
    quality: dict[str, float]
    warnings: tuple[str, ...]
    hmc_file: Path | None = None
    coreg_file: Path | None = None
    to_template: Path | None = None
    from_template: Path | None = None
    """ITK transforms; the last two on the route ``direct``."""
    epi_mask: Path | None = None
    """Brain mask from the boldref's own intensities."""
    boldref_in_template: Path | None = None
    boldref_in_t1w: Path | None = None
    t2star: Path | None = None
    """T2* map (s) on the grid of the boldref, of combined echoes."""
    anatomy: Anatomy | None = None
    space: str | None = None
    """Standard space of ``boldref`` and masks (route ``derivatives``); None: the run's own space."""
    echoes: tuple[Path, ...] = ()
    """The other echoes that were combined with ``source``."""
    sbref: Path | None = None
    """The single-band reference that ``boldref`` was made from."""
    other_sources: tuple[Path, ...] = ()
    """Other input files of the run."""
    notes: tuple[str, ...] = ()
    """Processing choices, as sentences for the report."""
    omitted: tuple[str, ...] = ()
    """Planned steps that were left out because they failed, with the reasons, for the verdict."""
    doubts: tuple[str, ...] = ()
    """Signs that an alignment is wrong, with the likely cause, for the verdict."""
    seed: int | None = None
    """Seed of the registrations."""
    orientation: Orientation = field(default_factory=Orientation)
    """Result of the left-right check."""
    origin: Origin | None = None
    """Provenance of ingested derivatives (route ``derivatives``)."""


@dataclass(frozen=True)
class OnGrid:
    """A run on the model grid.

    Attributes
    ----------
    folder : pathlib.Path
        Of its `GridSeries`.
    coverage : float
        Covered share of the template's brain.
    signal : dict of str to float
        Measures of the signal, see `bids_app.preprocess.brain_signal`.
    """

    folder: Path
    coverage: float
    signal: dict[str, float] = field(default_factory=dict)
