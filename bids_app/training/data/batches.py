"""A batch of clips: read as it is stored, copied to a device as int8, and dequantised there.

B  clips of a batch      T  volumes of a clip      V  voxels of the brain of a clip
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.training.data.quantise import MASK_BYTES, QuantisedClip, dequantise


class ClipSource(Protocol):
    """Source of clips: a scan of a store or a segment of one."""

    @property
    def participant(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...

    @property
    def n_vols(self) -> int: ...

    @property
    def n_clips(self) -> int: ...

    @property
    def clip_volumes(self) -> int: ...

    def clip(self, start: int) -> torch.Tensor: ...


@runtime_checkable
class QuantisedSource(Protocol):
    """Source whose clips are stored as int8."""

    def quantised_clip(self, start: int) -> QuantisedClip: ...

    def without_facts(self) -> ClipSource: ...


class Request(NamedTuple):
    """A clip to read: source, first volume, index of the scan, and random seed."""

    source: ClipSource
    start: int
    scan: int
    seed: int


@dataclass(frozen=True)
class Batch:
    """Batch of clips.

    Attributes
    ----------
    clips : torch.Tensor, (B, 1, 96, 96, 96, T)
    scans : torch.Tensor of int64, (B,)
        Index of the scan of each clip.
    seeds : torch.Tensor of int64, (B,)
        Random seed of each clip; independent of the number of processes.
    """

    clips: torch.Tensor
    scans: torch.Tensor
    seeds: torch.Tensor

    def __len__(self) -> int:
        return len(self.clips)

    def to(self, device: torch.device | str) -> Batch:
        """Copy clips and scan indices to a device; the seeds stay on the CPU."""
        clips, scans = (x.to(device, non_blocking=True) for x in (self.clips, self.scans))
        return Batch(clips, scans, self.seeds)


@dataclass(frozen=True)
class QuantisedBatch:
    """Batch of clips as they are stored: 4.6 MB a clip instead of 71.

    Attributes
    ----------
    codes : torch.Tensor of int8, (sum of T * V,)
        Codes of all clips, one after the other.
    masks : torch.Tensor of uint8, (B, N_VOXELS / 8)
        Packed bits of the brain masks.
    numbers : torch.Tensor of float32, (B, 2)
        Scale and value of the background.
    sizes : tuple of tuple of int
        T and V of each clip.
    scans, seeds
        See `Batch`.
    """

    codes: torch.Tensor
    masks: torch.Tensor
    numbers: torch.Tensor
    sizes: tuple[tuple[int, int], ...]
    scans: torch.Tensor
    seeds: torch.Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def clips(self) -> torch.Tensor:
        """Values on the model grid, computed at each call, (B, 1, 96, 96, 96, T) float32."""
        return self.to(self.codes.device).clips

    def pin_memory(self) -> QuantisedBatch:
        """Return a copy in page-locked memory, which a GPU reads by itself."""
        codes, masks, numbers = (x.pin_memory() for x in (self.codes, self.masks, self.numbers))
        return replace(self, codes=codes, masks=masks, numbers=numbers)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the codes to a device, and compute the values there; the seeds stay on the CPU."""
        codes, masks, numbers, scans = (
            x.to(device, non_blocking=True) for x in (self.codes, self.masks, self.numbers, self.scans)
        )
        clips = torch.empty(len(self), 1, *MODEL_GRID_SHAPE, self.sizes[0][0], device=device)
        parts = codes.split([n * n_voxels for n, n_voxels in self.sizes])
        for i, (part, size) in enumerate(zip(parts, self.sizes, strict=True)):
            dequantise(part.view(size), masks[i], numbers[i, 0], numbers[i, 1], clips[i])
        return Batch(clips, scans, self.seeds)


def _is_quantised(source: ClipSource) -> bool:
    """Tell whether clips can be read as they are stored: of a segment, whether those of its scan can."""
    return isinstance(source, QuantisedSource) and isinstance(getattr(source, "scan", source), QuantisedSource)


def read_batch(requests: Sequence[Request]) -> Batch | QuantisedBatch:
    """Read the clips of a batch; quantised if all sources are."""
    scans = torch.tensor([request.scan for request in requests])
    seeds = torch.tensor([request.seed for request in requests])
    if not all(_is_quantised(request.source) for request in requests):
        return Batch(torch.stack([request.source.clip(request.start) for request in requests]), scans, seeds)
    with ThreadPoolExecutor(len(requests)) as pool:  # waits of a network overlap
        clips = list(pool.map(lambda request: request.source.quantised_clip(request.start), requests))  # type: ignore[attr-defined]
    sizes = tuple((len(clip.codes), clip.codes.shape[1]) for clip in clips)
    codes, masks = (
        _empty(sum(clip.codes.size for clip in clips), torch.int8),
        _empty(len(clips) * MASK_BYTES, torch.uint8),
    )
    np.concatenate([clip.codes.reshape(-1) for clip in clips], out=codes.numpy())
    np.concatenate([clip.mask for clip in clips], out=masks.numpy())
    numbers = torch.tensor([[clip.scale, clip.background] for clip in clips], dtype=torch.float32)
    return QuantisedBatch(codes, masks.view(len(clips), MASK_BYTES), numbers, sizes, scans, seeds)


def _empty(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a vector; in a reading process, in the memory that it shares with the main process."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(n, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(n * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage)  # type: ignore[call-overload]
