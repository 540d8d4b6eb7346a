"""Shards of a clip store: tar files of scans in the layout of WebDataset, with an index of offsets and checksums.

    shards/<shard>.tar    per scan: <scan>.json, <scan>.mask.npy, <scan>.mean.npy, <scan>.values.npy
    shards/<shard>.json   its index: size, SHA-256, and for each scan what reading clips needs, offsets and SHA-256

Arrays in a tar file are not compressed, so a clip is one range of bytes, from any volume on. The index is published
after the tar file: a shard without it does not exist, whenever its writer was killed. It has a checksum of itself.
Shards are never changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tarfile import BLOCKSIZE, PAX_FORMAT, TarInfo  # headers only; nothing is extracted
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from bids_app.bids.writer import writing_error
from bids_app.errors import BadDataError, NoInputError
from bids_app.files import MAX_INTEGER, check_plain, parse_json
from bids_app.training.data.places import Place
from bids_app.training.data.quantise import MASK_BYTES
from bids_app.training.data.scan import FACTS, NewScan, Scan, are_facts, scan_of

SHARDS = "shards"
SHARD_BYTES = 2 * 10**9
"""Size from which a shard is closed."""
MAX_SHARD_INDEX_BYTES = 512 * 2**20
DIGEST = b', "digest": "'
"""Before the SHA-256 of an index, which is that of the text without it."""
EMBEDDINGS = "embeddings"
"""Folder of a store for what is computed from its scans."""


@dataclass(frozen=True)
class ShardArrays:
    """Arrays of a scan in a shard: offsets of their data, bytes; see `bids_app.training.data.scan.ScanArrays`.

    ``about_at``: offset and size of the whole description.
    """

    place: Place
    file: str
    name: str
    mask_at: int
    mean_at: int
    values_at: int
    n_voxels: int
    about_at: tuple[int, int]

    def mask(self) -> np.ndarray:
        """Read the packed bits of the brain mask, (N_VOXELS / 8,) uint8."""
        return self.place.read_range(self.file, self.mask_at, MASK_BYTES)

    def codes(self, start: int, stop: int, n_voxels: int) -> np.ndarray:
        """Read the codes of volumes ``start`` to ``stop``, (n, V) int8."""
        if n_voxels != self.n_voxels:
            raise BadDataError(
                f"{self.place.path(self.file)}: the mask of {self.name} has {n_voxels} voxels, not {self.n_voxels}.",
                f"Find all damaged scans with neurostorm-train store verify {self.place}.",
            )
        found = self.place.read_range(self.file, self.values_at + start * n_voxels, (stop - start) * n_voxels)
        return found.view(np.int8).reshape(stop - start, n_voxels)

    def mean(self, n_voxels: int) -> np.ndarray:
        """Read the mean image, (V,) float16."""
        return self.place.read_range(self.file, self.mean_at, 2 * n_voxels).view(np.float16)


@lru_cache(maxsize=1024)
def _read_facts(arrays: ShardArrays) -> dict[str, Any]:
    """Read the facts of a scan that are not in the index."""
    where = f"{arrays.place.path(arrays.file)}, {arrays.name}"
    content = parse_json(arrays.place.read_range(arrays.file, *arrays.about_at).tobytes(), where)
    facts = {name: content.get(name, {}) for name in FACTS} if isinstance(content, dict) else {"": None}
    if not are_facts(facts):
        raise BadDataError(
            f"{where}: not the description of a scan.",
            f"Find all damaged scans with neurostorm-train store verify {arrays.place}.",
        )
    return facts


@dataclass(frozen=True, eq=False, repr=False)
class Facts(Mapping[str, Any]):
    """Facts of a scan, such as its confounds, that are read when they are used; 40,000 scans have millions."""

    arrays: ShardArrays
    key: str

    def __getitem__(self, name: str) -> Any:
        return _read_facts(self.arrays)[self.key][name]

    def __iter__(self) -> Iterator[str]:
        return iter(_read_facts(self.arrays)[self.key])

    def __len__(self) -> int:
        return len(_read_facts(self.arrays)[self.key])

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class StoredScan:
    """A scan of a shard.

    Attributes
    ----------
    scan : Scan
    generation : int
        Of several scans of one name, the one with the highest generation counts.
    span : tuple of int
        First and last byte (exclusive) in the tar file.
    sha256 : str
        Of these bytes.
    file : str
        The tar file, relative to the store.
    """

    scan: Scan
    generation: int
    span: tuple[int, int]
    sha256: str
    file: str


@dataclass(frozen=True)
class Shard:
    """A shard by its index.

    Attributes
    ----------
    name : str
    n_bytes : int
    sha256 : str
        Of the tar file.
    scans : tuple of StoredScan
    """

    name: str
    n_bytes: int
    sha256: str
    scans: tuple[StoredScan, ...]

    @property
    def file(self) -> str:
        """Tar file, relative to the store."""
        return tar_of(self.name)


def tar_of(name: str) -> str:
    """Return the tar file of a shard, relative to its store."""
    return f"{SHARDS}/{name}.tar"


def index_of(name: str) -> str:
    """Return the index of a shard, relative to its store."""
    return f"{SHARDS}/{name}.json"


def read_shard(place: Place, text: bytes, where: str) -> Shard:
    """Read the index of a shard, and check its values.

    Parameters
    ----------
    place : Place
        The store.
    text : bytes
        Content of the index.
    where : str
        Its file, for messages.

    Raises
    ------
    BadDataError
        It is not the index of a shard.
    """
    try:
        head, _, digest = text.strip().rpartition(DIGEST)
        if digest != hashlib.sha256(head + b"}").hexdigest().encode() + b'"}':
            raise ValueError(where)
        content = json.loads(head + b"}")
        name, n_bytes, scans = content["shard"], content["bytes"], content["scans"]
        valid = isinstance(name, str) and "/" not in name and isinstance(n_bytes, int) and n_bytes < MAX_INTEGER
        folder = Path(place.url) / EMBEDDINGS / name  # of this shard: a replaced scan has another
        found = tuple(_read_scan(place, folder, name, n_bytes, each, where) for each in scans) if valid else ()
        shard = Shard(name, n_bytes, str(content["sha256"]), found)
    except (TypeError, KeyError, AttributeError, ValueError, IndexError, RecursionError):
        valid = False
    if not valid:
        raise BadDataError(
            f"{where}: damaged, or not the index of a shard.",
            "Restore it, or delete it with its tar file and build the store again.",
        )
    return shard


def _read_scan(place: Place, folder: Path, shard: str, n_bytes: int, content: dict[str, Any], where: str) -> StoredScan:
    """Read the description of a scan; the values that are not checked here are checked by `scan_of`."""
    name, about, span = content["name"], content["about"], tuple(content["span"])
    mask_at, mean_at, values_at = offsets = [content[key] for key in ("mask", "mean", "values")]
    about_at, n_about = content["json"]
    n_voxels, n_vols, generation = content["n_voxels"], about["n_vols"], content["generation"]
    numbers = (*offsets, *span, about_at, n_about, n_voxels, n_vols, generation)
    if not all(type(number) is int and number >= 0 for number in numbers) or "/" in name:
        raise ValueError(name)
    sizes = (MASK_BYTES, 2 * n_voxels, n_vols * n_voxels, n_about)
    ends = [at + size for at, size in zip((*offsets, about_at), sizes, strict=True)]
    if not (span[0] <= min(*offsets, about_at) and max(ends) <= span[1] <= n_bytes):
        raise ValueError(name)
    check_plain(about.get("labels"), where)
    arrays = ShardArrays(place, tar_of(shard), name, mask_at, mean_at, values_at, n_voxels, (about_at, n_about))
    facts = {key: Facts(arrays, key) for key in FACTS}
    scan = scan_of(folder / name, about, where, arrays, facts)
    return StoredScan(scan, generation, (span[0], span[1]), str(content["sha256"]), tar_of(shard))


class ShardWriter:
    """Writer of new shards of a store; each is published when it is complete.

    Parameters
    ----------
    place : Place
        The store.
    shard_bytes : int
        Size from which a shard is closed.
    """

    def __init__(self, place: Place, shard_bytes: int = SHARD_BYTES) -> None:
        self.place, self.shard_bytes = place, shard_bytes
        self._shard: _NewShard | None = None

    def add(self, scan: NewScan, generation: int = 1) -> None:
        """Write a scan."""
        if self._shard is None:
            self._shard = _NewShard(self.place)
        self._shard.add(scan, generation)
        if self._shard.file.position >= self.shard_bytes:
            self.close()

    def close(self) -> None:
        """Publish what was written."""
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.publish()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shard is None or (self._shard.is_whole and self._shard.scans):
            self.close()  # also after an error or a signal: the scans are complete
        else:
            self._shard.stack.__exit__(kind, error, traceback)


class _NewShard:
    """A shard that is being written."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        self.scans: list[dict[str, Any]] = []
        self.is_whole = True
        self.stack = ExitStack()
        path = self.stack.enter_context(place.writing(tar_of(self.name)))
        self.file = _HashedFile(self.stack.enter_context(open(path, "wb")))  # noqa: SIM115

    def add(self, scan: NewScan, generation: int) -> None:
        """Write a scan; after an error or a signal, the shard has the scans before it."""
        start, whole = self.file.position, self.file.whole.copy()
        self.is_whole = False
        try:
            self._write(scan, generation)
        except BaseException as error:
            self.file.cut(start, whole)
            self.is_whole = True
            if isinstance(error, OSError):
                raise writing_error(error, Path(self.place.path(tar_of(self.name)))) from error
            raise
        self.is_whole = True

    def _write(self, scan: NewScan, generation: int) -> None:
        start = self.file.position
        self.file.part = hashlib.sha256()
        content = json.dumps(scan.content, indent=1).encode()
        about_at = self._member(f"{scan.name}.json", [memoryview(content)])
        arrays = {"mask": scan.mask, "mean": scan.mean, "values": scan.codes}
        offsets = {key: self._member(f"{scan.name}.{key}.npy", _npy(array)) for key, array in arrays.items()}
        core = {key: value for key, value in scan.content.items() if key not in FACTS}
        offsets["json"] = [about_at, len(content)]  # type: ignore[assignment]
        about = {"name": scan.name, "generation": generation, "n_voxels": scan.codes.shape[1], "about": core}
        end = {"span": [start, self.file.position], "sha256": self.file.part.hexdigest()}
        self.scans.append(about | offsets | end)

    def _member(self, name: str, parts: list[memoryview]) -> int:
        """Write a file of the tar file; return the offset of its last part."""
        member = TarInfo(name)
        member.size = sum(part.nbytes for part in parts)
        self.file.write(member.tobuf(PAX_FORMAT))
        for part in parts:
            at = self.file.position
            self.file.write(part)
        self.file.write(bytes(-member.size % BLOCKSIZE))
        return at

    def publish(self) -> None:
        """Publish the tar file, then the index."""
        self.file.write(bytes(2 * BLOCKSIZE))  # the end of a tar file
        about = {"shard": self.name, "bytes": self.file.position, "sha256": self.file.whole.hexdigest()}
        self.stack.close()
        text = json.dumps(about | {"scans": self.scans}).encode()
        with self.place.writing(index_of(self.name)) as path:
            path.write_bytes(text[:-1] + DIGEST + hashlib.sha256(text).hexdigest().encode() + b'"}')


