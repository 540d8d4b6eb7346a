"""Weight files of a few hundred bytes that claim impossible sizes or hold impossible values."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from bids_app.model.api import Model
from bids_app.model.encoder import EncoderConfig

BILLION = 10**9
SURROGATE = "\ud800"
CONFIG = EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 2))
"""Configuration with 8 features at the end."""


def nested(depth: int) -> list[Any]:
    """Make a list in lists."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def laughs(levels: int = 40) -> list[Any]:
    """Make 41 lists that stand for 2^40 values: each holds the one before twice."""
    found: list[Any] = ["ha"]
    for _ in range(levels):
        found = [found, found]
    return found


def adapter_bytes(model: Model, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> bytes:
    """Make an adapter of a model with a linear head of 8 features; keywords change its card."""
    card = {
        "name": "a", "task": "classification", "target": "state", "encoder_sha256": model.weights_sha256,
        "normalisation": "voxel", "labels": ["a", "b"],
    }  # fmt: skip
    fields = {"format": "neurostorm-adapter", "version": "2", "card": json.dumps(card | changes)}
    return save(head(torch.zeros(1, 8)) | (tensors or {}), fields)


def head(weight: torch.Tensor, bias: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Make a linear head."""
    return {"head.head.weight": weight, "head.head.bias": torch.zeros(1) if bias is None else bias}


def reference(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Make reference statistics of 8 features."""
    found = {"mean": torch.zeros(8), "covariance": torch.eye(8), "distances": torch.ones(3)}
    found |= {"participants": torch.tensor(30)} | changes
    return {f"reference.{name}": value for name, value in found.items()}


PROMPT = {"encoder.layers.0.blocks.0.prompt": torch.zeros(1, 1, 4)}
LAYER = "encoder.patch_embed.fc"
LOW_RANK = {f"{LAYER}.lora_A.default.weight": torch.ones(2, 216), f"{LAYER}.lora_B.default.weight": torch.ones(4, 2)}
LORA = {"strategy": "lora", "rank": 2, "lora_alpha": 2.0, "lora_targets": ["fc"], "tensors": LOW_RANK}
V3 = {"head.cls_token": torch.zeros(1, 1, 7), "head.mlp_head.1.weight": torch.zeros(1, 7)}
ADAPTERS: dict[str, dict[str, Any]] = {
    "a billion prompts": {"tensors": PROMPT, "prompt_len": BILLION},
    "prompts of 400 digits": {"tensors": PROMPT, "prompt_len": 10**400},
    "prompts that do not fit": {"tensors": PROMPT, "prompt_len": 3},
    "a rank of a billion": LORA | {"rank": BILLION},
    "an alpha of 1e300": LORA | {"lora_alpha": 1e300},
    "an alpha of 400 digits": LORA | {"lora_alpha": 10**400},
    "low-rank updates of infinity": LORA | {"tensors": {name: value * torch.inf for name, value in LOW_RANK.items()}},
    "low-rank updates of 1e18": LORA | {"tensors": {name: value * 1e18 for name, value in LOW_RANK.items()}},
    "low-rank updates of a billion inputs and no rank": LORA
    | {"tensors": LOW_RANK | {f"{LAYER}.lora_A.default.weight": torch.zeros(0, BILLION)}},
    "a layer of 300 letters": LORA | {"lora_targets": ["a" * 300]},
    "a head of a billion features without outputs": {"tensors": head(torch.zeros(0, BILLION), torch.zeros(0))},
    "a hidden layer of a billion features": {"tensors": {"head.hidden.weight": torch.zeros(0, BILLION)}},
    "a head of other features": {"tensors": head(torch.zeros(1, 9))},
    "a head with one axis": {"tensors": head(torch.zeros(8))},
    "a head without axes": {"tensors": head(torch.tensor(1.0))},
    "a head of three classes": {"tensors": head(torch.zeros(3, 8), torch.zeros(3))},
    "a head of text codes": {"tensors": head(torch.zeros(1, 8, dtype=torch.bool))},
    "a complex head": {"tensors": head(torch.zeros(1, 8, dtype=torch.complex64))},
    "attention of seven features": {"tensors": V3},
    "a billion positions": {"tensors": V3 | {"head.pos_embed": torch.zeros(0, BILLION, 8)}},
    "NaN": {"tensors": head(torch.full((1, 8), torch.nan))},
    "infinity": {"tensors": head(torch.full((1, 8), torch.inf))},
    "weights of 1e38": {"tensors": head(torch.full((1, 8), 1e38))},
    "weights of 1e300": {"tensors": head(torch.full((1, 8), 1e300, dtype=torch.float64))},
    "an unknown part": {"tensors": {"x" * 300: torch.zeros(1)}},
    "a key of 300 letters": {"tensors": {"head." + "x" * 300: torch.zeros(1)}},
    "a key with an escape": {"tensors": {"head.\x1b[2J": torch.zeros(1)}},
    "a name of 300 letters": {"name": "a" * 300},
    "a target of 300 letters": {"target": "a" * 300},
    "a label of 300 letters": {"labels": ["a" * 300, "b"]},
    "a label with a tab": {"labels": ["a\tb", "b"]},
    "a million labels": {"labels": [f"{i:x}" for i in range(300)]},
    "half a surrogate": {"limits": SURROGATE},
    "half a surrogate in a label": {"labels": [SURROGATE, "b"]},
    "half a surrogate in a key": {"metrics": {SURROGATE: 1}},
    "a mean of 400 digits": {"task": "regression", "labels": [], "value_mean": 10**400},
    "a range of 400 digits": {"ranges": {"tr": [0, 10**400]}},
    "a range of NaN": {"ranges": {"tr": [float("nan"), 1]}},
    "nested metadata": {"cohort": {"sites": nested(300)}},
    "a temperature of 400 digits": {"calibration": {"n_scans": 5, "temperature": 10**400}},
    "steps of 400 digits": {"calibration": {"n_scans": 5, "method": "isotonic", "steps": [[[10**400], [1]]]}},
    "no steps": {"calibration": {"n_scans": 5, "method": "isotonic", "steps": []}},
    "empty steps": {"calibration": {"n_scans": 5, "method": "isotonic", "steps": [[[], []], [[], []]]}},
    "limits that are a list": {"calibration": {"n_scans": 5, "limits": [1]}},
    "a twin that is a list": {"twin": {"normalisation": ["global"]}},
    "a mean of a billion features": {"tensors": reference(mean=torch.zeros(0, BILLION))},
    "a mean of nothing": {"tensors": reference(mean=torch.zeros(0), covariance=torch.zeros(0, 0))},
    "statistics of other features": {"tensors": reference(mean=torch.zeros(3), covariance=torch.eye(3))},
    "a covariance of 1e38": {"tensors": reference(covariance=torch.full((8, 8), 1e38))},
    "NaN participants": {"tensors": reference(participants=torch.tensor(torch.nan))},
    "two numbers of participants": {"tensors": reference(participants=torch.zeros(2))},
}  # fmt: skip
"""Keywords of `adapter_bytes`."""

HYPER = {
    "img_size": [24, 24, 24, 4], "patch_size": [6, 6, 6, 1], "embed_dim": 4, "depths": [1, 1], "window_size": [4] * 4,
    "first_window_size": [2] * 4, "last_layer_full_MSA": True,
}  # fmt: skip
CLAIMS: dict[str, dict[str, Any]] = {
    "a billion blocks": {"depths": [BILLION, 1]},
    "a billion stages": {"depths": [1] * 400},
    "a billion channels": {"embed_dim": BILLION},
    "the largest width, in one block": {"embed_dim": 4096, "depths": [1]},
    "a width of 400 digits": {"embed_dim": 10**400},
    "a width of NaN": {"embed_dim": float("nan")},
    "a width and a half": {"embed_dim": 4.5},
    "a width of text": {"embed_dim": "4"},
    "a billion voxels": {"img_size": [24 * BILLION] * 4},
    "a patch of a billion": {"patch_size": [BILLION, 6, 6, 1]},
    "a window of a billion": {"window_size": [BILLION] * 4},
    "half a surrogate": {"note": SURROGATE},
    "lists in lists": {"note": nested(200)},
    "lists that laugh": {"note": laughs()},
    "a size in lists": {"img_size": [[24]] * 4},
    "a size that is an object": {"img_size": {"x": 24}},
}
"""Changes of an encoder's configuration."""


def encoder_bytes(changes: dict[str, Any]) -> bytes:
    """Make an encoder in our format with one tensor; ``note`` goes into its metadata."""
    own = dict(CONFIG.as_dict())
    config = json.dumps(own | {k: v for k, v in changes.items() if k != "note"})
    note = nested(200) if isinstance(changes.get("note"), list) else changes.get("note")  # JSON has no shared lists
    info = json.dumps({"note": note})
    fields = {"format": "neurostorm-encoder", "version": "1", "name": "a", "config": config, "info": info}
    return save({"encoder.patch_embed.fc.bias": torch.zeros(4)}, fields)


def pickle_bytes(changes: dict[str, Any], **tensors: torch.Tensor) -> bytes:
    """Make a Lightning checkpoint with one tensor; keywords add others under ``model.``."""
    state = {"model.patch_embed.fc.bias": torch.zeros(4)} | {f"model.{k}": v for k, v in tensors.items()}
    target = io.BytesIO()
    torch.save({"state_dict": state, "hyper_parameters": HYPER | changes}, target)
    return target.getvalue()


class Allocation:
    """Unpickled as a call that allocates a billion bytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (BILLION,)


PICKLES: dict[str, Any] = {
    "a billion numbers expanded from one": lambda: pickle_bytes({}, x=torch.zeros(1).expand(BILLION)),
    "a billion halves expanded from one": lambda: pickle_bytes({}, x=torch.zeros(1).half().expand(BILLION)),
    "a billion numbers without data": lambda: pickle_bytes({}, x=torch.zeros(BILLION, device="meta")),
    "a sparse billion": lambda: pickle_bytes(
        {}, x=torch.sparse_coo_tensor([[0]], [1.0], (BILLION,), check_invariants=True)
    ),
    "a billion bytes made by a call": lambda: pickle_bytes({"x": Allocation()}),
    "half a surrogate as a name": lambda: pickle_bytes({}, **{SURROGATE: torch.zeros(1)}),
    "a name of 300 letters": lambda: pickle_bytes({}, **{"x" * 300: torch.zeros(1)}),
    "a zip file without a pickle": lambda: b"PK\x05\x06" + bytes(18),
}


def write(path: Path, content: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(content)
    return path
