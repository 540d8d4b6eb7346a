"""Whole blocks in one native call, where no gradient is asked for: the fast road of inference on a CPU.

A window's tokens go through norm, mixer and MLP while they are in the core's cache. It is taken when the scan backend
is `native`; any other backend, a gradient, or another dtype takes the road of modules.
"""

from __future__ import annotations

import torch
from torch import nn

from bids_app.model import scan
from bids_app.model.scan_native import native_add_position as add_position
from bids_app.model.scan_native import native_block as block
from bids_app.model.scan_native import native_merge as merge
from bids_app.model.scan_native import native_patch_embed as patch_embed

__all__ = ["add_position", "applies", "block", "merge", "patch_embed"]


def applies(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a module's work on ``x`` can be done in one native call."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    parameters = list(module.parameters())
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return False
    plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    return plain and scan.choose_backend(x.device, x.dtype).name == "native"
