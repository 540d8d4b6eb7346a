"""Real scans: which runs of a folder of datasets go through, why others do not, quality of alignments, and time.

    python benchmarks/real_scans.py DIR...                   # each DIR is a dataset, or a folder of datasets
    python benchmarks/real_scans.py DIR... --keep FOLDER     # keeps the outputs, and reads those that are there

Each dataset is processed by the command from raw files. The first table has a line for each run, from the sidecars; the
second one for each T1w image, from the images:

- r, MI: correlation and normalised mutual information of the T1w with the template, in the template's brain;
- grey, white: Dice coefficients of the template's tissues on the T1w and a segmentation of the T1w alone (k-means of
  the intensities in the brain mask), which the registration does not know.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from watching import watch

from bids_app.catalog.templates import load_template
from bids_app.outputs.schema import QualitySidecar
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.registration.ants import Image, correlation, dice, isotropic, mutual_information
from bids_app.preprocess.registration.transforms import Chain, grid_points, read_itk_composite, resample_to

COLUMNS = ("norm_correlation", "norm_mask_dice", "coreg_dice", "coreg_stands_out", "bbr_cost", "tsnr")
WORKING_MM = 2.0
CSF, GREY, WHITE = range(3)


def datasets_in(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the raw datasets: the folders themselves, or those one and two levels below, but not within datasets."""

    def below(folder: Path, levels: int) -> Iterator[Path]:
        if (folder / "dataset_description.json").is_file():
            yield folder
        elif levels:
            for path in sorted(folder.iterdir()):
                if path.is_dir():
                    yield from below(path, levels - 1)

    for folder in folders:
        yield from (path for path in below(folder, 2) if any(path.glob("sub-*/**/*_bold.nii*")))


def segment_by_intensity(t1w: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Segment a T1w by k-means of its intensities: `CSF`, `GREY` and `WHITE` by brightness, -1 outside the mask."""
    low, high = np.percentile(t1w[mask], [1, 99])
    values = np.clip(t1w[mask], low, high)[:, None]
    found = KMeans(3, n_init=3, random_state=0).fit(values[:: max(1, len(values) // 50_000)])
    rank = np.argsort(np.argsort(found.cluster_centers_[:, 0]))
    labels = np.full(mask.shape, -1)
    labels[mask] = rank[found.predict(values)]
    return labels


def compare_with_template(
    t1w: Image, mask: np.ndarray, template: str, chain: Chain, inverse: Chain
) -> dict[str, float]:
    """Compare a T1w with the template to which it was aligned.

    Parameters
    ----------
    t1w : Image
        Bias-corrected.
    mask : numpy.ndarray, (X, Y, Z) bool
        Its brain.
    template : str
    chain, inverse : Chain
        Template to T1w, and back.
    """
    target = load_template(template)
    inside = grid_points(target.mask.shape, target.affine, target.mask)
    expected, seen = target.t1w[target.mask], t1w.at(chain(inside))
    shape, affine = mask.shape, t1w.affine
    maps = [resample_to(m, target.affine, shape, affine, inverse) for m in (target.gm, target.wm)]
    tissues = np.argmax([1 - maps[0] - maps[1], *maps], axis=0)
    labels = segment_by_intensity(t1w.data, mask)
    return {
        "r": correlation(expected, seen),
        "MI": mutual_information(expected, seen),
        "grey": dice((tissues == GREY) & mask, labels == GREY),
        "white": dice((tissues == WHITE) & mask, labels == WHITE),
    }


def read_t1w(path: Path) -> dict[str, float]:
    """Compare the T1w image of an output folder (``desc-preproc_T1w``) with its template."""
    stem = path.name.removesuffix("_desc-preproc_T1w.nii.gz")
    forward = next(path.parent.glob(f"{stem}_from-T1w_to-MNI*_mode-image_xfm.h5"))
    template = forward.name.partition("_to-")[2].partition("_")[0]
    inverse = forward.with_name(f"{stem}_from-{template}_to-T1w_mode-image_xfm.h5")
    image = isotropic(Image(*read_volume(path)), WORKING_MM)
    mask, affine = read_volume(path.with_name(f"{stem}_desc-brain_mask.nii.gz"))
    brain = resample_to(mask, affine, image.data.shape, image.affine) > 0.5
    chains = read_itk_composite(forward), read_itk_composite(inverse)
    return {"mL": brain.sum() * WORKING_MM**3 / 1e3} | compare_with_template(image, brain, template, *chains)


def process(dataset: Path, out: Path, work: Path, model: str, *options: str) -> str:
    """Run the command on a dataset, and return its exit code and cost in words."""
    command = [Path(sys.executable).parent / "neurostorm", dataset, out, "participant", "--model", model, "-w", work]
    cost = watch([*map(str, command), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f"exit code {cost.code}, {cost.seconds:.0f} s, {cost.cpu_seconds:.0f} s of CPU time, {cost.peak_gb:.1f} GB"


def table_of_runs(out: Path) -> Iterator[str]:
    """Yield a line for each run of an output folder: route, quality and warnings, or the reason of its failure."""
    latest = {path.parents[2].name: path for path in sorted(out.glob("sub-*/log/*/summary.json"))}
    for path in latest.values():
        for run in json.loads(path.read_text())["runs"]:
            if run["status"] != "ok":
                yield f"| {run['stem']} | failed: {run['reason']} |{' |' * (len(COLUMNS) + 1)}"
                continue
            (sidecar,) = out.glob(f"sub-*/**/{run['stem']}_desc-quality_metrics.json")
            found = QualitySidecar.read(sidecar)
            quality = found.quality or {}
            values = (f"{quality[name]:.3f}" if quality.get(name) is not None else "" for name in COLUMNS)
            yield f"| {run['stem']} | {found.route} | {' | '.join(values)} | {' '.join(found.warnings or ())} |"


def main() -> int:
    """Process all datasets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for the outputs of each dataset")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        outputs = {}
        for dataset in datasets_in(options.folders):
            out = (options.keep or Path(scratch)) / dataset.name
            outputs[dataset] = out
            done = out.is_dir() and any(out.glob("sub-*/log/*/summary.json"))
            cost = "read" if done else process(dataset, out, Path(scratch) / "work" / dataset.name, options.model)
            print(f"{dataset.name}: {cost}", flush=True)
        print(f"\n| run | route | {' | '.join(COLUMNS)} | warnings |\n|{' --- |' * (len(COLUMNS) + 3)}")
        for out in outputs.values():
            print("\n".join(table_of_runs(out)))
        print("\n| T1w | mL | r | MI | grey | white |\n|" + " --- |" * 6)
        for out in outputs.values():
            for path in sorted(out.glob("sub-*/**/*_desc-preproc_T1w.nii.gz")):
                values = read_t1w(path)
                texts = [f"{values.pop('mL'):.0f}", *(f"{value:.3f}" for value in values.values())]
                print(f"| {path.name.partition('_desc-')[0]} | {' | '.join(texts)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
