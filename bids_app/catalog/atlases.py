"""Atlases: lookup by name or path on this machine, and names of their regions. Nothing is downloaded here.

Label images are in the model's space (MNI152NLin6Asym); `bids_app.clips.labels_to_model_grid` resamples them.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bids_app.catalog.cache import cache_dir
from bids_app.catalog.templates import templateflow_home
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.files import MAX_OPTIONS_BYTES, check_regular, read_file, read_rows
from bids_app.settings import home_dir

CATALOG = Path(__file__).with_name("atlases.yml")
IMAGE_NAME = re.compile(r".*\.nii(\.gz)?")
RESOLUTION = re.compile(r"_res-[A-Za-z0-9]+")
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
    """

    name: str
    path: Path
    names: dict[int, str]
    title: str = ""
    licence: str = ""
    is_known_copy: bool = False


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
        The name is not in the catalog, and is not the path of an image.
    NoInputError
        The atlas is not on this machine; the hint says how to get it. Or the path is not that of a regular file.
    """
    entry = catalog().get(str(name))
    if entry is None:
        path = Path(name)
        if not IMAGE_NAME.fullmatch(path.name):
            raise UsageError(f"Unknown atlas '{name}'.", f"Give a label image, or one of: {', '.join(catalog())}.")
        check_regular(path)
        return Atlas(_stem(path), path, region_names(path))
    for folder in atlas_folders():
        for file in entry["files"]:
            path = folder / file
            if path.is_file() and path.stat().st_size:  # not what an interrupted download left
                known = hashlib.sha256(path.read_bytes()).hexdigest() == entry.get("sha256")
                return Atlas(str(name), path, region_names(path), entry["title"], entry["licence"], known)
    raise NoInputError(
        f"The atlas {name} is not on this machine (searched: {', '.join(map(str, atlas_folders()))}).",
        f"On a machine with internet access, run: {entry['get']}",
    )


def atlas_folders() -> list[Path]:
    """List the folders in which atlases are searched."""
    nilearn = os.environ.get("NILEARN_SHARED_DATA") or os.environ.get("NILEARN_DATA")
    return [cache_dir() / "atlases", Path(nilearn) if nilearn else home_dir() / "nilearn_data", templateflow_home()]


def region_names(image: Path) -> dict[int, str]:
    """Read region names from the table next to an image: ``.tsv`` or ``.csv`` (index, name), or AAL's ``.xml``.

    The table has the name of the image, or that without the resolution, as in TemplateFlow: one table is for all
    resolutions.
    """
    try:
        for stem in (_stem(image), RESOLUTION.sub("", _stem(image))):
            tables = {suffix: image.with_name(stem + suffix) for suffix in (".tsv", ".csv", ".xml")}
            if os.path.lexists(tables[".xml"]):
                labels = ElementTree.fromstring(read_file(tables[".xml"], MAX_OPTIONS_BYTES)).iter("label")
                return {int(label.findtext("index", "")): _plain(label.findtext("name", "")) for label in labels}
            for suffix, delimiter in ((".tsv", "\t"), (".csv", ",")):
                if os.path.lexists(tables[suffix]):
                    return {int(row["index"]): _plain(row["name"]) for row in read_rows(tables[suffix], delimiter)}
    except (ValueError, TypeError, KeyError, ElementTree.ParseError) as error:
        raise BadDataError(
            f"{image}: the table of its regions cannot be read ({error}).", "It needs the columns index and name."
        ) from error
    return {}


def _plain(name: str) -> str:
    return HIDDEN.sub(" ", name).strip()


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
