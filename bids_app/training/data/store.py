"""Clip store: quantised scans on the model grid from which clips are read; safe for parallel writers.

    STORE/store.json   format, normalisation
    STORE/shards/      tar files of scans with their indices, see `bids_app.training.data.shards`
    STORE/index.jsonl  the indices of all shards in one file, one line each, so that a large store opens quickly
    STORE/embeddings/<shard>/<scan>/   embeddings that were computed from a scan

A shard is a tar file with an index; ``index.jsonl`` saves reading the index of each, and tells which tar files are
missing. Scans in folders of their own
(format 1, see `bids_app.training.data.entries`) are read as well.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bids_app.clips import NORMALISATIONS, GridSeries
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.files import MAX_JSON_BYTES, parse_json
from bids_app.terminal import count_of
from bids_app.training.data.entries import ENTRIES_VERSION, STORE_FORMAT, find_entries, read_entry
from bids_app.training.data.places import Place, is_url
from bids_app.training.data.scan import HINT, Scan, new_scan
from bids_app.training.data.shards import (
    MAX_SHARD_INDEX_BYTES,
    SHARD_BYTES,
    SHARDS,
    Shard,
    ShardWriter,
    StoredScan,
    index_of,
    read_shard,
    tar_of,
)

STORE_VERSION = 2
ABOUT, INDEX = "store.json", "index.jsonl"
MAX_INDEX_BYTES = 8 * 2**30
INDEX_READERS = 16
"""Threads that read indices of shards; each waits for the file system most of the time."""


class ClipStore:
    """A folder of scans.

    Parameters
    ----------
    folder : str or Path
        Path or URL (``s3://bucket/store``); created if missing.
    normalisation : str, optional
        Normalisation of the scans; None uses that of the existing store.
    """

    def __init__(self, folder: str | Path, normalisation: str | None = None) -> None:
        self.place = Place(folder if is_url(folder) else os.path.abspath(folder))  # type: ignore[arg-type]
        self.folder = Path(folder)
        if not self.place.exists(ABOUT):
            if normalisation is None:
                raise NoInputError(f"{folder}: not a clip store.", "Prepare one with neurostorm-train.")
            if normalisation not in NORMALISATIONS:
                raise UsageError(f"Unknown normalisation: {normalisation!r}.", f"Choose {' or '.join(NORMALISATIONS)}.")
            about = {"format": STORE_FORMAT, "version": STORE_VERSION, "normalisation": normalisation}
            with self.place.writing(ABOUT) as path:
                path.write_text(as_text(about))
        self._read_about(normalisation)
        self.shards: dict[str, Shard] = {}
        self._lost: dict[str, Shard] = {}
        self._scans: dict[str, StoredScan] = {}
        self._entries: dict[str, Path] = {}
        self.strays: list[str] = []
        self._is_read = False

    def _read_about(self, normalisation: str | None) -> None:
        about = self.place.path(ABOUT)
        content = parse_json(self.place.read(ABOUT, MAX_JSON_BYTES), about)
        content = content if isinstance(content, dict) else {}
        self.normalisation = str(content.get("normalisation"))
        known = [(STORE_FORMAT, ENTRIES_VERSION), (STORE_FORMAT, STORE_VERSION)]
        if (content.get("format"), content.get("version")) not in known or self.normalisation not in NORMALISATIONS:
            raise BadDataError(f"{about}: unsupported store format.", HINT)
        if normalisation not in (None, self.normalisation):
            raise UsageError(
                f"{self.folder}: the store has {self.normalisation} normalisation, not {normalisation}.",
                "Use another folder for each normalisation.",
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index to be read again by the other process."""
        return {"folder": str(self.place) if not self.place.is_local else self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def refresh(self) -> None:
        """Read the indices of shards that were added since the last call, and forget those that were removed."""
        with _collector_paused():
            self._refresh()

    def _refresh(self) -> None:
        tars, indices = self._find_shards()
        new = tars & indices
        if not self._is_read:
            self.shards, self._lost = {}, {}
            if self.place.exists(INDEX):
                self.shards = {shard.name: shard for shard in self._read_index()}
            else:
                new = indices  # nothing tells that the tar file of one was given up
        with ThreadPoolExecutor(INDEX_READERS) as pool:
            self.shards |= {shard.name: shard for shard in pool.map(self.read_shard, sorted(new - self.shards.keys()))}
        self._lost |= {name: shard for name, shard in self.shards.items() if name not in tars}
        self.shards = {name: shard for name, shard in self.shards.items() if name in tars}
        self.strays = [tar_of(name) for name in sorted(tars - self.shards.keys())]
        scans: dict[str, StoredScan] = {}
        for _, shard in sorted(self.shards.items()):
            for stored in shard.scans:
                earlier = scans.get(stored.scan.name)
                if earlier is None or earlier.generation < stored.generation:
                    scans[stored.scan.name] = stored
        self._scans = scans
        self._entries = find_entries(self.folder) if self.place.is_local else {}
        self._is_read = True

    def _read_index(self) -> Iterator[Shard]:
        where = self.place.path(INDEX)
        try:
            for number, line in enumerate(self.place.read(INDEX, MAX_INDEX_BYTES).splitlines()):
                yield read_shard(self.place, line, f"{where}, line {number + 1}")
        except BadDataError as error:
            raise BadDataError(
                error.message, f"Write it again with neurostorm-train store index {self.place}."
            ) from error

    def _find_shards(self) -> tuple[set[str], set[str]]:
        """Return the names of the shards that have a tar file, and of those that have an index."""
        names = [name for name in self.place.names(SHARDS) if not name.startswith(".")]  # those are being written
        tars, indices = ({n.removesuffix(end) for n in names if n.endswith(end)} for end in (".tar", ".json"))
        return tars, indices

    def read_shard(self, name: str) -> Shard:
        """Read the index of a shard from its own file.

        Raises
        ------
        NoInputError, BadDataError
            It is missing or damaged.
        """
        path = index_of(name)
        shard = read_shard(self.place, self.place.read(path, MAX_SHARD_INDEX_BYTES), self.place.path(path))
        if shard.name != name:
            raise BadDataError(f"{self.place.path(path)}: the index of {shard.name}.", "Restore the file.")
        return shard

    def write_index(self) -> None:
        """Write ``index.jsonl`` for the shards that exist."""
        tars, indices = self._find_shards()
        with ThreadPoolExecutor(INDEX_READERS) as pool:
            content = b"".join(pool.map(self._index_line, sorted(tars & indices)))
        with self.place.writing(INDEX) as path:
            path.write_bytes(content)
        self._is_read = False

    def _index_line(self, name: str) -> bytes:
        self.read_shard(name)  # a damaged one is named instead of copied
        return self.place.read(index_of(name), MAX_SHARD_INDEX_BYTES).strip() + b"\n"

    def check(self, name: str) -> None:
        """Compare a scan in a shard with its checksum; scans in folders of their own have none.

        Raises
        ------
        BadDataError
            They differ.
        """
        self._read_once()
        stored = self._scans.get(name)
        if stored is None:
            return
        file, (start, stop) = stored.file, stored.span
        if hashlib.sha256(self.place.read_range(file, start, stop - start).data).hexdigest() != stored.sha256:
            raise BadDataError(
                f"{self.place.path(file)}: {name} is damaged, its checksum differs.",
                f"Find all damaged scans with neurostorm-train store verify {self.place}.",
            )

    def lost(self) -> dict[str, list[str]]:
        """Return the scans of shards whose tar files are missing."""
        found = {
            name: [stored.scan.name for stored in shard.scans if stored.scan.name not in self]
            for name, shard in sorted(self._lost.items())
        }
        return {name: scans for name, scans in found.items() if scans}

    def names(self) -> list[str]:
        """Return the names of all scans, sorted."""
        self._read_once()
        return sorted(self._scans.keys() | self._entries.keys())

    def names_of_entries(self) -> list[str]:
        """Return the names of the scans in folders of their own (format 1), sorted."""
        self._read_once()
        return sorted(self._entries.keys() - self._scans.keys())

    def _read_once(self) -> None:
        if not self._is_read:
            self.refresh()

    def __contains__(self, name: str) -> bool:
        self._read_once()
        return name in self._scans or name in self._entries

    def __iter__(self) -> Iterator[Scan]:
        """Iterate over the scans by name, those of other writers included.

        Raises
        ------
        NoInputError
            Shards are missing.
        """
        self.refresh()
        if lost := self.lost():
            name, scans = next(iter(lost.items()))
            raise NoInputError(
                f"{self.place.path(SHARDS)}/{name}.tar: missing, with {count_of(len(scans), 'scan')} such as {scans[0]}"
                f"{'; missing in all: ' + count_of(len(lost), 'shard') if len(lost) > 1 else ''}.",
                f"Restore it; or go on without it: neurostorm-train store index {self.place}.",
            )
        for name in self.names():
            yield self[name]

    def __getitem__(self, name: str) -> Scan:
        if name not in self:
            raise KeyError(name)
        stored = self._scans.get(name)
        return stored.scan if stored else read_entry(self._entries[name])

    def has(self, name: str, stamp: str) -> bool:
        """Return True if the store has a scan that was made from what ``stamp`` describes; see `refresh`."""
        return name in self and self[name].stamp == stamp

    def next_generation(self, name: str) -> int:
        """Return the generation of a scan that replaces the one of this name."""
        self._read_once()
        return self._scans[name].generation + 1 if name in self._scans else 1

    def add(
        self,
        name: str,
        series: GridSeries,
        participant: str,
        session: str = "",
        labels: Mapping[str, Any] | None = None,
        source: str = "",
        stamp: str = "",
        **facts: Any,
    ) -> Scan:
        """Normalise a run and add it in a shard of its own; an existing scan with the same stamp is kept.

        Use `writer` for several scans. Parameters as in `bids_app.training.data.scan.new_scan`.
        """
        if self.has(name, stamp):
            return self[name]
        with self.writer() as writer:
            scan = new_scan(
                name, series, self.normalisation, participant, session, labels, source, stamp=stamp, **facts
            )
            writer.add(scan, self.next_generation(name))
        self.refresh()
        return self[name]

    def writer(self, shard_bytes: int = SHARD_BYTES) -> ShardWriter:
        """Return a writer of new shards; any number of processes may write at the same time."""
        return ShardWriter(self.place, shard_bytes)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which would look at all scans again and again while they are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def as_text(content: dict[str, Any]) -> str:
    """Format the description of a store."""
    return json.dumps(content, indent=1)
