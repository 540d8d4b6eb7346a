"""``neurostorm-train store``: build, verify, describe, convert and index clip stores."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bids_app.bids.entities import LABEL
from bids_app.bids.participants import read_labels
from bids_app.bids.writer import remove_leftovers
from bids_app.errors import BadDataError, NeurostormError, NoInputError, NoMatchError, UsageError
from bids_app.terminal import count_of, first_of
from bids_app.training.data.examples import find_scans
from bids_app.training.data.scan import Scan, copy_of, describe
from bids_app.training.data.shards import SHARDS, Shard, damaged_scans, index_of
from bids_app.training.data.sources import Found, prepare_series
from bids_app.training.data.store import ClipStore
from bids_app.workflow.locks import Locks

MAX_NAMED = 5
"""Maximum number of damaged scans in the error; all are printed."""
LOCK = "building-{}-of-{}.json"
"""Name of the lock file of a part of a store that is being built."""
GB = 10**9


def run(arguments: argparse.Namespace) -> None:
    """Run a command on a store."""
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "build": build, "verify": verify, "info": info, "convert": convert, "index": index,
    }  # fmt: skip
    commands[arguments.store_command](arguments)


def build(arguments: argparse.Namespace) -> None:
    """Add the scans of a dataset, or of a part of it, to a store; those that it has are kept.

    Raises
    ------
    TemporaryError
        Another process builds this part, which would have all of its scans twice.
    """
    if not arguments.data.is_dir():
        raise NoInputError(f"{arguments.data}: no such folder.", "Give a derivatives dataset.")
    store = ClipStore(arguments.store, arguments.normalisation or _normalisation_of(arguments.store))
    number, n_parts = arguments.part
    with Locks("is building this part of the store") as locks:
        if store.place.is_local:
            locks.acquire(store.folder / LOCK.format(number + 1, n_parts))
        _build(arguments, store)


def _build(arguments: argparse.Namespace, store: ClipStore) -> None:
    dataset: Path = arguments.data
    _remove_leftovers(store)
    shard_bytes = int(arguments.shard_size * GB)
    before = len(store.names())
    try:
        own, found = find_scans(dataset, store.normalisation, arguments.part)
    except NoMatchError as error:
        if arguments.part == (0, 1):
            raise
        print(f"Nothing in this part: {error.message}")
        own, found = {}, Found()
    n_copied = copy_scans(own.values(), store, shard_bytes, stamp_of=_stamp_of_entry)
    prepared = prepare_series(dataset, found, store, arguments.nprocs, report=print, shard_bytes=shard_bytes)
    store.write_index()
    print(
        f"{arguments.store}: {count_of(len(store.names()), 'scan')}, {len(store.names()) - before} of them new; "
        f"this part has {len(own) + len(prepared)} ({n_copied} copied from clips of neurostorm)"
    )


def _normalisation_of(folder: str | Path) -> str:
    """Return the normalisation of a store; that of pre-training for a new one."""
    try:
        return ClipStore(folder).normalisation
    except NoInputError:
        return "global"


def _remove_leftovers(store: ClipStore) -> None:
    """Remove what killed processes left."""
    if store.place.is_local:
        for folder in (store.folder, store.folder / SHARDS):
            remove_leftovers(folder, deep=False)


def _stamp_of_entry(scan: Scan) -> str:
    """Hash the state of the files of a scan in a folder of its own."""
    states = [(path := scan.folder / name, path.stat()) for name in ("values.npy", "scan.json")]
    parts = [(path.name, state.st_size, state.st_mtime_ns) for path, state in states]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def copy_scans(
    scans: Iterable[Scan],
    store: ClipStore,
    shard_bytes: int,
    stamp_of: Callable[[Scan], str] = lambda scan: scan.stamp,
    check: Callable[[str], None] = lambda name: None,
) -> int:
    """Copy scans to a store as they are, after a check of each by its name; return how many it lacked."""
    n_copied = 0
    with store.writer(shard_bytes) as writer:
        for scan in scans:
            stamp = stamp_of(scan)
            if not store.has(scan.name, stamp):
                check(scan.name)
                writer.add(copy_of(scan, stamp), store.next_generation(scan.name))
                n_copied += 1
    return n_copied


def verify(arguments: argparse.Namespace) -> None:
    """Compare all scans of a store with their checksums.

    Raises
    ------
    BadDataError
        Scans are damaged or missing.
    """
    store = ClipStore(arguments.folder)
    store.refresh()
    shards = list(store.shards.values())
    with ThreadPoolExecutor(arguments.nprocs) as pool:  # hashing and reading release the interpreter's lock
        found = pool.map(lambda shard: list(damaged_scans(store.place, shard)), shards)
        damaged = [(name, shard.file, why) for shard, each in zip(shards, found, strict=True) for name, why in each]
    damaged += [(name, f"{SHARDS}/{shard}.tar", "missing") for shard, names in store.lost().items() for name in names]
    damaged += _damaged_indices(store)
    damaged += [("", file, "no index; a writer was killed, or the index was deleted") for file in store.strays]
    damaged += _damaged_entries(store)
    for name, file, why in damaged:
        print(f"damaged: {name} in {file}: {why}" if name else f"damaged: {file}: {why}")
    n_bytes = sum(shard.n_bytes for shard in shards)
    if damaged:
        names = first_of([name or file for name, file, _ in damaged], MAX_NAMED)
        files = sorted({file for _, file, _ in damaged})
        raise BadDataError(
            f"{arguments.folder}: damaged: {names}, in {', '.join(files[:MAX_NAMED])}.",
            "Restore these files; or delete them, then run neurostorm-train store index and store build, which "
            "prepares only their scans again.",
        )
    print(f"{arguments.folder}: {_contents(store)}, {as_size(n_bytes)}: no damage found")


def _damaged_indices(store: ClipStore) -> list[tuple[str, str, str]]:
    """Return the indices of shards that are missing or damaged; with ``index.jsonl``, they are not read otherwise."""
    damaged = []
    for name in store.shards:
        try:
            store.read_shard(name)
        except NeurostormError as error:
            damaged.append(("", index_of(name), error.message))
    return damaged


def _damaged_entries(store: ClipStore) -> list[tuple[str, str, str]]:
    """Return the scans in folders of their own whose arrays cannot be read; they have no checksums."""
    damaged = []
    for name in store.names_of_entries():
        try:
            scan = store[name]
            scan.codes(scan.voxel_indices)
            scan.mean_image()
        except NeurostormError as error:
            damaged.append((name, name, error.message))
    return damaged


def info(arguments: argparse.Namespace) -> None:
    """Print what a store holds."""
    store = ClipStore(arguments.folder)
    store.refresh()
    scans = [store[name] for name in store.names()]
    rows: Mapping[str, str] = {
        "normalisation": store.normalisation,
        "scans": f"{len(scans):,}",
        "participants": f"{len({scan.participant for scan in scans}):,}",
        "volumes at 0.8 s": f"{sum(scan.n_vols for scan in scans):,}",
        "clips of 20 volumes": f"{sum(scan.n_clips for scan in scans):,}",
        "shards": f"{len(store.shards):,}, {as_size(sum(shard.n_bytes for shard in store.shards.values()))}",
        "of replaced scans": as_size(_replaced_bytes(store.shards.values(), store)),
        "scans in folders (format 1)": f"{len(store.names_of_entries()):,}",
        "missing shards": f"{len(store.lost()):,}",
    }
    for key, value in rows.items():
        print(f"{key:<28} {value}")
    if store.lost():
        print(f"Missing: {', '.join(store.lost())}; see neurostorm-train store verify")
    if store.names_of_entries():
        print(f"Pack them into few files with: neurostorm-train store convert {arguments.folder} NEW")


def _contents(store: ClipStore) -> str:
    return f"{count_of(len(store.names()), 'scan')} in {count_of(len(store.shards), 'shard')}"


def as_size(n_bytes: int) -> str:
    """Format a size in MB, or in GB from 1 GB on."""
    return f"{n_bytes / GB:,.1f} GB" if n_bytes >= GB else f"{n_bytes / 1e6:,.1f} MB"


def _replaced_bytes(shards: Iterable[Shard], store: ClipStore) -> int:
    return sum(
        stored.span[1] - stored.span[0]
        for shard in shards
        for stored in shard.scans
        if store[stored.scan.name].shard is not stored.scan.shard
    )


def convert(arguments: argparse.Namespace) -> None:
    """Copy a store of any format to a new one, without replaced scans and without excluded participants."""
    old = ClipStore(arguments.folder)
    new = ClipStore(arguments.new, old.normalisation)
    if new.place == old.place:
        raise UsageError(f"{arguments.new}: is the store itself.", "Give a new folder.")
    scans = _without_excluded(list(old), arguments.exclude) if arguments.exclude else list(old)
    _remove_leftovers(new)
    kept = {scan.name for scan in scans}
    if others := [name for name in new.names() if name not in kept]:
        raise UsageError(
            f"{arguments.new}: has scans that are not copied, such as {others[0]}.",
            "Give a new folder, or delete this one.",
        )
    present = (scan for scan in scans if scan.name in new)
    if other := next((scan.name for scan in present if describe(new[scan.name]) != describe(scan)), ""):
        raise UsageError(
            f"{arguments.new}: has another scan {other}.", "It is a copy of another store: use a new folder."
        )
    n_copied = copy_scans(scans, new, int(arguments.shard_size * GB), check=old.check)
    new.write_index()
    n_left_out = len(old.names()) - len(scans)
    print(f"{arguments.new}: {count_of(len(scans), 'scan')}, {n_copied} of them copied now; {n_left_out} left out")


def _without_excluded(scans: list[Scan], path: Path) -> list[Scan]:
    """Leave out the participants in a file, and name those that have no scan.

    Raises
    ------
    NoMatchError
        None of them has a scan.
    """
    excluded, known = read_withdrawn(path), {scan.participant for scan in scans}
    absent = [f"sub-{label}" for label in sorted(excluded - known)]
    if excluded and not excluded & known:
        raise NoMatchError(
            f"{path}: no scan of {first_of(absent, MAX_NAMED)}.", "Correct the labels, or omit --exclude."
        )
    if not excluded:
        print(f"{path}: lists no participants; all scans are copied")
    if absent:
        print(f"Not in the store: {first_of(absent, MAX_NAMED)}")
    return [scan for scan in scans if scan.participant not in excluded]


def read_withdrawn(path: Path) -> set[str]:
    """Read the labels of participants to leave out, without ``sub-``; see `read_labels`.

    Raises
    ------
    BadDataError
        It has something else than labels.
    """
    labels = read_labels(path, r"\n")  # a second word of a line may be of another column, and equal a label
    if wrong := [label for label in labels if not LABEL.fullmatch(label.removeprefix("sub-"))]:
        raise BadDataError(
            f"{path}: not the label of a participant: {wrong[0]!r}.", "Write one label per line, such as sub-01."
        )
    return {label.removeprefix("sub-") for label in labels}


def index(arguments: argparse.Namespace) -> None:
    """Write the index of a store for the shards that exist."""
    store = ClipStore(arguments.folder)
    store.write_index()
    print(f"{arguments.folder}: {_contents(store)}")
