"""The recorded cases: inputs and outputs of the published code. See README.md in this folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from tests.parity.weights import Recipe

FOLDER = Path(__file__).parent / "cases"
STORED = "weight:"
"""Prefix of the names of stored weights."""


@dataclass(frozen=True)
class Case:
    """A recorded case, by its name."""

    name: str

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Recorded tensors."""
        with np.load(FOLDER / f"{self.name}.npz") as file:
            return {key: torch.from_numpy(np.atleast_1d(file[key])) for key in file.files}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Recipe of the checkpoint: its entries, the shapes of its weights and their seeds."""
        return json.loads((FOLDER / f"{self.name}.json").read_text())

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    @property
    def input(self) -> torch.Tensor:
        """Input clips of the model, float32, (B, 1, x, y, z, t)."""
        random = np.random.RandomState(int(self["input_seed"]))
        return torch.from_numpy(random.standard_normal(self["input_shape"].tolist()).astype("float32"))

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights, with the names and in the order of the published checkpoint."""
        stored = {key.removeprefix(STORED): value for key, value in self.tensors.items() if key.startswith(STORED)}
        shapes = {key: tuple(map(int, shape.split("x"))) for key, shape in self.facts["shapes"].items()}
        seeded = Recipe(**self.facts["seeds"], shapes={k: v for k, v in shapes.items() if k not in stored}).weights()
        both = stored | seeded
        return {key: both[key].reshape(shape) for key, shape in shapes.items()}

    @property
    def image(self) -> nib.Nifti1Image:
        """Input image of a case of volume preparation."""
        return nib.load(FOLDER / f"{self.name}.nii.bz2")

    def write_checkpoint(self, folder: Path) -> Path:
        """Write ``NAME.ckpt`` in the format of the published training code."""
        path = folder / f"{self.name}.ckpt"
        torch.save(self.facts["checkpoint"] | {"state_dict": self.state_dict}, path)
        return path
