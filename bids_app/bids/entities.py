"""BIDS file names: parsing and building of entities. No file is opened here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bids_app.errors import InvalidBIDSError

ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run", "mod",
    "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "seg", "from", "to",
    "mode", "scale", "res", "den", "label", "desc",
)  # fmt: skip
"""Order of entities in a file name; unlisted entities are placed before ``desc``."""

LABEL = re.compile(r"[A-Za-z0-9+]+")
"""Pattern of a BIDS label."""

EXTENSIONS = (".nii.gz", ".tsv.gz")


def split_name(name: str) -> tuple[dict[str, str], str, str]:
    """Split a file name into entities, suffix and extension.

    Parameters
    ----------
    name : str
        Name of a file, without its folder.

    Returns
    -------
    tuple
        Entities in the order they have in the name (``{"sub": "01", "task": "rest"}``), suffix (``bold``) and
        extension (``.nii.gz``). Parts that are not ``key-label`` are skipped.
    """
    extension = next((e for e in EXTENSIONS if name.endswith(e)), None)
    if extension is None:
        extension = name[name.rindex(".") :] if "." in name else ""
    *pairs, suffix = name.removesuffix(extension).split("_")
    entities = {}
    for pair in pairs:
        key, dash, label = pair.partition("-")
        if dash and key and label:
            entities[key] = label
    return entities, suffix, extension


def join_name(entities: Mapping[str, str], suffix: str, extension: str = "") -> str:
    """Build a file name, with the entities in BIDS order."""
    return "_".join([*(f"{key}-{entities[key]}" for key in sorted(entities, key=_rank)), suffix]) + extension


def check_name(path: Path, root: Path) -> None:
    """Raise if the name of an image does not match its folder, or contains an invalid label.

    Names of outputs, folders and workflow nodes are built from labels, so all invalid labels must be rejected here.

    Raises
    ------
    InvalidBIDSError
        The name does not match the folder, or a label is invalid.
    """
    start = "_".join(part for part in path.relative_to(root).parts[:2] if part.startswith(("sub-", "ses-"))) + "_"
    if not path.name.startswith(start):
        raise InvalidBIDSError(f"{path}: file name does not start with {start}", "Rename or move the file.")
    pairs = split_name(path.name)[0].items()
    wrong = [f"{key}-{label}" for key, label in pairs if not (LABEL.fullmatch(key) and LABEL.fullmatch(label))]
    if wrong:
        raise InvalidBIDSError(
            f"{path}: invalid BIDS labels in the file name: {', '.join(wrong)}.",
            "Rename the file and its sidecars: labels consist of letters (a to z, A to Z) and digits.",
        )


def as_label(text: str) -> str:
    """Reduce a text to a BIDS label of letters and digits: ``neurostorm-5ds`` becomes ``neurostorm5ds``."""
    label = re.sub(r"[^A-Za-z0-9]", "", text)
    if not label:
        raise ValueError(f"'{text}' contains no letter or digit for a BIDS label.")
    return label


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Return a sorting key that places ``sub-2`` before ``sub-10``."""
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in re.split(r"(\d+)", text)]


def _rank(key: str) -> tuple[float, str]:
    return (ENTITY_ORDER.index(key) if key in ENTITY_ORDER else len(ENTITY_ORDER) - 1.5, key)
