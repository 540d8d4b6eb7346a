"""File names of BIDS: reading entities from them, and putting them in order. No file is opened here."""

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
"""The order of entities in a name; one that is not listed comes after those that are, before ``desc``."""

LABEL = re.compile(r"[A-Za-z0-9+]+")
"""What BIDS allows as a label."""

EXTENSIONS = (".nii.gz", ".tsv.gz")


def split_name(name: str) -> tuple[dict[str, str], str, str]:
    """Take a file name apart.

    Parameters
    ----------
    name : str
        Name of a file, without its folder.

    Returns
    -------
    tuple
        Entities in the order they have in the name (``{"sub": "01", "task": "rest"}``), suffix (``bold``) and
        extension (``.nii.gz``). What is not ``key-label`` is left out of the entities.
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
    """Put a file name together, with the entities in the order of BIDS."""
    return "_".join([*(f"{key}-{entities[key]}" for key in sorted(entities, key=_rank)), suffix]) + extension


def check_name(path: Path, root: Path) -> None:
    """Refuse an image whose name says another participant or session than its folder, or holds what no label may.

    Names of outputs, of their folders and of steps are made from labels, so nothing else may pass here.

    Raises
    ------
    InvalidBIDSError
        Such a name.
    """
    start = "_".join(part for part in path.relative_to(root).parts[:2] if part.startswith(("sub-", "ses-"))) + "_"
    if not path.name.startswith(start):
        raise InvalidBIDSError(f"{path}: its name does not start with {start}", "Rename the file, or move it.")
    pairs = split_name(path.name)[0].items()
    wrong = [f"{key}-{label}" for key, label in pairs if not (LABEL.fullmatch(key) and LABEL.fullmatch(label))]
    if wrong:
        raise InvalidBIDSError(
            f"{path}: its name holds {' and '.join(wrong)}, which BIDS does not allow.",
            "Rename the file and its sidecars: labels are letters (a to z, A to Z) and digits.",
        )


def as_label(text: str) -> str:
    """The letters and digits of a text, as a BIDS label: ``neurostorm-5ds`` gives ``neurostorm5ds``."""
    label = re.sub(r"[^A-Za-z0-9]", "", text)
    if not label:
        raise ValueError(f"'{text}' holds no letter or digit to make a BIDS label from.")
    return label


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorting key in which ``sub-2`` comes before ``sub-10``."""
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in re.split(r"(\d+)", text)]


def _rank(key: str) -> tuple[float, str]:
    return (ENTITY_ORDER.index(key) if key in ENTITY_ORDER else len(ENTITY_ORDER) - 1.5, key)
