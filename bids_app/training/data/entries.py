"""Scans in folders of their own: format 1 of clip stores, and the clips of the participant level (``--output-clips``).

    FOLDER/store.json          format, normalisation
    FOLDER/<scan>/values.npy   (U, V) int8: normalised volumes at 0.8 s, brain voxels only
    FOLDER/<scan>/mask.npy     (96, 96, 96) packed bits: brain mask
    FOLDER/<scan>/mean.npy     (V,) float16: mean image under the global normalisation
    FOLDER/<scan>/scan.json    scale, background, participant, labels; folders without it are ignored

Codes and their scale are those of `bids_app.training.data.quantise`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.writer import temporary_name, writing_error
from bids_app.clips import GridSeries
from bids_app.errors import BadDataError
from bids_app.files import MAX_JSON_BYTES, parse_json, read_text
from bids_app.training.data.scan import HINT, Scan, new_scan, scan_of, write_store_json

STORE_FORMAT = "neurostorm-clips"
ENTRIES_VERSION = 1
"""Version of the format with a folder for each scan."""


def add_entry(folder: Path, name: str, series: GridSeries, normalisation: str, participant: str, **facts: Any) -> Scan:
    """Normalise a run and write it to a folder of its own, as a whole or not at all.

    Parameters
    ----------
    folder : Path
        Of all scans with this normalisation.
    name : str
        Must not exist.
    series, normalisation, participant, **facts
        See `bids_app.training.data.scan.new_scan`.
    """
    scan = new_scan(name, series, normalisation, participant, **facts)
    about = {"format": STORE_FORMAT, "version": ENTRIES_VERSION, "normalisation": normalisation}
    write_store_json(folder / "store.json", about)
    temporary = temporary_name(folder / name)
    try:
        temporary.mkdir()
        for array in ("mask", "mean", "codes"):
            np.save(temporary / f"{'values' if array == 'codes' else array}.npy", getattr(scan, array))
        write_store_json(temporary / "scan.json", scan.content)
        os.rename(temporary, folder / name)
    except OSError as error:
        raise writing_error(error, folder / name) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_entry(folder / name)


def read_entry(folder: Path) -> Scan:
    """Read the description of a scan in a folder of its own, and check the type of each value.

    Raises
    ------
    NoInputError, BadDataError
        The folder is not that of a scan.
    """
    path = folder / "scan.json"
    return scan_of(folder, read_object(path), str(path))


def find_entries(folder: Path) -> dict[str, Path]:
    """Find the folders of scans by their names; those with a leading dot are being written."""
    with os.scandir(folder) as found:
        names = sorted(each.name for each in found if not each.name.startswith("."))
    return {name: folder / name for name in names if os.path.lexists(folder / name / "scan.json")}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a store."""
    content = parse_json(read_text(path, MAX_JSON_BYTES), str(path))
    if not isinstance(content, dict):
        raise BadDataError(f"{path}: not a JSON object.", HINT)
    return content
