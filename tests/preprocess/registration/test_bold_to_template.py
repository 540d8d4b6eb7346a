"""Normalisation of a boldref without a T1w."""

import numpy as np
import pytest

from bids_app.phantom.spoiled import spoil
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.registration.bold_to_template import (
    MIN_HEIGHT,
    brain_height,
    cause_of_size,
    doubts_about_boldref,
    normalise_boldref,
)
from bids_app.preprocess.registration.boldref import CUT_AREA, EpiReference, cut_ends, mask_boldref
from bids_app.preprocess.registration.checks import failed_checks
from bids_app.preprocess.registration.transforms import Chain, apply_matrix, grid_points, resample_to, rigid


def test_the_height_of_a_brain_is_in_mm(head):
    whole = brain_height(head.brain, head.affine)
    assert 110 < whole < 150
    lower = head.brain.copy()
    lower[:, :, : head.brain.shape[2] // 2] = False
    assert brain_height(lower, head.affine) < MIN_HEIGHT * whole


@pytest.mark.parametrize("flip", [False, True])
def test_slices_that_cut_the_brain_are_named(head, flip):
    data, affine = head.brain, head.affine
    if flip:
        data, affine = data[:, :, ::-1], affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 43], [0, 0, 0, 1.0]])
    assert cut_ends(data, affine) == {}
    for name, end in (("lower-cut", "lowest"), ("upper-cut", "highest")):
        (found,) = cut_ends(*spoil(name, data, affine)).items()
        assert found[0] == end
        assert CUT_AREA < found[1] <= 1


def test_a_brain_that_is_cut_or_has_an_unlikely_size_is_doubted_with_the_cause(head, tmp_path):
    def doubts(mask, volume, scales, **more):
        quality = {"norm_brain_ml": volume, "norm_scale_min": scales[0], "norm_scale_max": scales[1]} | more
        return doubts_about_boldref(reference_with(mask, head.affine, tmp_path), quality)

    assert doubts(head.brain, 1450.0, (0.95, 1.0)) == ()
    (cut,) = doubts(head.brain[:, :, 18:], 1450.0, (0.95, 1.0))
    assert cut.startswith("sub-01_bold.nii.gz: the lowest slices cut the brain")
    (small,) = doubts(head.brain, 740.0, (0.75, 0.8))
    assert "the brain has 740 mL" in small
    (gap,) = doubts(head.brain, 1450.0, (0.75, 1.0))
    assert "slice gap in the header?" in gap
    (low,) = doubts(head.brain, 1450.0, (0.9, 0.9), norm_height=0.7)
    assert "only 70% of the usual height, although no slices cut it" in low
    assert "slice gap in the header?" in low
    (cut,) = doubts(head.brain[:, :, 18:], 1450.0, (0.9, 0.9), norm_height=0.7)
    assert "although" not in cut


def reference_with(mask, affine, folder):
    """Return a boldref with a brain mask."""
    path = save_image(folder / "mask.nii.gz", mask.astype(np.uint8), affine)
    return EpiReference(folder / "sub-01_bold.nii.gz", path, path, path)


@pytest.mark.parametrize(
    ("change", "named"), [({}, False), ({"norm_scale_min": 0.5}, True), ({"norm_brain_ml": 190.0}, True)]
)
def test_wrong_voxel_sizes_are_named_as_the_cause_of_a_failure(head, tmp_path, change, named):
    reference = reference_with(head.brain, head.affine, tmp_path)
    quality = {"norm_scale_min": 0.9, "norm_scale_max": 1.0, "norm_brain_ml": 1500.0} | change
    assert ("voxel size" in cause_of_size(quality, reference)) == named
    half = reference_with(head.brain, np.diag([0.5, 0.5, 0.5, 1]) @ head.affine, tmp_path)
    assert "voxel size" in cause_of_size(quality, half)
    cut = reference_with(head.brain[:, :, 18:24], head.affine, tmp_path)
    assert ("voxel size" in cause_of_size(quality, cut)) == named
    assert bool(failed_checks({"coreg_stands_out": 1, "coreg_dice": 1, "coreg_brain_seen": 1} | quality)) == named


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
