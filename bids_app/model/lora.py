"""Low-rank updates (LoRA) in files that were fine-tuned with ``peft``: merged into the weights that they update.

A file has the weight W (O, I) of a layer under ``LAYER.base_layer.weight``, and its update under
``LAYER.lora_A.NAME.weight``, A (R, I), and ``LAYER.lora_B.NAME.weight``, B (O, R). The layer computes (W + s B A) x,
with s = ``lora_alpha`` / R, or ``lora_alpha`` / sqrt(R) with ``use_rslora``. Keys may begin with ``base_model.model.``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from bids_app.errors import BadDataError

WRAPPER = "base_model.model."
BASE, ORIGINAL = ".base_layer.", ".original_module."
"""Parts of the names of weights that are updated, and that are replaced."""
FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.(?P<name>[^.]+)\.(?P<kind>weight|bias)")
REPLACED = re.compile(r"(?P<layer>.+)\.modules_to_save\.(?P<name>[^.]+)\.(?P<rest>.+)")
OTHER = re.compile(r"\.(lora_|ia3_|hada_|lokr_|oft_|boft_|vera_|randlora_|adalora_|ranknum\b)")
"""Names of updates of other kinds (of embeddings, with magnitudes, and other methods of ``peft``)."""
CONFIGURATIONS = ("lora_config", "peft_config", "lora")
"""Hyperparameters that may hold the others as a mapping."""


def has_low_rank_updates(state: Mapping[str, torch.Tensor]) -> bool:
    """Return True if a state dict has the keys of a model that ``peft`` wrapped."""
    return any(
        key.startswith(WRAPPER) or BASE in key or ORIGINAL in key or REPLACED.match(key) or OTHER.search(f".{key}")
        for key in state
    )


def merge_low_rank_updates(
    state: Mapping[str, torch.Tensor], hyper_parameters: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Merge low-rank updates into the weights; the result has the names of a model without updates.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        Keys without the prefix of the encoder.
    hyper_parameters : mapping
        ``lora_alpha`` and ``use_rslora``, here or in one of `CONFIGURATIONS`.

    Raises
    ------
    BadDataError
        The updates are of another kind, incomplete, or of several adapters; or ``lora_alpha`` is not known.
    """
    bare = {key.removeprefix(WRAPPER): value for key, value in state.items()}
    names = {found["name"] for key in bare for found in (FACTOR.fullmatch(key), REPLACED.fullmatch(key)) if found}
    if len(names) > 1:
        raise BadDataError(
            f"The file has low-rank updates of several adapters ({', '.join(sorted(names)[:5])}).",
            "Save it with one adapter.",
        )
    merged, factors = {}, {}
    for key, value in bare.items():
        factor, replaced = FACTOR.fullmatch(key), REPLACED.fullmatch(key)
        if factor:
            factors[factor["layer"], factor["factor"], factor["kind"]] = value
        elif replaced:
            merged[f"{replaced['layer']}.{replaced['rest']}"] = value
        elif OTHER.search(key):
            raise BadDataError(
                f"The file has updates of an unsupported kind ({key[:150]}).",
                "Supported is LoRA of linear layers. Merge the updates with peft (merge_and_unload) and save it again.",
            )
        elif ORIGINAL not in key:
            merged[key.replace(BASE, ".")] = value
    for layer in sorted({layer for layer, *_ in factors}):
        _update(merged, layer, factors, hyper_parameters)
    return merged


def _update(
    merged: dict[str, torch.Tensor],
    layer: str,
    factors: Mapping[tuple[str, str, str], torch.Tensor],
    hyper_parameters: Mapping[str, Any],
) -> None:
    """Add the update of a layer to its weight, and to its bias if the update has one."""
    weight = merged.get(f"{layer}.weight")
    first, second = (factors.get((layer, factor, "weight")) for factor in "AB")
    if weight is None or first is None or second is None:
        raise BadDataError(f"The low-rank update of {layer} is incomplete.", "Download the file again; it is damaged.")
    shapes = [tuple(t.shape) for t in (weight, first, second)]
    if (
        any(len(shape) != 2 for shape in shapes)
        or first.shape[0] < 1
        or (second.shape[0], first.shape[1], second.shape[1]) != (*weight.shape, first.shape[0])
    ):
        raise BadDataError(
            f"The low-rank update of {layer} does not fit: weight {shapes[0]}, A {shapes[1]}, B {shapes[2]}.",
            "Supported is LoRA of linear layers. Download the file again, if it is damaged.",
        )
    scale = _scale(first.shape[0], hyper_parameters)
    merged[f"{layer}.weight"] = (weight.double() + scale * second.double() @ first.double()).to(weight.dtype)
    bias = factors.get((layer, "B", "bias"))
    if bias is not None:
        own = merged.get(f"{layer}.bias")
        if own is None or own.shape != bias.shape:
            raise BadDataError(f"The update of the bias of {layer} does not fit.", "Download the file again.")
        merged[f"{layer}.bias"] = own + scale * bias


def _scale(rank: int, hyper_parameters: Mapping[str, Any]) -> float:
    """Return the factor of an update of a rank."""
    nested = [hyper_parameters.get(name) for name in CONFIGURATIONS]
    sources = [hyper_parameters, *(found for found in nested if isinstance(found, Mapping))]
    alpha = next((source["lora_alpha"] for source in sources if "lora_alpha" in source), None)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise BadDataError(
            "The file has low-rank updates, but no lora_alpha in its hyper_parameters, by which they are scaled.",
            "Add lora_alpha to hyper_parameters, or merge the updates with peft (merge_and_unload) and save it again.",
        )
    if any(source.get("rank_pattern") or source.get("alpha_pattern") for source in sources):
        raise BadDataError(
            "The low-rank updates have a rank or lora_alpha of each layer (rank_pattern, alpha_pattern).",
            "Merge them with peft (merge_and_unload) and save the file again.",
        )
    return alpha / (math.sqrt(rank) if any(source.get("use_rslora") is True for source in sources) else rank)
