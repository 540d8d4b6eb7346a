"""Reading of input files: regular files only, up to a size limit, and plain values only.

A named pipe blocks whoever opens it, a device never ends, and a small text can describe a huge value. All input files
that are read whole are read here; images are only opened after `check_regular`.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bids_app.errors import BadDataError, NoInputError

MAX_OPTIONS_BYTES = 2**20
"""Filter files, option files and plugin files."""
MAX_JSON_BYTES = 16 * 2**20
"""Sidecars; the largest, with the metadata of each slice, have a few MB."""
MAX_TABLE_BYTES = 32 * 2**20
"""Tables of participants, events and labels."""
MAX_CONFOUNDS_BYTES = 128 * 2**20
"""Tables of confounds; that of 10,000 volumes has about 50 MB."""
MAX_OUTPUT_BYTES = 256 * 2**20
"""Tables and sidecars of outputs; embeddings of 10,000 volumes have 3 MB."""
MAX_ROWS, MAX_COLUMNS = 1_000_000, 20_000
"""Rows and columns of a table."""
MAX_DEPTH = 64
"""Levels of lists and objects in a JSON or pickled value."""
MAX_VALUES = 2_000_000
"""Numbers, texts and containers in a JSON or pickled value; sidecars may have some for each slice."""
MAX_INTEGER = 2**63
"""Integers at or above this cannot be stored in 64 bits."""

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
PERMISSIONS_HINT = "Check the permissions of the file, and of the folders that contain it."


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file or of a link to one; the file is not opened.

    Raises
    ------
    NoInputError
        There is no such file, or it is a folder, named pipe, socket or device.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise cannot_read(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "not a regular file")
        raise NoInputError(f"{path}: is {kind}, not a file.", "Replace it by a regular file, or remove it.")
    return found


def cannot_read(path: Path, error: OSError | ValueError) -> NoInputError:
    """Return the error for a file that cannot be opened."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return NoInputError(f"{path}: no read permission.", PERMISSIONS_HINT)
    if number == errno.ELOOP:
        return NoInputError(f"{path}: the symbolic links form a loop.", "Replace the link by the file.")
    if number == errno.ENAMETOOLONG:
        return NoInputError(f"{str(path)[:100]}…: the name is too long.", "Check the path.")
    if number in (errno.ENOENT, errno.ENOTDIR):
        what = f"the link target {os.readlink(path)} does not exist" if os.path.islink(path) else "no such file"
        return NoInputError(
            f"{path}: {what}.", f"Check the path, or restore the file; in a DataLad dataset: datalad get '{path}'."
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return NoInputError(f"{path}: {reason}.", PERMISSIONS_HINT)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without waiting.

    Raises
    ------
    NoInputError
        The file does not exist, may not be read, or is not a regular file.
    """
    check_regular(path)
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise cannot_read(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # replaced since it was checked
        file.close()
        raise NoInputError(f"{path}: was replaced while it was opened.", "Repeat the command.")
    return file


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a regular file.

    Parameters
    ----------
    path : pathlib.Path
    max_bytes : int
        Largest accepted size, bytes.

    Raises
    ------
    NoInputError
        The file does not exist, may not be read, or is not a regular file.
    BadDataError
        The file is too large, also if it grows while it is read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b""
        if size <= max_bytes:
            content = file.read(size + 1)  # reading reserves as much memory as may be read
            if len(content) > size:  # it grows
                content += file.read(max_bytes + 1 - len(content))
            size = len(content)
    if size <= max_bytes:
        return content
    raise BadDataError(
        f"{path}: {size / 1e6:,.0f} MB, too large for this kind of file (maximum {max_bytes / 1e6:,.0f} MB).",
        "Check whether it is the right file.",
    )


def read_output(path: Path) -> bytes:
    """Read a file of the output folder, whose readers go on without a file that they cannot read.

    Raises
    ------
    OSError
        The file is missing, may not be read, is not a regular file, or is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "" if stat.S_ISREG(found.st_mode) else "not a regular file")
    if kind or found.st_size > MAX_OUTPUT_BYTES:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"is {kind}, not a file" if kind else "is too large for an output", str(path))
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def read_output_table(path: Path) -> list[dict[str, str]]:
    """Read a tab-separated table of the output folder; see `read_output`.

    Raises
    ------
    OSError, UnicodeDecodeError, csv.Error
    """
    return list(csv.DictReader(io.StringIO(read_output(path).decode(), newline=""), delimiter="\t"))


