"""Whether two output folders hold the same results: tables, sidecars, images and transforms, number by number.

    python benchmarks/compare_outputs.py BEFORE AFTER [--tolerance 1e-5]

A number may differ by the tolerance relative to the larger of the two, or to the largest of its column or image. What
says when, where and by which version something was made is left out, as are logs, reports and figures, whose number is
printed. Exit code 1 when something differs.
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

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.preprocess.registration.transforms import read_itk_composite

LEFT_OUT = ("log", "logs", "figures", "group_figures")
"""Folders that are not compared."""
PAGES = (".html", ".svg", ".png", ".bib", ".md", ".tex", ".toml")
OF_THE_INVOCATION = {"GeneratedBy", "SourceDatasets", "Threads", "DatasetLinks"}
"""Keys of sidecars that say how, and not what."""


def differences(before: Path, after: Path, tolerance: float) -> Iterator[str]:
    """What differs between two output folders, a line a file."""
    one, other = files_of(before), files_of(after)
    yield from (f"{name}: only in {before}" for name in sorted(one - other))
    yield from (f"{name}: only in {after}" for name in sorted(other - one))
    for name in sorted(one & other):
        worst, where = compare(before / name, after / name)
        if not worst <= tolerance:
            yield f"{name}: {where} differs by {worst:.2g}"


def files_of(folder: Path) -> set[str]:
    """Names of the files that are compared, relative to the folder."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {p.as_posix() for p in paths if not set(p.parts[:-1]) & set(LEFT_OUT) and p.suffix not in PAGES}


def compare(one: Path, other: Path) -> tuple[float, str]:
    """Largest relative difference between two files, and where it is."""
    if one.name.endswith(".json"):
        return max(compare_values(*(json.loads(path.read_text()) for path in (one, other))), default=(0.0, ""))
    if one.name.endswith(".tsv"):
        return compare_tables(*(pd.read_csv(path, sep="\t", na_values=["n/a"]) for path in (one, other)))
    if one.name.endswith((".nii.gz", ".nii")):
        return compare_images(*(nib.nifti1.load(path) for path in (one, other)))
    if one.suffix == ".h5" and "_xfm" in one.name:
        points = np.stack(np.meshgrid(*[np.linspace(-60, 60, 7)] * 3), -1).reshape(-1, 3)
        return far(*(read_itk_composite(path)(points) for path in (one, other))), "points"
    if one.suffix == ".txt":
        return compare_values_of_text(*(path.read_text() for path in (one, other)))
    return float(one.read_bytes() != other.read_bytes()), "content"


def compare_values(one: Any, other: Any, place: str = "") -> Iterator[tuple[float, str]]:
    """Differences between values of JSON, each with its place."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - OF_THE_INVOCATION):
            if (key in one) != (key in other):
                yield math.inf, f"{place}/{key}"
            else:
                yield from compare_values(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from compare_values(*pair, f"{place}[{number}]")
    elif is_number(one) and is_number(other):
        yield far(np.array([one], float), np.array([other], float)), place
    else:
        yield (0.0 if one == other else math.inf), place


def compare_values_of_text(one: str, other: str) -> tuple[float, str]:
    """Difference between texts whose words may be numbers."""
    pairs = list(zip(one.split(), other.split(), strict=False))
    if len(one.split()) != len(other.split()):
        return math.inf, "length"
    numbers = [(float(a), float(b)) for a, b in pairs if is_float(a) and is_float(b)]
    words = any(a != b for a, b in pairs if not (is_float(a) and is_float(b)))
    values = np.array(numbers).reshape(-1, 2).T
    return math.inf if words else far(values[0], values[1]), "words" if words else "numbers"


def compare_tables(one: pd.DataFrame, other: pd.DataFrame) -> tuple[float, str]:
    """Largest difference between the columns of two tables."""
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return math.inf, "columns or rows"
    found = [(0.0, "")]
    for name in one.columns:
        if pd.api.types.is_numeric_dtype(one[name]) and pd.api.types.is_numeric_dtype(other[name]):
            found.append((far(one[name].to_numpy(float), other[name].to_numpy(float)), name))
        else:
            found.append((0.0 if one[name].fillna("").equals(other[name].fillna("")) else math.inf, name))
    return max(found)


def compare_images(one: Any, other: Any) -> tuple[float, str]:
    """Largest difference between grids and voxels of two images."""
    if one.shape != other.shape:
        return math.inf, "shape"
    return max((far(one.affine, other.affine), "affine"), (far(one.get_fdata(), other.get_fdata()), "voxels"))


def far(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite where only one is a number."""
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return math.inf
    finite = np.isfinite(one)
    if not finite.any():
        return 0.0
    scale = max(np.abs(one[finite]).max(), np.abs(other[finite]).max())
    return float(np.abs(one[finite] - other[finite]).max() / scale) if scale else 0.0


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_float(text: str) -> bool:
    """Whether a word is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    arguments = parser.parse_args()
    found = list(differences(arguments.before, arguments.after, arguments.tolerance))
    print("\n".join(found[:50]))
    both = files_of(arguments.before) & files_of(arguments.after)
    kinds = Counter("".join(Path(name).suffixes) or "(none)" for name in both)
    compared = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    print(f"{len(both)} files compared ({compared}); {len(found)} differ by more than {arguments.tolerance:g}.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
