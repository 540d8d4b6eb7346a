"""Changes to clips on the model grid that leave their meaning as it is; made on the device that the clips are on.

B  clips      x y z t  voxels and volumes
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from bids_app.errors import UsageError

OUTSIDE = 1e-3
"""How little above the background a voxel may be and still be background, which interpolation may have touched."""


def mirrored(clips: torch.Tensor) -> torch.Tensor:
    """Mirror clips (..., 96, 96, 96, t) left to right about the plane x = 0 mm, where voxel 48 lies."""
    return clips.flip(-4).roll(1, -4)


@dataclass(frozen=True)
class Augmentation:
    """How far clips may be changed; every change is the same for all volumes of a clip, but for the noise.

    Attributes
    ----------
    degrees : float
        Largest rotation about each axis.
    scale : float
        Largest change of size along each axis, as a share.
    shift : float
        Largest shift along each axis, voxels.
    noise : float
        Largest standard deviation of noise, in units of the normalised signal; background stays as it is.
    fwhm : float
        Widest smoothing, voxels.
    chance : float
        Of each kind of change, for each clip.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shift: float = 2.0
    noise: float = 0.1
    fwhm: float = 2.0
    chance: float = 0.5

    def __post_init__(self) -> None:
        wrong = [n for n in ("degrees", "scale", "shift", "noise", "fwhm", "chance") if getattr(self, n) < 0]
        if wrong or self.scale >= 1 or self.chance > 1:
            raise UsageError(
                f"An augmentation cannot be {self}.", "Give numbers of 0 or more; scale and chance up to 1."
            )

    def __call__(self, clips: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Change clips.

        Parameters
        ----------
        clips : torch.Tensor, (B, 1, x, y, z, t)
        seeds : torch.Tensor of int64, (B,)
            What each clip's changes are drawn from, so that they do not depend on the others.

        Returns
        -------
        torch.Tensor, (B, 1, x, y, z, t)
        """
        return torch.stack([self._one(clip, int(seed)) for clip, seed in zip(clips, seeds, strict=True)])

    def _one(self, clip: torch.Tensor, seed: int) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(seed)
        wanted = torch.rand(3, generator=drawn) < self.chance
        angles, scales, shifts = (2 * torch.rand(3, 3, generator=drawn) - 1).unbind()
        fwhm, noise = (torch.rand(2, generator=drawn) * torch.tensor([self.fwhm, self.noise])).tolist()
        background = clip.amin()
        volumes = (clip[0] - background).permute(3, 0, 1, 2)  # (t, x, y, z), 0 outside
        if wanted[0] and (self.degrees or self.scale or self.shift):
            matrix = _rotation(torch.deg2rad(self.degrees * angles)) @ torch.diag(1 + self.scale * scales)
            volumes = moved(volumes, matrix, self.shift * shifts)
        if wanted[1] and fwhm > 0.1:
            volumes = smoothed(volumes, fwhm)
        if wanted[2] and noise > 0:
            own = torch.Generator(clip.device).manual_seed(seed)
            volumes = volumes + noise * torch.randn(volumes.shape, generator=own, device=clip.device) * (
                volumes > OUTSIDE
            )
        return (volumes.permute(1, 2, 3, 0) + background)[None]


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """Rotation about x, then y, then z by angles (3,) in radians; (3, 3)."""
    total = torch.eye(3)
    for axis, angle in enumerate(angles.tolist()):
        i, j = [a for a in range(3) if a != axis]
        one = torch.eye(3)
        one[i, i] = one[j, j] = math.cos(angle)
        one[i, j], one[j, i] = -math.sin(angle), math.sin(angle)
        total = one @ total
    return total


def moved(volumes: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Draw volumes under an affine about their middle, linearly; 0 comes in from outside.

    Parameters
    ----------
    volumes : torch.Tensor, (t, x, y, z)
    matrix : torch.Tensor, (3, 3)
        From offsets in the answer to offsets in ``volumes``, voxels.
    shift : torch.Tensor, (3,)
        Added to the latter, voxels.
    """
    half = torch.tensor(volumes.shape[1:]) / 2
    theta = torch.cat([matrix * half[None, :] / half[:, None], (shift / half)[:, None]], dim=1)  # x, y, z
    theta = torch.cat([theta[:, :3].flip(0, 1), theta[:, 3:].flip(0)], dim=1)  # grid_sample counts z, y, x
    grid = F.affine_grid(theta[None].to(volumes), [1, 1, *volumes.shape[1:]], align_corners=False)
    return F.grid_sample(volumes[None], grid, align_corners=False)[0]


def smoothed(volumes: torch.Tensor, fwhm: float) -> torch.Tensor:
    """Smooth volumes (t, x, y, z) with a Gaussian of a full width at half maximum in voxels."""
    sigma = fwhm / 2.3548
    reach = max(1, math.ceil(3 * sigma))
    places = torch.arange(-reach, reach + 1, device=volumes.device, dtype=volumes.dtype)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = volumes.contiguous()
    for axis in range(3):  # as products with band matrices, which are many times as fast as thin convolutions
        n = volumes.shape[1 + axis]
        diagonals = [torch.diag(k.expand(n - abs(d)), d) for d, k in zip(range(-reach, reach + 1), kernel, strict=True)]
        band = torch.stack(diagonals).sum(dim=0)
        before, after = math.prod(volumes.shape[: 1 + axis]), math.prod(volumes.shape[2 + axis :])
        out = out.reshape(-1, n) @ band if after == 1 else band @ out.reshape(before, n, after)
    return out.reshape(volumes.shape)
