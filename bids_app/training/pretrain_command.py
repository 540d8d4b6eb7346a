"""Command ``neurostorm-train pretrain``, in one process or in one per device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bids_app.adapters.checks import check_grid
from bids_app.bids.writer import write_tsv
from bids_app.catalog.atlases import Atlas
from bids_app.errors import BadDataError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, parse_json, read_text
from bids_app.model.api import load_autoencoder
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import AtlasPatches, MaskSettings
from bids_app.training import pretrain as pretraining
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
from bids_app.training.data.examples import Dataset, load_datasets, read_weights
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.places import is_url
from bids_app.training.data.sampling import DatasetWeights
from bids_app.training.data.scan import Scan
from bids_app.training.data.splits import TRAINING, VALIDATION, split_from_indices, split_participants, write_split
from bids_app.training.logs import check_loggers, make_loggers
from bids_app.training.processes import (
    FSDP,
    Layout,
    check_agreement,
    check_devices,
    fabric_for,
    find_layout,
    lost_processes,
    on_first,
)
from bids_app.training.recipes import PRETRAINING, find_recipe
from bids_app.training.state import STATE, Checkpoints, State, check_state, describe_data, fingerprint, read_state
from bids_app.training.summary import write_summary
from bids_app.workflow.locks import Locks

WORKERS_OF_GPU = 4
"""Reading processes for each GPU, if there are as many cores."""
UNIFORM = "uniform"
"""Value of ``--dataset-weights`` for equal shares."""
MAX_LISTED_REGIONS = 40
"""Maximum number of unresolved regions to print; the table lists all."""


def pretrain(arguments: argparse.Namespace) -> None:
    """Pre-train an encoder with its decoder, and write both."""
    complete_from_recipe(arguments, PRETRAINING)
    layout = _check_pretrain_arguments(arguments)
    fabric = fabric_for(arguments.device, layout, PRECISIONS[arguments.precision], arguments.strategy)
    with lost_processes(fabric), Locks(LOCKED) as locks:
        fabric.launch()
        _pretrain(arguments, fabric, layout, locks)


def _pretrain(arguments: argparse.Namespace, fabric: Any, layout: Layout, locks: Locks) -> None:
    shard = (fabric.global_rank, fabric.world_size)
    recipe, settings = find_recipe(arguments.recipe), _pretrain_settings(arguments)
    report = print if fabric.is_global_zero else _discard
    model = _autoencoder(arguments)
    check_grid(model.config, arguments.start_from or arguments.config or "the encoder")
    patches, atlas = _atlas(arguments, model.config.patch_size)
    folder = training_folder(arguments.output)
    facts = _facts(arguments, settings, shard[1])
    fingerprints = fingerprint(settings.loop, facts)
    data = [str(place if is_url(place) else Path(place).resolve()) for place in arguments.data]
    paths = {"output": str(arguments.output.resolve()), "data": data}
    check_agreement(fabric, fingerprints | paths)

    def begin() -> None:
        check_state(folder, fingerprints, before_loading=True)
        locks.acquire(folder / LOCK)

    on_first(fabric, begin)
    report(f"Recipe: {describe_recipe(arguments, PRETRAINING)}")
    report(f"Processes: {layout.describe()}")
    if atlas is not None and patches is not None and fabric.is_global_zero:
        _report_regions(patches, atlas, arguments.atlas_rule, folder)
    training, held_out, shares = _load_scans(arguments, fabric, model.config.img_size[3], folder)
    facts["scans"] = describe_data(training)
    on_gpu = torch.device(arguments.device).type != "cpu"
    workers = _count_workers(arguments.workers, on_gpu)
    batches = ClipBatches(
        training,
        arguments.batch_size,
        arguments.seed,
        shard=shard,
        aligned_starts=recipe.aligned_starts,
        weights=shares,
        workers=workers,
        pin=on_gpu and workers > 0,
    )
    about = {
        "normalisation": arguments.normalisation,
        "scans": len(training),
        "seed": arguments.seed,
        "mask": vars(settings.mask),
        "recipe": describe_recipe(arguments, PRETRAINING),
    }
    export = partial(_export, model=model, name=arguments.name, about=about)
    shown = {"Output": arguments.output, "Processes": layout.describe(), "Scans": len(training),
             "Held-out scans": len(held_out), **fingerprints}  # fmt: skip

    def after_epoch(line: str) -> None:
        print(line)
        write_summary(folder, shown)

    try:
        rows = pretraining.pretrain(
            model,
            batches,
            settings,
            folder,
            patches,
            after_epoch,
            fabric,
            _region_weights(arguments, patches),
            facts,
            held_out,
            Checkpoints(export, arguments.checkpoint_steps),
            partial(make_loggers, arguments.logger, folder, fingerprints),
        )
    except BadDataError as error:
        if fabric.is_global_zero:
            write_summary(folder, shown, str(error))
        raise
    if fabric.is_global_zero:
        weights = read_state(folder / STATE)["model"]
        export(arguments.output, weights, loss=rows[-1]["loss"], epochs=len(rows))
        write_summary(folder, shown)
        report(f"Wrote {arguments.output}")


def _facts(arguments: argparse.Namespace, settings: pretraining.PretrainSettings, world_size: int) -> dict[str, Any]:
    """Return what determines the results beside the loop."""
    more = {"strategy": FSDP} if arguments.strategy == FSDP else {}  # the state has another form
    if arguments.dataset_weights:
        more["dataset_weights"] = " ".join(arguments.dataset_weights)
    return settings.facts(
        arguments.batch_size * world_size,
        find_recipe(arguments.recipe).aligned_starts,
        normalisation=arguments.normalisation,
        atlas=str(arguments.atlas),
        region_weights=str(arguments.region_weights),
        validation_share=arguments.validation_share,
        **more,
    )


def _load_scans(
    arguments: argparse.Namespace, fabric: Any, clip_volumes: int, folder: Path
) -> tuple[tuple[Scan, ...], tuple[Scan, ...], DatasetWeights | None]:
    """Load the scans to train with, those of held-out participants, and the shares of datasets in training."""
    datasets = load_datasets(
        arguments.data,
        arguments.store or arguments.output.with_suffix(".clips"),
        arguments.normalisation,
        arguments.nprocs,
        (fabric.global_rank, fabric.world_size),
        fabric.barrier,
        print,  # each process reports on its own part
        clip_volumes=clip_volumes,
        exclude_failed=arguments.exclude_failed,
        name_copies=False,  # there is no score that copies would raise
    )
    scans = tuple(scan for dataset in datasets for scan in dataset.scans)
    if not arguments.validation_share:
        return scans, (), _dataset_weights(arguments, datasets, range(len(scans)))
    first, second = split_participants(scans, arguments.validation_share, arguments.seed)
    if fabric.is_global_zero:
        split = split_from_indices(scans, {TRAINING: first, VALIDATION: second})
        write_split(folder / "split.tsv", split)
    held_out = tuple(scans[i] for i in second)
    if not any(scan.n_clips for scan in held_out):
        raise BadDataError("All held-out scans are shorter than a clip.", "Raise --validation-share.")
    return tuple(scans[i] for i in first), held_out, _dataset_weights(arguments, datasets, first)


def _count_workers(given: int | None, on_gpu: bool) -> int:
    """Return the number of reading processes; on a CPU, by default, a thread reads."""
    if given is not None:
        return given
    return min(WORKERS_OF_GPU, len(os.sched_getaffinity(0))) if on_gpu else 0


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


def _dataset_weights(
    arguments: argparse.Namespace, datasets: list[Dataset], used: Iterable[int]
) -> DatasetWeights | None:
    """Return the shares of datasets among the scans with these indices; None without ``--dataset-weights``."""
    if not arguments.dataset_weights:
        return None
    owners = [number for number, dataset in enumerate(datasets) for _ in dataset.scans]
    return DatasetWeights(tuple(owners[i] for i in used), _check_dataset_weights(arguments))


def _export(
    path: Path, weights: State, *, model: MaskedAutoencoder, name: str, about: dict[str, Any], **more: Any
) -> None:
    """Write weights of the autoencoder to a file for other commands."""
    encoder = {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
    decoder = {key: value for key, value in weights.items() if not key.startswith("encoder.")}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(path, model.config, encoder, name, decoder=decoder, info=about | more)


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
        loop=loop_settings(arguments),
        augment=None if arguments.no_augment else recipe.augment,
        checkpointing=arguments.checkpointing,
        matmul=recipe.matmul,
    )


def _discard(_: str) -> None:
    """Discard the messages of all processes except the first."""


def _check_pretrain_arguments(arguments: argparse.Namespace) -> Layout:
    """Check the options before anything is written, and return the processes of the run."""
    if (arguments.mask == "atlas" or arguments.region_weights) and arguments.atlas is None:
        raise UsageError("--mask atlas and --region-weights require --atlas.", "Use --atlas aal3 or a label image.")
    if arguments.mask != "atlas" and (arguments.atlas_redraw or arguments.atlas_count != "regions"):
        raise UsageError(
            f"--atlas-redraw and --atlas-count have no effect with --mask {arguments.mask}.",
            "Use --mask atlas, or omit them.",
        )
    if arguments.start_from and arguments.config:
        raise UsageError("--start-from and --config are mutually exclusive.", "Omit one of them.")
    if not 0 <= arguments.validation_share < 1:
        raise UsageError(
            f"Invalid value for --validation-share: {arguments.validation_share}.", "Use a value from 0 to below 1."
        )
    if arguments.dataset_weights:
        _check_dataset_weights(arguments)
    check_loggers(arguments.logger)
    layout = find_layout(arguments.nodes, arguments.devices)
    check_devices(arguments.device, layout, arguments.strategy, arguments.precision)
    return layout


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


def _read_json(path: Path) -> dict[str, Any]:
    return parse_json(read_text(path, MAX_OPTIONS_BYTES), str(path))