def _npy(array: np.ndarray) -> list[memoryview]:
    """Return the header and the data of a ``.npy`` file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return [header.getbuffer(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]


class _HashedFile:
    """A file whose checksums, of all and of a part, are computed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0
        self.whole, self.part = hashlib.sha256(), hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.whole.update(data)
        self.part.update(data)
        self.position += self.file.write(data)

    def cut(self, position: int, whole: Any) -> None:
        """Remove what follows a position, where the checksum of the file was ``whole``."""
        self.file.seek(position)
        self.file.truncate()
        self.position, self.whole = position, whole


def damaged_scans(place: Place, shard: Shard) -> Iterator[tuple[str, str]]:
    """Read a shard and yield its damaged scans with the reason; an empty name stands for the shard itself."""
    file = shard.file
    try:
        size = place.size(file)
    except NoInputError as error:
        yield from ((stored.scan.name, f"{place.path(file)}: {error.message}") for stored in shard.scans)
        return
    hashes, whole, position = [hashlib.sha256() for _ in shard.scans], hashlib.sha256(), 0
    for block in place.blocks(file):
        whole.update(block)
        for stored, own in zip(shard.scans, hashes, strict=True):
            start, stop = (min(max(at - position, 0), len(block)) for at in stored.span)
            if start < stop:
                own.update(memoryview(block)[start:stop])
        position += len(block)
    damaged = False
    for stored, own in zip(shard.scans, hashes, strict=True):
        if own.hexdigest() != stored.sha256:
            damaged = True
            cut = stored.span[1] > size
            yield stored.scan.name, "truncated" if cut else "its checksum differs"
    if not damaged and whole.hexdigest() != shard.sha256:
        yield "", f"{size:,} bytes instead of {shard.n_bytes:,}" if size != shard.n_bytes else "its checksum differs"
