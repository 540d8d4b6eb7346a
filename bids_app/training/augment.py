"""Changes to clips on the model grid that leave their meaning as it is."""

from __future__ import annotations

import torch


def mirrored(clips: torch.Tensor) -> torch.Tensor:
    """Mirror clips (B, 1, 96, 96, 96, t) left to right about the plane x = 0 mm, where voxel 48 lies."""
    return clips.flip(2).roll(1, 2)


def mirror_half(
    clips: torch.Tensor, classes: torch.Tensor, exchange: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror each clip with probability 1/2, and exchange the classes of those that were.

    Parameters
    ----------
    clips : torch.Tensor, (B, 1, 96, 96, 96, t)
        Changed in place.
    classes : torch.Tensor of int, (B,)
    exchange : torch.Tensor of int, (n_classes,)
        What each class becomes in the mirror.
    """
    flip = torch.rand(len(clips)) < 0.5
    for index in flip.nonzero():
        clips[index] = mirrored(clips[index])
    return clips, torch.where(flip.to(classes.device), exchange[classes], classes)
