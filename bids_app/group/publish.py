"""The files of the group level are made in a temporary folder, and moved to the output folder as a set.

A level that is killed leaves the files of the one before. Of those that are moved, ``group.html`` is removed first and
comes last: without it, the set is not complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_app.bids.writer import remove_leftovers, temporary_name, writing_error
from bids_app.group.ratings import INCLUDE
from bids_app.reports.group import FIGURES

PAGE = "group.html"
OPTIONAL_FILES = (
    *(f"group_{name}" for name in (
        "bold.tsv", "bold.json", "ratings.tsv", "ratings.json", "embeddings.tsv", "embeddings.json", "embeddings.h5",
        "outliers.tsv", "outliers.json", "identity.tsv", "identity.json",
    )),
    INCLUDE, f"{INCLUDE.removesuffix('.tsv')}.json",
)  # fmt: skip
"""Files that are not written for every cohort."""


@contextmanager
def staged(out_dir: Path) -> Iterator[Path]:
    """Yield an empty folder for the files of the group level; move them to the output folder if all were written.

    Raises
    ------
    CannotCreateError, InputOutputError
        A file cannot be moved.
    """
    remove_leftovers(out_dir, deep=False)
    folder = temporary_name(out_dir / "group")
    try:
        folder.mkdir()
    except OSError as error:
        raise writing_error(error, folder) from error
    try:
        yield folder
        publish(folder, out_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out_dir: Path) -> None:
    """Move all files of a folder to the output folder, ``group.html`` last, and remove those of an earlier level."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names.sort(key=lambda name: name == PAGE)
    path = out_dir / PAGE
    try:
        path.unlink(missing_ok=True)
        for path in _earlier(out_dir):
            if path.relative_to(out_dir).as_posix() not in names:
                path.unlink(missing_ok=True)
        for name in names:
            path = out_dir / name
            path.parent.mkdir(exist_ok=True)
            os.replace(folder / name, path)
    except OSError as error:
        raise writing_error(error, path) from error


def _earlier(out_dir: Path) -> Iterator[Path]:
    """Yield the files that an earlier group level may have left."""
    yield from (out_dir / name for name in OPTIONAL_FILES)
    yield from (out_dir / FIGURES).glob("*.svg")
    for ending in ("tsv", "json"):
        yield from (out_dir / "phenotype").glob(f"neurostorm_*.{ending}")
