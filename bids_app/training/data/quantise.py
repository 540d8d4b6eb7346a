"""Quantised clips: int8 rows of the brain, and their values on the model grid on any device.

A value is ``code * scale``; code -128 is background. The scale of a scan is set by the 99.95th percentile of the
absolute values, so that a few outliers (which are clipped) do not reduce the precision.

U  volumes of a scan      n  volumes of a clip      V  voxels of the brain      B  clips of a batch
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from bids_app.clips import CLIP_VOLUMES, MODEL_GRID_SHAPE, ClipReader, GridSeries

BACKGROUND = -128
SCALE_PERCENTILE = 99.95
"""Percentile of the absolute values that defines the scale."""
CHUNKS_FOR_SCALE = 6
"""Number of chunks of a scan from which its scale is estimated."""
N_VOXELS = math.prod(MODEL_GRID_SHAPE)
"""Voxels of the model grid."""
MASK_BYTES = -(-N_VOXELS // 8)
"""Bytes of a packed mask."""


@dataclass(frozen=True)
class QuantisedClip:
    """A clip as it is stored.

    Attributes
    ----------
    codes : np.ndarray of int8, (n, V)
    mask : np.ndarray of uint8, (N_VOXELS / 8,)
        Packed bits of the brain mask.
    scale, background : float
        Value per code step, and value of the background.
    """

    codes: np.ndarray
    mask: np.ndarray
    scale: float
    background: float

    def values(self) -> torch.Tensor:
        """Return the values on the model grid, (1, 96, 96, 96, n) float32."""
        numbers = torch.tensor([self.scale, self.background], dtype=torch.float32)
        codes, mask = torch.from_numpy(np.array(self.codes)), torch.from_numpy(np.array(self.mask))
        out = torch.empty(1, *MODEL_GRID_SHAPE, len(codes))
        dequantise(codes, mask, numbers[0], numbers[1], out)
        return out


def voxels_of(mask: np.ndarray) -> np.ndarray:
    """Return the flat indices of the voxels of a packed mask, (V,) in C order."""
    return np.flatnonzero(np.unpackbits(mask, count=N_VOXELS))


def dequantise(
    codes: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor, background: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the values of a clip to the model grid; bit-equal on all devices.

    Parameters
    ----------
    codes : torch.Tensor of int8, (n, V)
    mask : torch.Tensor of uint8, (N_VOXELS / 8,)
        Packed bits.
    scale, background : torch.Tensor of float32, ()
    out : torch.Tensor of float32, (1, 96, 96, 96, n)
        Contiguous; is overwritten.
    """
    bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)
    inside = ((mask[:, None] >> bits) & 1).flatten()[:N_VOXELS].nonzero()[:, 0]
    rows = codes.T.contiguous()  # (V, n)
    values = torch.where(rows == BACKGROUND, background, rows.float().mul_(scale))
    out.copy_(background.expand_as(out))
    out.view(N_VOXELS, -1)[inside] = values


def quantise(series: GridSeries, normalisation: str) -> tuple[np.ndarray, float, float, np.ndarray]:
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
