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
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app.bids.writer import atomic_path
from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE, NORMALISATIONS, ClipReader, GridSeries
from bids_app.errors import BadDataError, CannotCreateError, NoInputError, UsageError
from bids_app.files import MAX_JSON_BYTES, check_regular, parse_json, read_text
from bids_app.preprocess.brain_signal import measure_signal

STORE_FORMAT, STORE_VERSION = "neurostorm-clips", 1
BACKGROUND = -128
SCALE_PERCENTILE = 99.95
"""Percentile of the absolute values that defines the scale."""
CHUNKS_FOR_SCALE = 6
"""Number of chunks of a scan from which its scale is estimated."""
HINT = "Prepare the store again in a new folder."


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
        Path of the preprocessed BOLD file, or BIDS URI of the raw one.
    start : float
        Time of the first volume relative to the start of the acquisition, s.
    confounds : dict of str to float
        Summaries of motion and confounds: means and standard deviations over the run.
    signal : dict of str to float
        Measures of the signal, see `bids_app.preprocess.brain_signal`; empty in stores of earlier versions.
    quality : dict of str to float
        Repetition time (``tr``, s) and image quality metrics; empty in stores of earlier versions.
    scanner : dict
        Keys of the sidecar that name the scanner, see `bids_app.bids.sidecars.SCANNER_KEYS`.
    stamp : str
        What the scan was made from; a scan with another stamp is made again.
    clip_volumes : int
        Volumes of a clip: those of the encoder that reads the scan; not part of the store.
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
    quality: dict[str, float] = field(default_factory=dict)
    scanner: dict[str, Any] = field(default_factory=dict)
    stamp: str = ""
    clip_volumes: int = CLIP_VOLUMES

    @property
    def name(self) -> str:
        """Name of the scan in its store."""
        return self.folder.name

    @property
    def n_clips(self) -> int:
        """Number of non-overlapping clips."""
        return self.n_vols // self.clip_volumes

    @property
    def voxel_indices(self) -> np.ndarray:
        """Flat indices of the brain voxels, (V,) in C order; read from disk each time to save memory."""
        n_voxels = math.prod(MODEL_GRID_SHAPE)
        bits = _read_array(self.folder / "mask.npy", np.uint8, -(-n_voxels // 8))
        return np.flatnonzero(np.unpackbits(bits, count=n_voxels))

    def codes(self, indices: np.ndarray) -> np.ndarray:
        """Return the codes of the brain voxels, (U, V) int8, mapped from the file; ``indices`` are `voxel_indices`."""
        return _read_array(self.folder / "values.npy", np.int8, self.n_vols, len(indices))

    def mean_image(self) -> np.ndarray:
        """Read the temporal mean under the global normalisation, (V,) float32."""
        return _read_array(self.folder / "mean.npy", np.float16, len(self.voxel_indices)).astype(np.float32)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Read all values of the brain voxels, (U, V) float32, and their flat indices, (V,) in C order."""
        indices = self.voxel_indices
        codes = self.codes(indices)
        values = codes.astype(np.float32) * np.float32(self.scale)
        values[codes == BACKGROUND] = self.background
        return values, indices

    def clip(self, start: int) -> torch.Tensor:
        """Read the clip that starts at volume ``start``, (1, 96, 96, 96, n) float32."""
        clip_volumes = self.clip_volumes
        if not 0 <= start <= self.n_vols - clip_volumes:
            raise IndexError(f"volumes {start} to {start + clip_volumes} of {self.n_vols} in {self.name}")
        codes = torch.full((math.prod(MODEL_GRID_SHAPE), clip_volumes), BACKGROUND, dtype=torch.int8)
        indices = self.voxel_indices
        rows = np.ascontiguousarray(self.codes(indices)[start : start + clip_volumes].T)  # (V, n)
        codes[torch.from_numpy(indices)] = torch.from_numpy(rows)
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
        if not os.path.lexists(about):
            if normalisation is None:
                raise NoInputError(f"{self.folder}: not a clip store.", "Prepare one with neurostorm-train.")
            if normalisation not in NORMALISATIONS:
                raise UsageError(f"Unknown normalisation: {normalisation!r}.", f"Choose {' or '.join(NORMALISATIONS)}.")
            _write_json(about, {"format": STORE_FORMAT, "version": STORE_VERSION, "normalisation": normalisation})
        content = _read_object(about)
        self.normalisation = str(content.get("normalisation"))
        known = (content.get("format"), content.get("version")) == (STORE_FORMAT, STORE_VERSION)
        if not known or self.normalisation not in NORMALISATIONS:
            raise BadDataError(f"{about}: unsupported store format.", HINT)
        if normalisation not in (None, self.normalisation):
            raise UsageError(
                f"{self.folder}: the store has {self.normalisation} normalisation, not {normalisation}.",
                "Use another folder for each normalisation.",
            )

    def __contains__(self, name: str) -> bool:
        return os.path.lexists(self.folder / name / "scan.json")

    def __iter__(self) -> Iterator[Scan]:
        for path in sorted(self.folder.glob("[!.]*")):  # folders with a leading dot are being written
            if path.name in self:
                yield self[path.name]

    def __getitem__(self, name: str) -> Scan:
        if name not in self:
            raise KeyError(name)
        return read_scan(self.folder / name)

    def has(self, name: str, stamp: str) -> bool:
        """Return True if the store has a scan that was made from what ``stamp`` describes."""
        return name in self and self[name].stamp == stamp

    def add(
        self,
        name: str,
        series: GridSeries,
        participant: str,
        session: str = "",
        labels: Mapping[str, Any] | None = None,
        source: str = "",
        confounds: Mapping[str, float] | None = None,
        quality: Mapping[str, float] | None = None,
        scanner: Mapping[str, Any] | None = None,
        stamp: str = "",
    ) -> Scan:
        """Normalise a run and add it to the store; an existing scan with the same stamp is kept.

        The folder is written under a temporary name and renamed, so that a killed process leaves no partial scan and
        two processes can add the same scan. Parameters as in `Scan`.
        """
        if self.has(name, stamp):
            return self[name]
        codes, scale, background, mean = _quantise(series, self.normalisation)
        try:
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{name}."))
            np.save(temporary / "values.npy", codes)
            np.save(temporary / "mask.npy", np.packbits(series.mask))
            np.save(temporary / "mean.npy", mean)
            scan = Scan(temporary, participant, session, scale, background, len(codes), dict(labels or {}), source)
            scan = replace(scan, start=series.start, signal=measure_signal(series), stamp=stamp)
            facts = {"confounds": confounds, "quality": quality, "scanner": scanner}
            about = asdict(scan) | {name: dict(known or {}) for name, known in facts.items()}
            del about["folder"], about["clip_volumes"]
            _write_json(temporary / "scan.json", about)
            self._discard(name)
            try:
                os.rename(temporary, self.folder / name)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not self.has(name, stamp):
                    raise
        except OSError as error:
            raise CannotCreateError(
                f"{self.folder / name}: writing failed ({error}).", "Check disk space and permissions."
            ) from error
        return self[name]

    def _discard(self, name: str) -> None:
        """Remove a scan with another stamp, if there is one."""
        if name in self:
            aside = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{name}."))
            with suppress(FileNotFoundError):  # another process was faster
                os.rename(self.folder / name, aside / name)
            shutil.rmtree(aside, ignore_errors=True)


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


def read_scan(folder: Path) -> Scan:
    """Read the description of a scan, and check the type of each value.

    Raises
    ------
    NoInputError, BadDataError
        The folder is not that of a scan.
    """
    path = folder / "scan.json"
    content = _read_object(path)
    try:
        scan = Scan(path.parent, **content)
        texts = [scan.participant, scan.session, scan.source, scan.stamp]
        numbers = [scan.scale, scan.background, scan.start, *scan.confounds.values(), *scan.quality.values()]
        valid = (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int | float) for number in numbers)
            and math.isfinite(scan.scale) and scan.scale > 0 and math.isfinite(scan.background)
            and isinstance(scan.n_vols, int) and isinstance(scan.labels, dict) and isinstance(scan.scanner, dict)
            and "clip_volumes" not in content
        )  # fmt: skip
    except (TypeError, AttributeError):
        valid = False
    if not valid:
        raise BadDataError(f"{path}: not the description of a scan.", HINT)
    return scan


def _read_object(path: Path) -> dict[str, Any]:
    content = parse_json(read_text(path, MAX_JSON_BYTES), str(path))
    if not isinstance(content, dict):
        raise BadDataError(f"{path}: not a JSON object.", HINT)
    return content


def _read_array(path: Path, dtype: type, *shape: int) -> np.ndarray:
    """Map an array of a scan; its size is that of the file, whatever its header claims.

    Raises
    ------
    NoInputError
        The file is missing or not a regular file.
    BadDataError
        It is not an array of this type and shape.
    """
    check_regular(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged headers make NumPy raise many kinds of errors
        raise BadDataError(f"{path}: damaged or truncated ({error}).", HINT) from error
    if array.dtype != dtype or array.shape != shape:
        raise BadDataError(f"{path}: {array.dtype} of shape {array.shape}, not {np.dtype(dtype)} {shape}.", HINT)
    return array


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN is kept."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
