"""Conversion of fine-tuned checkpoints of the published code to adapters with the same predictions.

The adapter holds what differs from the base encoder: prompts, norms, a head, or all weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.file import REGRESSION, TASKS, Adapter, AdapterCard, is_diagnosis
from bids_app.errors import BadDataError, UsageError
from bids_app.model.checkpoint import Checkpoint, State, read_checkpoint, weights_sha256

PUBLISHED_NORMALISATION = "global"
"""Normalisation of the published models."""


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
    head = {k: v for k, v in checkpoint.head.items() if not k.startswith("norm.")}  # unused in older heads
    card = AdapterCard(
        name=name,
        task=_task(checkpoint, meaning),
        target=meaning.target or _target(checkpoint),
        encoder_sha256=weights_sha256(encoder),
        normalisation=PUBLISHED_NORMALISATION,
        labels=_labels(checkpoint, meaning),
        unit=meaning.unit,
        value_mean=meaning.value_mean,
        value_std=meaning.value_std,
        strategy=_strategy(own),
        prompt_len=checkpoint.config.prompt_len,
        cohort={"description": meaning.cohort} if meaning.cohort else {},
        intended_use=meaning.intended_use,
        licence=licence,
        research_only=meaning.research_only or is_diagnosis(meaning.target or _target(checkpoint)),
        demonstration=checkpoint.demonstration,
    )
    return Adapter(card, head, own)


def _hyper_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the hyperparameters of a Lightning file, or of a file converted from one."""
    return checkpoint.info.get("hyper_parameters", checkpoint.info)


def _target(checkpoint: Checkpoint) -> str:
    """Return the target: ``task_name``, or ``downstream_task`` in older files."""
    hyper = _hyper_parameters(checkpoint)
    return str(hyper.get("task_name") or hyper.get("downstream_task") or "")


def _task(checkpoint: Checkpoint, meaning: OutputMeaning) -> str:
    task = meaning.task or _hyper_parameters(checkpoint).get("downstream_task_type")
    if task not in TASKS:
        raise UsageError(f"{checkpoint.path}: unknown task {task!r}.", f"Give --task {' or '.join(TASKS)}.")
    return str(task)


def _labels(checkpoint: Checkpoint, meaning: OutputMeaning) -> tuple[str, ...]:
    if _task(checkpoint, meaning) == REGRESSION:
        return ()
    rows = next(v for k, v in checkpoint.head.items() if re.fullmatch(r"(mlp_head\.1|head)\.weight", k)).shape[0]
    n_classes = max(rows, 2)
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
