"""Dataset of Brainmarks for an export of NeuroSTORM; it has the name of this file.

Copied into the export, into ``brainmarks/datasets``; Brainmarks finds it there, and NeuroSTORM need not be installed.
The data are beside that folder, wherever the export is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from brainmarks.datasets.base import HFDataset, load_arrow_dataset
from brainmarks.datasets.registry import register_dataset

NAME = Path(__file__).stem
ROOT = Path(__file__).resolve().parents[2]
SPACE = "neurostorm_embeddings"
SETS = ("train", "validation", "test")


@register_dataset(NAME)
def create(space: str, **kwargs: Any) -> dict[str, HFDataset]:
    """Return the training, validation and test set: ``bold`` (1, C) is the embedding of a run.

    Raises
    ------
    ValueError
        The model wants series of a space instead of embeddings.
    """
    if space != SPACE:
        raise ValueError(
            f"{NAME} has embeddings, not series of the space {space}; use the model neurostorm_embeddings."
        )
    targets = json.loads((ROOT / "targets.json").read_text(encoding="utf-8"))
    data = ROOT / f"{NAME}.{SPACE}.arrow"
    return {
        name: HFDataset(load_arrow_dataset(data / name, **kwargs), target_key="name", target_map=targets)
        for name in SETS
    }
