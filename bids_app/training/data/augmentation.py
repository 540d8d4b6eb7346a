"""Data augmentation of clips on the model grid, computed on the device of the clips.

B  clips      x y z t  voxels and volumes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bids_app.errors import UsageError

BACKGROUND_TOLERANCE = 1e-3
"""Voxels less than this above the background count as background after interpolation."""


def mirror(clips: torch.Tensor) -> torch.Tensor:
    """Flip clips (..., 96, 96, 96, t) left to right about the plane x = 0 mm (voxel 48)."""
    return clips.flip(-4).roll(1, -4)


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation; all volumes of a clip get the same change, except for the noise.

    Attributes
    ----------
    degrees : float
        Maximum rotation about each axis.
    scale : float
        Maximum relative change of size along each axis.
    shift : float
        Maximum shift along each axis, voxels.
    noise : float
        Maximum standard deviation of noise, in units of the normalised signal; the background is unchanged.
    fwhm : float
        Maximum smoothing kernel, voxels.
    probability : float
        Probability of each type of change, per clip.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 2.0
    noise: float = 0.1
    fwhm: float = 2.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        wrong = [n for n in ("degrees", "scale", "shift", "noise", "fwhm", "probability") if getattr(self, n) < 0]
        if wrong or self.scale >= 1 or self.probability > 1:
            raise UsageError(
                f"Invalid augmentation: {self}.", "Use numbers of at least 0, scale below 1 and probability up to 1."
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
        applied = torch.rand(3, generator=generator) < self.probability
        angles, scales, shifts = (2 * torch.rand(3, 3, generator=generator) - 1).unbind()
        fwhm, noise = (torch.rand(2, generator=generator) * torch.tensor([self.fwhm, self.noise])).tolist()
        background = clip.amin()
        volumes = (clip[0] - background).permute(3, 0, 1, 2)  # (t, x, y, z), 0 outside
        if applied[0] and (self.degrees or self.scale or self.shift):
            matrix = _rotation(torch.deg2rad(self.degrees * angles)) @ torch.diag(1 + self.scale * scales)
            volumes = apply_affine(volumes, matrix, self.shift * shifts)
        if applied[1] and fwhm > 0.1:
            volumes = smooth(volumes, fwhm)
        if applied[2] and noise > 0:
            device_generator = torch.Generator(clip.device).manual_seed(seed)
            volumes = volumes + noise * torch.randn(volumes.shape, generator=device_generator, device=clip.device) * (
                volumes > BACKGROUND_TOLERANCE
            )
        return (volumes.permute(1, 2, 3, 0) + background)[None]


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


def apply_affine(volumes: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Resample volumes linearly under an affine transform about their centre; outside is 0.

    Parameters
    ----------
    volumes : torch.Tensor, (t, x, y, z)
    matrix : torch.Tensor, (3, 3)
        Maps offsets from the centre of the output to offsets in ``volumes``, voxels.
    shift : torch.Tensor, (3,)
        Added to the offsets in ``volumes``, voxels.
    """
    half = torch.tensor(volumes.shape[1:]) / 2
    theta = torch.cat([matrix * half[None, :] / half[:, None], (shift / half)[:, None]], dim=1)  # x, y, z
    theta = torch.cat([theta[:, :3].flip(0, 1), theta[:, 3:].flip(0)], dim=1)  # grid_sample expects z, y, x
    grid = F.affine_grid(theta[None].to(volumes), [1, 1, *volumes.shape[1:]], align_corners=False)
    return F.grid_sample(volumes[None], grid, align_corners=False)[0]


def smooth(volumes: torch.Tensor, fwhm: float) -> torch.Tensor:
    """Smooth volumes (t, x, y, z) with a Gaussian kernel; FWHM in voxels."""
    sigma = fwhm / 2.3548
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=volumes.device, dtype=volumes.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = volumes.contiguous()
    for axis in range(3):  # products with band matrices are much faster than 1D convolutions
        n = volumes.shape[1 + axis]
        lags = range(-radius, radius + 1)
        band = torch.stack([torch.diag(k.expand(n - abs(d)), d) for d, k in zip(lags, kernel, strict=True)]).sum(dim=0)
        before, after = math.prod(volumes.shape[: 1 + axis]), math.prod(volumes.shape[2 + axis :])
        out = out.reshape(-1, n) @ band if after == 1 else band @ out.reshape(before, n, after)
    return out.reshape(volumes.shape)
