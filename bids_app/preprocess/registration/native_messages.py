"""Messages that native code writes to standard error, such as those of ITK and HDF5 on a full disk."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_app.bids.full_disk import is_full

LOGGER = logging.getLogger(__name__)
LOCK = threading.Lock()
"""Threads share standard error."""


@contextmanager
def quiet_if_full(folder: Path) -> Iterator[None]:
    """Hold back what is written to standard error; print it at the end, unless the disk of a folder is full.

    A full disk is reported in one line elsewhere. With debug messages (``-vv``) nothing is held back.
    """
    if LOGGER.isEnabledFor(logging.DEBUG) or not hasattr(os, "memfd_create"):
        yield
        return
    with LOCK:
        sys.stderr.flush()
        held, terminal = os.memfd_create("stderr"), os.dup(2)
        os.dup2(held, 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            text = os.pread(held, os.fstat(held).st_size, 0)
            if text and not is_full(folder):
                os.write(terminal, text)
            os.close(terminal)
            os.close(held)
