"""Commands ``adapt`` and ``evaluate`` of ``neurostorm-train``."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_app.adapters.checks import check_grid
from bids_app.adapters.file import EMBEDDING, LORA, NAME, Adapter, is_diagnosis, save_adapter
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import MAX_LABEL
from bids_app.settings import DEFAULT_MODEL
from bids_app.training import adapt as adapting
from bids_app.training.arguments import (
    LOCK,
    LOCKED,
    PRECISIONS,
    complete_from_recipe,
    describe_recipe,
    load_atlas_labels,
    loop_settings,
    training_folder,
)
from bids_app.training.data.examples import (
    Dataset,
    Examples,
    check_labels,
    label_scans,
    load_datasets,
    read_images,
    read_participants,
)
from bids_app.training.data.labels import EventRule, check_values
from bids_app.training.data.splits import (
    TEST,
    TRAINING,
    VALIDATION,
    Split,
    apply_split,
    check_sets,
    read_split,
    split_from_indices,
    split_participants,
    write_split,
)
from bids_app.training.evaluation.retrieval import Retrieval
from bids_app.training.evaluation.run import EvaluateSettings, FeatureCache
from bids_app.training.low_rank import LowRankSettings, check_low_rank
from bids_app.training.recipes import find_recipe
from bids_app.training.reference import add_reference
from bids_app.training.state import check_state, fingerprint
from bids_app.training.summary import write_summary
from bids_app.training.tasks import Task
from bids_app.workflow.locks import Locks

BOTH_NORMALISATIONS = ("voxel", "global")
"""Normalisations of the two heads with ``--normalisation both``; the first head gives the prediction."""


def adapt(arguments: argparse.Namespace) -> None:
    """Train an adapter, and write it with its split."""
    with Locks(LOCKED) as locks:
        _adapt(arguments, locks)


def _adapt(arguments: argparse.Namespace, locks: Locks) -> None:
    complete_from_recipe(arguments, arguments.strategy)
    _check_adapt_arguments(arguments)
    settings = _adapt_settings(arguments)
    name = _adapter_name(arguments)
    output = arguments.output or Path(f"{name}.safetensors")
    model = _load_encoder(arguments, settings)
    normalisation, *others = BOTH_NORMALISATIONS if arguments.normalisation == "both" else (arguments.normalisation,)
    folder = None if arguments.strategy == "linear" else training_folder(output)
    if folder is not None:
        facts = settings.facts(model, normalisation, _column(arguments))
        recipe = fingerprint(settings.loop, facts)
        check_state(folder, recipe, before_loading=True)
        locks.acquire(folder / LOCK)
        print(f"Recipe: {describe_recipe(arguments, arguments.strategy)}")
    datasets, examples, images = _read_data(arguments, output, normalisation, model)
    data = examples.data
    parts = _split_examples(arguments, examples)
    split = split_from_indices(data.scans, parts)
    training = data.pick(parts[TRAINING])
    validation = data.pick(parts[VALIDATION]) if parts.get(VALIDATION) else None
    task = Task.from_values(_column(arguments), training.values, arguments.task, arguments.dimensions, images)
    adapter, _ = adapting.adapt(model, task, training, validation, settings, normalisation, name, folder, print, images)
    participants = read_participants(datasets, arguments.raw)
    adapter, message = add_reference(adapter, model, training.scans, participants, arguments.batch_size)
    adapter = replace(adapter, card=replace(adapter.card, research_only=arguments.research_only))
    for other in others:
        adapter = _add_second_head(adapter, arguments, other, output, model, task, split, settings)
    save_adapter(output, adapter)
    write_split(output.with_suffix(".split.tsv"), split)
    if folder is not None:
        write_summary(folder, {"Output": output, "Scans": len(training.scans), **recipe})
    print(message)
    print(f"Wrote {output}: {json.dumps(adapter.card.metrics)}")
    print(
        f"Training and validation participants: {output.with_suffix('.split.tsv')}. To apply the adapter: "
        f"neurostorm BIDS OUT participant --adapter {output}"
    )


def _add_second_head(
    adapter: Adapter,
    arguments: argparse.Namespace,
    normalisation: str,
    output: Path,
    model: Model,
    task: Task,
    split: Split,
    settings: adapting.AdaptSettings,
) -> Adapter:
    """Return the adapter with a second head for another normalisation, trained on the same participants."""
    _, examples, images = _read_data(arguments, output, normalisation, model)
    data = examples.data
    training = data.pick(apply_split(split, data.scans, TRAINING))
    validation = data.pick(apply_split(split, data.scans, VALIDATION)) if split.get(VALIDATION) else None
    name = adapter.card.name
    twin, _ = adapting.adapt(model, task, training, validation, settings, normalisation, name, images=images)
    about = {"normalisation": normalisation, "metrics": twin.card.metrics}
    return replace(adapter, twin=twin.head, card=replace(adapter.card, twin=about))


def _check_adapt_arguments(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.validation < 1:
        raise UsageError(f"Invalid value for --validation: {arguments.validation}.", "Use a value from 0 to below 1.")
    if arguments.normalisation == "both" and arguments.strategy != "linear":
        raise UsageError(
            f"--normalisation both requires --strategy linear, not {arguments.strategy}.",
            "Use --strategy linear, or train two adapters.",
        )
    if is_diagnosis(_column(arguments)) and not arguments.research_only:
        print(
            f"Note: '{_column(arguments)}' may be a diagnosis. If so, use --diagnosis: users of the adapter must then "
            "acknowledge that it is for research only."
        )


def evaluate(arguments: argparse.Namespace) -> None:
    """Cross-validate a strategy and baselines for one or several targets, or evaluate an existing adapter."""
    if arguments.adapter:
        from bids_app.training.external import evaluate_adapter

        evaluate_adapter(arguments)
        return
    arguments.model = arguments.model or DEFAULT_MODEL
    from bids_app.training.evaluation import evaluate as evaluating
    from bids_app.training.evaluation import several
    from bids_app.training.evaluation.report import write_report

    if arguments.workers > 1 and arguments.device != "cpu":
        raise UsageError(f"--workers {arguments.workers} shares processors, not GPUs.", "Use --device cpu, or omit it.")
    complete_from_recipe(arguments, arguments.strategy)
    settings = _evaluate_settings(arguments)
    folders = several.name_folders([arguments.target, *arguments.also_target])
    if arguments.also_target and (arguments.images or arguments.task == EMBEDDING):
        raise UsageError("--also-target is not for embeddings.", "Evaluate each embedding with a command of its own.")
    output = arguments.output or Path(f"{_adapter_name(arguments)}_evaluation")
    atlas, labels = load_atlas_labels(arguments.atlas) if arguments.atlas else (None, None)
    model = _load_encoder(arguments, settings.adaptation)
    base = output / "report.md"
    datasets = _load_datasets(arguments, base, arguments.normalisation, model, list(folders))
    work = []
    for target in folders:  # all labels are read before hours of work
        examples, images = _label(arguments, datasets, target)
        examples = _pick_split(examples, arguments.split) if arguments.split else examples
        column = target.rpartition(":")[2]
        task = Task.from_values(column, examples.data.values, arguments.task, arguments.dimensions, images)
        work.append((target, task, examples, images))
    found, cache = {}, FeatureCache()
    for target, task, examples, images in work:
        found[target] = evaluation = evaluating.evaluate(
            model,
            task,
            examples,
            settings,
            arguments.normalisation,
            images=images,
            labels=labels,
            parcels=atlas.name if atlas else evaluating.CUBES,
            report=print,
            cache=cache,
        )
        evaluation.facts["Recipe"] = describe_recipe(arguments, arguments.strategy)
        for path in write_report(evaluation, output / folders[target] if arguments.also_target else output):
            print(f"Wrote {path}")
        print(evaluation.summary())
    if arguments.also_target:
        for path in several.write_summary(found, folders, output):
            print(f"Wrote {path}")


def _pick_split(examples: Examples, path: Path) -> Examples:
    """Return the examples of the participants of a split, whose sets for training and test have labelled scans."""
    split, scans = read_split(path, examples.families), examples.data.scans
    check_sets(split, path)
    parts = [apply_split(split, scans, part) for part in (TRAINING, TEST)]
    parts += [apply_split(split, scans, VALIDATION)] if VALIDATION in split else []
    return examples.pick(sorted(i for part in parts for i in part))


def _evaluate_settings(arguments: argparse.Namespace) -> EvaluateSettings:
    return EvaluateSettings(
        adaptation=_adapt_settings(arguments),
        folds=arguments.folds,
        baselines=tuple(arguments.baselines),
        permutations=arguments.permutations,
        repeats=arguments.repeats,
        harmonise=arguments.harmonise is not None,
        retrieval=Retrieval(
            arguments.gallery, arguments.across_sessions, arguments.zero_shot, arguments.pool, arguments.seed
        ),
        train_shares=tuple(arguments.train_shares),
        split=read_split(arguments.split) if arguments.split else None,
        seed=arguments.seed,
        workers=arguments.workers,
    )


def _adapt_settings(arguments: argparse.Namespace) -> adapting.AdaptSettings:
    recipe = find_recipe(arguments.recipe)
    return adapting.AdaptSettings(
        strategy=arguments.strategy,
        prompt_len=arguments.prompt_len,
        low_rank=_low_rank_settings(arguments),
        batch_size=arguments.batch_size,
        loop=loop_settings(arguments),
        patience=getattr(arguments, "patience", None),
        ridge=arguments.ridge,
        balance=recipe.balance and not arguments.no_balance,
        precision=PRECISIONS[arguments.precision],
        head_input=recipe.head_input,
        clip_average=recipe.clip_average,
        aligned_starts=recipe.aligned_starts,
        matmul=recipe.matmul,
    )


def _low_rank_settings(arguments: argparse.Namespace) -> LowRankSettings:
    """Return the settings of low-rank updates; their options are errors with another strategy."""
    options = {"rank": arguments.rank, "alpha": arguments.lora_alpha, "targets": arguments.lora_targets}
    given = {name: value for name, value in options.items() if value is not None}
    if given and arguments.strategy != LORA:
        raise UsageError(
            f"--rank, --lora-alpha and --lora-targets require --strategy lora, not {arguments.strategy}.",
            "Use --strategy lora, or omit them.",
        )
    rank = given.get("rank", LowRankSettings.rank)
    targets = tuple(given.get("targets", LowRankSettings.targets))
    return LowRankSettings(rank, given.get("alpha", float(rank)), targets)


def _load_encoder(arguments: argparse.Namespace, settings: adapting.AdaptSettings) -> Model:
    """Load the encoder to adapt, and check that it can be adapted with these settings."""
    model = load_model(arguments.model, arguments.device, with_head=False)
    check_grid(model.config, model.path)
    if settings.strategy == LORA:
        layers, low_rank = check_low_rank(model.encoder, settings.low_rank), settings.low_rank
        print(
            f"Low-rank updates of {len(layers)} linear layers ({', '.join(low_rank.targets)}), rank {low_rank.rank}, "
            f"alpha {low_rank.alpha:g}"
        )
    return model


def _read_data(
    arguments: argparse.Namespace, output: Path, normalisation: str, model: Model
) -> tuple[list[Dataset], Examples, Any]:
    datasets = _load_datasets(arguments, output, normalisation, model, [arguments.target])
    return datasets, *_label(arguments, datasets, arguments.target)


def _load_datasets(
    arguments: argparse.Namespace, output: Path, normalisation: str, model: Model, targets: list[str]
) -> list[Dataset]:
    """Check the tables of all targets, then load the scans."""
    store = arguments.store or output.with_suffix(".clips")
    for target in targets:
        check_labels(arguments.data, target, arguments.raw, arguments.family_column, _site_column(arguments))
    return load_datasets(
        arguments.data,
        store,
        normalisation,
        arguments.nprocs,
        report=print,
        clip_volumes=model.config.img_size[3],
        exclude_failed=arguments.exclude_failed,
    )


def _label(arguments: argparse.Namespace, datasets: list[Dataset], target: str) -> tuple[Examples, Any]:
    """Return the labelled scans of a target, and the image vectors."""
    rule = EventRule(arguments.event_delay, arguments.event_overlap)
    sites = _site_column(arguments)
    examples = label_scans(datasets, target, arguments.raw, rule, arguments.family_column, sites)
    participants = [scan.participant for scan in examples.data.scans]
    task = arguments.task or (EMBEDDING if arguments.images else None)
    for warning in check_values(target.rpartition(":")[2], examples.data.values, participants, task):
        print(warning)
    images = read_images(arguments.images) if arguments.images else None
    if images is not None:
        missing = sorted(set(examples.data.values) - set(images))
        if missing:
            raise BadDataError(
                f"{arguments.images}: {len(missing)} images have no vector: {', '.join(missing[:3])}.",
                "Use the image names of the events.tsv files.",
            )
    return examples, images


def _site_column(arguments: argparse.Namespace) -> str | None:
    return getattr(arguments, "site_column", None)


def _split_examples(arguments: argparse.Namespace, examples: Examples) -> dict[str, list[int]]:
    scans, values = examples.data.scans, examples.data.values
    if arguments.split:
        split = read_split(arguments.split, examples.families)
        check_sets(split, arguments.split)
        return {part: apply_split(split, scans, part) for part in (TRAINING, VALIDATION) if part in split}
    if not arguments.validation:
        return {TRAINING: list(range(len(scans)))}
    strata = values if len(set(values)) <= 10 else None
    first, second = split_participants(scans, arguments.validation, arguments.seed, strata, examples.families)
    return {TRAINING: first, VALIDATION: second}


def _column(arguments: argparse.Namespace) -> str:
    return arguments.target.rpartition(":")[2]


def _adapter_name(arguments: argparse.Namespace) -> str:
    name = arguments.name or "".join(c for c in _column(arguments) if c.isalnum())
    if not NAME.fullmatch(name):
        raise UsageError(f"Invalid value for --name: {name!r}.", f"Use 1 to {MAX_LABEL} letters and digits.")
    return name
