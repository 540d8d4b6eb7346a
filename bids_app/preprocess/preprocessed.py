"""A run that is ready for a grid, whichever way it was made; what clips, derivatives and report are made from."""

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
    """Where the derivatives of a run come from, and what they say of themselves."""

    pipeline: str
    transform_to_model: str
    """How their space is brought to the model's, in words."""
    slice_timing_corrected: bool | None = None
    start_time: float | None = None
    """When in the repetition time a volume counts, s."""


@dataclass(frozen=True)
class PreprocessedRun:
    """One run as the clips, the derivatives and the report need it. Conventions of maps stand in `transforms.py`."""

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
    """(T, 4, 4) float64 ``.npy``: boldref point to point of volume t; None: no motion to undo."""
    chain: Path | None
    """`Chain` from template to boldref; None: the series is in template space."""
    template: str
    """Where ``chain`` starts."""
    data_mask: Path
    """Where the series varies over time, on its own grid."""
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
    """Brain mask from the boldref's own values."""
    boldref_in_template: Path | None = None
    boldref_in_t1w: Path | None = None
    anatomy: Anatomy | None = None
    sdc: SdcField | None = None
    """What undoes its distortion: after ``chain``, before ``motion``; None: it stays."""
    slices: SliceTimes | None = None
    """When slices were measured; None: ``bold`` is drawn from as it is."""
    space: str | None = None
    """The standard space that ``boldref`` and masks are in (route ``derivatives``); None: the run's own."""
    other_sources: tuple[Path, ...] = ()
    """Other input files that it was made from."""
    notes: tuple[str, ...] = ()
    """Choices that were made on the way, as sentences for the report."""
    offset: float = 0.0
    """Added to the series for the model, which reads nothing below 0; for a series whose mean was taken away."""
    seed: int | None = None
    """That the alignments ran with."""
    orientation: Orientation = field(default_factory=Orientation)
    """What was found of its left and right."""
    origin: Origin | None = None
    """Of a run that was preprocessed elsewhere (route ``derivatives``)."""

    @property
    def start_time(self) -> float | None:
        """When in the repetition time a volume counts once slice timing is corrected, s; None where it is not."""
        return None if self.slices is None else round(self.slices.reference, 6)

    def open(self) -> VolumeSource:
        """The series to draw from."""
        return open_series(self.bold, self.slices, self.tr, self.n_dummy)


@dataclass(frozen=True)
class OnGrid:
    """A run on the model grid: the folder of its `GridSeries`, and how much of the template's brain it covers."""

    folder: Path
    coverage: float
