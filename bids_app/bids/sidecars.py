"""Sidecars and tables of an image by the BIDS inheritance principle, and JSON reading with clear errors.

A file at any level from the dataset's root to the image's folder applies to the image if its suffix matches and the
image has all entities of its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bids_app.bids.entities import natural_key, split_name
from bids_app.errors import BadDataError, NoInputError
from bids_app.files import MAX_JSON_BYTES, open_regular, parse_json, read_text

ANNEX_POINTER = b"/annex/objects/"
"""First bytes of a git-annex (DataLad) pointer file, if it is not a symbolic link."""

REPETITION_TIME, SCANNER = "RepetitionTime", "ManufacturersModelName"
SCANNER_KEYS = ("Manufacturer", SCANNER, "MagneticFieldStrength")
"""Keys that name the scanner: maker, model, field strength."""
SIMULATED_SCANNER = "Simulated scanner"
"""``SCANNER`` in the sidecars of neurostorm-phantom."""
DIRECTIONS = {"i": (0, 1.0), "i-": (0, -1.0), "j": (1, 1.0), "j-": (1, -1.0), "k": (2, 1.0), "k-": (2, -1.0)}
"""Voxel axis and sign of slice- and phase-encoding directions."""


def read_direction(value: Any) -> tuple[int, float] | None:
    """Return voxel axis and sign (1 or -1) of an encoding direction; None if the value is not a direction.

    Parameters
    ----------
    value : object
        Value of a sidecar: ``j-``.
    """
    return DIRECTIONS.get(value) if isinstance(value, str) else None


def is_simulated(metadata: Mapping[str, Any]) -> bool | None:
    """Tell whether a sidecar is of neurostorm-phantom; None if it does not name the scanner."""
    scanner = metadata.get(SCANNER)
    return None if scanner is None else scanner == SIMULATED_SCANNER


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    NoInputError
        The file is a broken link, cannot be opened, or is not a regular file.
    BadDataError
        The content is too large, not UTF-8, not JSON, not plain values (see `parse_json`), or not an object.
    """
    error = missing_content(path)
    if error:
        raise error
    content = parse_json(read_text(path, MAX_JSON_BYTES), str(path), max_integer=None)
    if not isinstance(content, dict):
        raise BadDataError(
            f"{path}: contains a JSON {type(content).__name__} instead of an object.", 'Write {"Name": value, ...}.'
        )
    return content


def missing_content(path: Path) -> NoInputError | None:
    """Return an error if a file has no content to read; None otherwise.

    It may be missing, a broken link, a git-annex pointer, without read permission, or not a regular file.
    """
    try:
        with open_regular(path) as file:
            is_pointer = file.read(len(ANNEX_POINTER)) == ANNEX_POINTER
    except NoInputError as error:
        return error
    if not is_pointer:
        return None
    return NoInputError(
        f"{path}: content has not been fetched (git-annex pointer).",
        f"For a DataLad dataset: datalad get '{path}'. Otherwise restore the file.",
    )


def first_missing(paths: Iterable[Path]) -> NoInputError | None:
    """Return the error of the first file without content, see `missing_content`; None if all have content."""
    return next(filter(None, map(missing_content, paths)), None)


class Inheritance:
    """Sidecars and tables of a dataset by inheritance; each folder is listed once.

    Parameters
    ----------
    root : pathlib.Path
        Root of the dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, list[str]] = {}

    def files(self, image: Path, suffix: str, extension: str) -> list[Path]:
        """List the files that apply to an image, from the most general to the most specific.

        Parameters
        ----------
        image : pathlib.Path
            The image, somewhere below the root.
        suffix, extension : str
            Suffix and extension of the files: ``bold``, ``.json``.
        """
        entities = split_name(image.name)[0].items()
        found = []
        for folder in self._folders_down_to(image.parent):
            level = []
            for name in self._listing(folder):
                if name.endswith(suffix + extension):
                    theirs, its_suffix, its_extension = split_name(name)
                    if (its_suffix, its_extension) == (suffix, extension) and theirs.items() <= entities:
                        level.append((len(theirs), natural_key(name), folder / name))
            found += [path for _, _, path in sorted(level)]
        return found

    def sidecars(self, image: Path) -> list[Path]:
        """List the sidecars of an image, the most specific one last."""
        return self.files(image, split_name(image.name)[1], ".json")

    def metadata(self, image: Path) -> dict[str, Any]:
        """Merge the sidecars of an image; the most specific file wins for each key.

        Raises
        ------
        NoInputError, BadDataError
            See `read_json`; the message names the sidecar.
        """
        metadata: dict[str, Any] = {}
        for path in self.sidecars(image):
            metadata.update(read_json(path))
        return metadata

    def table(self, image: Path, suffix: str) -> Path | None:
        """Return the most specific table (``_events.tsv``) of an image; tables are not merged."""
        return next(reversed(self.files(image, suffix, ".tsv")), None)

    def _folders_down_to(self, folder: Path) -> Iterator[Path]:
        level = self.root
        yield level
        for part in folder.relative_to(self.root).parts:
            level = level / part
            yield level

    def _listing(self, folder: Path) -> list[str]:
        if folder not in self._names:
            self._names[folder] = [name for name in os.listdir(folder) if name.endswith((".json", ".tsv"))]
        return self._names[folder]
