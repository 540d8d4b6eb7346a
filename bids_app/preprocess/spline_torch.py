"""Cubic interpolation of volumes in PyTorch, for GPUs; it gives the values of `spline.py`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage


class DevicePoints:
    """Points at which volumes are interpolated; they stay on the device between volumes.

    Parameters
    ----------
    points : numpy.ndarray, (N, 3)
    device : str
        Torch device.
    """

    def __init__(self, points: np.ndarray, device: str) -> None:
        self.device = torch.device(device)
        self.points = torch.as_tensor(np.ascontiguousarray(points, dtype=np.float64), device=self.device)

    @torch.inference_mode()
    def cubic(self, volume: np.ndarray, matrix: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Interpolate a volume (X, Y, Z), as `spline.Points.cubic` does; return (N,) float32."""
        spline = coefficients(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)).to(self.device))
        affine = torch.as_tensor(np.asarray(matrix, dtype=np.float64), device=self.device)
        voxels = self.points @ affine[:3, :3].T + affine[:3, 3]  # double: single precision is too coarse far outside
        finite = torch.isfinite(voxels).all(dim=1)
        voxels = torch.where(finite[:, None], voxels, 0.0)
        if nearest:
            last = torch.tensor(volume.shape, dtype=torch.float64, device=self.device) - 1
            voxels = torch.minimum(voxels.clamp(min=0), last)
        below = voxels.floor()
        weights = _weights((voxels - below).float())  # (N, 3, 4)
        places = _mirrored(below.long()[:, :, None] + torch.arange(-1, 3, device=self.device), volume.shape)
        along_x, along_y, along_z = places.unbind(dim=1)  # (N, 4)
        flat, total = spline.reshape(-1), torch.zeros(len(voxels), device=self.device)
        for i in range(4):
            for j in range(4):
                row = (along_x[:, i] * volume.shape[1] + along_y[:, j]) * volume.shape[2]
                values = flat[row[:, None] + along_z]  # (N, 4)
                total += weights[:, 0, i] * weights[:, 1, j] * (values * weights[:, 2]).sum(dim=1)
        return torch.where(finite, total, 0.0).cpu().numpy()


def coefficients(volume: torch.Tensor) -> torch.Tensor:
    """Compute the coefficients of the cubic spline of a volume (X, Y, Z), mirrored at the border voxels."""
    for n in volume.shape:
        volume = torch.tensordot(volume, prefilter(n, volume.device), dims=([0], [1]))
    return volume  # each product moves its axis to the end, so that after three they are in order again


@lru_cache(maxsize=16)
def prefilter(n: int, device: torch.device) -> torch.Tensor:
    """Return the matrix (n, n) float32 from values along an axis to their coefficients."""
    matrix = ndimage.spline_filter1d(np.eye(n), order=3, axis=0, mode="mirror")
    return torch.as_tensor(matrix, dtype=torch.float32, device=device)


def _weights(fractions: torch.Tensor) -> torch.Tensor:
    """Return the cubic B-spline's weights of the four voxels around positions, (..., 4)."""
    rest = 1 - fractions
    first, last = rest**3 / 6, fractions**3 / 6
    second = (4 - 3 * fractions**2 * (1 + rest)) / 6
    return torch.stack([first, second, 1 - first - second - last, last], dim=-1)


def _mirrored(indices: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Mirror indices (N, 3, 4) at the border voxels of a shape."""
    last = torch.tensor(shape, device=indices.device)[None, :, None] - 1
    folded = indices.remainder((2 * last).clamp(min=1))
    return torch.minimum(folded, 2 * last - folded).clamp(min=0)
