"""pybids queries: images of a dataset that match the filters. Only the requested participants are indexed."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from bids_app.bids.entities import LABEL, natural_key
from bids_app.errors import InputOutputError, InvalidBIDSError, NoInputError, UsageError
from bids_app.files import check_regular
from bids_app.settings import QuerySettings

LOGGER = logging.getLogger(__name__)

QUERIES: dict[str, dict[str, Any]] = {
    "bold": {"datatype": "func", "suffix": "bold", "extension": [".nii", ".nii.gz"], "part": ["mag", None]},
    "t1w": {"datatype": "anat", "suffix": "T1w", "extension": [".nii", ".nii.gz"], "part": ["mag", None]},
    "fmap": {"datatype": "fmap", "extension": [".nii", ".nii.gz"]},
    "sbref": {"datatype": "func", "suffix": "sbref", "extension": [".nii", ".nii.gz"], "part": ["mag", None]},
    "roi": {"datatype": "anat", "suffix": "roi", "extension": [".nii", ".nii.gz"]},
}
"""Default pybids filters; ``--bids-filter-file`` adds to these and overrides them."""

DATABASE_FILE = "layout_index.sqlite"
"""PyBIDS' name of the index in the folder of a database."""
HINT = "Remove it, or omit --bids-database-dir; then only the requested participants are indexed."

WANTED_PATHS = r"/{participant}(/ses-[^/]+)?(/(func|anat|fmap)(/[^/]+\.nii(\.gz)?)?)?$"
"""Paths below the root, including folders, that are indexed; loops of links end here."""


def list_participants(bids_dir: Path) -> list[str]:
    """List a dataset's participant labels in natural order, without an index.

    A folder ``sub-...`` with an invalid label is skipped with a warning.
    """
    labels = []
    for entry in os.scandir(bids_dir):
        if entry.name.startswith("sub-") and entry.is_dir():
            label = entry.name.removeprefix("sub-")
            if LABEL.fullmatch(label):
                labels.append(label)
            else:
                LOGGER.warning("%s: skipped, because its label contains more than letters and digits.", entry.path)
    return sorted(labels, key=natural_key)


def query_images(bids_dir: Path, settings: QuerySettings, participants: list[str]) -> dict[str, list[Path]]:
    """Return the paths of the images that pybids finds for each of `QUERIES`.

    Parameters
    ----------
    bids_dir : pathlib.Path
        Root of the dataset, absolute.
    settings : QuerySettings
        Filters and database.
    participants : list of str
        Labels of the requested participants.

    Raises
    ------
    UsageError
        A filter is not valid in pybids.
        The database is that of another dataset.
    InvalidBIDSError, InputOutputError, NoInputError
        The dataset cannot be indexed, or its database cannot be used.
    """
    from sqlalchemy.exc import SQLAlchemyError

    layout = _index(bids_dir, settings.database_dir, participants if settings.participants else None)
    folders = {f"sub-{label}" for label in participants}
    found = {}
    for name, query in QUERIES.items():
        filters = {**query, **settings.filters.get(name, {})}
        if settings.participants:
            filters.setdefault("subject", participants)
        try:
            files = layout.get(return_type="file", **{key: _as_pybids(value) for key, value in filters.items()})
        except (ValueError, TypeError, AttributeError, re.error, SQLAlchemyError) as error:
            reason = getattr(error, "orig", None) or error  # the database's message, without the whole query
            raise UsageError(
                f"Invalid filter '{name}' in --bids-filter-file: {reason}",
                "Use pybids entities (session, task, run, ...), each with a label, a list, null or '*'.",
            ) from error
        paths = [Path(file) for file in files]
        found[name] = [path for path in paths if path.relative_to(bids_dir).parts[0] in folders]
    return found


def _index(bids_dir: Path, database_dir: Path | None, participants: list[str] | None) -> Any:
    """Return the pybids layout of some or all participants, or that of the database, which covers the whole dataset."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from sqlalchemy.exc import SQLAlchemyError

    config: dict[str, Any] | None = None
    if database_dir is None:
        config = _anchored_config(bids_dir)
        labels = "|".join(map(re.escape, participants)) if participants else "[^/]+"
        wanted = WANTED_PATHS.format(participant=f"sub-({labels})")
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[re.compile(f"^(?!{wanted})")])
    else:
        if os.path.lexists(database_dir) and not database_dir.is_dir():
            raise NoInputError(f"{database_dir}: is no folder for --bids-database-dir.", "Give a folder, or omit it.")
        if os.path.lexists(database_dir / DATABASE_FILE):
            check_regular(database_dir / DATABASE_FILE)
        LOGGER.info("%s: reading the dataset's index, or creating it, which may take minutes.", database_dir)
        indexer = BIDSLayoutIndexer(validate=False)
    try:
        layout = BIDSLayout(bids_dir, validate=False, config=config, database_path=database_dir, indexer=indexer)
    except UnicodeError as error:
        raise InvalidBIDSError(
            f"{bids_dir}: a file name is not valid UTF-8 ({error}).", "Rename the file; BIDS names are plain ASCII."
        ) from error
    except (SQLAlchemyError, OSError, ValueError) as error:
        if database_dir is None:
            raise InputOutputError(f"{bids_dir}: cannot be indexed ({error}).", "Check the files.") from error
        reason = getattr(error, "orig", None) or error  # as above
        raise InputOutputError(f"{database_dir}: cannot be used as the dataset's index ({reason}).", HINT) from error
    if str(layout.root) != str(bids_dir):
        raise UsageError(f"{database_dir}: is the index of {layout.root}, not of {bids_dir}.", HINT)
    return layout


def _anchored_config(bids_dir: Path) -> dict[str, Any]:
    """Return pybids' configuration with entities matched below the root only; the root may be in a folder ``func``."""
    from bids.layout import models

    config = json.loads((Path(models.__file__).parent / "config" / "bids.json").read_text(encoding="utf-8"))
    for entity in config["entities"]:
        entity["pattern"] = f"^{re.escape(str(bids_dir))}.*?{entity['pattern']}"
    return config


def _as_pybids(value: Any) -> Any:
    """Convert a filter's value for pybids: ``null`` means absent, ``"*"`` means any."""
    from bids.layout import Query

    if isinstance(value, list):
        return [_as_pybids(item) for item in value]
    return {None: Query.NONE, "*": Query.REQUIRED}.get(value, value) if isinstance(value, str | None) else value
