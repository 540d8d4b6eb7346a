"""Compare two output folders: tables, sidecars, images and transforms, number by number.

    python benchmarks/compare_outputs.py BEFORE AFTER [--tolerance 1e-5] [--texts]

The tolerance is relative to the larger of two numbers, or to the largest number of a column or image. Times, paths and
versions in sidecars are not compared, nor are logs, reports and figures; sentences in sidecars only with --texts. The
exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.preprocess.registration.transforms import read_itk_composite

SKIPPED_FOLDERS = ("log", "logs", "figures", "group_figures")
SKIPPED_SUFFIXES = (".html", ".svg", ".png", ".bib", ".md", ".tex", ".toml")
SKIPPED_KEYS = {"GeneratedBy", "SourceDatasets", "Threads", "DatasetLinks"}
"""Sidecar keys that describe the invocation, not the result."""


def differences(before: Path, after: Path, tolerance: float, texts: bool = False) -> Iterator[str]:
    """Yield the differences between two output folders, one line per file."""
    one, other = files_of(before), files_of(after)
    yield from (f"{name}: only in {before}" for name in sorted(one - other))
    yield from (f"{name}: only in {after}" for name in sorted(other - one))
    for name in sorted(one & other):
        worst, where = compare(before / name, after / name, texts)
        if not worst <= tolerance:
            yield f"{name}: {where} differs by {worst:.2g}"


def files_of(folder: Path) -> set[str]:
    """Return the names of the files to compare, relative to the folder."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    folders = set(SKIPPED_FOLDERS)
    return {p.as_posix() for p in paths if not set(p.parts[:-1]) & folders and p.suffix not in SKIPPED_SUFFIXES}


def compare(one: Path, other: Path, texts: bool = False) -> tuple[float, str]:
    """Return the largest relative difference between two files, and its location."""
    if one.name.endswith(".json"):
        differences = compare_values(json.loads(one.read_text()), json.loads(other.read_text()), texts)
        return max(differences, default=(0.0, ""))
    if one.name.endswith(".tsv"):
        return compare_tables(*(pd.read_csv(path, sep="\t", na_values=["n/a"]) for path in (one, other)))
    if one.name.endswith((".nii.gz", ".nii")):
        return compare_images(*(nib.nifti1.load(path) for path in (one, other)))
    if one.suffix == ".h5" and "_xfm" in one.name:
        points = np.stack(np.meshgrid(*[np.linspace(-60, 60, 7)] * 3), -1).reshape(-1, 3)
        return relative_difference(*(read_itk_composite(path)(points) for path in (one, other))), "points"
    if one.suffix == ".h5":
        return compare_archives(one, other)
    if one.suffix == ".txt":
        return compare_values_of_text(*(path.read_text() for path in (one, other)))
    return float(one.read_bytes() != other.read_bytes()), "content"


def compare_values(one: Any, other: Any, texts: bool, where: str = "") -> Iterator[tuple[float, str]]:
    """Yield the differences between two JSON values, each with its location."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - SKIPPED_KEYS):
            if (key in one) != (key in other):
                yield math.inf, f"{where}/{key}"
            else:
                yield from compare_values(one[key], other[key], texts, f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from compare_values(*pair, texts, f"{where}[{number}]")
    elif is_number(one) and is_number(other):
        yield relative_difference(np.array([one], float), np.array([other], float)), where
    elif texts or not (is_sentence(one) or is_sentence(other) or "/Levels/" in where):
        yield (0.0 if one == other else math.inf), where


def compare_values_of_text(one: str, other: str) -> tuple[float, str]:
    """Return the largest difference between two texts, and whether it is in words or numbers."""
    pairs = list(zip(one.split(), other.split(), strict=False))
    if len(one.split()) != len(other.split()):
        return math.inf, "length"
    numbers = [(float(a), float(b)) for a, b in pairs if is_float(a) and is_float(b)]
    words = any(a != b for a, b in pairs if not (is_float(a) and is_float(b)))
    values = np.array(numbers).reshape(-1, 2).T
    return math.inf if words else relative_difference(values[0], values[1]), "words" if words else "numbers"


def compare_tables(one: pd.DataFrame, other: pd.DataFrame) -> tuple[float, str]:
    """Return the largest relative difference between two tables, and its column."""
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return math.inf, "columns or rows"
    found = [(0.0, "")]
    for name in one.columns:
        if pd.api.types.is_numeric_dtype(one[name]) and pd.api.types.is_numeric_dtype(other[name]):
            found.append((relative_difference(one[name].to_numpy(float), other[name].to_numpy(float)), name))
        else:
            found.append((0.0 if one[name].fillna("").equals(other[name].fillna("")) else math.inf, name))
    return max(found)


def compare_archives(one: Path, other: Path) -> tuple[float, str]:
    """Return the largest relative difference between the numbers of two HDF5 files, and their name."""
    found = [(0.0, "")]
    with h5py.File(one) as before, h5py.File(other) as after:
        names: list[str] = []
        before.visit(names.append)
        for name in names:
            if name not in after:
                return math.inf, name
            if isinstance(before[name], h5py.Dataset) and before[name].dtype.kind in "iuf":
                found.append((relative_difference(before[name][()], after[name][()]), name))
    return max(found)


def compare_images(one: Any, other: Any) -> tuple[float, str]:
    """Return the largest relative difference between affines and voxels of two images."""
    if one.shape != other.shape:
        return math.inf, "shape"
    affines = relative_difference(one.affine, other.affine), "affine"
    return max(affines, (relative_difference(one.get_fdata(), other.get_fdata()), "voxels"))


def relative_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; infinite if only one of two values is finite."""
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return math.inf
    finite = np.isfinite(one)
    if not finite.any():
        return 0.0
    scale = max(np.abs(one[finite]).max(), np.abs(other[finite]).max())
    return float(np.abs(one[finite] - other[finite]).max() / scale) if scale else 0.0


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_sentence(value: Any) -> bool:
    """Return whether a JSON value is text of several words."""
    return isinstance(value, str) and " " in value


def is_float(text: str) -> bool:
    """Return whether a word is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def main() -> int:
    """Compare two folders and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--texts", action="store_true", help="compare sentences in sidecars too")
    arguments = parser.parse_args()
    found = list(differences(arguments.before, arguments.after, arguments.tolerance, arguments.texts))
    print("\n".join(found[:50]))
    both = files_of(arguments.before) & files_of(arguments.after)
    kinds = Counter("".join(Path(name).suffixes) or "(none)" for name in both)
    compared = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    print(f"{len(both)} files compared ({compared}); {len(found)} differ by more than {arguments.tolerance:g}.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
