"""Truncated files, found without reading all of them.

The last four bytes of a gzip file are the size of its uncompressed content. Comparing them with the size that the
image's header implies takes 0.02 ms; decompressing 156 volumes of 80 x 80 x 35 voxels takes 0.33 s, an hour for 10,000
runs. Only a file that states another size is decompressed. Damage within a file is found by the checksum when the run
is read.
"""

from __future__ import annotations

import os
from pathlib import Path

from bids_app.errors import BadDataError, NoInputError
from bids_app.preprocess.io.compression import UNREADABLE, open_gzip
from bids_app.preprocess.io.headers import check_size, claimed_bytes, load_nifti, unreadable

BLOCK_BYTES = 2**22


def check_complete(path: Path) -> None:
    """Check that an image file has all the voxels of its header.

    Raises
    ------
    NoInputError
        The file does not exist or may not be read.
    BadDataError
        The file is not an image, or is truncated.
    """
    image = load_nifti(path)
    check_size(image, path)
    n_bytes = claimed_bytes(image)
    if path.suffix != ".gz" or stated_size(path) == n_bytes % 2**32:
        return
    try:
        with open_gzip(path) as file:
            found = 0
            while found <= n_bytes and (block := file.read(BLOCK_BYTES)):  # to the end, where the checksum is
                found += len(block)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if found < n_bytes:
        raise BadDataError(
            f"{path.name}: truncated, or its header is damaged ({found:,} of {n_bytes:,} bytes).",
            "Copy or download the file again.",
        )


def stated_size(path: Path) -> int:
    """Read the size of the uncompressed content modulo 2^32, bytes, from the end of a gzip file (RFC 1952)."""
    try:
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little")
    except OSError as error:
        raise NoInputError(f"{path}: {error.strerror}.", "Check the file and its read permissions.") from error
