"""Compare the series and correlations of regions with those of nilearn's masker on the published series.

    neurostorm BIDS OUT participant --timeseries ATLAS --denoise simple --output-spaces MNI152NLin6Asym
    python benchmarks/timeseries.py OUT ATLAS

The series in the output folder is stored in 16 bits, the one that the app averages is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.maskers import NiftiLabelsMasker

from bids_app.bids.entities import as_label
from bids_app.catalog.atlases import find_atlas

SPACE = "space-MNI152NLin6Asym"
DENOISED = {True: "denoised", False: "preproc"}


@dataclass(frozen=True)
class Comparison:
    """Series and correlations of a run, compared with those of nilearn.

    Attributes
    ----------
    regions, compared, volumes : int
        Regions of the atlas, those with a series, and rows of the table.
    min_r : float
        Smallest correlation of a region's series with that of nilearn.
    max_relmat : float
        Largest difference of a correlation between regions.
    seconds : float
        Time of nilearn's masker.
    """

    regions: int
    compared: int
    volumes: int
    min_r: float
    max_relmat: float
    seconds: float


def compare(table: Path, atlas: Path) -> Comparison:
    """Compare the tables of a run with nilearn; ``table`` is that of the series."""
    stem = table.name.partition(f"_{SPACE}")[0]
    others = {
        kind: read(table.with_name(table.name.replace("stat-mean_timeseries", f"stat-{kind}")))
        for kind in ("coverage_bold", "pearsoncorrelation_relmat")
    }
    found, sidecar = read(table), json.loads(table.with_suffix(".json").read_text())
    image = table.with_name(f"{stem}_{SPACE}_res-2_desc-{DENOISED[sidecar['Denoised']]}_bold.nii.gz")
    mask = table.with_name(f"{stem}_{SPACE}_res-2_desc-brain_mask.nii.gz")
    started = time.perf_counter()
    masker = NiftiLabelsMasker(atlas, mask_img=mask, standardize=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # regions without a voxel in the mask
        values = masker.fit_transform(nib.load(image))
    seconds = time.perf_counter() - started
    names = dict(zip(others["coverage_bold"]["index"], others["coverage_bold"]["name"], strict=True))
    labels = [int(label) for key, label in masker.region_ids_.items() if key != "background"]
    wanted = pd.DataFrame(values, columns=[names[label] for label in labels])
    left_out = sidecar["VolumesLeftOut"] if len(wanted) > len(found) else []
    wanted = wanted.drop(index=left_out).reset_index(drop=True)
    shown = [name for name in wanted if not found[name].isna().any()]
    own, other = found[shown].to_numpy(), wanted[shown].to_numpy()
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(own.T, other.T, strict=True)]
    matrix = others["pearsoncorrelation_relmat"].set_index("Node").loc[shown, shown].to_numpy()
    difference = np.abs(matrix - np.corrcoef(other, rowvar=False)).max()
    return Comparison(found.shape[1], len(shown), len(found), min(each), float(difference), seconds)


def read(path: Path) -> pd.DataFrame:
    """Read a table of the output folder."""
    return pd.read_csv(path, sep="\t", na_values="n/a")


def main() -> int:
    """Print a row for each run."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("atlas", help="name in the catalog, or a label image")
    arguments = p.parse_args()
    atlas = find_atlas(arguments.atlas)
    print("| run | regions | with a series | volumes | smallest r | largest difference | s of nilearn |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for table in sorted(arguments.out.rglob(f"*_{SPACE}_seg-{as_label(atlas.name)}_stat-mean_timeseries.tsv")):
        c = compare(table, atlas.path)
        print(
            f"| {table.name.partition('_space')[0]} | {c.regions} | {c.compared} | {c.volumes} | {c.min_r:.7f} | "
            f"{c.max_relmat:.1e} | {c.seconds:.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
