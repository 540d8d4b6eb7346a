"""Files of weights: whatever they hold, they are read or refused, and nothing in them is run."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bids_app"]):
    import torch
    from harness import fuzz
    from safetensors.torch import save

    from bids_app.adapters.file import load_adapter
    from bids_app.errors import NeurostormError
    from bids_app.model.checkpoint import file_format, read_checkpoint

CARD = {
    "name": "a", "task": "classification", "target": "state", "encoder_sha256": "0" * 64, "normalisation": "voxel",
    "labels": ["a", "b"],
}  # fmt: skip
TENSORS = {"head.weight": torch.zeros(1, 2), "head.bias": torch.zeros(1)}


def pickled() -> bytes:
    target = io.BytesIO()
    torch.save({"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": {"embed_dim": 4}}, target)
    return target.getvalue()


SEEDS = [
    save(TENSORS, {"format": "neurostorm-adapter", "version": "1", "card": json.dumps(CARD)}),
    save({"encoder.x": torch.zeros(1)}, {"format": "neurostorm-encoder", "version": "1", "config": "{}", "info": "{}"}),
    pickled(),
]


def read(data: bytes, folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(data)
    file_format(path)
    for call in (load_adapter, read_checkpoint):
        with suppress(NeurostormError):
            call(path)
    with suppress(NeurostormError):
        read_checkpoint(path.rename(folder / "weights.ckpt"))


if __name__ == "__main__":
    fuzz(read, SEEDS)
