"""FSL's displacement fields map points of the template to points of the scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import BadDataError
from bids_app.preprocess.registration.fsl import read_fsl_warp
from bids_app.preprocess.registration.transforms import apply_matrix
from tests.helpers.datasets import SCAN_AFFINE, TO_SCAN, fsl_field, write_standard_image

SHAPE = (12, 14, 13)
LEFT_TO_RIGHT = np.array([[8.0, 0, 0, -44], [0, 8, 0, -60], [0, 0, 8, -40], [0, 0, 0, 1]])
RIGHT_TO_LEFT = np.array([[-8.0, 0, 0, 44], [0, 8, 0, -60], [0, 0, 8, -40], [0, 0, 0, 1]])


@pytest.mark.parametrize("affine", [LEFT_TO_RIGHT, RIGHT_TO_LEFT], ids=["left to right", "right to left"])
@pytest.mark.parametrize("scan_affine", [SCAN_AFFINE, SCAN_AFFINE * [-1, 1, 1, 1]], ids=["R-L scan", "L-R scan"])
@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_field_maps_points_whatever_the_axes_and_the_convention(
    tmp_path: Path, affine: np.ndarray, scan_affine: np.ndarray, kind: str
) -> None:
    field = fsl_field(SHAPE, affine, (48, 58, 46), scan_affine, TO_SCAN)
    if kind == "absolute":
        voxels = np.moveaxis(np.indices(SHAPE), 0, -1).astype(np.float32)
        if affine[0, 0] > 0:
            voxels[..., 0] = SHAPE[0] - 1 - voxels[..., 0]
        field += 8 * voxels
    path = write_standard_image(tmp_path / "warp.nii.gz", field, affine)
    points = np.array([[0.0, 0, 0], [-20, 10, 30], [31, -40, 5]])
    found = read_fsl_warp(path, (48, 58, 46), scan_affine)(points)
    assert np.abs(found - apply_matrix(TO_SCAN, points)).max() < 1e-3


def test_coefficients_of_fnirt_and_other_images_are_refused_by_name(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((*SHAPE, 3), np.float32), LEFT_TO_RIGHT)
    image.header["intent_code"] = 2007
    image.to_filename(tmp_path / "coef.nii.gz")
    with pytest.raises(BadDataError, match=r"coef\.nii\.gz: has FNIRT's coefficients"):
        read_fsl_warp(tmp_path / "coef.nii.gz", SHAPE, LEFT_TO_RIGHT)
    path = write_standard_image(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.float32), LEFT_TO_RIGHT)
    with pytest.raises(BadDataError, match="not a displacement field"):
        read_fsl_warp(path, SHAPE, LEFT_TO_RIGHT)
    path = write_standard_image(tmp_path / "nan.nii.gz", np.full((*SHAPE, 3), np.nan, np.float32), LEFT_TO_RIGHT)
    with pytest.raises(BadDataError, match="NaN"):
        read_fsl_warp(path, SHAPE, LEFT_TO_RIGHT)
