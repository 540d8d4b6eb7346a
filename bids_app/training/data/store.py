"""Scans on the model grid, ready to be cut into clips: small, quick to read, safe to fill from several processes.

    STORE/store.json          format, normalisation
    STORE/<scan>/values.npy   (U, V) int8: normalised volumes at 0.8 s, voxels of the brain only
    STORE/<scan>/mask.npy     (96, 96, 96) as bits
    STORE/<scan>/mean.npy     (V,) float16: the mean image, under the global normalisation
    STORE/<scan>/scan.json    scale, background, who and what: written last, so a folder without it is not counted

A value is ``code * scale``; the code -128 stands for background. The scale is chosen by the 99.95th percentile of the
scan, so that a few outliers (which are cut off) do not coarsen the rest.
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

STORE_FORMAT, STORE_VERSION = "neurostorm-clips", 1
BACKGROUND = -128
KEPT = 99.95
"""Percentile of the absolute values that is still represented."""
CHUNKS_FOR_SCALE = 6
"""Stretches of a scan that its scale is taken from."""


@dataclass(frozen=True)
class Scan:
    """One scan of a store.

    Attributes
    ----------
    folder : Path
    participant, session : str
        Labels without prefix; the session may be empty.
    scale, background : float
        See the module's first paragraph.
    n_vols : int
        Volumes at 0.8 s.
    labels : dict
        What is known of the scan itself (a state, a task); those of the participant come from tables.
    source : str
        The file it was made from.
    start : float
        Time of the first volume in the run as it was scanned, s.
    confounds : dict of str to float
        What is known of its motion and signals: means and spreads over the run.
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

    @property
    def name(self) -> str:
        """The scan's name in its store."""
        return self.folder.name

    @property
    def n_clips(self) -> int:
        """Clips that do not overlap."""
        return self.n_vols // CLIP_VOLUMES

    @property
    def places(self) -> np.ndarray:
        """Voxels of the brain, (V,) in C order; read each time, because stores hold more scans than memory does."""
        bits = np.load(self.folder / "mask.npy")
        return np.flatnonzero(np.unpackbits(bits, count=int(np.prod(MODEL_GRID_SHAPE))))

    def mean_image(self) -> np.ndarray:
        """The scan's mean over time under the global normalisation, (V,) float32."""
        path = self.folder / "mean.npy"
        if not path.is_file():
            raise BadDataError(f"{self.folder}: holds no mean image.", "Prepare the store again in a new folder.")
        return np.load(path).astype(np.float32)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole scan as it is stored: values (U, V) float32 of the brain, and their places, (V,) in C order."""
        codes = np.load(self.folder / "values.npy")
        values = codes.astype(np.float32) * np.float32(self.scale)
        values[codes == BACKGROUND] = self.background
        return values, self.places

    def clip(self, start: int, clip_volumes: int = CLIP_VOLUMES) -> torch.Tensor:
        """Volumes from ``start`` on, (1, 96, 96, 96, n) float32."""
        if not 0 <= start <= self.n_vols - clip_volumes:
            raise IndexError(f"volumes {start} to {start + clip_volumes} of {self.n_vols} in {self.name}")
        stored = np.load(self.folder / "values.npy", mmap_mode="r")
        codes = torch.full((int(np.prod(MODEL_GRID_SHAPE)), clip_volumes), BACKGROUND, dtype=torch.int8)
        rows = np.ascontiguousarray(stored[start : start + clip_volumes].T)  # (V, n)
        codes[torch.from_numpy(self.places)] = torch.from_numpy(rows)
        grid = torch.where(codes == BACKGROUND, self.background, codes.float().mul_(self.scale))
        return grid.reshape(1, *MODEL_GRID_SHAPE, clip_volumes)


class ClipStore:
    """A folder of scans.

    Parameters
    ----------
    folder : str or Path
        Made where it is missing.
    normalisation : str, optional
        Under which scans are stored; None takes the one that the store has.
    """

    def __init__(self, folder: str | Path, normalisation: str | None = None) -> None:
        self.folder = Path(folder)
        about = self.folder / "store.json"
        if not about.is_file():
            if normalisation is None:
                raise NoInputError(f"{self.folder}: is no store of clips.", "Prepare one with `neurostorm-train`.")
            if normalisation not in NORMALISATIONS:
                raise UsageError(
                    f"There is no normalisation {normalisation!r}.", f"Choose {' or '.join(NORMALISATIONS)}."
                )
            _write_json(about, {"format": STORE_FORMAT, "version": STORE_VERSION, "normalisation": normalisation})
        content = json.loads(about.read_text())
        if content.get("format") != STORE_FORMAT or content.get("version") != STORE_VERSION:
            raise BadDataError(f"{about}: not a store that this version reads.", "Prepare it again in a new folder.")
        self.normalisation = str(content["normalisation"])
        if normalisation not in (None, self.normalisation):
            raise UsageError(
                f"{self.folder}: holds clips under the {self.normalisation} normalisation, not {normalisation}.",
                "Use another folder for the other.",
            )

    def __contains__(self, name: str) -> bool:
        return (self.folder / name / "scan.json").is_file()

    def __iter__(self) -> Iterator[Scan]:
        for path in sorted(self.folder.glob("[!.]*/scan.json")):  # names with a dot are still being written
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
        """Normalise a run and store it; a scan that is there already is left as it is.

        Written under another name and renamed, so that a killed process leaves no half scan, and of two processes that
        add the same scan one wins.
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
            about = asdict(replace(scan, start=series.start, confounds=dict(confounds or {})))
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
                f"{self.folder / name}: cannot be written ({error}).", "Check disk and rights."
            ) from error
        return self[name]


def _quantise(series: GridSeries, normalisation: str) -> tuple[np.ndarray, float, float, np.ndarray]:
    """A run as codes (U, V), their scale, the background's value and the mean image (V,); two passes, clip by clip."""
    reader = ClipReader(series)
    n_vols, signal = reader.time.n_out, reader.statistics.signal
    places = np.flatnonzero(series.mask)

    def rows(start: int) -> np.ndarray:
        volumes = reader.volumes(start, min(start + CLIP_VOLUMES, n_vols), normalisation)
        return volumes.reshape(-1, volumes.shape[-1]).numpy()[places].T  # (n, V)

    starts = range(0, n_vols, CLIP_VOLUMES)
    looked_at = starts[:: max(1, len(starts) // CHUNKS_FOR_SCALE)]
    largest = max(float(np.percentile(np.abs(rows(start)[:, signal]), KEPT)) for start in looked_at)
    scale = max(largest, 1e-6) / 127
    codes = np.empty((n_vols, len(places)), np.int8)
    for start in starts:
        chunk = np.clip(np.rint(rows(start) / scale), -127, 127).astype(np.int8)
        chunk[:, ~signal] = BACKGROUND
        codes[start : start + len(chunk)] = chunk
    whole = reader.normalisation("global")
    mean = np.where(signal, (reader.statistics.mean - whole.shift) / whole.scale, whole.background)
    return codes, scale, reader.normalisation(normalisation).background, mean.astype(np.float16)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole file; NaN stay NaN."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
