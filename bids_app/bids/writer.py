"""Output paths and atomic writing of derivatives.

Each file is written under a temporary name in its folder, flushed to disk and renamed, so that a crash, a full disk or
another process never leaves a partial file under the final name.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from bids_app.bids.entities import LABEL, join_name
from bids_app.bids.processes import scope_label, start_time
from bids_app.errors import CannotCreateError, InputOutputError, NeurostormError

if TYPE_CHECKING:
    import pandas as pd

RAW_DATASET = "raw"
"""Name of the raw dataset in ``DatasetLinks`` and in BIDS URIs."""

TEMPORARY = re.compile(r"\.neurostorm-(?P<pid>\d+)-(?P<scope>[\w.-]*?)-[0-9a-f]{8}-")
"""Names of temporary files: process, its scope (see `processes.py`), a random part, the name of the file."""

WAIT_SECONDS = 10.0
"""Maximum time to wait for another process that updates the same file."""

LEFTOVER_AGE = 24 * 3600
"""Age after which a temporary file of another machine or container is a leftover, s."""


def output_path(
    out_dir: Path,
    entities: Mapping[str, str],
    suffix: str,
    extension: str,
    *,
    datatype: str = "func",
    **extra: str | None,
) -> Path:
    """Return the path of an output.

    Parameters
    ----------
    out_dir : pathlib.Path
        Root of the derivatives.
    entities : mapping
        Entities of the source image; ``sub`` is required. For ``datatype="anat"``, give the entities of an anatomical
        image.
    suffix, extension : str
        ``bold`` and ``.nii.gz``.
    datatype : str
        ``func``, ``anat``, or ``figures``, which has no session folder.
    **extra : str or None
        Further entities, such as ``space="MNI152NLin6Asym"``; None is skipped. Add an underscore to Python keywords:
        ``from_="T1w"``.

    Examples
    --------
    >>> output_path(Path("out"), {"sub": "01", "ses": "a", "task": "rest"}, "mask", ".nii.gz", desc="brain").as_posix()
    'out/sub-01/ses-a/func/sub-01_ses-a_task-rest_desc-brain_mask.nii.gz'
    """
    added = {key.rstrip("_"): label for key, label in extra.items() if label is not None}
    pairs = {**entities, **added}
    wrong = [f"{key}-{label}" for key, label in pairs.items() if not (LABEL.fullmatch(key) and LABEL.fullmatch(label))]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: a BIDS label consists of letters and digits only.")
    folder = out_dir / f"sub-{entities['sub']}"
    if "ses" in entities and datatype != "figures":
        folder /= f"ses-{entities['ses']}"
    return folder / datatype / join_name(pairs, suffix, extension)


def bids_uri(path: Path, root: Path, dataset: str = "") -> str:
    """Return the BIDS URI of a file.

    Parameters
    ----------
    path, root : pathlib.Path
        The file, and the root of its dataset.
    dataset : str
        Name in ``DatasetLinks``; empty for the dataset that contains the URI.
    """
    return f"bids:{dataset}:{quote(path.relative_to(root).as_posix())}"


def dataset_uri(path: Path, datasets: Mapping[str, Path]) -> str:
    """Return the BIDS URI of a file in one of several datasets; nested datasets: in the innermost.

    Parameters
    ----------
    path : pathlib.Path
        The file, absolute.
    datasets : mapping
        Roots by their names in ``DatasetLinks``.
    """
    holding = [name for name, root in datasets.items() if path.is_relative_to(root)]
    if not holding:
        raise ValueError(f"{path} is in none of the datasets {', '.join(map(str, datasets.values()))}.")
    name = max(holding, key=lambda name: len(datasets[name].parts))
    return bids_uri(path, datasets[name], name)


def temporary_name(path: Path) -> Path:
    """Return a unique temporary name in the folder of a file, which `remove_leftovers` recognises."""
    return path.with_name(f".neurostorm-{os.getpid()}-{scope_label()}-{uuid.uuid4().hex[:8]}-{path.name}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, with its extension; rename it to ``path`` on success.

    Raises
    ------
    CannotCreateError
        The file may not be written, or the file system is read-only.
    InputOutputError
        The disk is full or has failed.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise writing_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file; a file with the same text is not touched."""
    data = text.encode("utf-8", errors="surrogateescape")
    with suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return path
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file; NaN and infinity become null, NumPy values become plain ones, and paths become text."""
    return write_text(path, as_json_text(content))


def as_json_text(content: Mapping[str, Any]) -> str:
    """Format a JSON file as `write_json` writes it."""
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_tsv(path: Path, table: pd.DataFrame | Mapping[str, Any], float_format: str | None = None) -> Path:
    """Write a BIDS table: tab-separated, with ``n/a`` for missing values."""
    import pandas as pd

    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table)
    return write_text(
        path, frame.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n", float_format=float_format)
    )


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write a BIDS table of texts and numbers as `write_tsv` does, without pandas, whose import takes time and memory.

    Parameters
    ----------
    path : pathlib.Path
    columns : mapping of str to sequence of str, int, float or None, (N,)
    """
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*map(_cells, columns.values()), strict=True))
    return write_text(path, text.getvalue())


