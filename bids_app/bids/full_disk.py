"""Full disks, recognised also where a library does not say why writing failed.

ANTs raises a vague RuntimeError, HDF5 and NumPy an OSError without its number, and a truncated file looks like
damaged data to the function that reads it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

from bids_app.errors import InputOutputError

LOGGER = logging.getLogger(__name__)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exceeded quota."""
SAYS_FULL = re.compile("|".join([*map(os.strerror, NO_SPACE), r"errno = (28|122)\b", r"\d+ requested and \d+ written"]))
"""Messages of a full disk: of the system, of HDF5 and of NumPy."""
PROBE_BYTES = 2**20
"""Size of the file that is written to see whether a disk is full; a quota does not appear in the free space."""
CRASH_PROBE_BYTES = 2**26
"""The same after a crash: libraries crash on files of many MB that do not fit, of which nothing is left."""


def is_full(folder: Path, n_bytes: int = PROBE_BYTES) -> bool:
    """Return whether a file of some size does not fit into a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(n_bytes))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in NO_SPACE
    return False


def says_full(error: BaseException) -> bool:
    """Return whether an exception, or one that it was raised from, reports a full disk."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        if isinstance(current, OSError) and (current.errno in NO_SPACE or SAYS_FULL.search(str(current))):
            return True
        seen.append(current)
        current = current.__cause__ or current.__context__
    return False


def hide_errors_of_freed_files() -> None:
    """Log errors of HDF5 files that are freed without being closed, instead of printing them with a traceback.

    A file is freed without being closed only if closing or writing it has failed, on a full disk for example, which the
    step reports. Its further errors do not always name the cause. Cython prints them with a traceback
    (`sys.excepthook`), and Python again as unraisable.
    """
    print_error, print_unraisable = sys.excepthook, sys.unraisablehook

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        if str(found.object).startswith("h5py.") or (found.exc_value and SAYS_FULL.search(str(found.exc_value))):
            LOGGER.debug("%s: %s", found.object, found.exc_value)
        else:
            print_unraisable(found)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        frames = [frame.f_code for frame, _ in traceback.walk_tb(trace)]
        in_hdf5 = all(code.co_filename.startswith("h5py/") for code in frames)
        if in_hdf5 and any("dealloc" in code.co_name for code in frames):
            LOGGER.debug("An HDF5 file was freed: %s", error)
        else:
            print_error(kind, error, trace)

    sys.excepthook, sys.unraisablehook = uncaught, unraisable


def no_space(folder: Path, what: str) -> InputOutputError:
    """Return the error for a full disk; ``what`` could not be done."""
    return InputOutputError(
        f"{folder}: no space left on the disk, or the quota is exceeded ({what}).",
        "Free some space, or give --work-dir on another disk, and repeat the command: finished steps are kept.",
    )
