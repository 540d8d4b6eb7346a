"""What a downloaded file is, what its head predicts, and which facts about the head the file lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bids_app.adapters.checks import check_alone
from bids_app.adapters.convert import (
    UNKNOWN_TASK,
    OutputMeaning,
    count_outputs,
    hyper_parameters,
    known_task,
    meaning_of,
    target_of,
)
from bids_app.adapters.file import ADAPTER_FORMAT, CLASSIFICATION, REGRESSION, AdapterCard, load_adapter
from bids_app.adapters.own_head import REIDENTIFICATION, own_head
from bids_app.catalog.models import FILE_SUFFIXES, Entry, weights_path
from bids_app.errors import BadDataError, UsageError
from bids_app.model.checkpoint import Checkpoint, file_format, read_checkpoint

ADAPTER, FINE_TUNED, ENCODER, OTHER = "adapter", "fine-tuned model", "encoder", "other file"
MINMAX = "minmax"
ACKNOWLEDGE = "--acknowledge-research-use"


@dataclass(frozen=True)
class FileDescription:
    """What a file is.

    Attributes
    ----------
    kind : str
        ``adapter``, ``fine-tuned model``, ``encoder`` or ``other file``.
    facts : dict of str to str
        Names and values for the user.
    missing : dict of str to str
        What is not known about the head, by the option that gives it.
    """

    kind: str
    facts: Mapping[str, str]
    missing: Mapping[str, str]


def describe_file(entry: Entry) -> FileDescription:
    """Describe the file of an entry.

    Raises
    ------
    BadDataError
        The file cannot be read as a model or an adapter, contains code, or its head is of an unknown kind.
    """
    path = weights_path(entry)
    if path.suffix not in FILE_SUFFIXES:
        return FileDescription(OTHER, {}, {})
    if file_format(path) == ADAPTER_FORMAT:
        adapter = load_adapter(path)
        check_alone(adapter)
        return FileDescription(ADAPTER, _facts_of_card(adapter.card), {})
    checkpoint = read_checkpoint(path)
    facts = {"clips": f"{checkpoint.config.img_size[3]} volumes"}
    if not checkpoint.head:
        return FileDescription(ENCODER, facts | {"decoder": "yes" if checkpoint.decoder else "no"}, {})
    meaning = meaning_of(checkpoint, entry.head)
    missing = missing_facts(checkpoint, meaning)
    if known_task(checkpoint, meaning) is None:
        return FileDescription(FINE_TUNED, facts | {"outputs": str(count_outputs(checkpoint))}, missing)
    adapter_of_head = own_head(entry)
    assert adapter_of_head is not None
    shown = _facts_of_card(adapter_of_head.card) | facts
    for option, fact in (("--labels", "labels"), ("--value-mean", "scale")):
        if option in missing:
            shown[fact] = "not known"
        elif fact == "scale" and _is_scaled_by_range(checkpoint):
            card = adapter_of_head.card
            shown[fact] = f"minimum {card.value_mean:g}, maximum minus minimum {card.value_std:g}"
    return FileDescription(FINE_TUNED, shown, missing)


def missing_facts(checkpoint: Checkpoint, meaning: OutputMeaning) -> dict[str, str]:
    """Return what is not known about the outputs of a head, by the option that gives it."""
    hyper = hyper_parameters(checkpoint)
    if hyper.get("task_name") == REIDENTIFICATION:
        return {}
    task = known_task(checkpoint, meaning)
    missing = {}
    if task is None:
        missing["--task"] = f"{CLASSIFICATION} or {REGRESSION}: {UNKNOWN_TASK}"
    if not (meaning.target or target_of(checkpoint)):
        missing["--target"] = "the predicted variable, such as age"
    if task == CLASSIFICATION and not meaning.labels:
        n_classes = max(count_outputs(checkpoint), 2)
        missing["--labels"] = f"the {n_classes} class labels in the order of the outputs, as in A,B"
    if task == REGRESSION and not meaning.has_scale:
        by_range = _is_scaled_by_range(checkpoint)
        missing["--value-mean"] = f"the {'minimum' if by_range else 'mean'} of the target in the training cohort"
        what = "maximum minus minimum" if by_range else "standard deviation"
        missing["--value-std"] = f"its {what} in the training cohort"
    return missing


def _is_scaled_by_range(checkpoint: Checkpoint) -> bool:
    """Tell whether the target was scaled to 0 to 1 by its range, not to a mean of 0 and a standard deviation of 1."""
    return hyper_parameters(checkpoint).get("label_scaling_method") == MINMAX


def check_head_facts(entry: Entry, head: Mapping[str, Any]) -> None:
    """Check that given facts fit the head of a file, before they are stored.

    Parameters
    ----------
    entry : Entry
        Its file must be on this machine.
    head : mapping
        Facts by `bids_app.catalog.references.HEAD_FACTS`.

    Raises
    ------
    UsageError
        The file has no head, or they do not fit its task or its number of outputs.
    """
    path = weights_path(entry)
    given = ", ".join(f"--{name.replace('_', '-')}" for name in head)
    if path.suffix not in FILE_SUFFIXES or file_format(path) == ADAPTER_FORMAT or not read_checkpoint(path).head:
        raise UsageError(f"{path}: {given} are facts about a head, but the file has none of its own.", "Omit them.")
    checkpoint = read_checkpoint(path)
    _check_task(checkpoint, head)
    meaning = meaning_of(checkpoint, {**entry.head, **head})
    task = known_task(checkpoint, meaning)
    other = {CLASSIFICATION: ("value_mean", "value_std", "unit"), REGRESSION: ("labels",)}
    unfit = [f"--{name.replace('_', '-')}" for name in other.get(str(task), ()) if name in head]
    if unfit:
        raise UsageError(f"{path}: the head is for {task}, which has no {', '.join(unfit)}.", "Omit them.")
    if ("value_mean" in head) != ("value_std" in head):
        raise UsageError("--value-mean and --value-std are given together.", "Give both, or none of them.")
    if not meaning.value_std > 0:
        raise UsageError(f"Invalid value for --value-std: {meaning.value_std}.", "Use a number above 0.")
    if task is not None:
        try:
            own_head(Entry(entry.name, "", str(path), head={**entry.head, **head}, own=True))
        except BadDataError as error:
            raise UsageError(f"{error.message}", f"Correct {given}.") from error


def _check_task(checkpoint: Checkpoint, head: Mapping[str, Any]) -> None:
    """Refuse a given task that is not the one in the file."""
    own = hyper_parameters(checkpoint).get("downstream_task_type")
    if "task" in head and own in (CLASSIFICATION, REGRESSION) and head["task"] != own:
        raise UsageError(f"{checkpoint.path}: --task {head['task']}, but the file's head is for {own}.", "Omit --task.")


def _facts_of_card(card: AdapterCard) -> dict[str, str]:
    facts = {"name": card.name, "task": card.task, "target": card.target, "labels": ", ".join(card.labels)}
    if card.task == REGRESSION:
        facts["scale"] = f"mean {card.value_mean:g}, standard deviation {card.value_std:g}"
        facts["unit"] = card.unit
    if card.research_only:
        facts["diagnosis"] = f"yes, which requires {ACKNOWLEDGE}"
    facts["encoder"] = f"sha256 {card.encoder_sha256[:12]}…"
    return {name: value for name, value in facts.items() if value}
