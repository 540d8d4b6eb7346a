"""Atlases by name, found on this machine, with the names of their regions; nothing is fetched from here.

Label images are in the model's space (MNI152NLin6Asym); `bids_app.clips.labels_to_model_grid` puts them on the grid.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bids_app.catalog.models import cache_dir
from bids_app.catalog.templates import templateflow_home
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.settings import home_dir

CATALOG = Path(__file__).with_name("atlases.yml")
IMAGE_NAME = re.compile(r".*\.nii(\.gz)?")


@dataclass(frozen=True)
class Atlas:
    """A label image and what is known of it.

    Attributes
    ----------
    name, title, licence : str
    path : Path
    names : dict of int to str
        Of regions, by label; empty where no table lies beside the image.
    is_known_copy : bool
        Whether the file is, byte by byte, the one that the catalog was written from.
    """

    name: str
    path: Path
    names: dict[int, str]
    title: str = ""
    licence: str = ""
    is_known_copy: bool = False


@cache
def catalog() -> dict[str, dict[str, Any]]:
    """The catalog, by name."""
    import yaml

    return yaml.safe_load(CATALOG.read_text(encoding="utf-8"))


def find_atlas(name: str | Path) -> Atlas:
    """An atlas by its name in the catalog, or by the path of its label image.

    Raises
    ------
    UsageError
        There is no atlas of that name, and it is no image.
    NoInputError
        It is not on this machine; the hint says how to get it.
    """
    entry = catalog().get(str(name))
    if entry is None:
        path = Path(name)
        if not IMAGE_NAME.fullmatch(path.name):
            raise UsageError(f"There is no atlas '{name}'.", f"Give a label image, or one of: {', '.join(catalog())}.")
        if not path.is_file():
            raise NoInputError(f"{path}: no such file.", "Check the path of the atlas.")
        return Atlas(_stem(path), path, region_names(path))
    for folder in places():
        for file in entry["files"]:
            path = folder / file
            if path.is_file():
                known = hashlib.sha256(path.read_bytes()).hexdigest() == entry.get("sha256")
                return Atlas(str(name), path, region_names(path), entry["title"], entry["licence"], known)
    raise NoInputError(
        f"The atlas {name} is not on this machine; it was looked for in {', '.join(map(str, places()))}.",
        f"Where there is a network: {entry['get']}",
    )


def places() -> list[Path]:
    """Folders that atlases are looked for in."""
    nilearn = os.environ.get("NILEARN_SHARED_DATA") or os.environ.get("NILEARN_DATA")
    return [cache_dir() / "atlases", Path(nilearn) if nilearn else home_dir() / "nilearn_data", templateflow_home()]


def region_names(image: Path) -> dict[int, str]:
    """Names from the table beside a label image: ``.tsv`` or ``.csv`` with index and name, or AAL's ``.xml``."""
    beside = {suffix: image.with_name(_stem(image) + suffix) for suffix in (".tsv", ".csv", ".xml")}
    try:
        if beside[".xml"].is_file():
            labels = ElementTree.parse(beside[".xml"]).getroot().iter("label")
            return {int(label.findtext("index", "")): label.findtext("name", "") for label in labels}
        for suffix, delimiter in ((".tsv", "\t"), (".csv", ",")):
            if beside[suffix].is_file():
                with beside[suffix].open(newline="", encoding="utf-8") as file:
                    return {int(row["index"]): row["name"] for row in csv.DictReader(file, delimiter=delimiter)}
    except (ValueError, KeyError, ElementTree.ParseError) as error:
        raise BadDataError(
            f"{image}: the table of its regions cannot be read ({error}).", "It needs the columns index and name."
        ) from error
    return {}


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
