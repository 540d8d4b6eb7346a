"""Removal of the socket folders that killed runs leave in the temporary folder.

Python's multiprocessing makes a folder, ``pymp-*``, for the socket of the process that starts workers, and removes it
when the run ends. A run that is killed leaves it. `mark` names the run as its owner, so that the process that
supervises the run, or the next run, can remove it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

from bids_app.bids.processes import process_scope, start_time
from bids_app.files import read_output

OWNER_FILE = "neurostorm.json"
PATTERN = "pymp-*"
MAX_BYTES = 75
"""Maximum length of the path of the temporary folder: that of a socket has at most 107 bytes."""
SHORT = "/tmp"
"""Folder of the sockets if the path of the temporary folder is longer."""


def mark() -> Path:
    """Make the socket folder of this process, if there is none, and write its owner to it."""
    from multiprocessing.util import get_temp_dir  # not needed by the process that supervises a run

    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) > MAX_BYTES:
        tempfile.tempdir = SHORT
    try:
        folder = Path(get_temp_dir())
    finally:
        tempfile.tempdir = usual
    owner = {"pid": os.getpid(), "started": start_time(os.getpid()), "place": process_scope()}
    (folder / OWNER_FILE).write_text(json.dumps(owner))
    return folder


def remove_abandoned() -> list[Path]:
    """Remove the socket folders of this user whose runs have ended, and return them; those of other programs stay."""
    removed = []
    for place in {tempfile.gettempdir(), SHORT}:
        for folder in Path(place).glob(PATTERN):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    try:
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not private or found.st_uid != os.geteuid():
            return False
        owner = json.loads(read_output(folder / OWNER_FILE))
        return owner["place"] == process_scope() and start_time(int(owner["pid"])) != owner["started"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
