"""Processor time to prepare a scan for a clip store, from a series in template space as fMRIPrep writes it.

    python benchmarks/store_build.py [--volumes 110] [--scans 2]

Noise in the brain of the template, 2 mm, TR 0.8 s, is written as ``.nii.gz`` and prepared by ``neurostorm-train store
build`` in one process with one thread. The time of the command without scans (its start) is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.catalog.templates import load_template


def main() -> int:
    """Write the scans, build the store and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=110)
    parser.add_argument("--scans", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, store = Path(folder) / "fmriprep", Path(folder) / "store"
        for number in range(options.scans):
            write_scan(data, f"{number:02d}", options.volumes)
        first, again = build(data, store), build(data, store)
        n_bytes = sum(path.stat().st_size for path in (store / "shards").iterdir())
    each = (first - again) / options.scans
    print(f"{options.scans} scans of {options.volumes} volumes: {each:.1f} s of processor each, {again:.1f} s to start")
    megabytes = n_bytes / options.scans / options.volumes / 1e4
    print(f"per 100 volumes: {100 * each / options.volumes:.1f} s and {megabytes:.1f} MB")
    return 0


def write_scan(root: Path, label: str, n_volumes: int) -> None:
    """Write a series with its mask and sidecar."""
    template = load_template("MNI152NLin6Asym")
    folder = root / f"sub-{label}" / "func"
    folder.mkdir(parents=True)
    about = {"Name": "fMRIPrep", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
             "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}]}  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(about))
    stem = f"sub-{label}_task-rest_space-MNI152NLin6Asym_res-2"
    rng = np.random.default_rng(int(label))
    series = np.zeros((*template.mask.shape, n_volumes), np.int16)
    series[template.mask > 0] = rng.normal(1000, 20, (int((template.mask > 0).sum()), n_volumes))
    for name, values in (("desc-preproc_bold", series), ("desc-brain_mask", template.mask.astype(np.uint8))):
        image = nib.Nifti1Image(values, template.affine)
        image.set_sform(template.affine, 4)
        image.set_qform(template.affine, 4)
        image.header.set_xyzt_units("mm", "sec")
        if values.ndim == 4:
            image.header["pixdim"][4] = 0.8
        image.to_filename(folder / f"{stem}_{name}.nii.gz")
    (folder / f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": 0.8}))


def build(data: Path, store: Path) -> float:
    """Build the store; return the processor time, s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "bids_app.cli.train", "store", "build", str(data), str(store)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
