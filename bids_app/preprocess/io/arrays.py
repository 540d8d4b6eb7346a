"""Large arrays on disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def create_array(path: Path, shape: Sequence[int]) -> np.memmap:
    """Create a float32 array in an ``.npy`` file, mapped to memory.

    Its disk space is reserved: otherwise the system would kill the process when a page does not fit on the disk.

    Raises
    ------
    OSError
        The disk is full.
    """
    array = np.lib.format.open_memmap(path, "w+", np.float32, tuple(shape))
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # this file system cannot reserve space
                raise OSError(error.errno, error.strerror, str(path)) from error
    return array
