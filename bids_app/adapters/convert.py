"""Conversion of fine-tuned checkpoints of the published code to adapters with the same predictions.

The adapter holds what differs from the base encoder: prompts, norms, a head, or all weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch

from bids_app.adapters.file import CLASSIFICATION, OUTPUTS, REGRESSION, TASKS, Adapter, AdapterCard, is_diagnosis
from bids_app.errors import BadDataError, UsageError
from bids_app.model.checkpoint import Checkpoint, State, naming, read_checkpoint, weights_sha256
from bids_app.model.heads import ConstantTokenHead, head_version, output_layer

PUBLISHED_NORMALISATION = "global"
"""Normalisation of the published models."""
TASK_OF_TARGET = {"sex": CLASSIFICATION, **dict.fromkeys(("age", "int_total", "int_fluid"), REGRESSION)}
"""Tasks of targets that files of 2025 name in ``downstream_task``, without a ``downstream_task_type``."""
UNKNOWN_TASK = (
    "neither downstream_task_type nor downstream_task in its hyper_parameters tells whether the head is for "
    "classification or regression"
)
LABEL_KEYS = ("labels", "class_names")
SCALED_KINDS = ("value", "target", "label")
"""Hyperparameters that hold labels and scaling; those of the published code do not."""
CONSTANT = (
    "The head is the v3 head of 2025, whose output is the same for every scan: the published code let its class token "
    "attend to the class tokens of other clips only, and not to the scan."
)


@dataclass(frozen=True)
class OutputMeaning:
    """Meaning of a published head's outputs, which its file describes only in part.

    Attributes
    ----------
    task, target : str, optional
        Default: the file's ``downstream_task_type`` and ``task_name``.
    labels : tuple of str
        Class labels, in the order of the outputs.
    unit : str
        Unit of a regression.
    value_mean, value_std : float
        Mean and standard deviation in the training cohort. Files of the published code do not hold them; by default,
        predictions are in standard deviations of that cohort.
    research_only : bool
        It predicts a diagnosis; targets with the name of a diagnosis always count as one.
    ranges : mapping
        Ranges of the training cohort, as in `AdapterCard`.
    orientation, template : str
        Axes of the arrays that the encoder was trained on, such as ``LAS``, and their template; ``not published``, or
        empty if the catalog does not say.
    """

    task: str | None = None
    target: str | None = None
    labels: tuple[str, ...] = ()
    unit: str = ""
    value_mean: float = 0.0
    value_std: float = 1.0
    cohort: str = ""
    intended_use: str = ""
    research_only: bool = False
    ranges: Mapping[str, Any] = field(default_factory=dict)
    orientation: str = ""
    template: str = ""

    @property
    def has_scale(self) -> bool:
        """Whether the scale of a regression is known."""
        return bool(self.unit) or (self.value_mean, self.value_std) != (0.0, 1.0)


def meaning_of(checkpoint: Checkpoint, known: Mapping[str, Any]) -> OutputMeaning:
    """Return the meaning of a head's outputs, as far as it is known.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its hyperparameters may hold class labels (``labels``, ``class_names``), mean and standard deviation of the
        target (``value_mean``, ``target_mean``, ``label_mean`` and the same with ``_std``) and its ``unit``.
    known : mapping
        Fields of `OutputMeaning` from the catalog or from the facts beside the file; they take precedence.
    """
    hyper = hyper_parameters(checkpoint)
    found: dict[str, Any] = {}
    labels = next((hyper[key] for key in LABEL_KEYS if _is_labels(hyper.get(key))), None)
    if labels is not None:
        found["labels"] = labels
    for kind in reversed(SCALED_KINDS):
        mean, std = hyper.get(f"{kind}_mean"), hyper.get(f"{kind}_std")
        if _is_number(mean) and _is_number(std) and std > 0:
            found |= {"value_mean": float(mean), "value_std": float(std)}
    if isinstance(hyper.get("unit"), str):
        found["unit"] = hyper["unit"]
    found |= known
    return OutputMeaning(**{**found, "labels": tuple(found.get("labels", ()))})


def _is_labels(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(label, str) for label in value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def adapter_from_checkpoint(
    path: str | Path, name: str, meaning: OutputMeaning, base: str | Path | None = None, licence: str = ""
) -> Adapter:
    """Convert a fine-tuned file to an adapter.

    Parameters
    ----------
    path : str or Path
        A Lightning checkpoint of the published code, or a converted one.
    name : str
        Name of the adapter, letters and digits.
    meaning : OutputMeaning
    base : str or Path, optional
        File of the adapter's encoder; the adapter holds the differences from it. Default: the encoder in ``path``.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.head:
        raise BadDataError(f"{path}: the file has no head.", "Give a fine-tuned file; pre-trained files have no task.")
    encoder = checkpoint.encoder if base is None else read_checkpoint(base).encoder
    if {k: v.shape for k, v in encoder.items()} != {k: v.shape for k, v in checkpoint.encoder.items()}:
        raise BadDataError(
            f"{path}: the encoder has a different shape from {base}.", "Give the encoder from which it was fine-tuned."
        )
    own = {k: v for k, v in checkpoint.encoder.items() if not torch.equal(v, encoder[k])} | checkpoint.prompts
    card = AdapterCard(
        name=name,
        task=_task(checkpoint, meaning),
        target=meaning.target or target_of(checkpoint),
        encoder_sha256=weights_sha256(encoder),
        normalisation=PUBLISHED_NORMALISATION,
        labels=_labels(checkpoint, meaning),
        unit=meaning.unit,
        value_mean=meaning.value_mean,
        value_std=meaning.value_std,
        strategy=_strategy(own),
        prompt_len=checkpoint.config.prompt_len,
        cohort=describe_cohort(meaning),
        ranges=dict(meaning.ranges),
        clip_average=OUTPUTS,
        withheld=withheld(checkpoint),
        intended_use=meaning.intended_use,
        licence=licence,
        research_only=meaning.research_only or is_diagnosis(meaning.target or target_of(checkpoint)),
        demonstration=checkpoint.demonstration,
    )
    return Adapter(card, checkpoint.head, own)


