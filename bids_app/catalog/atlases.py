"""Atlases: lookup by name or path on this machine, and names of their regions. Nothing is downloaded here.

Label images are in the model's space (MNI152NLin6Asym); `bids_app.clips.labels_to_model_grid` resamples them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bids_app.catalog.cache import cache_dir
from bids_app.catalog.templates import MODEL_SPACE, templateflow_home
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, check_regular, read_file, read_rows
from bids_app.settings import home_dir

CATALOG = Path(__file__).with_name("atlases.yml")
IMAGE_NAME = re.compile(r".*\.nii(\.gz)?")
RESOLUTION = re.compile(r"_res-[A-Za-z0-9]+")
ENTITIES = re.compile(r"(?:^|_)([a-z]+)-([A-Za-z0-9+]+)")
TABLE_HINT = "It needs the columns index and name, and one row for each index."
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
"""Control characters, and those that reverse the text after them: no part of the name of a region."""


@dataclass(frozen=True)
class Atlas:
    """An atlas: a label image and its metadata.

    Attributes
    ----------
    name, title, licence : str
    path : Path
    names : dict of int to str
        Region names by label; empty without a table next to the image.
    is_known_copy : bool
        True if the file is identical to the one in the catalog.
    table : Path, optional
        The table of the names.
    """

    name: str
    path: Path
    names: dict[int, str]
    title: str = ""
    licence: str = ""
    is_known_copy: bool = False
    table: Path | None = None


@cache
def catalog() -> dict[str, dict[str, Any]]:
    """Read ``atlases.yml``."""
    import yaml

    return yaml.safe_load(CATALOG.read_text(encoding="utf-8"))


def find_atlas(name: str | Path) -> Atlas:
    """Find an atlas by its name in the catalog, or by the path of its label image.

    Raises
    ------
    UsageError
        The name is not in the catalog, and is not the path of an image; or the name of the image has another space.
    NoInputError
        The atlas is not on this machine; the hint says how to get it. Or the path is not that of a regular file.
    BadDataError
        The table of its regions cannot be read.
    """
    entry = catalog().get(str(name))
    if entry is None:
        path = Path(name)
        if not IMAGE_NAME.fullmatch(path.name):
            raise UsageError(
                f"Unknown atlas '{name}'.", f"Give a label image (.nii or .nii.gz), or one of: {', '.join(catalog())}."
            )
        check_regular(path)
        _check_space(path)
        table = region_table(path)
        return Atlas(_stem(path), path, region_names(table), table=table)
    for folder in atlas_folders():
        for file in entry["files"]:
            path = folder / file
            if path.is_file() and path.stat().st_size:  # not what an interrupted download left
                known = hashlib.sha256(path.read_bytes()).hexdigest() == entry.get("sha256")
                table = region_table(path)
                return Atlas(str(name), path, region_names(table), entry["title"], entry["licence"], known, table)
    raise NoInputError(
        f"The atlas {name} is not on this machine (searched: {', '.join(map(str, atlas_folders()))}).",
        f"On a machine with internet access, run: {entry['get']}",
    )


def atlas_folders() -> list[Path]:
    """List the folders in which atlases are searched."""
    nilearn = os.environ.get("NILEARN_SHARED_DATA") or os.environ.get("NILEARN_DATA")
    return [cache_dir() / "atlases", Path(nilearn) if nilearn else home_dir() / "nilearn_data", templateflow_home()]


def region_table(image: Path) -> Path | None:
    """Return the table of regions next to an image: ``.xml`` of AAL, ``.tsv`` or ``.csv``; None if there is none.

    The table has the name of the image, or that without the resolution, as in TemplateFlow: one table is for all
    resolutions.
    """
    stems = (_stem(image), RESOLUTION.sub("", _stem(image)))
    tables = (image.with_name(stem + suffix) for stem in stems for suffix in (".xml", ".tsv", ".csv"))
    return next(filter(os.path.lexists, tables), None)


def region_names(table: Path | None) -> dict[int, str]:
    """Read region names from a table (see `region_table`) with the columns index and name; without one, there are none.

    Raises
    ------
    BadDataError
        The table has no such columns, an index is not a whole number, or an index occurs twice.
    """
    if table is None:
        return {}
    names: dict[int, str] = {}
    try:
        for index, name in _rows(table):
            if index in names:
                raise ValueError(f"index {index} occurs twice")
            names[index] = "" if name == "n/a" else name
    except KeyError as error:
        raise BadDataError(f"{table}: no column {error}.", TABLE_HINT) from error
    except (ValueError, TypeError, ElementTree.ParseError) as error:
        raise BadDataError(f"{table}: the names of the regions cannot be read ({error}).", TABLE_HINT) from error
    return {index: name for index, name in names.items() if name}


def _rows(table: Path) -> Iterator[tuple[int, str]]:
    """Yield index and name of each region of a table."""
    if table.suffix == ".xml":
        for label in ElementTree.fromstring(read_file(table, MAX_OPTIONS_BYTES)).iter("label"):
            yield int(label.findtext("index", "")), _plain(label.findtext("name", ""))
        return
    for row in read_rows(table, "\t" if table.suffix == ".tsv" else ","):
        yield int(row["index"] or ""), _plain(row["name"] or "")


def _check_space(image: Path) -> None:
    """Raise if the name of an image says that it is in another space than the model's.

    Raises
    ------
    UsageError
    """
    for entity, label in ENTITIES.findall(_stem(image)):
        if entity in ("tpl", "space") and label != MODEL_SPACE:
            raise UsageError(
                f"{image}: in the space {label} by its name, but atlases must be in {MODEL_SPACE}.",
                f"Give the atlas in {MODEL_SPACE}; if the image is in it, rename the image and its table.",
            )


def _plain(name: str) -> str:
    return HIDDEN.sub(" ", name).strip()


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
