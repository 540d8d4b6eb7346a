"""Clip store: compressed scans on the model grid from which clips are read; safe for parallel writers.

    STORE/store.json          format, normalisation
    STORE/<scan>/values.npy   (U, V) int8: normalised volumes at 0.8 s, brain voxels only
    STORE/<scan>/mask.npy     (96, 96, 96) packed bits: brain mask
    STORE/<scan>/mean.npy     (V,) float16: mean image under the global normalisation
    STORE/<scan>/scan.json    scale, background, participant, labels; written last: folders without it are ignored

A value is ``code * scale``; code -128 is background. The scale is set by the 99.95th percentile of the absolute values,
so that a few outliers (which are clipped) do not reduce the precision.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.bids.writer import atomic_path
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE, NORMALISATIONS, ClipReader, GridSeries
from bids_app.errors import BadDataError, CannotCreateError, NoInputError, UsageError
from bids_app.preprocess.brain_signal import measure_signal

STORE_FORMAT, STORE_VERSION = "neurostorm-clips", 1
BACKGROUND = -128
SCALE_PERCENTILE = 99.95
"""Percentile of the absolute values that defines the scale."""
CHUNKS_FOR_SCALE = 6
"""Number of chunks of a scan from which its scale is estimated."""


@dataclass(frozen=True)
class Scan:
    """One scan of a store.

    Attributes
    ----------
    folder : Path
    participant, session : str
        Labels without prefix; the session may be empty.
    scale, background : float
        Value per code step, and value of the background.
    n_vols : int
        Volumes at 0.8 s.
    labels : dict
        Labels of the scan (task, run); labels of the participant come from tables.
    source : str
        Path of the preprocessed BOLD file.
    start : float
        Time of the first volume relative to the start of the acquisition, s.
    confounds : dict of str to float
        Summaries of motion and confounds: means and standard deviations over the run.
    signal : dict of str to float
        Measures of the signal, see `bids_app.preprocess.brain_signal`; empty in stores of earlier versions.
    """

    folder: Path
    participant: str
    session: str
    scale: float
    background: float
    n_vols: int
    labels: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    start: float = 0.0
    confounds: dict[str, float] = field(default_factory=dict)
    signal: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the scan in its store."""
        return self.folder.name

    @property
    def n_clips(self) -> int:
        """Number of non-overlapping clips."""
        return self.n_vols // CLIP_VOLUMES

    @property
    def voxel_indices(self) -> np.ndarray:
        """Flat indices of the brain voxels, (V,) in C order; read from disk each time to save memory."""
        bits = np.load(self.folder / "mask.npy")
        return np.flatnonzero(np.unpackbits(bits, count=int(np.prod(MODEL_GRID_SHAPE))))

    def mean_image(self) -> np.ndarray:
        """Read the temporal mean under the global normalisation, (V,) float32."""
        path = self.folder / "mean.npy"
        if not path.is_file():
            raise BadDataError(f"{self.folder}: mean.npy is missing.", "Prepare the store again in a new folder.")
        return np.load(path).astype(np.float32)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Read all values of the brain voxels, (U, V) float32, and their flat indices, (V,) in C order."""
        codes = np.load(self.folder / "values.npy")
        values = codes.astype(np.float32) * np.float32(self.scale)
        values[codes == BACKGROUND] = self.background
        return values, self.voxel_indices

    def clip(self, start: int, clip_volumes: int = CLIP_VOLUMES) -> torch.Tensor:
        """Read the clip that starts at volume ``start``, (1, 96, 96, 96, n) float32."""
        if not 0 <= start <= self.n_vols - clip_volumes:
            raise IndexError(f"volumes {start} to {start + clip_volumes} of {self.n_vols} in {self.name}")
        stored = np.load(self.folder / "values.npy", mmap_mode="r")
        codes = torch.full((int(np.prod(MODEL_GRID_SHAPE)), clip_volumes), BACKGROUND, dtype=torch.int8)
        rows = np.ascontiguousarray(stored[start : start + clip_volumes].T)  # (V, n)
        codes[torch.from_numpy(self.voxel_indices)] = torch.from_numpy(rows)
        grid = torch.where(codes == BACKGROUND, self.background, codes.float().mul_(self.scale))
        return grid.reshape(1, *MODEL_GRID_SHAPE, clip_volumes)


class ClipStore:
    """A folder of scans.

    Parameters
    ----------
    folder : str or Path
        Created if missing.
    normalisation : str, optional
        Normalisation of the scans; None uses that of the existing store.
    """

    def __init__(self, folder: str | Path, normalisation: str | None = None) -> None:
        self.folder = Path(folder)
        about = self.folder / "store.json"
        if not about.is_file():
            if normalisation is None:
                raise NoInputError(f"{self.folder}: not a clip store.", "Prepare one with neurostorm-train.")
            if normalisation not in NORMALISATIONS:
                raise UsageError(f"Unknown normalisation: {normalisation!r}.", f"Choose {' or '.join(NORMALISATIONS)}.")
            _write_json(about, {"format": STORE_FORMAT, "version": STORE_VERSION, "normalisation": normalisation})
        content = json.loads(about.read_text())
        if content.get("format") != STORE_FORMAT or content.get("version") != STORE_VERSION:
            raise BadDataError(f"{about}: unsupported store format.", "Prepare the store again in a new folder.")
        self.normalisation = str(content["normalisation"])
        if normalisation not in (None, self.normalisation):
            raise UsageError(
                f"{self.folder}: the store has {self.normalisation} normalisation, not {normalisation}.",
                "Use another folder for each normalisation.",
            )

    def __contains__(self, name: str) -> bool:
        return (self.folder / name / "scan.json").is_file()

    def __iter__(self) -> Iterator[Scan]:
        for path in sorted(self.folder.glob("[!.]*/scan.json")):  # folders with a leading dot are being written
            yield self[path.parent.name]

    def __getitem__(self, name: str) -> Scan:
        if name not in self:
            raise KeyError(name)
        return Scan(self.folder / name, **json.loads((self.folder / name / "scan.json").read_text()))

    def add(
        self,
        name: str,
        series: GridSeries,
        participant: str,
        session: str = "",
        labels: Mapping[str, Any] | None = None,
        source: str = "",
        confounds: Mapping[str, float] | None = None,
    ) -> Scan:
        """Normalise a run and add it to the store; an existing scan is kept.

        The folder is written under a temporary name and renamed, so that a killed process leaves no partial scan and
        two processes can add the same scan.
        """
        if name in self:
            return self[name]
        codes, scale, background, mean = _quantise(series, self.normalisation)
        try:
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{name}."))
            np.save(temporary / "values.npy", codes)
            np.save(temporary / "mask.npy", np.packbits(series.mask))
            np.save(temporary / "mean.npy", mean)
            scan = Scan(temporary, participant, session, scale, background, len(codes), dict(labels or {}), source)
            signal = measure_signal(series)
            about = asdict(replace(scan, start=series.start, confounds=dict(confounds or {}), signal=signal))
            del about["folder"]
            _write_json(temporary / "scan.json", about)
            try:
                os.rename(temporary, self.folder / name)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if name not in self:
                    raise
        except OSError as error:
            raise CannotCreateError(
                f"{self.folder / name}: writing failed ({error}).", "Check disk space and permissions."
            ) from error
        return self[name]


def _quantise(series: GridSeries, normalisation: str) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Quantise a run clip by clip; return codes (U, V), scale, background value and mean image (V,)."""
    reader = ClipReader(series)
    n_vols, signal = reader.time.n_out, reader.statistics.signal
    indices = np.flatnonzero(series.mask)

    def rows(start: int) -> np.ndarray:
        volumes = reader.volumes(start, min(start + CLIP_VOLUMES, n_vols), normalisation)
        return volumes.reshape(-1, volumes.shape[-1]).numpy()[indices].T  # (n, V)

    starts = range(0, n_vols, CLIP_VOLUMES)
    sampled_starts = starts[:: max(1, len(starts) // CHUNKS_FOR_SCALE)]
    maximum = max(float(np.percentile(np.abs(rows(start)[:, signal]), SCALE_PERCENTILE)) for start in sampled_starts)
    scale = max(maximum, 1e-6) / 127
    codes = np.empty((n_vols, len(indices)), np.int8)
    for start in starts:
        chunk = np.clip(np.rint(rows(start) / scale), -127, 127).astype(np.int8)
        chunk[:, ~signal] = BACKGROUND
        codes[start : start + len(chunk)] = chunk
    whole = reader.normalisation("global")
    mean = np.where(signal, (reader.statistics.mean - whole.shift) / whole.scale, whole.background)
    return codes, scale, reader.normalisation(normalisation).background, mean.astype(np.float16)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN is kept."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
