"""Normalisation of a boldref without a T1w."""

import numpy as np
import pytest

from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.registration.bold_to_template import MIN_HEIGHT, brain_height, normalise_boldref
from bids_app.preprocess.registration.boldref import mask_boldref
from bids_app.preprocess.registration.transforms import Chain, apply_matrix, grid_points, resample_to, rigid


def test_the_height_of_a_brain_is_in_mm(head):
    whole = brain_height(head.brain, head.affine)
    assert 110 < whole < 150
    lower = head.brain.copy()
    lower[:, :, : head.brain.shape[2] // 2] = False
    assert brain_height(lower, head.affine) < MIN_HEIGHT * whole


@pytest.mark.slow
@pytest.mark.parametrize("kept", [slice(14, 38), slice(2, 24)])
def test_a_cut_field_of_view_is_not_stretched_to_the_whole_brain(head, tmp_path, kept):
    pose = rigid(np.radians((6, -3, 4)), (3, -5, 4), (0, -20, 10))
    image = resample_to(head.epi, head.affine, head.epi.shape, head.affine)
    affine = np.linalg.inv(pose) @ head.affine
    affine[:3, 3] += affine[:3, 2] * kept.start
    slab = image[:, :, kept] + np.random.default_rng(0).normal(0, 10, image[:, :, kept].shape)
    path = save_image(tmp_path / "boldref.nii.gz", np.abs(slab).astype(np.float32), affine)
    reference = mask_boldref(tmp_path / "sub-01_bold.nii.gz", path, tmp_path)
    found = normalise_boldref(reference, tmp_path, "MNI152NLin2009aSym")
    points = grid_points(slab.shape, affine, head.brain[:, :, kept])[::9]
    truth = apply_matrix(pose, points)
    error = np.linalg.norm(Chain.load(found.chain)(truth) - points, axis=1)
    assert np.median(error) < 6
    assert found.quality["norm_scale_min"] == pytest.approx(found.quality["norm_scale_max"], rel=1e-3)
    (warning,) = found.warnings
    assert "of the height of a brain" in warning
    assert found.to_template
    assert found.to_template.exists()
