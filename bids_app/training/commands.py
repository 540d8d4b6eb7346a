"""What ``neurostorm-train`` does with its arguments: pre-train, adapt, evaluate."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.file import Adapter, is_diagnosis, save_adapter
from bids_app.bids.writer import write_tsv
from bids_app.catalog.atlases import Atlas, find_atlas
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.model.api import Model, load_autoencoder, load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings
from bids_app.training import adapt as adapting
from bids_app.training import pretrain as pretraining
from bids_app.training.data.examples import Dataset, Examples, ask, gather, participants_of, read_images, read_weights
from bids_app.training.data.labels import EventRule
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.splits import (
    TRAINING,
    VALIDATION,
    Split,
    apply_split,
    as_split,
    read_split,
    split_participants,
    write_split,
)
from bids_app.training.loop import LoopSettings, fabric_for
from bids_app.training.reference import with_reference
from bids_app.training.tasks import Question

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}
BOTH = ("voxel", "global")
"""Under which heads stand side by side with ``--normalisation both``; the first one's answer is the adapter's."""
SHOWN = 40
"""Regions that are listed one by one; the rest is in the table."""


def pretrain(arguments: argparse.Namespace) -> None:
    """Train an encoder and its decoder, and write them."""
    _check_pretraining(arguments)
    fabric = fabric_for(arguments.device, arguments.processes, PRECISIONS[arguments.precision])
    fabric.launch()
    share = (fabric.global_rank, fabric.world_size)
    say = print if fabric.is_global_zero else _silent
    model = _autoencoder(arguments)
    patches, atlas = _atlas(arguments, model.config.patch_size)
    folder = _folder(arguments.output)
    if atlas is not None and patches is not None and fabric.is_global_zero:
        _report_regions(patches, atlas, arguments.atlas_rule, folder)
    datasets = gather(
        arguments.data,
        _store(arguments),
        arguments.normalisation,
        arguments.nprocs,
        share,
        fabric.barrier,
        say,
    )
    scans = tuple(scan for dataset in datasets for scan in dataset.scans)
    settings = pretraining.PretrainSettings(
        mask=MaskSettings(arguments.mask, arguments.mask_time, arguments.mask_ratio, arguments.atlas_rule),
        strd=None if arguments.no_strd else (5, 5),
        loop=_loop(arguments),
        checkpointing=arguments.checkpointing,
    )
    if arguments.no_augment:
        settings = replace(settings, augment=None)
    batches = ClipBatches(scans, arguments.batch_size, arguments.seed, share=share)
    weights = _region_weights(arguments, patches)
    rows = pretraining.pretrain(model, batches, settings, folder, patches, say, fabric, weights)
    if fabric.is_global_zero:
        facts = {"normalisation": arguments.normalisation, "scans": len(scans), "loss": rows[-1]["loss"]}
        save_encoder(
            arguments.output,
            model.config,
            model.encoder.state_dict(),
            arguments.name,
            decoder=model.decoder_state(),
            info={**facts, "epochs": len(rows), "seed": arguments.seed, "mask": vars(settings.mask)},
        )
        say(f"Wrote {arguments.output}")


def _silent(_: str) -> None:
    """What other processes than the first say."""


def _check_pretraining(arguments: argparse.Namespace) -> None:
    if (arguments.mask == "atlas" or arguments.region_weights) and arguments.atlas is None:
        raise UsageError("Masks and weights by region need an atlas.", "Name one with --atlas: aal3, or a label image.")
    if arguments.start_from and arguments.config:
        raise UsageError("--start-from and --config exclude each other.", "The weights bring their configuration.")
    if arguments.processes < 1:
        raise UsageError(f"--processes is {arguments.processes}.", "1 or more.")


def _autoencoder(arguments: argparse.Namespace) -> MaskedAutoencoder:
    torch.manual_seed(arguments.seed)
    if arguments.start_from:
        return load_autoencoder(arguments.start_from, "cpu")
    config = EncoderConfig.from_dict(_read_json(arguments.config)) if arguments.config else EncoderConfig()
    return MaskedAutoencoder(config)


def _atlas(arguments: argparse.Namespace, patch: tuple[int, int, int, int]) -> tuple[AtlasPatches | None, Atlas | None]:
    if arguments.atlas is None:
        return None, None
    atlas, labels = load_labels(arguments.atlas)
    return AtlasPatches.from_volume(torch.from_numpy(labels), patch[:3]), atlas


def load_labels(name: str) -> tuple[Atlas, Any]:
    """An atlas by name or file, and its labels on the model grid."""
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
    """Print which regions the token grid cannot resolve, and keep the table of all."""
    rows = pretraining.regions_report(patches, rule, atlas.names)
    table = folder / "regions.tsv"
    write_tsv(table, {key: [row[key] for row in rows] for key in rows[0]})
    lost = [row for row in rows if not row["resolved"]]
    single = sum(row["patches"] == 1 for row in rows)
    print(
        f"{atlas.name} under the rule {rule}: {len(rows) - len(lost)} of {len(rows)} regions have patches of their "
        f"own, {single} of them a single one; the table is {table}"
    )
    if lost:
        print("The token grid cannot resolve:")
        for row in lost[:SHOWN]:
            print(f"  {row['index']:>5}  {row['name']}")
        if len(lost) > SHOWN:
            print(f"  and {len(lost) - SHOWN} more")


def adapt(arguments: argparse.Namespace) -> None:
    """Train an adapter, and write it with the split it was trained on."""
    _check_adapting(arguments)
    settings = _adaptation(arguments)
    name = _name(arguments)
    output = arguments.output or Path(f"{name}.safetensors")
    model = load_model(arguments.model, arguments.device)
    normalisation, *others = BOTH if arguments.normalisation == "both" else (arguments.normalisation,)
    datasets, examples, images = _examples(arguments, output, normalisation)
    data = examples.data
    parts = _split(arguments, examples)
    split = as_split(data.scans, parts)
    training = data.pick(parts[TRAINING])
    validation = data.pick(parts[VALIDATION]) if parts.get(VALIDATION) else None
    question = Question.about(_column(arguments), training.values, arguments.task, arguments.dimensions, images)
    folder = None if arguments.strategy == "linear" else _folder(output)
    adapter, _ = adapting.adapt(
        model, question, training, validation, settings, normalisation, name, folder, print, images
    )
    people = participants_of(datasets, arguments.raw)
    adapter, told = with_reference(adapter, model, training.scans, people, arguments.batch_size)
    adapter = replace(adapter, card=replace(adapter.card, research_only=arguments.research_only))
    for other in others:
        adapter = _with_twin(adapter, arguments, other, output, model, question, split, settings)
    save_adapter(output, adapter)
    write_split(output.with_suffix(".split.tsv"), split)
    print(told)
    print(f"Wrote {output}: {json.dumps(adapter.card.metrics)}")
    print(
        f"Who trained and who validated: {output.with_suffix('.split.tsv')}. Apply it: neurostorm BIDS OUT participant "
        f"--adapter {output}"
    )


def _with_twin(
    adapter: Adapter,
    arguments: argparse.Namespace,
    normalisation: str,
    output: Path,
    model: Model,
    question: Question,
    split: Split,
    settings: adapting.AdaptSettings,
) -> Adapter:
    """The same adapter with a second head, for clips under another normalisation of the same participants' scans."""
    _, examples, images = _examples(arguments, output, normalisation)
    data = examples.data
    training = data.pick(apply_split(split, data.scans, TRAINING))
    validation = data.pick(apply_split(split, data.scans, VALIDATION)) if split.get(VALIDATION) else None
    name = adapter.card.name
    twin, _ = adapting.adapt(model, question, training, validation, settings, normalisation, name, images=images)
    about = {"normalisation": normalisation, "metrics": twin.card.metrics}
    return replace(adapter, twin=twin.head, card=replace(adapter.card, twin=about))


