"""Heads for the tests of preprocessing, made from the embedded template at 4 mm."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_app.catalog.templates import load_template
from bids_app.preprocess.registration.bold_to_template import epi_like
from bids_app.preprocess.registration.transforms import linear, resample_to, rigid


@dataclass(frozen=True)
class Head:
    """A head in two contrasts, and its brain, on a grid of 4 mm."""

    epi: np.ndarray
    t1w: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    def moved(self, poses: np.ndarray, noise: float = 5.0, seed: int = 0) -> np.ndarray:
        """A series (X, Y, Z, T) of the head in given poses (T, 4, 4): reference point to point of volume t."""
        rng = np.random.default_rng(seed)
        volumes = [
            resample_to(self.epi, self.affine, self.epi.shape, self.affine, linear(np.linalg.inv(pose)), order=3)
            for pose in poses
        ]
        series = np.stack(volumes, axis=-1)
        return (series + noise * rng.normal(size=series.shape)).astype(np.float32)


def random_poses(n_volumes: int, mm: float = 2.0, degrees: float = 2.0, seed: int = 0) -> np.ndarray:
    """A walk of the head, the identity in the middle volume."""
    walk = np.random.default_rng(seed).normal(size=(n_volumes, 6)).cumsum(axis=0)
    walk -= walk[n_volumes // 2]
    walk /= np.abs(walk).max(axis=0)
    return np.stack([rigid(np.radians(degrees) * w[:3], mm * w[3:], (0, -20, 10)) for w in walk])


@pytest.fixture(scope="session")
def poses() -> Callable[..., np.ndarray]:
    """The function `random_poses`."""
    return random_poses


@pytest.fixture(scope="session")
def head() -> Head:
    template = load_template("MNI152NLin2009aSym")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-84, -122, -70)
    shape = (43, 52, 44)
    soft = [ndimage.gaussian_filter(image, 0.8) for image in (epi_like(template) * 1000, template.t1w)]
    epi, t1w = (resample_to(image, template.affine, shape, affine) for image in soft)
    brain = resample_to(template.mask.astype(np.float32), template.affine, shape, affine) > 0.5
    return Head(epi, t1w, brain, affine)


@pytest.fixture(params=["cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)])
def on_device(request) -> str:
    """A device of the code for GPUs: the GPU, or the CPU, whose number is given to tell it from the code for CPUs."""
    return request.param


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a NIfTI file; keywords are fields of the header."""

    def write(data: np.ndarray, name: str = "sub-01_task-rest_bold.nii.gz", affine=None, tr=2.0, **fields) -> Path:
        image = nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine)
        image.header.set_xyzt_units("mm", "sec")
        if data.ndim > 3:
            image.header["pixdim"][4] = tr
        plain = tmp_path / "plain.nii"
        nib.save(image, plain)
        content = bytearray(plain.read_bytes())
        plain.unlink()
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for key, value in fields.items():
            header[key] = value
        content[:348] = header.binaryblock  # nibabel would mend some of these fields on its way
        path = tmp_path / name
        path.write_bytes(gzip.compress(bytes(content), 1) if path.suffix == ".gz" else bytes(content))
        return path

    return write
