"""``neurostorm-train calibrate``: how far an adapter's answers can be trusted at a site, learned from its own scans."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bids_app.adapters.calibration import NONE, TEMPERATURE, Calibration, calibrate_classes, calibrate_values
from bids_app.adapters.file import (
    CLASSIFICATION,
    EMBEDDING,
    AdaptedModel,
    Adapter,
    AdapterCard,
    load_adapter,
    save_adapter,
    to_predictions,
)
from bids_app.catalog.models import find_adapter, weights_path
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.model.api import Model, load_model
from bids_app.model.heads import LinearHead
from bids_app.training.adapt import Labelled
from bids_app.training.data.examples import ask, gather, participants_of
from bids_app.training.data.labels import EventRule
from bids_app.training.data.loader import ClipBatches, Readable
from bids_app.training.data.splits import TRAINING, read_split
from bids_app.training.head import embeddings_of
from bids_app.training.reference import with_reference

LEVEL = 0.9
"""Whose limit is printed."""


def calibrate(arguments: argparse.Namespace) -> None:
    """Calibrate an adapter on a site's scans, and write it anew."""
    entry = find_adapter(arguments.adapter)
    adapter = load_adapter(weights_path(entry))
    card, method = adapter.card, _method(adapter.card, arguments.method)
    model = load_model(arguments.model or entry.model or "neurostorm-5ds", arguments.device)
    adapted = AdaptedModel(model, adapter)
    store = arguments.store or arguments.output.with_suffix(".clips")
    datasets = gather(arguments.data, store, card.normalisation, arguments.nprocs, say=print)
    rule = EventRule(arguments.event_delay, arguments.event_overlap)
    examples = ask(datasets, arguments.target, arguments.raw, rule).data
    if arguments.other_people:
        print("Taken as given: none of these people trained the adapter.")
    else:
        examples = without_those_who_trained(examples, adapter, arguments.split)
    answers = answers_of(model, adapted, examples.scans, arguments.batch_size)
    source = arguments.source or ", ".join(dataset.name for dataset in datasets)
    made = calibration_of(card, answers, examples, method, source)
    adapter = replace(adapter, card=replace(card, calibration=made.as_dict()))
    if arguments.reference:
        fresh = replace(adapter, card=replace(adapter.card, ranges={}), reference={})
        people = participants_of(datasets, arguments.raw)
        referred, told = with_reference(fresh, model, examples.scans, people, arguments.batch_size)
        adapter = replace(referred, card=replace(referred.card, cohort=card.cohort))  # it was trained on the others
        print(told)
    save_adapter(arguments.output, adapter)
    print(in_words(made, card))
    print(f"Wrote {arguments.output}")


def _method(card: AdapterCard, wanted: str | None) -> str:
    if card.task == EMBEDDING:
        raise UsageError(
            f"{card.name} gives vectors, which have no probability or error to calibrate.",
            "Calibrate a classification or a regression.",
        )
    if card.task == CLASSIFICATION:
        return wanted or TEMPERATURE
    if wanted not in (None, NONE):
        raise UsageError(f"--method {wanted} is for probabilities.", f"{card.name} is a regression: leave it out.")
    return NONE


def without_those_who_trained(examples: Labelled, adapter: Adapter, split: Path | None) -> Labelled:
    """Examples of people who did not train the adapter, as its split file says; it is told when there is none.

    Raises
    ------
    NoMatchError
        Nobody is left.
    """
    beside = adapter.path.with_suffix(".split.tsv") if adapter.path else None
    path = split or (beside if beside is not None and beside.is_file() else None)
    if path is None:
        print(
            f"It is not known who trained {adapter.card.name}: intervals and sets keep their promise only if nobody "
            "here did. Name its split file with --split, if there is one."
        )
        return examples
    trained = set(read_split(path).get(TRAINING, ()))
    trained |= {label.partition("@")[0] for label in trained}  # of several datasets with the dataset's name
    kept = [i for i, scan in enumerate(examples.scans) if scan.participant.partition("@")[0] not in trained]
    left_out = len({s.participant for s in examples.scans}) - len({examples.scans[i].participant for i in kept})
    if left_out:
        print(
            f"{left_out} participants trained the adapter by {path.name} and were left out. Where labels are alike by "
            "chance and the people are others, give --other-people."
        )
    if not kept:
        raise NoMatchError(
            f"All participants trained the adapter, by {path}.",
            "Calibrate on others; if labels are alike by chance, give --other-people.",
        )
    return examples.pick(kept)


@torch.no_grad()
def answers_of(model: Model, adapted: AdaptedModel, scans: Sequence[Readable], batch_size: int) -> np.ndarray:
    """The answer about each scan, the mean over its clips, (N, K); see `to_predictions`."""
    card, scans = adapted.card, tuple(scans)
    if adapted.shares_encoder and isinstance(adapted.head, LinearHead):
        embeddings, owners = embeddings_of(model, scans, batch_size)  # kept beside the scans
        answers = to_predictions(card, adapted.head.from_embedding(embeddings)).cpu()
        owners = owners.cpu()
    else:
        batches = list(_answer_batches(adapted, model, scans, batch_size))
        answers, owners = (torch.cat(parts) for parts in zip(*batches, strict=True))
    sums = torch.zeros(len(scans), answers.shape[1]).index_add_(0, owners, answers.float())
    counts = torch.bincount(owners, minlength=len(scans))
    if not counts.all():
        raise BadDataError("A scan is shorter than a clip.", "Leave it out.")
    return (sums / counts[:, None]).numpy()


def _answer_batches(
    adapted: AdaptedModel, model: Model, scans: tuple[Readable, ...], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Answers about a batch's clips, and the index of the scan that each is of."""
    for batch in ClipBatches(scans, batch_size, moving=False).epoch(0):
        yield to_predictions(adapted.card, adapted(batch.clips.to(model.device))).cpu(), batch.scans


def calibration_of(card: AdapterCard, answers: np.ndarray, examples: Labelled, method: str, source: str) -> Calibration:
    """Learn a calibration from answers (N, K) and what is true."""
    if card.task == CLASSIFICATION:
        return calibrate_classes(answers, examples.values, card.labels, method, source)
    try:
        truth = np.array([float(value) for value in examples.values])
    except ValueError as error:
        raise BadDataError(f"{card.target} has values that are no numbers ({error}).", "Mend the table.") from error
    return calibrate_values(answers[:, 0], truth, source)


def in_words(made: Calibration, card: AdapterCard) -> str:
    """What a calibration found, for the console."""
    key, scans = f"{LEVEL:g}", f"Calibrated on {made.n_scans} scans"
    if key not in made.limits:
        return f"{scans}: too few for intervals or sets that hold the truth in {LEVEL:.0%} of scans."
    if card.task == CLASSIFICATION:
        poor = [label for label in card.labels if key not in made.class_limits.get(label, {})]
        text = f"{scans} ({made.method}" + (f" {made.temperature:.3g})" if made.method == TEMPERATURE else ")")
        text += f": a set holds each label of a probability of at least {1 - made.limits[key]:.3g}"
        return text + (f"; too few scans of {', '.join(poor)} for a promise by class." if poor else ".")
    return f"{scans}: the truth lies within {made.limits[key]:.4g} {card.unit}".rstrip() + f" in {LEVEL:.0%} of scans."
