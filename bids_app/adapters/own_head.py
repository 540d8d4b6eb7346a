"""Heads of fine-tuned files, applied without conversion: as adapters that use the file's own encoder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.convert import (
    PUBLISHED_NORMALISATION,
    UNKNOWN_TASK,
    OutputMeaning,
    count_outputs,
    describe_cohort,
    hyper_parameters,
    known_task,
    meaning_of,
    target_of,
    withheld,
)
from bids_app.adapters.file import (
    CLASSIFICATION,
    EMBEDDING,
    MAX_TEXT,
    OUTPUTS,
    OWN,
    PREDICTIONS,
    REGRESSION,
    Adapter,
    AdapterCard,
    is_diagnosis,
    load_adapter,
)
from bids_app.adapters.verdict import PASS, REFUSE, WARN, Check, Verdict
from bids_app.catalog.cards import known_facts
from bids_app.catalog.models import Entry, weights_path
from bids_app.errors import BadDataError
from bids_app.model.checkpoint import Checkpoint, State, naming, read_checkpoint, weights_sha256
from bids_app.model.heads import build_head, check_head, n_outputs, output_layer

REIDENTIFICATION = "fmri_reid"
"""``task_name`` of re-identification, whose result is the input of the head's last layer and not a class."""
NOT_PUBLISHED = "not published"
UNNAMED = "The file does not name its classes: class0, class1, ... are in the order of its outputs."
UNSCALED = {
    "standardization": "standard deviations from the mean of the training cohort",
    "minmax": "fractions of the range of the training cohort",
}
"""Units of regressions whose scaling is not known, by ``label_scaling_method``."""
HINT = (
    "For embeddings only, use --level minimal. To describe the head, use 'neurostorm-models convert --adapter', for a "
    "file of the hub, use 'neurostorm-models fetch' with --task, --labels, --value-mean and --value-std."
)


def own_head(entry: Entry) -> Adapter | None:
    """Return the head of a model's file as an adapter that uses the encoder of the file.

    Parameters
    ----------
    entry : Entry
        Entry of the catalog, or a user-supplied file.

    Returns
    -------
    Adapter or None
        None: the file has no head.

    Raises
    ------
    BadDataError
        The head is of an unknown kind or damaged, or the file does not tell its task.
    """
    checkpoint = read_checkpoint(weights_path(entry))
    return _as_adapter(entry, checkpoint) if checkpoint.head else None


def read_any_adapter(path: Path, model: Entry) -> Adapter:
    """Read an adapter's file, or the head in the file of the model."""
    if path != model.path:
        return load_adapter(path)
    adapter = own_head(model)
    if adapter is None:
        raise BadDataError(f"{path}: the file has no head.", "Give an adapter with --adapter.")
    return adapter


def _as_adapter(entry: Entry, checkpoint: Checkpoint) -> Adapter:
    path, hyper = checkpoint.path, hyper_parameters(checkpoint)
    meaning = meaning_of(checkpoint, entry.head)
    with naming(path, "the head"):
        head, _ = build_head(checkpoint.head)
        check_head(head, checkpoint.config.n_features)
    limits = _known(entry, "Limits")
    task, state = known_task(checkpoint, meaning), checkpoint.head
    target = meaning.target or target_of(checkpoint)
    facts: dict[str, Any] = {}
    if hyper.get("task_name") == REIDENTIFICATION:
        task, state = EMBEDDING, without_last_layer(checkpoint.head)
        target = "participant"
        facts = {"dimensions": state[f"{output_layer(state)}.weight"].shape[0], "clip_average": PREDICTIONS}
    elif task == CLASSIFICATION:
        facts["labels"] = _labels(checkpoint, meaning)
        limits += [] if meaning.labels else [UNNAMED]
    elif task == REGRESSION:
        facts, scaling = _scaling(checkpoint, meaning)
        limits += scaling
    else:
        raise BadDataError(f"{path}: {UNKNOWN_TASK}.", HINT)
    reason = withheld(checkpoint)
    card = AdapterCard(
        **{"clip_average": OUTPUTS, **facts},
        name=re.sub(r"[^A-Za-z0-9]", "", checkpoint.name if entry.own or entry.referenced else entry.name),
        task=task,
        target=_line(target),
        encoder_sha256=weights_sha256(checkpoint.encoder),
        normalisation=PUBLISHED_NORMALISATION,
        strategy=OWN,
        cohort=_cohort(entry, meaning, hyper),
        ranges=dict(meaning.ranges),
        intended_use=meaning.intended_use or " ".join(_known(entry, "IntendedUse")),
        limits=" ".join(limits + ([reason] if reason else [])),
        licence=entry.licence,
        research_only=meaning.research_only or any(map(is_diagnosis, _names(entry, checkpoint, target))),
        demonstration=checkpoint.demonstration,
        withheld=reason,
    )
    return Adapter(card, state, path=path)


