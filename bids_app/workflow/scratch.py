"""Privacy of the scratch folder.

nipype stores results as pickles, and libraries store compiled code. Whoever can write there can run code as the user of
the next run. Both are therefore in subfolders that only this user can access. The scratch folder itself may be shared,
for instance by a group of a cluster; its owner and group are trusted not to exchange the subfolders during a run.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bids_app.errors import CannotCreateError
from bids_app.settings import CACHES, own_scratch

RESULTS = "neurostorm"
"""Subfolder with the results of steps."""
PRIVATE = (RESULTS, CACHES)
"""Subfolders of a scratch folder that only this user may access."""
HINT = "Delete it, give your own --work-dir, or set NEUROSTORM_SCRATCH."


def check_private(work_dir: Path) -> None:
    """Check that no other user could have written what is read from a scratch folder; nothing is written.

    Raises
    ------
    CannotCreateError
        A subfolder belongs to another user, or others can write in it or exchange it.
    """
    base = own_scratch()
    if work_dir.is_relative_to(base) and os.path.lexists(base):
        check_folder(base)
    place = work_dir.resolve()
    for folder in (place, *place.parents):
        if folder.exists() and (mode := folder.stat().st_mode) & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise CannotCreateError(
                f"{folder}: all users can write here, and exchange the scratch folder.",
                f"Remove this permission (chmod o-w {folder}), or give --work-dir elsewhere.",
            )
    for folder in private_folders(work_dir):
        if os.path.lexists(folder):
            check_folder(folder)


def make_private(work_dir: Path) -> None:
    """Create the private subfolders of a scratch folder, and deny others access to existing ones.

    Raises
    ------
    CannotCreateError
        See `check_private`.
    """
    check_private(work_dir)
    for folder in private_folders(work_dir):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            check_folder(folder)
            folder.chmod(0o700)
        except OSError as error:
            raise CannotCreateError(f"{folder}: {error.strerror}.", HINT) from error


def private_folders(work_dir: Path) -> tuple[Path, ...]:
    """Return the private subfolders of a scratch folder."""
    return tuple(work_dir / name for name in PRIVATE)


def check_owner(path: Path) -> None:
    """Check that a file or folder belongs to this user and is not a link.

    Raises
    ------
    CannotCreateError
        It belongs to another user, or is a link.
    """
    found = path.lstat()
    if found.st_uid != os.geteuid() or not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise CannotCreateError(f"{path}: belongs to another user, or is a link.", HINT)


def check_folder(folder: Path) -> None:
    """Check that a folder belongs to this user, and that no other can write in it.

    Raises
    ------
    CannotCreateError
        It is not a private folder.
    """
    check_owner(folder)
    mode = folder.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise CannotCreateError(f"{folder}: not a folder.", HINT)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotCreateError(f"{folder}: other users can write here, and results are read from it.", HINT)
