"""Commands of ``neurostorm-models`` for the Hugging Face Hub: list repositories, fetch any file, publish an adapter."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_app.catalog.models import FILE_SUFFIXES, Entry, catalog
from bids_app.catalog.references import HEAD_FACTS, HUB_PREFIX, Reference, facts_path, option_of, parse_reference
from bids_app.errors import UsageError

REFERENCE_HELP = "hf:owner/name@revision:path names any file of the Hugging Face Hub"


def add_list_options(p: argparse.ArgumentParser) -> None:
    """Add the options of ``list``."""
    p.add_argument(
        "--hub",
        nargs="?",
        const="",
        metavar="OWNER/NAME[@REVISION]",
        help="list the weights in a repository of the hub instead, with sizes and checksums, and how to fetch each "
        "(default: the repositories of the catalog at their pinned revisions); needs network access",
    )


def add_fetch_options(p: argparse.ArgumentParser) -> None:
    """Add the options of ``fetch``."""
    p.add_argument(
        "--update", action="store_true", help="resolve a branch or tag again, instead of using its recorded commit"
    )
    group = p.add_argument_group(
        "facts that the file does not hold", "They are stored beside the file, and used whenever its head is applied."
    )
    add_head_options(group)


def add_head_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that describe the head of a fine-tuned file."""
    group.add_argument("--task", choices=("classification", "regression"), help="task (default: from the file)")
    group.add_argument("--target", help="predicted variable (default: from the file)")
    group.add_argument("--labels", type=lambda text: tuple(text.split(",")), help="class labels in order: A,B,...")
    group.add_argument("--unit", help="unit of the predicted value (regression)")
    group.add_argument("--value-mean", type=float, metavar="M", help="mean of the target in the training cohort")
    group.add_argument(
        "--value-std", type=float, metavar="S", help="standard deviation of the target in the training cohort"
    )


def add_push_options(p: argparse.ArgumentParser) -> None:
    """Add the options of ``push``."""
    p.add_argument("adapter", metavar="ADAPTER", help="adapter file, name in the catalog or reference")
    p.add_argument("repo", metavar="OWNER/NAME", help="repository of the hub; it is created if it does not exist")
    p.add_argument("--private", action="store_true", help="create a private repository; refuse a public one")
    p.add_argument("--dry-run", action="store_true", help="write the files to a folder and upload nothing")
    p.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of --dry-run (default: NAME_hub in the current folder)"
    )
    group = p.add_argument_group(
        "model card", "What the card of the adapter does not have; stored in the uploaded file."
    )
    group.add_argument("--intended-use", metavar="TEXT", help="intended use; required if the card has none")
    group.add_argument("--licence", "--license", metavar="SPDX", help="licence, such as CC-BY-4.0")
    group.add_argument("--limits", metavar="TEXT", help="known limitations")
    group.add_argument(
        "--omit",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="parts of the card that are not published, such as cohort.scans_of_each",
    )
    group.add_argument(
        "--base-model", metavar="OWNER/NAME", help="repository of the encoder (default: that of the catalog, if found)"
    )
    group.add_argument("--dataset", nargs="+", default=[], metavar="ID", help="training datasets, as in owner/name")


def list_hub(wanted: str) -> None:
    """Print the weights in the repositories of the catalog at their revisions, or in another repository."""
    from bids_app.catalog.hub import read_repo

    if wanted:
        reference = parse_reference(HUB_PREFIX + wanted.removeprefix(HUB_PREFIX))
        places = [(reference.repo, reference.revision)]
    else:
        entries = [*catalog("models").values(), *catalog("adapters").values()]
        places = list(dict.fromkeys((entry.repo, entry.revision) for entry in entries if entry.repo))
    for place in places:
        repo = read_repo(*place)
        weights = [file for file in repo.files if Path(file.path).suffix in FILE_SUFFIXES]
        access = "private" if repo.private else "public"
        print(f"{repo.name}, revision {repo.commit} ({repo.licence or 'licence not stated'}, {access}):")
        known = {entry.file: entry for entry in _entries_of(repo.name, repo.commit)}
        for file in weights:
            _print_file(Reference(repo.name, repo.commit, file.path), file, known.pop(file.path, None))
        for entry in known.values():
            print(f"  {entry.file}\n    {entry.name} of the catalog is NOT in the repository")
        if not weights:
            print("  no files of weights")


def _entries_of(repo: str, commit: str) -> list[Entry]:
    entries = [*catalog("models").values(), *catalog("adapters").values()]
    return [entry for entry in entries if (entry.repo, entry.revision) == (repo, commit)]


