"""Changes to clips on the model grid that leave their meaning as it is."""

from __future__ import annotations

import torch


def mirrored(clips: torch.Tensor) -> torch.Tensor:
    """Mirror clips (..., 96, 96, 96, t) left to right about the plane x = 0 mm, where voxel 48 lies."""
    return clips.flip(-4).roll(1, -4)