def _check_adapting(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.validation < 1:
        raise UsageError(f"--validation is {arguments.validation}.", "Give a share from 0 to below 1.")
    if arguments.normalisation == "both" and arguments.strategy != "linear":
        raise UsageError(
            f"--normalisation both with the strategy {arguments.strategy}: only heads can stand side by side.",
            "Give --strategy linear, or train two adapters.",
        )
    if is_diagnosis(_column(arguments)) and not arguments.research_only:
        print(
            f"Note: '{_column(arguments)}' sounds like a diagnosis. If it is one, give --diagnosis: the adapter is "
            "then applied only by who acknowledges that it is for research."
        )


def evaluate(arguments: argparse.Namespace) -> None:
    """Cross-validate a strategy beside baselines, and write the report."""
    from bids_app.training.evaluation import evaluate as evaluating
    from bids_app.training.evaluation.report import write_report

    settings = evaluating.EvaluateSettings(
        adaptation=_adaptation(arguments),
        folds=arguments.folds,
        baselines=tuple(arguments.baselines),
        permutations=arguments.permutations,
        draws=arguments.draws,
        pool=arguments.pool,
        seed=arguments.seed,
    )
    output = arguments.output or Path(f"{_name(arguments)}_evaluation")
    atlas, labels = load_labels(arguments.atlas) if arguments.atlas else (None, None)
    model = load_model(arguments.model, arguments.device)
    _, examples, images = _examples(arguments, output / "report.md", arguments.normalisation)
    kind = Question.about(_column(arguments), examples.data.values, arguments.task, arguments.dimensions, images)
    found = evaluating.evaluate(
        model,
        kind,
        examples,
        settings,
        arguments.normalisation,
        images=images,
        labels=labels,
        parcels=atlas.name if atlas else evaluating.CUBES,
        say=print,
    )
    for path in write_report(found, output):
        print(f"Wrote {path}")
    print(found.verdict())


def _adaptation(arguments: argparse.Namespace) -> adapting.AdaptSettings:
    return adapting.AdaptSettings(
        strategy=arguments.strategy,
        prompt_len=arguments.prompt_len,
        batch_size=arguments.batch_size,
        loop=_loop(arguments),
        patience=getattr(arguments, "patience", None),
        ridge=arguments.ridge,
        balance=not arguments.no_balance,
        precision=PRECISIONS[arguments.precision],
    )


def _examples(arguments: argparse.Namespace, output: Path, normalisation: str) -> tuple[list[Dataset], Examples, Any]:
    store = arguments.store or output.with_suffix(".clips")
    datasets = gather(arguments.data, store, normalisation, arguments.nprocs, say=print)
    rule = EventRule(arguments.event_delay, arguments.event_overlap)
    sites = getattr(arguments, "site_column", None)
    examples = ask(datasets, arguments.target, arguments.raw, rule, arguments.family_column, sites)
    images = read_images(arguments.images) if arguments.images else None
    if images is not None:
        missing = sorted(set(examples.data.values) - set(images))
        if missing:
            raise BadDataError(
                f"{arguments.images}: has no vector of {len(missing)} images, {', '.join(missing[:3])} among them.",
                "Name them as the events do.",
            )
    return datasets, examples, images


def _split(arguments: argparse.Namespace, examples: Examples) -> dict[str, list[int]]:
    scans, values = examples.data.scans, examples.data.values
    if arguments.split:
        split = read_split(arguments.split, examples.families)
        return {part: apply_split(split, scans, part) for part in (TRAINING, VALIDATION) if part in split}
    if not arguments.validation:
        return {TRAINING: list(range(len(scans)))}
    strata = values if len(set(values)) <= 10 else None
    first, second = split_participants(scans, arguments.validation, arguments.seed, strata, examples.families)
    return {TRAINING: first, VALIDATION: second}


def _column(arguments: argparse.Namespace) -> str:
    return arguments.target.rpartition(":")[2]


def _name(arguments: argparse.Namespace) -> str:
    name = arguments.name or "".join(c for c in _column(arguments) if c.isalnum())
    if not (name.isalnum() and name.isascii()):
        raise UsageError(f"--name is {name!r}.", "Letters and digits only: it becomes a part of file names.")
    return name


def _loop(arguments: argparse.Namespace) -> LoopSettings:
    return LoopSettings(
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        accumulate=arguments.accumulate,
        seed=arguments.seed,
    )


def _store(arguments: argparse.Namespace) -> Path:
    return arguments.store or arguments.output.with_suffix(".clips")


def _folder(output: Path) -> Path:
    """Where log and state are kept: beside the output."""
    return output.with_suffix(".training")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read ({error.strerror}).", "Check --config.") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON ({error}).", "See EncoderConfig for its fields.") from error
