"""Division of weights, gradients and optimiser among devices (fully sharded data parallel), and the way back.

Each stage of an encoder, and the rest of the model, is one unit: a device holds a share of it and gathers it when it is
computed. All processes must call `gather` and `restore_optimiser` together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bids_app.model.encoder import Stage

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy
    from torch.distributed.device_mesh import DeviceMesh


def make_strategy(world_size: int) -> ModelParallelStrategy:
    """Return the strategy of Fabric for a number of processes."""
    from lightning.fabric.strategies import ModelParallelStrategy

    return ModelParallelStrategy(_divide, data_parallel_size=world_size, tensor_parallel_size=1)


def _divide(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    units = [stage for stage in module.modules() if isinstance(stage, Stage)]
    for unit in [*units, module]:
        fully_shard(unit, mesh=mesh["data_parallel"])
    return module


def is_sharded(fabric: Fabric) -> bool:
    """Return whether weights are divided among devices."""
    from lightning.fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def gather(model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return all weights and the state of the optimiser by names, on the CPU of the first process; empty in others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, state = get_state_dict(model, optimiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return weights, dict(state)  # type: ignore[return-value]  # whole tensors


def restore_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of the optimiser from `gather`, given in all processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(model, optimiser, state, options=StateDictOptions(full_state_dict=True))


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor that may be divided among devices as a whole."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value