def read_text(path: Path, max_bytes: int) -> str:
    """Read a regular UTF-8 file, with or without a byte order mark; see `read_file` for the other errors.

    Raises
    ------
    BadDataError
        The content is not UTF-8.
    """
    try:
        return read_file(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}).",
            "Save the file as UTF-8; text from older Windows programs is often Latin-1.",
        ) from None


def read_table_text(path: Path, max_bytes: int = MAX_TABLE_BYTES) -> str:
    """Read the text of a TSV table; see `read_text` for the errors.

    Raises
    ------
    BadDataError
        More than `MAX_ROWS` rows or `MAX_COLUMNS` columns.
    """
    text = read_text(path, max_bytes)
    n_rows, n_columns = text.count("\n"), text.partition("\n")[0].count("\t") + 1
    if n_rows > MAX_ROWS or n_columns > MAX_COLUMNS:
        raise BadDataError(
            f"{path}: {n_rows:,} rows and {n_columns:,} columns, too many (maximum {MAX_ROWS:,} and {MAX_COLUMNS:,}).",
            "Check whether it is the right file.",
        )
    return text


def read_rows(path: Path, delimiter: str = "\t", max_bytes: int = MAX_TABLE_BYTES) -> list[dict[str, str]]:
    """Read the rows of a table by column; missing cells are None, cells without a column are dropped.

    Raises
    ------
    NoInputError, BadDataError
        See `read_table_text`; or the text is not a table.
    """
    text = read_table_text(path, max_bytes)
    try:
        rows: list[dict[Any, Any]] = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise BadDataError(f"{path}: not a table ({error}).", "Correct the table.") from None
    for row in rows:
        row.pop(None, None)
        if broken := next((cell for cell in row.values() if cell and "\n" in cell), ""):
            raise BadDataError(
                f"{path}: a quotation mark is not closed, before {broken.splitlines()[0]!r}.",
                "Remove the quotation mark: it would join several rows to one.",
            )
    return rows


def parse_json(
    text: str | bytes, name: str, max_integer: int | None = MAX_INTEGER, max_values: int = MAX_VALUES
) -> Any:
    """Parse JSON, and check its values with `check_plain`.

    Parameters
    ----------
    text : str or bytes
    name : str
        Name of the file, and of the part of it, for error messages.
    max_integer, max_values
        See `check_plain`.

    Raises
    ------
    BadDataError
        The text is not JSON, or contains values that `check_plain` refuses.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise BadDataError(f"{name}: JSON is nested too deeply (maximum {MAX_DEPTH} levels).", "Correct it.") from None
    except ValueError as error:
        raise BadDataError(f"{name}: not valid JSON ({error}).", "Correct it, e.g. with a JSON validator.") from None
    check_plain(content, name, max_integer, max_values)
    return content


def check_plain(content: Any, name: str, max_integer: int | None = MAX_INTEGER, max_values: int = MAX_VALUES) -> None:
    """Check that a value consists of a limited number of texts, numbers, lists and mappings.

    Parameters
    ----------
    content : object
    name : str
        Name of the file for error messages.
    max_integer : int, optional
        Integers of this size are refused; None: any integer is accepted.
    max_values : int
        Largest number of values; one that occurs twice, as in a pickle, counts twice.

    Raises
    ------
    BadDataError
        Other types, more than `MAX_DEPTH` levels or ``max_values`` values, larger integers, or text that UTF-8 cannot
        encode.
    """
    n_values, level, depth = 0, [content], 0
    while level:
        if depth > MAX_DEPTH:
            raise BadDataError(f"{name}: nested too deeply (maximum {MAX_DEPTH} levels).", "Correct the file.")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value, name)
            elif isinstance(value, Mapping):
                inner += value.keys()
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
            elif isinstance(value, int) and max_integer is not None and abs(value) >= max_integer:
                raise BadDataError(f"{name}: a number has more than 64 bits.", "Correct the file.")
            elif value is not None and not isinstance(value, int | float):
                raise BadDataError(f"{name}: contains a {type(value).__name__}.", "Save plain values only.")
            if n_values + len(inner) > max_values:
                raise BadDataError(f"{name}: more than {max_values:,} values.", "Check whether it is the right file.")
        n_values += len(level)
        level, depth = inner, depth + 1


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise BadDataError(
            f"{name}: text with an invalid character ({code}, half of a surrogate pair).", "Correct the file."
        ) from None
