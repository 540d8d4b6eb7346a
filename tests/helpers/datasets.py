"""Small raw datasets and derivatives for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


class TinyDataset:
    """Raw BIDS dataset of a few kilobytes: valid, but with noise images.

    Parameters
    ----------
    root : pathlib.Path
        Where it is written.
    participants : tuple of str
        Labels.
    """

    def __init__(self, root: Path, participants: tuple[str, ...] = ("01",)) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "dataset_description.json").write_text(json.dumps({"Name": "tiny", "BIDSVersion": "1.10.0"}))
        (root / "README").write_text("A dataset made by a test.\n")
        for label in participants:
            self.write_bold(label)

    def bold_path(self, label: str = "01") -> Path:
        return self.root / f"sub-{label}" / "func" / f"sub-{label}_task-rest_bold.nii.gz"

    def write_bold(self, label: str = "01", data: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
        """Write a BOLD run, noise of 12 x 12 x 8 voxels and 30 volumes by default, with its sidecar."""
        path = self.bold_path(label)
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            data = np.random.default_rng(0).normal(1000, 50, (12, 12, 8, 30)).astype(np.float32)
        image = nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine)
        image.header.set_zooms((*image.header.get_zooms()[:3], 2.0)[: data.ndim])
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(path)
        self.write_sidecar({"RepetitionTime": 2.0, "TaskName": "rest"}, label)
        return path

    def write_sidecar(self, content: dict[str, Any], label: str = "01") -> None:
        self.bold_path(label).with_suffix("").with_suffix(".json").write_text(json.dumps(content))


class PreprocessedTree:
    """Derivatives dataset as written by fMRIPrep or XCP-D, with images of a few volumes.

    Parameters
    ----------
    root : Path
        Where it is written.
    pipeline, version : str
        What its description names.
    """

    def __init__(self, root: Path, pipeline: str = "fMRIPrep", version: str = "23.2.1") -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        made_by = [{"Name": pipeline, "Version": version}]
        description = {"Name": "x", "BIDSVersion": "1.9.0", "DatasetType": "derivative", "GeneratedBy": made_by}
        (root / "dataset_description.json").write_text(json.dumps(description))

    def write(self, label: str, name: str, data: np.ndarray, affine: np.ndarray, tr: float = 1.0) -> Path:
        """Write an image ``sub-<label>/<name>`` with both affines set; ``{}`` in the name is ``sub-<label>``."""
        return write_standard_image(self.root / f"sub-{label}" / name.format(f"sub-{label}"), data, affine, tr)

    def write_run(
        self,
        label: str,
        series: np.ndarray,
        mask: np.ndarray | None,
        affine: np.ndarray,
        space: str = "MNI152NLin6Asym",
        desc: str = "preproc",
    ) -> Path:
        """Write a resting run with its sidecar and mask."""
        stem = "func/{}_task-rest_space-" + space
        bold = self.write(label, f"{stem}_desc-{desc}_bold.nii.gz", series, affine)
        sidecar = {"RepetitionTime": 1.0, "SkullStripped": False, "TaskName": "rest"}
        bold.with_suffix("").with_suffix(".json").write_text(json.dumps(sidecar))
        if mask is not None:
            self.write(label, f"{stem}_desc-brain_mask.nii.gz", mask.astype(np.uint8), affine)
        return bold

    def write_confounds(self, label: str, table: dict[str, Any], name: str = "desc-confounds_timeseries") -> Path:
        """Write a table of confounds; NaN becomes ``n/a``."""
        columns = [["n/a" if value != value else f"{value:g}" for value in column] for column in table.values()]
        rows = ["\t".join(table), *("\t".join(row) for row in zip(*columns, strict=True))]
        path = self.root / f"sub-{label}" / "func" / f"sub-{label}_task-rest_{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
        return path


def write_standard_image(path: Path, data: np.ndarray, affine: np.ndarray, tr: float = 1.0) -> Path:
    """Write an image with the same affine as sform and qform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        image.header["pixdim"][4] = tr
    image.to_filename(path)
    return path