def hyper_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the hyperparameters of a Lightning file, or of a file converted from one."""
    return checkpoint.info.get("hyper_parameters", checkpoint.info)


def target_of(checkpoint: Checkpoint) -> str:
    """Return the target: ``task_name``, or ``downstream_task`` in older files."""
    hyper = hyper_parameters(checkpoint)
    return str(hyper.get("task_name") or hyper.get("downstream_task") or "")


def known_task(checkpoint: Checkpoint, meaning: OutputMeaning) -> str | None:
    """Return the task of a head; None if neither the file nor ``meaning`` tells."""
    hyper = hyper_parameters(checkpoint)
    task = meaning.task or hyper.get("downstream_task_type")
    if task in TASKS:
        return str(task)
    if hyper.get("scalability_check") is True or count_outputs(checkpoint) > 1:
        return CLASSIFICATION
    return TASK_OF_TARGET.get(str(hyper.get("downstream_task")))


def _task(checkpoint: Checkpoint, meaning: OutputMeaning) -> str:
    task = known_task(checkpoint, meaning)
    if task is None:
        raise UsageError(
            f"{checkpoint.path}: {UNKNOWN_TASK}.",
            f"Give --task {CLASSIFICATION} or {REGRESSION}.",
        )
    return task


def count_outputs(checkpoint: Checkpoint) -> int:
    """Return the number of outputs of a file's head."""
    with naming(checkpoint.path, "the head"):
        return int(checkpoint.head[f"{output_layer(checkpoint.head)}.weight"].shape[0])


def describe_cohort(meaning: OutputMeaning) -> dict[str, Any]:
    """Return what is known about the training cohort, for a card."""
    facts = {"description": meaning.cohort, "orientation": meaning.orientation, "template": meaning.template}
    return {name: value for name, value in facts.items() if value}


def withheld(checkpoint: Checkpoint) -> str:
    """Return why the predictions of a file's head are never reported; empty if they are."""
    with naming(checkpoint.path, "the head"):
        return CONSTANT if head_version(checkpoint.head) == ConstantTokenHead.version else ""


def _labels(checkpoint: Checkpoint, meaning: OutputMeaning) -> tuple[str, ...]:
    if _task(checkpoint, meaning) == REGRESSION:
        return ()
    n_classes = max(count_outputs(checkpoint), 2)
    if len(meaning.labels) != n_classes:
        raise UsageError(
            f"{checkpoint.path}: the head has {n_classes} classes, but {len(meaning.labels)} labels were given.",
            f"Give --labels with {n_classes} names, in the order of the outputs.",
        )
    return meaning.labels


def _strategy(own: State) -> str:
    """Return the simplest strategy that explains the differences from the base."""
    prompts = {k for k in own if k.endswith(".prompt")}
    norms = {k for k in own if re.search(r"\bnorm\d?\.(weight|bias)$", k)}
    if set(own) - prompts - norms:
        return "full"
    return {(0, 0): "linear", (1, 0): "prompt", (0, 1): "ln", (1, 1): "prompt_ln"}[bool(prompts), bool(norms)]