def _cells(values: Sequence[Any]) -> list[Any]:
    """Return the cells of a column; whole numbers among others, or among missing ones, are written as ``1.0``."""
    kinds = set(map(type, values))
    if kinds == {int, float} or kinds == {int, NoneType} or kinds == {int, float, NoneType}:
        values = [None if value is None else float(value) for value in values]
    return ["n/a" if value is None or value != value else value for value in values]  # NaN


def copy_file(source: Path, path: Path) -> Path:
    """Copy a file's content; a target with the same content is not touched."""
    if not _same_content(source, path):
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)
    return path


def copy_folder(source: Path, path: Path) -> Path:
    """Copy a folder of files as a whole; a target with the same content is not touched.

    Raises
    ------
    CannotCreateError, InputOutputError
        See `atomic_folder`.
    """
    names = sorted(file.name for file in source.iterdir())
    with suppress(OSError):
        if sorted(file.name for file in path.iterdir()) == names and all(
            _same_content(source / name, path / name) for name in names
        ):
            return path
    with atomic_folder(path) as temporary:
        for name in names:
            shutil.copyfile(source / name, temporary / name)
    return path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success, it replaces ``path`` as a whole.

    A killed process leaves the old folder, the new one, or none, and never a mixture.

    Raises
    ------
    CannotCreateError, InputOutputError
        See `atomic_path`.
    """
    temporary, old = temporary_name(path), temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        if os.path.lexists(path):
            os.rename(path, old)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise writing_error(error, path) from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *, deep: bool = True) -> list[Path]:
    """Remove temporary files and folders of dead processes in a folder (``deep``: and below it); return them."""
    removed = []
    for path in list((folder.rglob if deep else folder.glob)(".neurostorm-*")):
        match = TEMPORARY.match(path.name)
        if match and not _is_in_use(path, int(match["pid"]), match["scope"]):
            with suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed.append(path)
    return removed


def _is_in_use(path: Path, pid: int, scope: str) -> bool:
    """Check if the process that writes a temporary file may still run."""
    if scope == scope_label():
        return bool(start_time(pid))
    with suppress(OSError):
        return time.time() - path.stat().st_mtime < LEFTOVER_AGE
    return False


def _flush(path: Path) -> None:
    """Flush a file or folder to disk; ignore file systems that cannot flush a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def wait_for_lock(file: int | IO[Any], seconds: float) -> bool:
    """Lock an open file or folder for this process until it is closed; return False if another holds it all the time.

    Raises
    ------
    OSError
        The file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, InterruptedError):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for other processes that update a file of a folder; go on after `WAIT_SECONDS`, or without locks at once."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # the file system has no locks
            wait_for_lock(descriptor, WAIT_SECONDS)
        yield
    finally:
        os.close(descriptor)


def writing_error(error: OSError, path: Path) -> NeurostormError:
    """Return the error of a file that could not be written, with its hint and exit code."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return CannotCreateError(
            f"{path}: cannot be written ({error.strerror}).",
            "Check the permissions, and that the file system is mounted writable.",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputOutputError(
            f"{path}: no space left on the device.", "Free some space, or raise the quota; finished results are kept."
        )
    return InputOutputError(f"{path}: writing failed ({error.strerror or error}).", "Check the disk and its mount.")


def _same_content(source: Path, path: Path, chunk: int = 1 << 20) -> bool:
    try:
        if path.stat().st_size != source.stat().st_size:
            return False
        with source.open("rb") as one, path.open("rb") as other:
            while block := one.read(chunk):
                if block != other.read(chunk):
                    return False
    except OSError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Convert a value to plain JSON types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and numbers
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
