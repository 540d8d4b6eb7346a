"""Gzip files, read and written with ISA-L (package ``isal``): the same format as zlib's, in a fraction of the time.

Importing this module makes nibabel open ``.nii.gz`` files with it, too.
"""

from __future__ import annotations

import gzip
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

from isal import igzip, igzip_lib
from nibabel.openers import ImageOpener

LEVEL = 1
"""Level of compression, from 0 to 3; files are about as small as with zlib's fastest level."""
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, igzip_lib.IsalError, gzip.BadGzipFile)  # type: ignore[assignment]
"""Errors of truncated or damaged files."""
UNREADABLE: tuple[type[Exception], ...] = (*DAMAGED, OSError, ValueError)
"""Also errors of reading and of headers."""


def open_gzip(
    path: str | PathLike[str], mode: str = "rb", compresslevel: int = LEVEL, mtime: int = 0, keep_open: bool = False
) -> gzip.GzipFile:
    """Open a file for reading or writing; the same content gives the same file.

    Parameters
    ----------
    path : path-like
    mode : str
        ``rb`` or ``wb``.
    compresslevel, mtime, keep_open
        As nibabel passes them; only the level matters, and levels above those of ISA-L are its highest.
    """
    raw = Path(path).open(mode)  # noqa: SIM115  closed with the gzip file
    try:
        file: Any = igzip.IGzipFile("", mode, min(compresslevel, 3), raw, 0)
    except BaseException:
        raw.close()
        raise
    file.myfileobj = raw
    return file


ImageOpener.compress_ext_map[".gz"] = (open_gzip, ("mode", "compresslevel", "mtime", "keep_open"))
