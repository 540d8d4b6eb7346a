"""The random weights of the recorded cases, restored from their seeds.

The published code built each model under a seed with PyTorch's initial values, and noise was added so that no bias or
norm is trivial. All random numbers are from PyTorch's generator on the CPU, so the shapes of the parameters, in the
order of the checkpoint, and two seeds determine the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """Seeds and shapes of the weights of a case.

    Attributes
    ----------
    initial_seed, noise_seed : int
    noise : str
        An entry of `NOISES`.
    shapes : mapping of str to tuple of int
        Shape of each seeded parameter, in the order of the checkpoint.
    """

    initial_seed: int
    noise_seed: int
    noise: str
    shapes: Mapping[str, Shape]

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all parameters, float32."""
        initial = dict(_initial_values(self.shapes, torch.Generator().manual_seed(self.initial_seed)))
        generator, draw = torch.Generator().manual_seed(self.noise_seed), NOISES[self.noise]
        return {name: initial[name] + draw(name, shape, generator) for name, shape in self.shapes.items()}


def _initial_values(shapes: Mapping[str, Shape], generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the initial value of every parameter; constructors run in the order of the checkpoint, prompts last."""
    for name in _construction_order(list(shapes)):
        shape = shapes[name]
        owner = name.rpartition(".")[0]
        in_norm = "norm" in owner.rpartition(".")[2]
        if name.endswith("dt_proj.bias"):
            yield name, _initial_time_step(shape, generator)
        elif name.endswith("dt_proj.weight"):
            torch.rand(
                math.prod(shape) + shape[0], generator=generator
            )  # PyTorch's initial values, which Mamba replaces
            yield name, torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=generator)
        elif name.endswith("A_log"):
            yield name, torch.log(torch.arange(1, shape[1] + 1, dtype=torch.float32)).expand(shape)
        elif name.endswith(".D") or (in_norm and name.endswith(".weight")):
            yield name, torch.ones(shape)
        elif name.endswith("mask_token") or in_norm:
            yield name, torch.zeros(shape)
        elif name.endswith(("_embed", "prompt")):
            yield name, torch.empty(shape).uniform_(-1, 1, generator=generator).erfinv_() * (0.02 * math.sqrt(2))
        elif name.endswith(".bias"):
            bound = math.prod(shapes[f"{owner}.weight"][1:]) ** -0.5
            yield name, torch.empty(shape).uniform_(-bound, bound, generator=generator)
        else:
            yield name, nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def _construction_order(names: list[str]) -> list[str]:
    """Sort names by construction: prompts precede their block's layers in a checkpoint but are sampled after them."""
    order = [name for name in names if not name.endswith(".prompt")]
    for name in names:
        if name.endswith(".prompt"):
            block = name.removesuffix("prompt")
            last = max(index for index, other in enumerate(order) if other.startswith(block))
            order.insert(last + 1, name)
    return order


def _initial_time_step(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Sample Mamba's time steps log-uniformly between 0.001 and 0.1, and apply the inverse softplus."""
    low, high = math.log(0.001), math.log(0.1)
    step = torch.exp(torch.rand(shape, generator=generator) * (high - low) + low).clamp(min=1e-4)
    return step + torch.log(-torch.expm1(-step))


def _even_noise(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    sizes = {"A_log": 0.1, "bias": 0.2 if name.endswith("dt_proj.bias") else 0.05}
    return torch.randn(shape, generator=generator) * sizes.get(name.rpartition(".")[2], 0.05)


def _noise_by_kind(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("A_log"):
        return torch.rand(shape, generator=generator) * 0.3
    if name.endswith(".D"):
        return torch.randn(shape, generator=generator) * 0.2
    return torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else 0.02)


NOISES: dict[str, Callable[[str, Shape, torch.Generator], torch.Tensor]] = {
    "even": _even_noise,
    "by kind": _noise_by_kind,
}
"""Noise added to the initial values."""
