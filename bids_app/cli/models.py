"""Command ``neurostorm-models``: list, fetch, verify, convert, describe and publish encoders and adapters."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from bids_app.catalog.models import FILE_SUFFIXES, Entry, catalog, find_model, stored_entries
from bids_app.catalog.references import HUB_PREFIX, is_reference, option_of
from bids_app.cli import hub
from bids_app.cli.outcome import exit_code_of
from bids_app.errors import NeurostormError, NoInputError, UsageError
from bids_app.terminal import escaped_output


def parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    p = argparse.ArgumentParser(
        prog="neurostorm-models",
        description="List, fetch, verify, convert, describe and publish encoders and adapters.",
    )
    commands = p.add_subparsers(dest="command", required=True)
    hub.add_list_options(
        commands.add_parser("list", help="list the catalog and what is installed on this machine, or the hub (--hub)")
    )
    fetch = commands.add_parser(
        "fetch", help="download weights of the catalog or the hub to the cache (NEUROSTORM_CACHE)"
    )
    fetch.add_argument("names", nargs="+", metavar="NAME|REFERENCE", help=f"name in the catalog; {hub.REFERENCE_HELP}")
    hub.add_fetch_options(fetch)
    verify = commands.add_parser("verify", help="compare cached files with their checksums")
    verify.add_argument("names", nargs="*", metavar="NAME", help="default: all on this machine")
    for command in (fetch, verify):
        command.add_argument(
            "--lock",
            type=Path,
            metavar="FILE",
            help="file with the checksums that the catalog does not have; fetch adds those of new files "
            "(default: weights.lock in the cache)",
        )
    card = commands.add_parser(
        "card", help="show the card of a model or adapter: intended use, cohort, metrics, limits, licence"
    )
    card.add_argument("name", metavar="NAME|FILE|REFERENCE")
    card.add_argument(
        "--json", action="store_true", help="print the metadata of its file as JSON; the file must be on this machine"
    )
    card.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead of the terminal")
    hub.add_push_options(
        commands.add_parser("push", help="publish an adapter with its model card on the Hugging Face Hub")
    )
    _add_convert(
        commands.add_parser("convert", help="convert a checkpoint of the published code to the formats of this program")
    )
    return p


def _add_convert(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="NAME|FILE|REFERENCE", help="checkpoint to read")
    p.add_argument("output", type=Path, metavar="OUT", help="safetensors file to write")
    p.add_argument("--no-decoder", action="store_true", help="leave out the decoder of a pre-training checkpoint")
    group = p.add_argument_group("convert to an adapter instead of a model")
    group.add_argument("--adapter", metavar="LABEL", help="name of the adapter: letters and digits")
    group.add_argument("--base", metavar="NAME|FILE", help="encoder of the adapter (default: that of the source)")
    hub.add_head_options(group)


@escaped_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    return exit_code_of("neurostorm-models", lambda: command(arguments), "Repeat the command to resume the download.")


def _list(arguments: argparse.Namespace) -> None:
    from bids_app.catalog import atlases

    if arguments.hub is not None:
        hub.list_hub(arguments.hub)
        return
    kinds = {kind: list(catalog(kind).values()) for kind in ("models", "adapters")}
    if stored := stored_entries():
        kinds["files of the hub"] = stored
    for kind, entries in kinds.items():
        print(f"{kind}:")
        for entry in entries:
            here = entry.path.is_file()
            size = entry.path.stat().st_size if here else entry.size
            where = "here" if here else ("to fetch" if entry.repo else "missing")
            text = f"{size / 1e6:.1f} MB" if size else ""
            print(f"  {entry.name:22} {where:9} {text:>9}  {entry.description}")
    print("atlases:")
    for name, fields_of in atlases.catalog().items():
        try:
            atlases.find_atlas(name)
            where = "here"
        except NoInputError:
            where = "missing"
        print(f"  {name:22} {where:9} {'':>9}  {fields_of['title']}")


def _fetch(arguments: argparse.Namespace) -> None:
    from bids_app.catalog.fetch import fetch, verify
    from bids_app.catalog.lock import default_lock, known_checksum

    lock = arguments.lock or default_lock()
    head = hub.given_head(arguments)
    if len(arguments.names) > 1 and head:
        raise UsageError(f"{', '.join(map(option_of, head))} describe one file.", "Fetch one file at a time.")
    references = [name for name in arguments.names if is_reference(name)]
    for entry in [_named(name) for name in arguments.names if not is_reference(name)]:
        first = bool(entry.repo) and known_checksum(entry, lock) is None
        path = fetch(entry, lock)
        print(f"{entry.name}: {path}")
        if first:
            print(f"  sha256 {verify(entry, lock)}, recorded in {lock}: later downloads must match it")
        if head and (error := hub.complete(entry, head, entry.name)):
            raise error
    hub.fetch_all(references, arguments)


def _verify(arguments: argparse.Namespace) -> None:
    everything = [*catalog("models").values(), *catalog("adapters").values(), *stored_entries()]
    entries = [_named(name) for name in arguments.names] or [e for e in everything if e.path.is_file()]
    errors = [error for entry in entries if (error := _verification_error(entry, arguments.lock)) is not None]
    for error in errors[1:]:
        print(f"neurostorm-models: error: {error.message}\n  {error.hint}".rstrip(), file=sys.stderr)
    if errors:
        raise errors[0]


def _verification_error(entry: Entry, lock: Path | None) -> NeurostormError | None:
    """Verify the file of an entry and print the result; return the error of a file that differs."""
    from bids_app.catalog.fetch import verify
    from bids_app.model.checkpoint import read_checkpoint

    try:
        sha256 = verify(entry, lock)
        if entry.name in catalog("models") or (entry.referenced and entry.path.suffix in CHECKPOINTS):
            read_checkpoint(entry.path)
    except NeurostormError as error:
        return error
    print(f"{entry.name}: {entry.path} is intact, sha256 {sha256}")
    return None


def _card(arguments: argparse.Namespace) -> None:
    from bids_app.bids.writer import write_text
    from bids_app.catalog.cards import card_markdown
    from bids_app.catalog.models import weights_path
    from bids_app.outputs.cards import adapter_facts, model_facts

    adapter = _adapter_entry(arguments.name)
    entry = adapter or _entry(arguments.name)
    if entry.own:
        weights_path(entry)  # raises if the file is missing
    if adapter and adapter.path.is_file():
        _check_adapter(adapter.path)
    if arguments.json:
        facts = _adapter_json(adapter) if adapter else _model_json(entry)
        text = json.dumps(facts, indent=1, default=str) + "\n"
    else:
        text = card_markdown(adapter_facts(adapter) if adapter else model_facts(entry))
    if arguments.output:
        write_text(arguments.output, text)
        print(f"Wrote {arguments.output}")
    else:
        print(text, end="")
    if not entry.path.is_file():
        print(f"{entry.name} is not on this machine: the card holds catalog entries only.", file=sys.stderr)


def _check_adapter(path: Path) -> None:
    """Check the file of an adapter as a run does, with its encoder if this is on this machine."""
    from bids_app.adapters.checks import check_alone
    from bids_app.adapters.file import AdaptedModel, load_adapter
    from bids_app.model.api import Model
    from bids_app.model.checkpoint import read_checkpoint

    adapter = load_adapter(path)
    check_alone(adapter)
    for entry in catalog("models").values():
        if entry.path.is_file():
            try:
                model = Model(read_checkpoint(entry.path))
            except NeurostormError:  # of the encoder's file; `verify` reports it
                continue
            if model.weights_sha256 == adapter.card.encoder_sha256:
                AdaptedModel(model, adapter)
                return


def _adapter_entry(name: str) -> Entry | None:
    """Find an adapter by name, reference or file; None if it is something else."""
    from bids_app.adapters.file import ADAPTER_FORMAT
    from bids_app.catalog.models import find_adapter
    from bids_app.model.checkpoint import file_format

    path = find_adapter(name).path if is_reference(name) else Path(name)
    is_file = name not in catalog("adapters") and path.is_file()
    if name in catalog("adapters") or (is_file and file_format(path) == ADAPTER_FORMAT):
        return find_adapter(name)
    return None


def _adapter_json(entry: Entry) -> dict[str, Any]:
    """Return the metadata of an adapter file."""
    from bids_app.adapters.file import load_adapter
    from bids_app.catalog.models import weights_path

    path = weights_path(entry)
    return {"file": str(path), **asdict(load_adapter(path).card)}


def _model_json(entry: Entry) -> dict[str, Any]:
    from bids_app.catalog.models import weights_path
    from bids_app.model.api import Model
    from bids_app.model.checkpoint import read_checkpoint

    facts = {"name": entry.name, "description": entry.description, "licence": entry.licence}
    facts |= {"source": f"{entry.repo}@{entry.revision}:{entry.file}" if entry.repo else ""}
    path = weights_path(entry)
    checkpoint = read_checkpoint(path)
    model = Model(checkpoint)
    return facts | {
        "file": str(path),
        "bytes": path.stat().st_size,
        "encoder_sha256": model.weights_sha256,
        "parameters": sum(p.numel() for p in model.encoder.parameters()),
        "configuration": checkpoint.config.as_dict(),
        "head": None if model.head is None else f"{model.head.version}, {model.head(_probe(model)).shape[1]} outputs",
        "decoder": bool(checkpoint.decoder),
        "demonstration": checkpoint.demonstration,
        "not_used": list(model.unused_keys),
        "info": checkpoint.info,
    }


def _probe(model: Any) -> Any:
    import torch

    return torch.zeros(1, model.config.n_features, *model.config.grid(model.config.n_stages - 1))


def _convert(arguments: argparse.Namespace) -> None:
    from bids_app.catalog.models import weights_path

    entry = _entry(arguments.source)
    source = weights_path(entry)
    if arguments.output.suffix != ".safetensors":
        raise UsageError(
            f"{arguments.output}: the output is not a .safetensors file.", "Use a name that ends in .safetensors."
        )
    if arguments.adapter:
        _convert_to_adapter(arguments, entry, source)
    else:
        _convert_to_model(arguments, entry, source)
    print(f"Wrote {arguments.output}")


def _convert_to_model(arguments: argparse.Namespace, entry: Entry, source: Path) -> None:
    from bids_app.model.api import Model
    from bids_app.model.checkpoint import read_checkpoint, save_encoder

    checkpoint = read_checkpoint(source)
    model = Model(checkpoint)  # strict: raises if weights are missing or do not fit
    info = {"source": entry.name, "licence": entry.licence, "hyper_parameters": checkpoint.info}
    save_encoder(
        arguments.output,
        checkpoint.config,
        model.encoder.state_dict(),
        entry.name,
        head=None if model.head is None else model.head.state_dict(),
        decoder=None if arguments.no_decoder else checkpoint.decoder,
        info=info,
        demonstration=checkpoint.demonstration,
    )


def _convert_to_adapter(arguments: argparse.Namespace, entry: Entry, source: Path) -> None:
    from bids_app.adapters.convert import OutputMeaning, adapter_from_checkpoint
    from bids_app.adapters.file import save_adapter
    from bids_app.catalog.models import weights_path

    base = weights_path(_entry(arguments.base)) if arguments.base else None
    known = {**entry.head, "labels": tuple(entry.head.get("labels", ()))}
    given = {f.name: getattr(arguments, f.name, None) for f in fields(OutputMeaning)}
    meaning = replace(OutputMeaning(**known), **{k: v for k, v in given.items() if v is not None})
    adapter = adapter_from_checkpoint(source, arguments.adapter, meaning, base, entry.licence)
    save_adapter(arguments.output, adapter)


def _entry(name: str) -> Entry:
    """Find a model by name, by reference, or by file with any extension."""
    if os.path.isfile(name) and name not in catalog("models"):
        return Entry(Path(name).stem, "local file", str(Path(name).absolute()), own=True)
    return find_model(name)


def _named(name: str) -> Entry:
    """Find a model or an adapter of the catalog."""
    try:
        return catalog("adapters").get(name) or find_model(name)
    except UsageError as error:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and Path(name).suffix not in FILE_SUFFIXES:
            raise UsageError(error.message, f"For a repository of the hub, give {HUB_PREFIX}{name}.") from error
        raise


CHECKPOINTS = (".ckpt", ".pt", ".pth")
COMMANDS = {
    "list": _list,
    "fetch": _fetch,
    "verify": _verify,
    "card": _card,
    "convert": _convert,
    "push": hub.push,
}

if __name__ == "__main__":
    sys.exit(main())