def _print_file(reference: Reference, file: Any, entry: Entry | None) -> None:
    """Print size, checksum and place of a file, and the command that fetches it."""
    from bids_app.catalog.lock import default_lock, known_checksum
    from bids_app.catalog.models import entry_of

    own = entry or entry_of(reference)
    size = "size unknown" if file.size is None else f"{file.size / 1e6:.1f} MB"
    checksum = f"sha256 {file.sha256}" if file.sha256 else "the hub has no sha256"
    where = "here" if own.path.is_file() else "to fetch"
    listed = f"in the catalog as {entry.name}" if entry else "not in the catalog"
    print(f"  {file.path}\n    {size}, {checksum}\n    {listed}, {where}")
    known = known_checksum(own, default_lock())
    expected = (own.size, own.sha256) if known is None else (known[0].size or own.size, known[0].sha256)
    if any(
        found and wanted and found != wanted for found, wanted in zip((file.size, file.sha256), expected, strict=True)
    ):
        print("    DIFFERS from the file that is known here; it will not be fetched")
    print(f"    neurostorm-models fetch {shlex.quote(entry.name if entry else str(reference))}")


def given_head(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the facts about a head that were given as options."""
    given = {name: getattr(arguments, name) for name in HEAD_FACTS}
    head = {name: value for name, value in given.items() if value is not None}
    return head | {"labels": list(head["labels"])} if "labels" in head else head


def fetch_any(reference: str, arguments: argparse.Namespace) -> UsageError | None:
    """Fetch a file of the hub and print what it is; return the error of a head whose meaning is not known."""
    from bids_app.catalog.fetch import verify
    from bids_app.catalog.fetch_reference import fetch_reference
    from bids_app.catalog.lock import default_lock, read_lock, source_of

    lock = arguments.lock or default_lock()
    before = read_lock(lock)
    entry = fetch_reference(reference, lock, arguments.update)
    print(f"{entry.name}: {entry.path}")
    if source_of(entry) in read_lock(lock).keys() - before.keys():
        print(f"  sha256 {verify(entry, lock)}, recorded in {lock}: later downloads must match it")
    return complete(entry, given_head(arguments), reference)


def complete(entry: Entry, head: dict[str, Any], called: str) -> UsageError | None:
    """Store facts about the head of a file beside it, print what the file is, and return the error of missing facts."""
    from bids_app.adapters.head_facts import ACKNOWLEDGE, ADAPTER, ENCODER, FINE_TUNED, check_head_facts, describe_file
    from bids_app.catalog.fetch_reference import store_head

    if head:
        check_head_facts(entry, head)
        entry = store_head(entry, head)
        print(f"  stored in {facts_path(entry.path)}: {', '.join(map(option_of, head))}")
    found = describe_file(entry)
    print(f"  {found.kind}: " + "; ".join(f"{name} {value}" for name, value in found.facts.items()))
    if found.missing:
        lacks = "; ".join(f"{option} ({what})" for option, what in found.missing.items())
        return UsageError(
            f"{called}: fetched, but the file does not tell everything about its head. Missing: {lacks}.",
            f"Repeat the command with {', '.join(found.missing)}. Without --task, a run with this head ends with an "
            "error; without labels, classes are numbered; without scaling, values are in that of the training.",
        )
    option = {ADAPTER: "--adapter", FINE_TUNED: "--model", ENCODER: "--model"}.get(found.kind)
    if option:
        acknowledged = f" {ACKNOWLEDGE}" if "diagnosis" in found.facts else ""
        print(f"  to apply it: neurostorm BIDS OUT participant {option} {shlex.quote(called)}{acknowledged}")
    return None


def push(arguments: argparse.Namespace) -> None:
    """Publish an adapter with its model card, or write both to a folder."""
    from bids_app.catalog.push import check_repo, upload
    from bids_app.outputs.hub_card import write_publication

    check_repo(arguments.repo)
    if arguments.output and not arguments.dry_run:
        raise UsageError("--output is the folder of --dry-run.", "Give --dry-run as well, or leave out --output.")
    with tempfile.TemporaryDirectory(prefix="neurostorm-push-") as scratch:
        folder = Path(scratch)
        if arguments.dry_run:
            folder = arguments.output or Path(f"{arguments.repo.rpartition('/')[2]}_hub")
        files = write_publication(
            arguments.adapter,
            arguments.repo,
            folder,
            changes={"intended_use": arguments.intended_use, "licence": arguments.licence, "limits": arguments.limits},
            omitted=arguments.omit,
            base_model=arguments.base_model,
            datasets=arguments.dataset,
        )
        if arguments.dry_run:
            for path in files:
                print(f"Wrote {path}")
            print("Nothing was uploaded (--dry-run).")
        else:
            print(upload(files, arguments.repo, arguments.private))


def fetch_all(references: Sequence[str], arguments: argparse.Namespace) -> None:
    """Fetch files of the hub; raise the first error of a head whose meaning is not known after all are fetched."""
    errors = [error for reference in references if (error := fetch_any(reference, arguments)) is not None]
    if errors:
        raise errors[0]
