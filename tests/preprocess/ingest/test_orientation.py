"""An image that does not lie as its affine says is found out; left and right as far as they can be."""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.errors import BadDataError
from bids_app.preprocess.ingest.orientation import (
    SHIFT_WARNED_MM,
    find_left_right,
    judge,
    look_at_placement,
    orientations,
    shift_scores,
    turned,
)

SPACE = "MNI152NLin6Asym"


def look(brain, image=None, mask=None, affine=None, companions=None, seen=None):
    image = brain.image if image is None else image
    mask = brain.mask if mask is None else mask
    affine = brain.affine if affine is None else affine
    seen = np.ones(image.shape, dtype=bool) if seen is None else seen
    return look_at_placement(image, affine, mask, seen, SPACE, companions)


@pytest.fixture(scope="module")
def right(standard_brain):
    """How an image lies with which nothing is wrong."""
    return look(standard_brain, companions={"T1w": (standard_brain.image, standard_brain.affine)})


def test_an_image_in_its_place_passes(right):
    assert judge(right, "x") == ()
    assert right.orientation == "as stored"
    assert right.distance_mm < 1.5
    assert right.similarity > right.mirrored + 0.02
    assert find_left_right(right).in_words == "as in the participant's own T1w"


def test_a_mirrored_image_is_warned_of_by_the_template_alone(standard_brain):
    found = look(standard_brain, standard_brain.image[::-1], standard_brain.mask[::-1])
    (warning,) = judge(found, "x.nii.gz")
    assert "mirror image" in warning
    assert find_left_right(found) == Orientation(LeftRight.FLIPPED)


def test_an_image_mirrored_against_the_participants_anatomy_is_refused(standard_brain):
    own = {"T1w": (standard_brain.image, standard_brain.affine)}
    found = look(standard_brain, standard_brain.image[::-1], standard_brain.mask[::-1], companions=own)
    with pytest.raises(BadDataError, match="left and right are exchanged against the participant's own T1w"):
        judge(found, "x.nii.gz")


def test_an_image_that_is_its_own_mirror_image_tells_no_sides(standard_brain):
    image = (standard_brain.image + standard_brain.image[::-1]) / 2
    found = look(standard_brain, image, standard_brain.mask & standard_brain.mask[::-1])
    assert find_left_right(found).left_right in (LeftRight.UNKNOWN, LeftRight.FLIPPED)
    assert abs(found.similarity - found.mirrored) < 0.02


@pytest.mark.parametrize("axis", [1, 2])
def test_an_image_upside_down_or_back_to_front_is_refused(standard_brain, axis):
    found = look(standard_brain, np.flip(standard_brain.image, axis), np.flip(standard_brain.mask, axis))
    assert found.orientation == {1: "x, -y, z", 2: "x, y, -z"}[axis]
    with pytest.raises(BadDataError, match="axes"):
        judge(found, "x")


def test_axes_that_were_exchanged_are_refused(standard_brain):
    image, mask = (np.swapaxes(a, 1, 2) for a in (standard_brain.image, standard_brain.mask))
    affine = standard_brain.affine.copy()
    affine[1:3, 3] = affine[[2, 1], 3]
    with pytest.raises(BadDataError, match="x, z, y"):
        judge(look(standard_brain, image, mask, affine), "x")


def cropped(brain, axis, n):
    keep = tuple(slice(n if i == axis else 0, None) for i in range(3))
    return look(brain, brain.image[keep], brain.mask[keep])


@pytest.mark.parametrize("axis", range(3))
def test_voxels_cropped_by_index_are_warned_of(standard_brain, axis):
    found = cropped(standard_brain, axis, 1)  # 4 mm
    assert found.shift_mm[axis] == pytest.approx(-4, abs=1)
    assert found.distance_mm > SHIFT_WARNED_MM
    assert "cropped" in judge(found, "x")[0]
    assert find_left_right(found) == Orientation(LeftRight.UNKNOWN)


def test_many_voxels_cropped_by_index_are_refused(standard_brain):
    with pytest.raises(BadDataError, match="12 mm posterior"):
        judge(cropped(standard_brain, 1, 3), "x")


def test_a_crop_that_the_affine_was_told_of_is_fine(standard_brain):
    affine = standard_brain.affine.copy()
    affine[:3, 3] = (affine @ (4, 3, 2, 1))[:3]
    keep = (slice(4, None), slice(3, None), slice(2, None))
    assert judge(look(standard_brain, standard_brain.image[keep], standard_brain.mask[keep], affine), "x") == ()


def test_a_field_of_view_without_the_lower_brain_is_fine(standard_brain):
    seen = np.ones(standard_brain.image.shape, dtype=bool)
    seen[:, :, :16] = False
    found = look(standard_brain, standard_brain.image * seen, standard_brain.mask & seen, seen=seen)
    assert found.distance_mm < SHIFT_WARNED_MM
    assert judge(found, "x") == ()


def test_the_same_image_stored_otherwise_lies_the_same(standard_brain, right):
    order, flips = (2, 0, 1), (-1, 1, -1)
    turn = np.array([(order.index(axis), flips[order.index(axis)]) for axis in range(3)])
    image, mask = (apply_orientation(a, turn) for a in (standard_brain.image, standard_brain.mask))
    affine = standard_brain.affine @ inv_ornt_aff(turn, standard_brain.image.shape)
    found = look(standard_brain, image, mask, affine)
    assert found.similarity == pytest.approx(right.similarity, abs=1e-6)
    assert found.shift_mm == pytest.approx(right.shift_mm, abs=1e-4)


def test_there_are_48_ways_to_store_three_axes():
    volume = np.arange(24).reshape(2, 3, 4)
    made = {turned(volume, *way).tobytes() + bytes(turned(volume, *way).shape) for way in orientations()}
    assert len(made) == 48


def test_scores_of_shifts_are_correlations_where_both_have_data():
    draws = np.random.default_rng(0)
    image, expected = draws.normal(size=(9, 8, 7)), draws.normal(size=(9, 8, 7))
    valid, around = draws.random((9, 8, 7)) > 0.2, draws.random((9, 8, 7)) > 0.2
    scores = shift_scores(image, valid, expected, around)
    centre = np.array(scores.shape) // 2
    for shift in ((0, 0, 0), (1, -2, 1), (-2, 0, 3)):
        points = [p for p in np.argwhere(around) if np.all((p + shift >= 0) & (p + shift < image.shape))]
        pairs = np.array([(expected[tuple(p)], image[tuple(p + shift)]) for p in points if valid[tuple(p + shift)]])
        if len(pairs) > 0.4 * around.sum():
            assert scores[tuple(centre + shift)] == pytest.approx(np.corrcoef(pairs.T)[0, 1], abs=1e-9)
