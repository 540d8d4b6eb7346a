"""From fine-tuned files of the published code to adapters of an encoder, with the same answers.

What such a file holds beyond its encoder's base (prompts, norms, a head, or every weight of it) becomes the adapter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.file import REGRESSION, TASKS, Adapter, AdapterCard, sounds_like_a_diagnosis
from bids_app.errors import BadDataError, UsageError
from bids_app.model.checkpoint import Checkpoint, State, read_checkpoint, weights_sha256

PUBLISHED_NORMALISATION = "global"
"""What the published models were trained with."""


@dataclass(frozen=True)
class Answers:
    """What the outputs of a published head mean; its file does not say all of it.

    Attributes
    ----------
    task, target : str, optional
        None takes the file's ``downstream_task_type`` and ``task_name``.
    labels : tuple of str
        Of the classes, in the order of the outputs.
    unit : str
        Of a regression's value.
    value_mean, value_std : float
        Of the training cohort. Files of the published code do not hold them: where they are not known either, answers
        stay in standard deviations of that cohort.
    research_only : bool
        Whether it is a diagnosis; what sounds like one is taken as one anyway.
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
    path: str | Path, name: str, answers: Answers, base: str | Path | None = None, licence: str = ""
) -> Adapter:
    """Make an adapter of a fine-tuned file.

    Parameters
    ----------
    path : str or Path
        A Lightning checkpoint of the published code, or a converted one.
    name : str
        Of the adapter, letters and digits.
    answers : Answers
    base : str or Path, optional
        File of the encoder that the adapter shall belong to; what differs from it comes along. None: the file's own
        encoder, as a converted file of it holds it.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.head:
        raise BadDataError(f"{path}: has no head.", "Give a fine-tuned file; a pre-trained one answers no question.")
    encoder = checkpoint.encoder if base is None else read_checkpoint(base).encoder
    if {k: v.shape for k, v in encoder.items()} != {k: v.shape for k, v in checkpoint.encoder.items()}:
        raise BadDataError(f"{path}: is not of the same shape as {base}.", "Give the encoder that it was made from.")
    own = {k: v for k, v in checkpoint.encoder.items() if not torch.equal(v, encoder[k])} | checkpoint.prompts
    head = {k: v for k, v in checkpoint.head.items() if not k.startswith("norm.")}  # older heads carry it unused
    card = AdapterCard(
        name=name,
        task=_task(checkpoint, answers),
        target=answers.target or _target(checkpoint),
        encoder_sha256=weights_sha256(encoder),
        normalisation=PUBLISHED_NORMALISATION,
        labels=_labels(checkpoint, answers),
        unit=answers.unit,
        value_mean=answers.value_mean,
        value_std=answers.value_std,
        strategy=_strategy(own),
        prompt_len=checkpoint.config.prompt_len,
        cohort={"description": answers.cohort} if answers.cohort else {},
        intended_use=answers.intended_use,
        licence=licence,
        research_only=answers.research_only or sounds_like_a_diagnosis(answers.target or _target(checkpoint)),
        demonstration=checkpoint.demonstration,
    )
    return Adapter(card, head, own)


def _hyper_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of a Lightning file, or of a file converted from one."""
    return checkpoint.info.get("hyper_parameters", checkpoint.info)


def _target(checkpoint: Checkpoint) -> str:
    """Older files say ``downstream_task`` for what newer ones call ``task_name``."""
    hyper = _hyper_parameters(checkpoint)
    return str(hyper.get("task_name") or hyper.get("downstream_task") or "")


def _task(checkpoint: Checkpoint, answers: Answers) -> str:
    task = answers.task or _hyper_parameters(checkpoint).get("downstream_task_type")
    if task not in TASKS:
        raise UsageError(f"{checkpoint.path}: does not say its task ({task!r}).", f"Give --task {' or '.join(TASKS)}.")
    return str(task)


def _labels(checkpoint: Checkpoint, answers: Answers) -> tuple[str, ...]:
    if _task(checkpoint, answers) == REGRESSION:
        return ()
    rows = next(v for k, v in checkpoint.head.items() if re.fullmatch(r"(mlp_head\.1|head)\.weight", k)).shape[0]
    n_classes = max(rows, 2)
    if len(answers.labels) != n_classes:
        raise UsageError(
            f"{checkpoint.path}: has {n_classes} classes, and {len(answers.labels)} labels are known.",
            f"Give --labels with {n_classes} names, in the order of the outputs; the file does not hold them.",
        )
    return answers.labels


def _strategy(own: State) -> str:
    """The least strategy that could have made what differs from the base."""
    prompts = {k for k in own if k.endswith(".prompt")}
    norms = {k for k in own if re.search(r"\bnorm\d?\.(weight|bias)$", k)}
    if set(own) - prompts - norms:
        return "full"
    return {(0, 0): "linear", (1, 0): "prompt", (0, 1): "ln", (1, 1): "prompt_ln"}[bool(prompts), bool(norms)]
