"""A scan of a clip store: what is known about it, and how its clips are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bids_app.bids.writer import atomic_path
from bids_app.clips import CLIP_VOLUMES, GridSeries
from bids_app.errors import BadDataError
from bids_app.files import check_regular
from bids_app.preprocess.brain_signal import measure_signal
from bids_app.training.data.quantise import BACKGROUND, MASK_BYTES, QuantisedClip, quantise, voxels_of

HINT = "Prepare the store again in a new folder."


class ScanArrays(Protocol):
    """Where the arrays of a scan are stored; small, because reading processes receive it with each clip."""

    def mask(self) -> np.ndarray:
        """Read the packed bits of the brain mask, (N_VOXELS / 8,) uint8."""

    def codes(self, start: int, stop: int, n_voxels: int) -> np.ndarray:
        """Read the codes of volumes ``start`` to ``stop``, (n, V) int8."""

    def mean(self, n_voxels: int) -> np.ndarray:
        """Read the mean image, (V,) float16."""


@dataclass(frozen=True)
class EntryArrays:
    """Arrays of a scan in a folder of its own; see `bids_app.training.data.entries`."""

    folder: Path
    n_vols: int

    def mask(self) -> np.ndarray:
        """Read the packed bits of the brain mask, (N_VOXELS / 8,) uint8."""
        return read_array(self.folder / "mask.npy", np.uint8, MASK_BYTES)

    def codes(self, start: int, stop: int, n_voxels: int) -> np.ndarray:
        """Map the codes of volumes ``start`` to ``stop``, (n, V) int8."""
        return read_array(self.folder / "values.npy", np.int8, self.n_vols, n_voxels)[start:stop]

    def mean(self, n_voxels: int) -> np.ndarray:
        """Read the mean image, (V,) float16."""
        return read_array(self.folder / "mean.npy", np.float16, n_voxels)


@dataclass(frozen=True)
class Scan:
    """One scan of a store.

    Attributes
    ----------
    folder : Path
        Folder of the scan: of its arrays, or of what is computed from a scan in a shard, such as cached embeddings.
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
    confounds : mapping of str to float
        Summaries of motion and confounds: means and standard deviations over the run.
    signal : mapping of str to float
        Measures of the signal, see `bids_app.preprocess.brain_signal`; empty in stores of earlier versions.
    quality : mapping of str to float
        Repetition time (``tr``, s) and image quality metrics; empty in stores of earlier versions.
    scanner : mapping
        Keys of the sidecar that name the scanner, see `bids_app.bids.sidecars.SCANNER_KEYS`.
    stamp : str
        What the scan was made from; a scan with another stamp is made again.
    clip_volumes : int
        Volumes of a clip: those of the encoder that reads the scan; not part of the store.
    shard : ScanArrays, optional
        Arrays of a scan in a shard; None: in ``folder``.
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
    confounds: Mapping[str, float] = field(default_factory=dict)
    signal: Mapping[str, float] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    scanner: Mapping[str, Any] = field(default_factory=dict)
    stamp: str = ""
    clip_volumes: int = CLIP_VOLUMES
    shard: ScanArrays | None = None

    @property
    def name(self) -> str:
        """Name of the scan in its store."""
        return self.folder.name

    @property
    def n_clips(self) -> int:
        """Number of non-overlapping clips."""
        return self.n_vols // self.clip_volumes

    @property
    def arrays(self) -> ScanArrays:
        """Where the arrays are stored."""
        return self.shard or EntryArrays(self.folder, self.n_vols)

    @property
    def voxel_indices(self) -> np.ndarray:
        """Flat indices of the brain voxels, (V,) in C order; read from disk each time to save memory."""
        return voxels_of(self.arrays.mask())

    def codes(self, indices: np.ndarray) -> np.ndarray:
        """Return the codes of the brain voxels, (U, V) int8; ``indices`` are `voxel_indices`."""
        return self.arrays.codes(0, self.n_vols, len(indices))

    def mean_image(self) -> np.ndarray:
        """Read the temporal mean under the global normalisation, (V,) float32."""
        return self.arrays.mean(len(self.voxel_indices)).astype(np.float32)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Read all values of the brain voxels, (U, V) float32, and their flat indices, (V,) in C order."""
        indices = self.voxel_indices
        codes = self.codes(indices)
        values = codes.astype(np.float32) * np.float32(self.scale)
        values[codes == BACKGROUND] = self.background
        return values, indices

    def quantised_clip(self, start: int) -> QuantisedClip:
        """Read the clip that starts at volume ``start`` as it is stored."""
        stop = start + self.clip_volumes
        if not 0 <= start <= self.n_vols - self.clip_volumes:
            raise IndexError(f"volumes {start} to {stop} of {self.n_vols} in {self.name}")
        mask = self.arrays.mask()
        codes = self.arrays.codes(start, stop, int(np.bitwise_count(mask).sum()))
        return QuantisedClip(codes, mask, self.scale, self.background)

    def clip(self, start: int) -> torch.Tensor:
        """Read the clip that starts at volume ``start``, (1, 96, 96, 96, n) float32."""
        return self.quantised_clip(start).values()

    def without_facts(self) -> Scan:
        """Return a copy that can only read clips, to be sent to another process with each of them."""
        return Scan(
            self.folder, self.participant, "", self.scale, self.background, self.n_vols,
            clip_volumes=self.clip_volumes, shard=self.shard,
        )  # fmt: skip


NOT_STORED = ("folder", "clip_volumes", "shard")
"""Attributes of a scan that are not part of its description."""
FACTS = ("confounds", "signal", "quality", "scanner")
"""Parts of a description that reading clips does not need."""


@dataclass(frozen=True)
class NewScan:
    """A scan to be written to a store.

    Attributes
    ----------
    name : str
    content : dict
        Its description, see `scan_of`.
    codes : np.ndarray of int8, (U, V)
    mask : np.ndarray of uint8, (N_VOXELS / 8,)
    mean : np.ndarray of float16, (V,)
    """

    name: str
    content: dict[str, Any]
    codes: np.ndarray
    mask: np.ndarray
    mean: np.ndarray


def new_scan(
    name: str,
    series: GridSeries,
    normalisation: str,
    participant: str,
    session: str = "",
    labels: Mapping[str, Any] | None = None,
    source: str = "",
    confounds: Mapping[str, float] | None = None,
    quality: Mapping[str, float] | None = None,
    scanner: Mapping[str, Any] | None = None,
    stamp: str = "",
) -> NewScan:
    """Normalise and quantise a run; parameters as in `Scan`."""
    codes, scale, background, mean = quantise(series, normalisation)
    scan = Scan(Path(name), participant, session, scale, background, len(codes), dict(labels or {}), source)
    scan = replace(scan, start=series.start, signal=measure_signal(series), stamp=stamp)
    facts = {"confounds": confounds, "quality": quality, "scanner": scanner}
    content = describe(scan) | {key: dict(known or {}) for key, known in facts.items()}
    return NewScan(name, content, codes, np.packbits(series.mask), mean)


def copy_of(scan: Scan, stamp: str) -> NewScan:
    """Return a stored scan to be written to another store, with the same arrays."""
    mask = np.array(scan.arrays.mask())
    n_voxels = len(voxels_of(mask))
    arrays = scan.arrays
    content = describe(replace(scan, stamp=stamp))
    return NewScan(scan.name, content, arrays.codes(0, scan.n_vols, n_voxels), mask, np.array(arrays.mean(n_voxels)))


def describe(scan: Scan) -> dict[str, Any]:
    """Return the description of a scan as JSON values; see `scan_of`."""
    values = {each.name: getattr(scan, each.name) for each in fields(scan) if each.name not in NOT_STORED}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def scan_of(
    folder: Path,
    content: Mapping[str, Any],
    where: str,
    shard: ScanArrays | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Scan:
    """Make a scan of its description, and check the type of each value.

    Parameters
    ----------
    folder : Path
        See `Scan`.
    content : mapping
        From a file, see `describe`.
    where : str
        The file, for messages.
    shard : ScanArrays, optional
        See `Scan`.
    facts : mapping, optional
        `FACTS` that are not in the content.

    Raises
    ------
    BadDataError
        The content is not the description of a scan.
    """
    try:
        scan = Scan(folder, shard=shard, **content, **(facts or {}))  # type: ignore[arg-type]
        texts = [scan.participant, scan.session, scan.source, scan.stamp]
        numbers = [scan.scale, scan.background, scan.start]
        valid = (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int | float) for number in numbers)
            and are_facts({name: content[name] for name in FACTS if name in content})
            and math.isfinite(scan.scale) and scan.scale > 0 and math.isfinite(scan.background)
            and isinstance(scan.n_vols, int) and isinstance(scan.labels, dict)
            and not set(NOT_STORED) & content.keys()
        )  # fmt: skip
    except (TypeError, AttributeError):
        valid = False
    if not valid:
        raise BadDataError(f"{where}: not the description of a scan.", HINT)
    return scan


def are_facts(content: Mapping[str, Any]) -> bool:
    """Return True for mappings, of numbers except those of the scanner."""
    return all(isinstance(value, dict) for value in content.values()) and all(
        isinstance(number, int | float)
        for name in ("confounds", "quality")
        for number in content.get(name, {}).values()
    )


def read_array(path: Path, dtype: type, *shape: int) -> np.ndarray:
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


def write_store_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of a store atomically; NaN is kept."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
