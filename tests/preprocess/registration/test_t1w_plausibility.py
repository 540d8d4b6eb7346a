"""Signs that a T1w image is not what its name and header say."""

import numpy as np
import pytest
from scipy import ndimage

from bids_app.catalog.templates import load_template
from bids_app.preprocess.registration import t1w_to_template
from bids_app.preprocess.registration.ants import Image, correlation
from bids_app.preprocess.registration.t1w_plausibility import (
    doubts_about_size,
    find_turn,
    is_inverted,
    tissue_intensities,
    voxel_size_cause,
)
from bids_app.preprocess.registration.t1w_to_template import LINEAR_STAGES
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, rigid

GOOD = {"norm_scale_min": 0.93, "norm_scale_max": 1.02}


@pytest.mark.parametrize("shrink", [0.5, 0.8, 1.25])
def test_a_wrong_voxel_size_is_named(shrink):
    assert doubts_about_size(GOOD, 1450.0, "sub-01_T1w.nii.gz") == ()
    (sentence,) = doubts_about_size(GOOD, 1450 * shrink**3, "sub-01_T1w.nii.gz")
    assert sentence.startswith("sub-01_T1w.nii.gz: the brain has")
    assert "voxel size in the header?" in sentence


def test_a_lost_slice_gap_is_named():
    (sentence,) = doubts_about_size({**GOOD, "norm_scale_min": 0.75}, 1450.0, "sub-01_T1w.nii.gz")
    assert "slice gap in the header?" in sentence


@pytest.mark.parametrize(("head_ml", "named"), [(4500.0, False), (4500 / 8, True), (1400.0, False), (4500.0 * 8, True)])
def test_a_head_that_is_smaller_than_a_brain_has_wrong_voxel_sizes(head_ml, named):
    assert ("wrong voxel size" in voxel_size_cause(head_ml)) == named


def test_a_t2w_image_is_told_from_a_t1w_image():
    target = load_template()
    shift = rigid((0, 0, 0), (5, 0, -8))
    moved = shift @ target.affine
    assert not is_inverted(tissue_intensities(target, Image(target.t1w, moved), shift))
    t2w = 0.6 * target.gm + 0.4 * target.wm + 1.3 * target.csf
    assert is_inverted(tissue_intensities(target, Image(t2w, moved), shift))


@pytest.mark.parametrize(("flips", "axis"), [((0, 2), "anterior-posterior"), ((1, 2), "left-right")])
def test_a_turned_head_is_recognised(head, tmp_path, flips, axis):
    """The data are turned by 180 degrees, and the header is not."""
    fixed = Image(head.t1w * head.brain, head.affine)
    turned = Image(np.flip(fixed.data, flips), head.affine)
    near = ndimage.binary_dilation(head.brain)
    points = grid_points(near.shape, head.affine, near)

    def score(matrix):
        return correlation(turned.at(apply_matrix(matrix, points)), fixed.data[near])

    centre = grid_points(near.shape, head.affine, head.brain).mean(axis=0)
    found, after = find_turn(fixed, turned, near, np.eye(4), centre, LINEAR_STAGES, score, tmp_path, 1)
    assert found == axis
    assert after > 0.95 > score(np.eye(4)) + 0.1
    assert list(tmp_path.iterdir()) == []


def test_a_field_of_view_with_half_a_brain_is_the_likely_cause(tmp_path, monkeypatch):
    template = load_template()
    monkeypatch.setattr(t1w_to_template, "find_turn", lambda *_: ("left-right", 0.0))
    monkeypatch.setattr(t1w_to_template, "voxel_size_cause", lambda _: "")
    for share, cause in ((0.5, "only a part of the brain in the field of view (5"), (1.0, "")):
        data = template.t1w[: round(share * template.t1w.shape[0])]
        moving = Image(data, template.affine)
        attempt = next(t1w_to_template.attempts_for(template, moving, data > 0))
        found = t1w_to_template.likely_cause(template, moving, attempt, np.eye(4), tmp_path, 1)
        assert cause in found
        assert bool(cause) == bool(found)
