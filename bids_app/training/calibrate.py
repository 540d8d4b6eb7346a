"""``neurostorm-train calibrate``: calibration of an adapter with the scans of a site."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bids_app.adapters.calibration import NONE, TEMPERATURE, Calibration
from bids_app.adapters.calibration_fit import People, calibrate_classes, calibrate_values
from bids_app.adapters.checks import check_grid
from bids_app.adapters.file import (
    CLASSIFICATION,
    EMBEDDING,
    OUTPUTS,
    AdaptedModel,
    Adapter,
    AdapterCard,
    load_adapter,
    save_adapter,
    to_predictions,
)
from bids_app.bids.participants import site_of
from bids_app.catalog.models import find_adapter, weights_path
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.model.api import Model, load_model
from bids_app.model.heads import LinearHead
from bids_app.settings import DEFAULT_MODEL
from bids_app.terminal import count_of, first_of
from bids_app.training.adapt import LabelledScans
from bids_app.training.data.batches import ClipSource
from bids_app.training.data.examples import check_labels, label_scans, load_datasets, read_participants
from bids_app.training.data.labels import EventRule, check_values
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.splits import TRAINING, read_split
from bids_app.training.head import compute_embeddings
from bids_app.training.reference import add_reference

MAX_NAMED = 5
"""Maximum number of values to name in a message."""
LEVEL = 0.9
"""Coverage of the printed interval or label set."""


def calibrate(arguments: argparse.Namespace) -> None:
    """Calibrate an adapter with the scans of a site, and write the calibrated adapter."""
    entry = find_adapter(arguments.adapter)
    adapter = load_adapter(weights_path(entry))
    card, method = adapter.card, _method(adapter.card, arguments.method)
    model, adapted = adapted_model(adapter, arguments.model or entry.model, arguments.device)
    store = arguments.store or arguments.output.with_suffix(".clips")
    examples, rows, datasets = read_unseen(arguments, adapter, model, store)
    check_classes(card, examples.values, arguments.target)
    predictions = predict_scans(model, adapted, examples.scans, arguments.batch_size)
    source = arguments.source or datasets
    calibration = fit_calibration(card, predictions, examples, people_of(examples, rows), method, source)
    adapter = replace(adapter, card=replace(card, calibration=calibration.as_dict()))
    if arguments.reference:
        without_reference = replace(adapter, card=replace(adapter.card, ranges={}), reference={})
        updated, message = add_reference(without_reference, model, examples.scans, rows, arguments.batch_size)
        adapter = replace(updated, card=replace(updated.card, cohort=card.cohort))  # the cohort is the training set
        print(message)
    save_adapter(arguments.output, adapter)
    print(summarise(calibration, card))
    print(f"Wrote {arguments.output}")


def adapted_model(adapter: Adapter, name: str, device: str) -> tuple[Model, AdaptedModel]:
    """Load the encoder of an adapter, by default the published one, and adapt it."""
    model = load_model(name or DEFAULT_MODEL, device, with_head=False)
    check_grid(model.config, model.path)
    return model, AdaptedModel(model, adapter)


def read_unseen(
    arguments: argparse.Namespace, adapter: Adapter, model: Model, store: Path
) -> tuple[LabelledScans, Mapping[str, Mapping[str, str]], str]:
    """Read labelled scans of participants that are not in the training set of an adapter.

    Returns
    -------
    examples : LabelledScans
    rows : mapping
        Rows of ``participants.tsv`` by participant.
    names : str
        Names of the datasets.

    Raises
    ------
    NoMatchError
        All participants belong to the training set.
    """
    check_labels(arguments.data, arguments.target, arguments.raw)
    datasets = load_datasets(
        arguments.data,
        store,
        adapter.card.normalisation,
        arguments.nprocs,
        report=print,
        clip_volumes=model.config.img_size[3],
        exclude_failed=arguments.exclude_failed,
    )
    rule = EventRule(arguments.event_delay, arguments.event_overlap)
    examples = label_scans(datasets, arguments.target, arguments.raw, rule).data
    participants, column = [scan.participant for scan in examples.scans], arguments.target.rpartition(":")[2]
    for warning in check_values(column, examples.values, participants, adapter.card.task):
        print(warning)
    rows = read_participants(datasets, arguments.raw)
    if arguments.other_people:
        print("Assuming that no participant belongs to the training set of the adapter (--other-people).")
    else:
        examples = exclude_training_participants(examples, adapter, arguments.split)
    return examples, rows, ", ".join(dataset.name for dataset in datasets)


def _method(card: AdapterCard, requested: str | None) -> str:
    if card.task == EMBEDDING:
        raise UsageError(
            f"Adapter {card.name} predicts embeddings, which cannot be calibrated.",
            "Use an adapter for classification or regression.",
        )
    if card.task == CLASSIFICATION:
        return requested or TEMPERATURE
    if requested not in (None, NONE):
        raise UsageError(f"--method {requested} requires a classification; {card.name} is a regression.", "Omit it.")
    return NONE


def exclude_training_participants(examples: LabelledScans, adapter: Adapter, split: Path | None) -> LabelledScans:
    """Exclude the training participants of an adapter according to its split file; warn if there is no split file.

    Raises
    ------
    NoMatchError
        All participants belong to the training set.
    """
    default_split = adapter.path.with_suffix(".split.tsv") if adapter.path else None
    path = split or (default_split if default_split is not None and os.path.lexists(default_split) else None)
    if path is None:
        print(
            f"The training set of {adapter.card.name} is unknown. Metrics, intervals and label sets are valid only if "
            "no participant belongs to it. Give its split file with --split, if available."
        )
        return examples
    training = set(read_split(path).get(TRAINING, ()))
    training |= {label.partition("@")[0] for label in training}  # labels may end in @DATASET
    kept = [i for i, scan in enumerate(examples.scans) if scan.participant.partition("@")[0] not in training]
    n_excluded = len({s.participant for s in examples.scans}) - len({examples.scans[i].participant for i in kept})
    if n_excluded:
        print(
            f"Excluded {count_of(n_excluded, 'participant')} of the training set ({path.name}). If they are other "
            "people with the same labels, use --other-people."
        )
    if not kept:
        raise NoMatchError(
            f"{path}: all participants belong to the training set of the adapter.",
            "Use scans of other participants; if only the labels are equal, use --other-people.",
        )
    return examples.pick(kept)


@torch.no_grad()
def predict_scans(model: Model, adapted: AdaptedModel, scans: Sequence[ClipSource], batch_size: int) -> np.ndarray:
    """Predict each scan from the average over its clips, (N, K); see `to_predictions`."""
    card, scans = adapted.card, tuple(scans)
    averages_outputs = card.clip_average == OUTPUTS
    if adapted.shares_encoder and isinstance(adapted.head, LinearHead):
        embeddings, owners = compute_embeddings(model, scans, batch_size)  # cached in the store
        outputs, owners = adapted.head.from_embedding(embeddings).cpu(), owners.cpu()
    else:
        batches = list(_apply_to_batches(adapted, model, scans, batch_size))
        outputs, owners = (torch.cat(parts) for parts in zip(*batches, strict=True))
    values = outputs.float() if averages_outputs else to_predictions(card, outputs)
    sums = torch.zeros(len(scans), values.shape[1]).index_add_(0, owners, values)
    counts = torch.bincount(owners, minlength=len(scans))
    if not counts.all():
        raise BadDataError(f"Shorter than a clip: {count_of(int((counts == 0).sum()), 'scan')}.", "Exclude them.")
    means = sums / counts[:, None]
    return (to_predictions(card, means) if averages_outputs else means).numpy()


def _apply_to_batches(
    adapted: AdaptedModel, model: Model, scans: tuple[ClipSource, ...], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the outputs for each batch of clips, and the index of the scan of each clip."""
    for batch in ClipBatches(scans, batch_size, random_starts=False).epoch(0):
        yield adapted(batch.clips.to(model.device)).cpu(), batch.scans


