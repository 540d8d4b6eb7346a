"""Commands of ``neurostorm-train``: pretrain, adapt and evaluate."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.checks import check_grid
from bids_app.adapters.file import EMBEDDING, LORA, NAME, Adapter, is_diagnosis, save_adapter
from bids_app.bids.writer import write_tsv
from bids_app.catalog.atlases import Atlas, find_atlas
from bids_app.errors import BadDataError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, parse_json, read_text
from bids_app.model.api import Model, load_autoencoder, load_model
from bids_app.model.checkpoint import MAX_LABEL, save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings
from bids_app.settings import DEFAULT_MODEL
from bids_app.training import adapt as adapting
from bids_app.training import pretrain as pretraining
from bids_app.training.data.examples import (
    Dataset,
    Examples,
    check_labels,
    label_scans,
    load_datasets,
    read_images,
    read_participants,
    read_weights,
)
from bids_app.training.data.labels import EventRule
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.sampling import DatasetWeights
from bids_app.training.data.splits import (
    TEST,
    TRAINING,
    VALIDATION,
    Split,
    apply_split,
    read_split,
    split_from_indices,
    split_participants,
    write_split,
)
from bids_app.training.evaluation.retrieval import Retrieval
from bids_app.training.evaluation.run import EvaluateSettings, FeatureCache
from bids_app.training.loop import LoopSettings, check_state, fabric_for, fingerprint
from bids_app.training.low_rank import LowRankSettings, check_low_rank
from bids_app.training.recipes import PRETRAINING, find_recipe
from bids_app.training.reference import add_reference
from bids_app.training.tasks import Task

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}
BOTH_NORMALISATIONS = ("voxel", "global")
"""Normalisations of the two heads with ``--normalisation both``; the first head gives the prediction."""
WORKERS_OF_GPU = 4
"""Reading processes for each GPU, if there are as many cores."""
UNIFORM = "uniform"
"""Value of ``--dataset-weights`` for equal shares."""
MAX_LISTED_REGIONS = 40
"""Maximum number of unresolved regions to print; the table lists all."""


def pretrain(arguments: argparse.Namespace) -> None:
    """Pre-train an encoder with its decoder, and write both."""
    complete_from_recipe(arguments, PRETRAINING)
    _check_pretrain_arguments(arguments)
    fabric = fabric_for(arguments.device, arguments.processes, PRECISIONS[arguments.precision])
    fabric.launch()
    shard = (fabric.global_rank, fabric.world_size)
    recipe, settings = find_recipe(arguments.recipe), _pretrain_settings(arguments)
    report = print if fabric.is_global_zero else _discard
    model = _autoencoder(arguments)
    check_grid(model.config, arguments.start_from or arguments.config or "the encoder")
    patches, atlas = _atlas(arguments, model.config.patch_size)
    folder = _training_folder(arguments.output)
    regions = {"atlas": str(arguments.atlas), "region_weights": str(arguments.region_weights)}
    if arguments.dataset_weights:
        _check_dataset_weights(arguments)
        regions["dataset_weights"] = " ".join(arguments.dataset_weights)
    facts = settings.facts(
        arguments.batch_size * shard[1], recipe.aligned_starts, normalisation=arguments.normalisation, **regions
    )
    check_state(folder, fingerprint(settings.loop, facts))
    report(f"Recipe: {describe_recipe(arguments, PRETRAINING)}")
    if atlas is not None and patches is not None and fabric.is_global_zero:
        _report_regions(patches, atlas, arguments.atlas_rule, folder)
    datasets = load_datasets(
        arguments.data,
        _store_path(arguments),
        arguments.normalisation,
        arguments.nprocs,
        shard,
        fabric.barrier,
        print,  # each process reports on its own part
        clip_volumes=model.config.img_size[3],
        exclude_failed=arguments.exclude_failed,
    )
    scans = tuple(scan for dataset in datasets for scan in dataset.scans)
    on_gpu = torch.device(arguments.device).type != "cpu"
    workers = (
        arguments.workers
        if arguments.workers is not None
        else min(WORKERS_OF_GPU, len(os.sched_getaffinity(0))) * on_gpu
    )
    batches = ClipBatches(
        scans,
        arguments.batch_size,
        arguments.seed,
        shard=shard,
        aligned_starts=recipe.aligned_starts,
        weights=_dataset_weights(arguments, datasets),
        workers=workers,
        pin=on_gpu and workers > 0,
    )
    weights = _region_weights(arguments, patches)
    rows = pretraining.pretrain(model, batches, settings, folder, patches, report, fabric, weights, facts)
    if fabric.is_global_zero:
        trained_on = {"normalisation": arguments.normalisation, "scans": len(scans), "loss": rows[-1]["loss"]}
        save_encoder(
            arguments.output,
            model.config,
            model.encoder.state_dict(),
            arguments.name,
            decoder=model.decoder_state(),
            info={
                **trained_on,
                "epochs": len(rows),
                "seed": arguments.seed,
                "mask": vars(settings.mask),
                "recipe": describe_recipe(arguments, PRETRAINING),
            },
        )
        report(f"Wrote {arguments.output}")


def _check_dataset_weights(arguments: argparse.Namespace) -> tuple[float, ...]:
    """Return the weight of each dataset.

    Raises
    ------
    UsageError
        There is not one number for each dataset.
    """
    given, n_datasets = arguments.dataset_weights, len(arguments.data)
    if given == [UNIFORM]:
        return (1.0,) * n_datasets
    try:
        weights = tuple(float(text) for text in given)
    except ValueError:
        weights = ()
    if len(weights) != n_datasets:
        raise UsageError(
            f"Invalid value for --dataset-weights: {' '.join(given)}.",
            f"Use {UNIFORM}, or one number for each of the {n_datasets} datasets.",
        )
    return weights


def _dataset_weights(arguments: argparse.Namespace, datasets: list[Dataset]) -> DatasetWeights | None:
    if not arguments.dataset_weights:
        return None
    owners = tuple(number for number, dataset in enumerate(datasets) for _ in dataset.scans)
    return DatasetWeights(owners, _check_dataset_weights(arguments))


def _pretrain_settings(arguments: argparse.Namespace) -> pretraining.PretrainSettings:
    recipe = find_recipe(arguments.recipe)
    wants_strd = recipe.strd is not None if arguments.strd is None else arguments.strd
    return pretraining.PretrainSettings(
        mask=MaskSettings(
            arguments.mask,
            arguments.mask_time,
            arguments.mask_ratio,
            arguments.atlas_rule,
            redraw=arguments.atlas_redraw,
            count=arguments.atlas_count,
        ),
        strd=(5, 5) if wants_strd else None,
        loop=_loop_settings(arguments),
        augment=None if arguments.no_augment else recipe.augment,
        checkpointing=arguments.checkpointing,
        matmul=recipe.matmul,
    )


def complete_from_recipe(arguments: argparse.Namespace, method: str) -> None:
    """Set the options that were not given to the values of the recipe, and note the others in ``changed``.

    Parameters
    ----------
    arguments : argparse.Namespace
    method : str
        What is trained: `PRETRAINING`, or a strategy of adaptation.
    """
    recipe = find_recipe(arguments.recipe)
    values = {
        "epochs": recipe.epochs[method],
        "learning_rate": recipe.learning_rates[method],
        "batch_size": recipe.batch_size,
        "normalisation": "global" if method == PRETRAINING else recipe.normalisation,
    }
    arguments.changed = [name for name, value in values.items() if getattr(arguments, name) not in (None, value)]
    for name, value in values.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def describe_recipe(arguments: argparse.Namespace, method: str) -> str:
    """Describe the recipe of a command and its changes: ``published, with learning_rate 0.001``."""
    recipe = find_recipe(arguments.recipe)
    changes = [f"{name} {getattr(arguments, name)}" for name in arguments.changed]
    if method == PRETRAINING:
        changes += ["no augmentation"] if arguments.no_augment else []
        changes += ["strd"] if arguments.strd and recipe.strd is None else []
        changes += ["no strd"] if arguments.strd is False and recipe.strd is not None else []
    elif recipe.balance and arguments.no_balance:
        changes.append("classes not weighted")
    changes += [f"accumulate {arguments.accumulate}"] if arguments.accumulate != 1 else []
    changes += [f"precision {arguments.precision}"] if arguments.precision != "float32" else []
    return f"{arguments.recipe}{', with ' + ', '.join(changes) if changes else ''}"


def _discard(_: str) -> None:
    """Discard the messages of all processes except the first."""


def _check_pretrain_arguments(arguments: argparse.Namespace) -> None:
    if (arguments.mask == "atlas" or arguments.region_weights) and arguments.atlas is None:
        raise UsageError("--mask atlas and --region-weights require --atlas.", "Use --atlas aal3 or a label image.")
    if arguments.start_from and arguments.config:
        raise UsageError("--start-from and --config are mutually exclusive.", "Omit one of them.")
    if arguments.processes < 1:
        raise UsageError(f"Invalid value for --processes: {arguments.processes}.", "Use at least 1.")


def _autoencoder(arguments: argparse.Namespace) -> MaskedAutoencoder:
    torch.manual_seed(arguments.seed)
    if arguments.start_from:
        return load_autoencoder(arguments.start_from, "cpu")
    config = EncoderConfig.from_dict(_read_json(arguments.config)) if arguments.config else EncoderConfig()
    return MaskedAutoencoder(config)


def _atlas(arguments: argparse.Namespace, patch: tuple[int, int, int, int]) -> tuple[AtlasPatches | None, Atlas | None]:
    if arguments.atlas is None:
        return None, None
    atlas, labels = load_atlas_labels(arguments.atlas)
    return AtlasPatches.from_volume(torch.from_numpy(labels), patch[:3]), atlas


def load_atlas_labels(name: str) -> tuple[Atlas, Any]:
    """Load an atlas by name or file, with its labels on the model grid."""
    from bids_app.clips import labels_to_model_grid
    from bids_app.preprocess.io.headers import load_nifti

    atlas = find_atlas(name)
    return atlas, labels_to_model_grid(load_nifti(atlas.path))


def _region_weights(arguments: argparse.Namespace, patches: AtlasPatches | None) -> torch.Tensor | None:
    if arguments.region_weights is None or patches is None:
        return None
    if arguments.region_weights == "alike":
        return pretraining.region_weights(patches)
    return pretraining.region_weights(patches, read_weights(Path(arguments.region_weights)))


def _report_regions(patches: AtlasPatches, atlas: Atlas, rule: str, folder: Path) -> None:
    """Write the table of regions, and print the regions without patches."""
    rows = pretraining.count_region_patches(patches, rule, atlas.names)
    table = folder / "regions.tsv"
    write_tsv(table, {key: [row[key] for row in rows] for key in rows[0]})
    unresolved = [row for row in rows if not row["resolved"]]
    single = sum(row["patches"] == 1 for row in rows)
    print(
        f"{atlas.name} under the rule {rule}: {len(rows) - len(unresolved)} of {len(rows)} regions have patches, "
        f"{single} of them a single patch; see {table}"
    )
    if unresolved:
        print("Regions without patches, too small for the token grid:")
        for row in unresolved[:MAX_LISTED_REGIONS]:
            print(f"  {row['index']:>5}  {row['name']}")
        if len(unresolved) > MAX_LISTED_REGIONS:
            print(f"  and {len(unresolved) - MAX_LISTED_REGIONS} more")


def adapt(arguments: argparse.Namespace) -> None:
    """Train an adapter, and write it with its split."""
    complete_from_recipe(arguments, arguments.strategy)
    _check_adapt_arguments(arguments)
    settings = _adapt_settings(arguments)
    name = _adapter_name(arguments)
    output = arguments.output or Path(f"{name}.safetensors")
    model = _load_encoder(arguments, settings)
    normalisation, *others = BOTH_NORMALISATIONS if arguments.normalisation == "both" else (arguments.normalisation,)
    folder = None if arguments.strategy == "linear" else _training_folder(output)
    if folder is not None:
        facts = settings.facts(model, normalisation, _column(arguments))
        check_state(folder, fingerprint(settings.loop, facts))
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
    _check_sets(split, path)
    parts = [apply_split(split, scans, part) for part in (TRAINING, TEST)]
    parts += [apply_split(split, scans, VALIDATION)] if VALIDATION in split else []
    return examples.pick(sorted(i for part in parts for i in part))


def _check_sets(split: Split, path: Path) -> None:
    """Check the names of the sets of a split.

    Raises
    ------
    BadDataError
        A set has another name, or there is none for training.
    """
    wanted = f"Use {TRAINING}, {VALIDATION} and {TEST}."
    if unknown := set(split) - {TRAINING, VALIDATION, TEST}:
        raise BadDataError(f"{path}: unknown set: {min(unknown)}.", wanted)
    if TRAINING not in split:
        raise BadDataError(f"{path}: no set {TRAINING}.", wanted)


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
    )


def _adapt_settings(arguments: argparse.Namespace) -> adapting.AdaptSettings:
    recipe = find_recipe(arguments.recipe)
    return adapting.AdaptSettings(
        strategy=arguments.strategy,
        prompt_len=arguments.prompt_len,
        low_rank=_low_rank_settings(arguments),
        batch_size=arguments.batch_size,
        loop=_loop_settings(arguments),
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
        _check_sets(split, arguments.split)
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


def _loop_settings(arguments: argparse.Namespace) -> LoopSettings:
    return replace(
        find_recipe(arguments.recipe).loop,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        accumulate=arguments.accumulate,
        seed=arguments.seed,
    )


def _store_path(arguments: argparse.Namespace) -> Path:
    return arguments.store or arguments.output.with_suffix(".clips")


def _training_folder(output: Path) -> Path:
    """Return the folder for log and state, next to the output."""
    return output.with_suffix(".training")


def _read_json(path: Path) -> dict[str, Any]:
    return parse_json(read_text(path, MAX_OPTIONS_BYTES), str(path))
