"""Sidecars and tables of an image by the BIDS inheritance principle, and JSON reading with clear errors.

A file at any level from the dataset's root to the image's folder applies to the image if its suffix matches and the
image has all entities of its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bids_app.bids.entities import natural_key, split_name
from bids_app.errors import BadDataError, NoInputError

ANNEX_POINTER = b"/annex/objects/"
"""First bytes of a git-annex (DataLad) pointer file, if it is not a symbolic link."""

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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    NoInputError
        The file is a broken link, or cannot be opened.
    BadDataError
        The content is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise missing_content(path) or NoInputError(
            f"{path}: {error.strerror}.", "Check the permissions of the file."
        ) from None
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}).",
            "Save the file as UTF-8; text from older Windows programs is often Latin-1.",
        ) from None
    except RecursionError:
        raise BadDataError(f"{path}: JSON is nested too deeply.", "Correct the file.") from None
    except ValueError as error:
        raise BadDataError(
            f"{path}: not valid JSON ({error}).", "Correct the file, e.g. with a JSON validator."
        ) from None
    if not isinstance(content, dict):
        raise BadDataError(
            f"{path}: contains a JSON {type(content).__name__} instead of an object.", 'Write {"Name": value, ...}.'
        )
    return content


def missing_content(path: Path) -> NoInputError | None:
    """Return an error if a file's content is missing (broken link, git-annex pointer); None otherwise."""
    hint = f"For a DataLad dataset: datalad get '{path}'. Otherwise restore the file."
    if not path.exists():
        what = f"the link target {os.readlink(path)} does not exist" if path.is_symlink() else "no such file"
        return NoInputError(f"{path}: {what}.", hint)
    if path.stat().st_size < 32_768:  # a pointer is one short line
        try:
            with path.open("rb") as file:
                if file.read(len(ANNEX_POINTER)) == ANNEX_POINTER:
                    return NoInputError(f"{path}: content has not been fetched (git-annex pointer).", hint)
        except OSError as error:
            return NoInputError(f"{path}: {error.strerror}.", "Check the permissions of the file.")
    return None


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

    def metadata(self, image: Path) -> dict[str, Any]:
        """Merge the sidecars of an image; the most specific file wins for each key.

        Raises
        ------
        NoInputError, BadDataError
            See `read_json`; the message names the sidecar.
        """
        metadata: dict[str, Any] = {}
        for path in self.files(image, split_name(image.name)[1], ".json"):
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
