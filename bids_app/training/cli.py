"""``neurostorm-train``: arguments in, weights or an adapter out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_app.errors import EXIT_OK, NeurostormError, UsageError

STRATEGIES = ("linear", "ln", "prompt", "prompt_ln", "full")  # as in bids_app.adapters.file, which needs torch


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="neurostorm-train", description="Pre-train an encoder, or adapt one to a question, with your own scans."
    )
    commands = p.add_subparsers(dest="command", required=True)
    _add_pretrain(
        commands.add_parser("pretrain", help="train an encoder by hiding parts of clips (masked autoencoder)")
    )
    _add_adapt(commands.add_parser("adapt", help="train an adapter: prompts, norms, head, or everything"))
    return p


def _add_pretrain(p: argparse.ArgumentParser) -> None:
    _add_common(p, epochs=30, batch_size=8, learning_rate=5e-5, normalisation="global")
    p.add_argument("--start-from", metavar="MODEL", help="weights with a decoder to go on from (default: random)")
    p.add_argument("--config", type=Path, metavar="JSON", help="encoder configuration (default: the published one)")
    p.add_argument("--name", default="pretrained", help="what the model is called in outputs")
    p.add_argument("--mask", choices=("random", "window", "atlas"), default="window", help="what is hidden in space")
    p.add_argument("--mask-time", choices=("random", "tube"), default="random", help="and in time")
    p.add_argument("--mask-ratio", type=float, default=0.5, metavar="R", help="share that is hidden")
    p.add_argument("--atlas", type=Path, metavar="NIFTI", help="label image in the model's space, for --mask atlas")
    p.add_argument("--atlas-rule", choices=("any", "majority", "pure", "soft"), default="majority")
    p.add_argument("--no-strd", action="store_true", help="without spatio-temporal redundancy dropout")


def _add_adapt(p: argparse.ArgumentParser) -> None:
    _add_common(p, epochs=10, batch_size=8, learning_rate=1e-3, normalisation="voxel")
    p.add_argument("--model", required=True, help="encoder: a name of the catalog, or a file")
    p.add_argument("--target", required=True, metavar="TABLE:COLUMN", help="participants.tsv:sex, scan:task, ...")
    p.add_argument("--task", choices=("classification", "regression"), help="default: by the values")
    p.add_argument("--strategy", choices=STRATEGIES, default="prompt", help="what is trained beside the head")
    p.add_argument("--prompt-len", type=int, default=50, metavar="K", help="prompts in front of each window")
    p.add_argument("--validation", type=float, default=0.2, metavar="SHARE", help="of the participants; 0: none")
    p.add_argument("--patience", type=int, metavar="N", help="stop after so many epochs without a better one")
    p.add_argument("--no-balance", action="store_true", help="do not make up for classes of different size")
    p.add_argument("--name", help="of the adapter, letters and digits (default: the column's)")


def _add_common(
    p: argparse.ArgumentParser, epochs: int, batch_size: int, learning_rate: float, normalisation: str
) -> None:
    p.add_argument("data", nargs="+", type=Path, help="derivatives with series in a template's space, or clip stores")
    p.add_argument("--output", required=True, type=Path, metavar="FILE", help="safetensors file to write")
    p.add_argument("--store", type=Path, metavar="DIR", help="where prepared clips go (default: beside the output)")
    p.add_argument("--normalisation", choices=("global", "voxel"), default=normalisation, help="of clips")
    p.add_argument("--epochs", type=int, default=epochs, metavar="N")
    p.add_argument("--batch-size", type=int, default=batch_size, metavar="N")
    p.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches to one step")
    p.add_argument("--learning-rate", type=float, default=learning_rate, metavar="R")
    p.add_argument("--seed", type=int, default=0, metavar="S")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        {"pretrain": _pretrain, "adapt": _adapt}[arguments.command](arguments)
    except NeurostormError as error:
        print(f"neurostorm-train: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def _pretrain(arguments: argparse.Namespace) -> None:
    import torch

    from bids_app.model.api import load_autoencoder
    from bids_app.model.checkpoint import save_encoder
    from bids_app.model.encoder import EncoderConfig
    from bids_app.model.mae import MaskedAutoencoder
    from bids_app.model.masking import MaskSettings
    from bids_app.training.data import ClipBatches
    from bids_app.training.pretrain import PretrainSettings, pretrain

    if arguments.mask == "atlas" and arguments.atlas is None:
        raise UsageError("--mask atlas needs an atlas.", "Name a label image with --atlas.")
    if arguments.start_from and arguments.config:
        raise UsageError("--start-from and --config exclude each other.", "The weights bring their configuration.")
    scans = [scan for _, found in _gather(arguments) for scan in found]
    torch.manual_seed(arguments.seed)
    if arguments.start_from:
        model = load_autoencoder(arguments.start_from, arguments.device)
    else:
        config = EncoderConfig.from_dict(_read_json(arguments.config)) if arguments.config else EncoderConfig()
        model = MaskedAutoencoder(config).to(arguments.device)
    settings = PretrainSettings(
        mask=MaskSettings(arguments.mask, arguments.mask_time, arguments.mask_ratio, arguments.atlas_rule),
        strd=None if arguments.no_strd else (5, 5),
        loop=_loop(arguments),
    )
    batches = ClipBatches(tuple(scans), arguments.batch_size, arguments.seed)
    rows = pretrain(model, batches, settings, _folder(arguments), _atlas(arguments, model.config.patch_size), print)
    info = {"normalisation": arguments.normalisation, "scans": len(scans), "loss": rows[-1]["loss"]}
    save_encoder(
        arguments.output,
        model.config,
        model.encoder.state_dict(),
        arguments.name,
        decoder=model.decoder_state(),
        info={**info, "epochs": len(rows), "seed": arguments.seed},
    )
    print(f"Wrote {arguments.output}")


def _adapt(arguments: argparse.Namespace) -> None:
    from bids_app.adapters.file import save_adapter
    from bids_app.model.api import load_model
    from bids_app.training.adapt import AdaptSettings, Labelled, adapt
    from bids_app.training.labels import Target
    from bids_app.training.question import Question
    from bids_app.training.splits import split_participants

    settings = AdaptSettings(
        strategy=arguments.strategy,
        prompt_len=arguments.prompt_len,
        batch_size=arguments.batch_size,
        loop=_loop(arguments),
        patience=arguments.patience,
        balance=not arguments.no_balance,
    )
    if not 0 <= arguments.validation < 1:
        raise UsageError(f"--validation is {arguments.validation}.", "Give a share from 0 to below 1.")
    model = load_model(arguments.model, arguments.device)
    pairs = []
    for dataset, scans in _gather(arguments):
        values = Target.parse(arguments.target, dataset).of(scans)
        pairs += [(scan, value) for scan, value in zip(scans, values, strict=True) if value is not None]
    data = Labelled(tuple(scan for scan, _ in pairs), tuple(value for _, value in pairs))
    column = arguments.target.rpartition(":")[2]
    training, validation = data, None
    if arguments.validation:
        is_few = len(set(data.values)) <= 10
        chosen = split_participants(data.scans, arguments.validation, arguments.seed, data.values if is_few else None)
        training, validation = data.pick(chosen[0]), data.pick(chosen[1])
    question = Question.about(column, training.values, arguments.task)
    name = arguments.name or "".join(c for c in column if c.isalnum())
    folder = None if arguments.strategy == "linear" else _folder(arguments)
    adapter, _ = adapt(model, question, training, validation, settings, arguments.normalisation, name, folder, print)
    save_adapter(arguments.output, adapter)
    print(f"Wrote {arguments.output}: {json.dumps(adapter.card.metrics)}")


def _gather(arguments: argparse.Namespace) -> list[tuple[Path, list[Any]]]:
    """Each dataset (or store) with its scans, prepared where they are not yet."""
    from bids_app.training.sources import prepare
    from bids_app.training.store import ClipStore

    found = []
    base = arguments.store or arguments.output.with_suffix(".clips")
    for path in arguments.data:
        if (path / "store.json").is_file():
            found.append((path, list(ClipStore(path, arguments.normalisation))))
        else:
            store = ClipStore(base / f"{path.resolve().name}_{arguments.normalisation}", arguments.normalisation)
            found.append((path, prepare(path, store)))
    return found


def _loop(arguments: argparse.Namespace) -> Any:
    from bids_app.training.loop import LoopSettings

    base = LoopSettings(epochs=arguments.epochs, learning_rate=arguments.learning_rate)
    return replace(base, accumulate=arguments.accumulate, seed=arguments.seed)


def _folder(arguments: argparse.Namespace) -> Path:
    """Where log and state are kept: beside the output."""
    return arguments.output.with_suffix(".training")


def _atlas(arguments: argparse.Namespace, patch: tuple[int, int, int, int]) -> Any:
    if arguments.atlas is None:
        return None
    import nibabel as nib
    import torch

    from bids_app.clips import labels_to_model_grid
    from bids_app.model.masking import AtlasPatches

    labels = labels_to_model_grid(nib.load(arguments.atlas))
    return AtlasPatches.from_volume(torch.from_numpy(labels), patch[:3])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({error}).", "See EncoderConfig for its fields.") from error
