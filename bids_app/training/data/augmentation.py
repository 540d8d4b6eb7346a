"""Data augmentation of clips on the model grid, computed on the device of the clips.

B  clips      x y z t  voxels and volumes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bids_app.errors import UsageError

BACKGROUND_TOLERANCE = 1e-3
"""Voxels less than this above the background count as background after interpolation."""
MIN_SIGMA = 0.05
"""Narrower kernels change nothing: their weight on the neighbours is 0 in float32."""


def mirror(clips: torch.Tensor) -> torch.Tensor:
    """Flip clips (..., 96, 96, 96, t) left to right about the plane x = 0 mm (voxel 48)."""
    return clips.flip(-4).roll(1, -4)


PADDINGS = ("zeros", "border")
"""What is outside the grid in an affine change: background, or a copy of the edge."""


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation, in the order affine change, noise, smoothing; all volumes of a clip get the same change.

    Attributes
    ----------
    degrees : float
        Maximum rotation about each axis.
    scale : float
        Maximum relative change of size along each axis.
    shift : float
        Maximum shift along each axis, voxels.
    noise : float
        Maximum standard deviation of noise, in units of the normalised signal.
    sigma : float
        Maximum standard deviation of the smoothing kernel along each axis, voxels.
    p_affine, p_noise, p_smooth : float
        Probability of each type of change, per clip.
    padding : str
        An entry of `PADDINGS`.
    same_noise : bool
        Add the same noise to all volumes of a clip, instead of other noise to each.
    noise_outside : bool
        Add noise to the background as well.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 2.0
    noise: float = 0.1
    sigma: float = 0.85
    p_affine: float = 0.5
    p_noise: float = 0.5
    p_smooth: float = 0.5
    padding: str = "zeros"
    same_noise: bool = False
    noise_outside: bool = False

    def __post_init__(self) -> None:
        probabilities = (self.p_affine, self.p_noise, self.p_smooth)
        sizes = (self.degrees, self.scale, self.shift, self.noise, self.sigma, *probabilities)
        if min(sizes) < 0 or self.scale >= 1 or max(probabilities) > 1 or self.padding not in PADDINGS:
            raise UsageError(
                f"Invalid augmentation: {self}.",
                "Use numbers of at least 0, scale below 1, probabilities up to 1, and padding zeros or border.",
            )

    def __call__(self, clips: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Augment clips.

        Parameters
        ----------
        clips : torch.Tensor, (B, 1, x, y, z, t)
        seeds : torch.Tensor of int64, (B,)
            Random seed of each clip, so that its changes do not depend on the batch.

        Returns
        -------
        torch.Tensor, (B, 1, x, y, z, t)
        """
        return torch.stack([self._augment(clip, int(seed)) for clip, seed in zip(clips, seeds, strict=True)])

    def _augment(self, clip: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        is_moved, is_noisy, is_smoothed = (
            torch.rand(3, generator=generator) < torch.tensor([self.p_affine, self.p_noise, self.p_smooth])
        ).tolist()
        angles, scales, shifts = (2 * torch.rand(3, 3, generator=generator) - 1).unbind()
        noise = self.noise * float(torch.rand(1, generator=generator))
        sigmas = (self.sigma * torch.rand(3, generator=generator)).tolist()
        background = clip.amin()
        volumes = (clip[0] - background).permute(3, 0, 1, 2)  # (t, x, y, z), 0 outside
        if is_moved and (self.degrees or self.scale or self.shift):
            matrix = _rotation(torch.deg2rad(self.degrees * angles)) @ torch.diag(1 + self.scale * scales)
            volumes = apply_affine(volumes, matrix, self.shift * shifts, self.padding)
        if is_noisy and noise > 0:
            volumes = volumes + noise * self._draw_noise(volumes, seed)
        if is_smoothed:
            volumes = smooth(volumes, sigmas)
        return (volumes.permute(1, 2, 3, 0) + background)[None]

    def _draw_noise(self, volumes: torch.Tensor, seed: int) -> torch.Tensor:
        """Draw noise of unit variance for volumes (t, x, y, z)."""
        generator = torch.Generator(volumes.device).manual_seed(seed)
        shape = (1, *volumes.shape[1:]) if self.same_noise else volumes.shape
        noise = torch.randn(shape, generator=generator, device=volumes.device)
        return noise.expand_as(volumes) if self.noise_outside else noise * (volumes > BACKGROUND_TOLERANCE)


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """Return the matrix (3, 3) of a rotation about x, then y, then z by angles (3,) in radians."""
    total = torch.eye(3)
    for axis, angle in enumerate(angles.tolist()):
        i, j = [a for a in range(3) if a != axis]
        one = torch.eye(3)
        one[i, i] = one[j, j] = math.cos(angle)
        one[i, j], one[j, i] = -math.sin(angle), math.sin(angle)
        total = one @ total
    return total


def apply_affine(
    volumes: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, padding: str = "zeros"
) -> torch.Tensor:
    """Resample volumes linearly under an affine transform about their centre.

    Parameters
    ----------
    volumes : torch.Tensor, (t, x, y, z)
    matrix : torch.Tensor, (3, 3)
        Maps offsets from the centre of the output to offsets in ``volumes``, voxels.
    shift : torch.Tensor, (3,)
        Added to the offsets in ``volumes``, voxels.
    padding : str
        What is outside of the volumes, an entry of `PADDINGS`.
    """
    half = torch.tensor(volumes.shape[1:]) / 2
    theta = torch.cat([matrix * half[None, :] / half[:, None], (shift / half)[:, None]], dim=1)  # x, y, z
    theta = torch.cat([theta[:, :3].flip(0, 1), theta[:, 3:].flip(0)], dim=1)  # grid_sample expects z, y, x
    grid = F.affine_grid(theta[None].to(volumes), [1, 1, *volumes.shape[1:]], align_corners=False)
    return F.grid_sample(volumes[None], grid, padding_mode=padding, align_corners=False)[0]


def smooth(volumes: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Smooth volumes (t, x, y, z) with a Gaussian kernel; standard deviations along x, y and z in voxels."""
    out = volumes.contiguous()
    for axis, sigma in enumerate(sigmas):  # products with band matrices are much faster than 1D convolutions
        if sigma < MIN_SIGMA:
            continue
        radius = max(1, math.ceil(3 * sigma))
        lags = range(-radius, radius + 1)
        offsets = torch.tensor(list(lags), device=volumes.device, dtype=volumes.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        n = volumes.shape[1 + axis]
        band = torch.stack([torch.diag(k.expand(n - abs(d)), d) for d, k in zip(lags, kernel, strict=True)]).sum(dim=0)
        before, after = math.prod(volumes.shape[: 1 + axis]), math.prod(volumes.shape[2 + axis :])
        out = out.reshape(-1, n) @ band if after == 1 else band @ out.reshape(before, n, after)
    return out.reshape(volumes.shape)