def people_of(examples: LabelledScans, rows: Mapping[str, Mapping[str, str]]) -> People:
    """Return the participants of examples, and their sites if all are known from their rows of ``participants.tsv``."""
    participants = [scan.participant for scan in examples.scans]
    sites = [site_of(rows.get(participant, {})) for participant in participants]
    return People(participants, sites if all(sites) else ())


def fit_calibration(
    card: AdapterCard, predictions: np.ndarray, examples: LabelledScans, people: People, method: str, source: str
) -> Calibration:
    """Fit a calibration to predictions (N, K) and true values."""
    if card.task == CLASSIFICATION:
        return calibrate_classes(predictions, examples.values, card.labels, people, method, source)
    truth = np.array([float(value) for value in examples.values])
    return calibrate_values(predictions[:, 0], truth, people, source)


def check_classes(card: AdapterCard, values: Sequence[str], target: str) -> None:
    """Check that the values of a target are classes of an adapter; print which classes have no scan.

    Raises
    ------
    BadDataError
        A value is not a class of the adapter.
    """
    if card.task != CLASSIFICATION:
        return
    if unknown := sorted(set(values) - set(card.labels)):
        raise BadDataError(
            f"--target {target}: the adapter {card.name} has no class {first_of(unknown, MAX_NAMED)}; its "
            f"classes are {', '.join(card.labels)}.",
            f"Give the column of {card.target}, or use the names of the adapter's classes in the table.",
        )
    if absent := [label for label in card.labels if label not in values]:
        print(f"Warning: no scan has the class {', '.join(absent)}: temperature and coverage may not hold for it.")


def summarise(calibration: Calibration, card: AdapterCard) -> str:
    """Describe a calibration for the console: what is promised, and for whom."""
    key, promise = f"{LEVEL:g}", calibration.promise_at_own_sites()
    people = count_of(calibration.n_participants, "participant")
    scans = f"Calibrated on {count_of(calibration.n_scans, 'scan')} of {people}"
    if key not in promise.limits:
        return f"{scans}. {promise.coverage}"
    if card.task == CLASSIFICATION:
        threshold = 1 - promise.limits[key]
        rare = [label for label in card.labels if key not in calibration.class_limits.get(label, {})]
        temperature = f" {calibration.temperature:.3g}" if calibration.method == TEMPERATURE else ""
        text = (
            f"{scans} ({calibration.method}{temperature}): label sets with {LEVEL:.0%} coverage include each label "
            f"with a probability of at least {threshold:.3g}"
        )
        text += f"; too few participants with {', '.join(rare)} for class-conditional coverage" if rare else ""
        return f"{text}. {promise.coverage}"
    limit = f"{promise.limits[key]:.4g} {card.unit}".rstrip()
    return f"{scans}: the error is below {limit} in {LEVEL:.0%} of scans. {promise.coverage}"
