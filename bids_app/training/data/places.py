"""Folders of clip stores: on a local disk, on a network file system, or in object storage through fsspec.

Files are published as a whole: under a temporary name that is renamed, or as one upload, which object storage shows
when it is complete. Files get the permissions of the umask, folders the group of a parent with the setgid bit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.writer import atomic_path, temporary_name
from bids_app.errors import BadDataError, InputOutputError, NoInputError, UsageError
from bids_app.files import check_regular, open_regular, read_file

MAX_OPEN_FILES = 128
"""Files of stores that a process keeps open."""


def is_url(text: str | Path) -> bool:
    """Return True for a URL such as ``s3://bucket/store``."""
    return isinstance(text, str) and "://" in text


@dataclass(frozen=True)
class Place:
    """A folder by its path or URL; small, because reading processes receive it with each clip."""

    url: str

    @property
    def is_local(self) -> bool:
        """True for a path."""
        return not is_url(self.url)

    def __str__(self) -> str:
        return self.url

    def path(self, name: str) -> str:
        """Return the path or URL of a file."""
        return f"{self.url.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Return True if there is such a file or folder."""
        if self.is_local:
            return os.path.lexists(self.path(name))
        with _remote_errors(self.path(name)):
            try:
                _file_system(self.url).info(self.path(name))
            except FileNotFoundError as error:
                if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                    raise error.__cause__ from error  # the server of an http URL does not answer
                return False
            return True

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder, sorted; empty without the folder."""
        path = self.path(folder)
        if self.is_local:
            with suppress(FileNotFoundError):
                return sorted(os.listdir(path))
            return []
        with _remote_errors(path):
            files = _file_system(self.url)
            files.invalidate_cache()
            with suppress(FileNotFoundError):
                return sorted(str(found).rstrip("/").rpartition("/")[2] for found in files.ls(path, detail=False))
        return []

    def size(self, name: str) -> int:
        """Return the size of a file, bytes."""
        path = self.path(name)
        if self.is_local:
            return check_regular(Path(path)).st_size
        with _remote_errors(path):
            return int(_file_system(self.url).size(path))

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read a whole file."""
        path = self.path(name)
        if self.is_local:
            return read_file(Path(path), max_bytes)
        with _remote_errors(path):
            return bytes(_file_system(self.url).cat_file(path))

    def read_range(self, name: str, start: int, n_bytes: int) -> np.ndarray:
        """Read bytes of a file, (n_bytes,) uint8; the file is kept open.

        Raises
        ------
        NoInputError
            There is no such file.
        BadDataError
            The file is shorter.
        """
        path = self.path(name)
        if self.is_local:
            out = np.empty(n_bytes, np.uint8)
            view, n_read = memoryview(out.data), 0
            file = _open(path)  # is closed when nothing refers to it
            try:
                while n_read < n_bytes and (n := os.preadv(file.descriptor, [view[n_read:]], start + n_read)):
                    n_read += n
            except OSError as error:
                raise InputOutputError(f"{path}: reading failed ({error.strerror}).", "Check the disk.") from error
        else:
            with _remote_errors(path):
                out = np.frombuffer(_file_system(self.url).cat_file(path, start=start, end=start + n_bytes), np.uint8)
            n_read = len(out)
        if n_read != n_bytes:
            raise BadDataError(
                f"{path}: truncated (no {n_bytes:,} bytes at {start:,}).",
                f"Find all damaged scans with neurostorm-train store verify {self.url}.",
            )
        return out

    def blocks(self, name: str, n_bytes: int = 1 << 22) -> Iterator[bytes]:
        """Yield the content of a file in blocks."""
        path = self.path(name)
        if self.is_local:
            with open_regular(Path(path)) as file:
                while block := file.read(n_bytes):
                    yield block
            return
        with _remote_errors(path), _file_system(self.url).open(path, "rb", block_size=n_bytes) as file:
            while block := file.read(n_bytes):
                yield block

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield the path of a local file to write; it is published under ``name`` as a whole, or not at all."""
        if self.is_local:
            with atomic_path(Path(self.path(name))) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="neurostorm-") as folder:
            temporary = Path(folder) / name.rpartition("/")[2]
            yield temporary
            with _remote_errors(self.path(name)):
                _file_system(self.url).put_file(str(temporary), self.path(name))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a folder for large temporary files: in this folder, or on the local disk for object storage."""
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="neurostorm-") as folder:
                yield Path(folder)
            return
        scratch = temporary_name(Path(self.path("series")))
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class _OpenFile:
    """A file descriptor that is closed when nothing refers to it."""

    def __init__(self, path: str) -> None:
        with open_regular(Path(path)) as file:
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.descriptor)


@lru_cache(maxsize=MAX_OPEN_FILES)
def _open(path: str) -> _OpenFile:
    return _OpenFile(path)


def _file_system(url: str) -> Any:
    """Return the file system of a URL; fsspec keeps one for each process."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)[0]
    except ImportError as error:
        hint = 'pip install "neurostorm[s3]"' if url.startswith("s3") else "Install the package that the message names."
        raise UsageError(f"{url}: {error}", hint) from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}", "Use a path, or a URL such as s3://bucket/store.") from error


@contextmanager
def _remote_errors(path: str) -> Iterator[None]:
    """Turn the errors of object storage, of many types, into ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise NoInputError(f"{path}: no such file.", "Check the URL.") from error
    except (UsageError, NoInputError, BadDataError, GeneratorExit):
        raise
    except Exception as error:
        raise InputOutputError(
            f"{path}: {type(error).__name__}: {error}", "Check the connection, the credentials and the URL."
        ) from error
