"""Fixtures shared by all tests; each makes its data in ``tmp_path``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

SHARED = Path(__file__).parents[2] / "shared"


def shared_path(*parts: str) -> Path:
    """A file or folder of the material beside the repository; the test is skipped where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not here")
    return path


@pytest.fixture(name="shared_path")
def shared_path_fixture():
    """The function `shared_path`, for tests that ask for it as a fixture."""
    return shared_path


class TinyDataset:
    """A raw BIDS dataset of a few kilobytes: right in form, with no brain in it.

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


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> TinyDataset:
    """A raw BIDS dataset with one participant and one BOLD run without a T1w image."""
    return TinyDataset(tmp_path / "raw")
