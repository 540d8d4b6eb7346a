"""Small raw datasets and derivatives for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from tests.helpers.images import StandardBrain


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


def write_hcp_run(
    root: Path, brain: StandardBrain, participant: str = "100307", run: str = "rfMRI_REST1_LR", n_volumes: int = 40
) -> Path:
    """Write a run of HCP's pipelines with its mask and motion: skull-stripped, stored left to right, TR 0.72 s."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = brain.image.shape[0] - 1
    affine = brain.affine @ flip
    series = (brain.series(n_volumes) * brain.mask[..., None])[::-1]
    folder = root / participant / "MNINonLinear" / "Results" / run
    bold = write_standard_image(folder / f"{run}.nii.gz", series, affine, tr=0.72)
    write_standard_image(folder / "brainmask_fs.2.nii.gz", brain.mask[::-1].astype(np.uint8), affine)
    np.savetxt(folder / "Movement_Regressors.txt", np.random.default_rng(0).normal(0, 0.01, (n_volumes, 12)))
    return bold


SCAN_AFFINE = np.array([[-3.6, 0.2, 0.1, 85.0], [0.2, 3.5, -0.7, -97.0], [0.1, 0.7, 3.5, -64.0], [0, 0, 0, 1]])
"""Grid of a scan whose axes are not those of the template; 48 x 58 x 46 voxels."""
TO_SCAN = np.array([[0.998, 0.05, 0.03, 4.0], [-0.049, 0.995, -0.08, -9.0], [-0.034, 0.078, 0.996, 7.0], [0, 0, 0, 1]])
"""Point of the template to the point of the scan, RAS mm."""


def write_ukb_run(
    root: Path, brain: StandardBrain, folder: str = "1234567_20227_2_0", n_volumes: int = 32, tr: float = 0.735
) -> Path:
    """Write a resting run of UK Biobank's pipeline in the space of the scan, with FSL's field to the template."""
    shape = (48, 58, 46)
    place = root / folder / "fMRI" / "rfMRI.ica"
    to_template = np.linalg.inv(brain.affine) @ np.linalg.inv(TO_SCAN) @ SCAN_AFFINE
    image = ndimage.affine_transform(brain.image * brain.mask, to_template, output_shape=shape, order=1)
    mask = ndimage.affine_transform(brain.mask.astype(float), to_template, output_shape=shape, order=1) > 0.5
    noise = np.random.default_rng(0).normal(0, 15, (*shape, n_volumes))
    series = np.round((image[..., None] + noise) * mask[..., None]).astype(np.int16)
    bold = write_standard_image(place / "filtered_func_data_clean.nii.gz", series, SCAN_AFFINE, tr)
    write_standard_image(place / "mask.nii.gz", mask.astype(np.uint8), SCAN_AFFINE)
    field = fsl_field(brain.image.shape, brain.affine, shape, SCAN_AFFINE, TO_SCAN)
    write_standard_image(place / "reg" / "example_func2standard_warp.nii.gz", field, brain.affine)
    write_standard_image(place / "reg" / "example_func2standard.nii.gz", brain.image * brain.mask, brain.affine)
    (place / "mc").mkdir()
    motion = np.random.default_rng(1).normal(0, [1e-4] * 3 + [0.01] * 3, (n_volumes, 6))
    np.savetxt(place / "mc" / "prefiltered_func_data_mcf.par", motion)
    return bold


def fsl_field(
    shape: tuple[int, ...],
    affine: np.ndarray,
    source_shape: tuple[int, ...],
    source_affine: np.ndarray,
    matrix: np.ndarray,
) -> np.ndarray:
    """Return the relative field of a matrix between two images in FSL's coordinates, (X, Y, Z, 3) float32.

    Voxel by voxel, as FSL describes it: voxel indices times sizes, the first axis counted from the other end if the
    affine has a positive determinant.
    """

    def scaled(voxels: np.ndarray, size: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
        if np.linalg.det(grid) > 0:
            voxels = voxels * [-1, 1, 1] + [size[0] - 1, 0, 0]
        return voxels * np.sqrt((grid[:3, :3] ** 2).sum(axis=0))

    voxels = np.indices(shape).reshape(3, -1).T.astype(float)
    points = nib.affines.apply_affine(affine, voxels)
    there = nib.affines.apply_affine(np.linalg.inv(source_affine) @ matrix, points)
    moved = scaled(there, source_shape, source_affine) - scaled(voxels, shape, affine)
    return moved.reshape(*shape, 3).astype(np.float32)
