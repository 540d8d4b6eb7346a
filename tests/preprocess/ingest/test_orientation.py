"""Orientation checks of normalised images: axes, shifts, and left and right."""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.errors import BadDataError
from bids_app.preprocess.ingest.orientation import (
    SHIFT_WARNED_MM,
    SIDE_MARGIN,
    check_orientation,
    estimate_orientation,
    find_left_right,
    orientations,
    reorient,
    shift_scores,
)

SPACE = "MNI152NLin6Asym"


def check(brain, image=None, mask=None, affine=None, companions=None, seen=None):
    image = brain.image if image is None else image
    mask = brain.mask if mask is None else mask
    affine = brain.affine if affine is None else affine
    seen = np.ones(image.shape, dtype=bool) if seen is None else seen
    return estimate_orientation(image, affine, mask, seen, SPACE, companions)


@pytest.fixture(scope="module")
def right(standard_brain):
    """The check of a correct image."""
    return check(standard_brain, companions={"T1w": (standard_brain.image, standard_brain.affine)})


def test_a_correct_image_passes(right):
    assert check_orientation(right, "x") == ()
    assert right.orientation == "as stored"
    assert right.distance_mm < 1.5
    assert right.similarity > right.mirrored + 0.02
    assert find_left_right(right).in_words == "as in the participant's own T1w"


def test_a_flipped_image_gives_a_warning(standard_brain):
    found = check(standard_brain, standard_brain.image[::-1], standard_brain.mask[::-1])
    (warning,) = check_orientation(found, "x.nii.gz")
    assert "mirror image" in warning
    assert find_left_right(found) == Orientation(LeftRight.FLIPPED)


def test_an_image_flipped_relative_to_the_own_t1w_is_refused(standard_brain):
    own = {"T1w": (standard_brain.image, standard_brain.affine)}
    found = check(standard_brain, standard_brain.image[::-1], standard_brain.mask[::-1], companions=own)
    with pytest.raises(BadDataError, match="left-right flipped relative to the participant's own T1w"):
        check_orientation(found, "x.nii.gz")


def test_the_shape_of_the_brain_confirms_left_and_right_where_the_contrast_contradicts(standard_brain):
    """The contrast is that of the mirror image, so that the similarity does not decide; the shape is as stored."""
    brain = standard_brain
    image = np.where(brain.mask, (brain.image + 2 * brain.image[::-1]) / 3, 0)
    found = check(brain, image)
    mirrored = check(brain, image[::-1], brain.mask[::-1])
    assert abs(found.similarity - found.mirrored) <= SIDE_MARGIN
    assert find_left_right(found) == Orientation(LeftRight.AS_STORED)
    assert find_left_right(mirrored) == Orientation(LeftRight.UNKNOWN)
    assert (found.shape_p < 1e-4, mirrored.shape_p) == (True, 1.0)


def test_left_and_right_of_a_symmetric_image_are_not_confirmed(standard_brain):
    image = (standard_brain.image + standard_brain.image[::-1]) / 2
    found = check(standard_brain, image, standard_brain.mask & standard_brain.mask[::-1])
    assert find_left_right(found).left_right in (LeftRight.UNKNOWN, LeftRight.FLIPPED)
    assert abs(found.similarity - found.mirrored) < 0.02


@pytest.mark.parametrize("axis", [1, 2])
def test_an_image_upside_down_or_back_to_front_is_refused(standard_brain, axis):
    found = check(standard_brain, np.flip(standard_brain.image, axis), np.flip(standard_brain.mask, axis))
    assert found.orientation == {1: "x, -y, z", 2: "x, y, -z"}[axis]
    with pytest.raises(BadDataError, match="axes"):
        check_orientation(found, "x")


def test_permuted_axes_are_refused(standard_brain):
    image, mask = (np.swapaxes(a, 1, 2) for a in (standard_brain.image, standard_brain.mask))
    affine = standard_brain.affine.copy()
    affine[1:3, 3] = affine[[2, 1], 3]
    with pytest.raises(BadDataError, match="x, z, y"):
        check_orientation(check(standard_brain, image, mask, affine), "x")


def cropped(brain, axis, n):
    keep = tuple(slice(n if i == axis else 0, None) for i in range(3))
    return check(brain, brain.image[keep], brain.mask[keep])


@pytest.mark.parametrize("axis", range(3))
def test_a_small_crop_without_a_new_affine_gives_a_warning(standard_brain, axis):
    found = cropped(standard_brain, axis, 1)  # 4 mm
    assert found.shift_mm[axis] == pytest.approx(-4, abs=1)
    assert found.distance_mm > SHIFT_WARNED_MM
    assert "cropped" in check_orientation(found, "x")[0]
    assert find_left_right(found) == Orientation(LeftRight.UNKNOWN)


def test_a_large_crop_without_a_new_affine_is_refused(standard_brain):
    with pytest.raises(BadDataError, match="12 mm posterior"):
        check_orientation(cropped(standard_brain, 1, 3), "x")


def test_a_crop_with_an_updated_affine_passes(standard_brain):
    affine = standard_brain.affine.copy()
    affine[:3, 3] = (affine @ (4, 3, 2, 1))[:3]
    keep = (slice(4, None), slice(3, None), slice(2, None))
    assert (
        check_orientation(check(standard_brain, standard_brain.image[keep], standard_brain.mask[keep], affine), "x")
        == ()
    )


def test_a_field_of_view_without_the_lower_brain_passes(standard_brain):
    seen = np.ones(standard_brain.image.shape, dtype=bool)
    seen[:, :, :16] = False
    found = check(standard_brain, standard_brain.image * seen, standard_brain.mask & seen, seen=seen)
    assert found.distance_mm < SHIFT_WARNED_MM
    assert check_orientation(found, "x") == ()


def test_stored_axes_do_not_change_the_result(standard_brain, right):
    order, flips = (2, 0, 1), (-1, 1, -1)
    turn = np.array([(order.index(axis), flips[order.index(axis)]) for axis in range(3)])
    image, mask = (apply_orientation(a, turn) for a in (standard_brain.image, standard_brain.mask))
    affine = standard_brain.affine @ inv_ornt_aff(turn, standard_brain.image.shape)
    found = check(standard_brain, image, mask, affine)
    assert found.similarity == pytest.approx(right.similarity, abs=1e-6)
    assert found.shift_mm == pytest.approx(right.shift_mm, abs=1e-4)


def test_there_are_48_orientations():
    volume = np.arange(24).reshape(2, 3, 4)
    made = {reorient(volume, *way).tobytes() + bytes(reorient(volume, *way).shape) for way in orientations()}
    assert len(made) == 48


def test_shift_scores_are_correlations_over_the_overlap():
    rng = np.random.default_rng(0)
    image, expected = rng.normal(size=(9, 8, 7)), rng.normal(size=(9, 8, 7))
    valid, around = rng.random((9, 8, 7)) > 0.2, rng.random((9, 8, 7)) > 0.2
    scores = shift_scores(image, valid, expected, around)
    centre = np.array(scores.shape) // 2
    for shift in ((0, 0, 0), (1, -2, 1), (-2, 0, 3)):
        points = [p for p in np.argwhere(around) if np.all((p + shift >= 0) & (p + shift < image.shape))]
        pairs = np.array([(expected[tuple(p)], image[tuple(p + shift)]) for p in points if valid[tuple(p + shift)]])
        if len(pairs) > 0.4 * around.sum():
            assert scores[tuple(centre + shift)] == pytest.approx(np.corrcoef(pairs.T)[0, 1], abs=1e-9)