def _names(entry: Entry, checkpoint: Checkpoint, target: str) -> tuple[str, ...]:
    """Return what may say that a head predicts a diagnosis: a target that was given cannot hide that of the file."""
    return target, target_of(checkpoint), Path(entry.file).stem if entry.referenced else ""


def _labels(checkpoint: Checkpoint, meaning: OutputMeaning) -> tuple[str, ...]:
    """Return the class labels of a head; numbered classes if they are not known."""
    path, outputs = checkpoint.path, count_outputs(checkpoint)
    n_classes = hyper_parameters(checkpoint).get("num_classes")
    if isinstance(n_classes, int) and n_classes > 0 and n_outputs(n_classes) != outputs:
        raise BadDataError(f"{path}: the head has {outputs} outputs, but num_classes is {n_classes}.", HINT)
    if outputs == 2:
        raise BadDataError(f"{path}: the head has two outputs; a head for two classes has one.", HINT)
    found = meaning.labels or tuple(f"class{k}" for k in range(max(outputs, 2)))
    if n_outputs(len(found)) != outputs:
        raise BadDataError(f"{path}: the head has {outputs} outputs, but {len(found)} labels are known.", HINT)
    return found


def _scaling(checkpoint: Checkpoint, meaning: OutputMeaning) -> tuple[dict[str, Any], list[str]]:
    """Return the facts of a regression, and its limits."""
    if count_outputs(checkpoint) != 1:
        raise BadDataError(
            f"{checkpoint.path}: the head of a regression has {count_outputs(checkpoint)} outputs instead of one.", HINT
        )
    facts = {"unit": meaning.unit, "value_mean": meaning.value_mean, "value_std": meaning.value_std}
    if meaning.has_scale:
        return facts, []
    method = str(hyper_parameters(checkpoint).get("label_scaling_method", "standardization"))
    unit = UNSCALED.get(method)
    if unit is None:
        raise BadDataError(f"{checkpoint.path}: unknown label_scaling_method {method[:MAX_TEXT]!a}.", HINT)
    return facts | {"unit": unit}, [f"The file does not hold the scaling of its target: values are {unit}."]


def without_last_layer(state: State) -> State:
    """Return a head whose outputs are what the last linear layer reads: the vector of re-identification.

    Parameters
    ----------
    state : dict of str to torch.Tensor
        State dict of a head of any version.
    """
    last = output_layer(state)
    weight = state[f"{last}.weight"]
    if "hidden.weight" in state:  # two linear layers: the first is the whole head
        return {"head.weight": state["hidden.weight"], "head.bias": state["hidden.bias"]}
    identity = {f"{last}.weight": torch.eye(weight.shape[1]), f"{last}.bias": torch.zeros(weight.shape[1])}
    return {**state, **identity}


def _cohort(entry: Entry, meaning: OutputMeaning, hyper: dict[str, Any]) -> dict[str, Any]:
    known = {} if entry.own else known_facts().get(entry.name, {}).get("TrainingCohort", {})
    dataset = hyper.get("dataset_name")
    named = {"description": _line(dataset)} if isinstance(dataset, str) and _line(dataset) else {}
    return {**named, **known, **describe_cohort(meaning)}


def _known(entry: Entry, fact: str) -> list[str]:
    text = "" if entry.own else known_facts().get(entry.name, {}).get(fact, "")
    return [text] if text else []


def _line(text: str) -> str:
    """Return the beginning of a text without control characters."""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_TEXT]


def judge_card(found: Verdict, card: AdapterCard) -> Verdict:
    """Add what an adapter's card itself says about its validity to the verdict on a prediction.

    A prediction that is withheld in any case is refused. For cohorts whose card states the orientation and the template
    of the arrays that the encoder was trained on, these are compared with the ones that the encoder reads here.
    """
    checks, unknown = [], dict(found.unknown)
    if card.withheld:
        checks.append(Check("head", REFUSE, "constant", "depends on the scan", card.withheld))
    stated = {name: card.cohort[name] for name in READ_HERE if name in card.cohort}
    if NOT_PUBLISHED in stated.values():
        names = " and ".join(name for name, value in stated.items() if value == NOT_PUBLISHED)
        unknown["training_input"] = f"The {names} of the training data were not published."
    elif stated:
        expected = ", ".join(READ_HERE[name] for name in stated)
        value = ", ".join(map(str, stated.values()))
        differs = value != expected
        message = (
            f"The encoder was trained on data in another orientation or template ({value}) than it reads here "
            f"({expected}): the prediction may be wrong."
        )
        checks.append(Check("training_input", WARN if differs else PASS, value, expected, message if differs else ""))
    return replace(found, checks=(*found.checks, *checks), unknown=unknown)


READ_HERE = {"orientation": "LAS", "template": "MNI152NLin6Asym"}
"""Orientation and template of the arrays that the encoder reads, by key in a card's cohort."""
