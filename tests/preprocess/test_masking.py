"""Non-steady-state volumes, head masks and brain masks."""

import numpy as np
import pytest

from bids_app.preprocess.io.volumes import ArrayVolumes
from bids_app.preprocess.masking import brain_mask, count_dummies, head_mask, largest_part
from bids_app.preprocess.registration.ants import dice


def series(head, factors: np.ndarray) -> ArrayVolumes:
    noise = np.random.default_rng(0).normal(0, 5, (*head.epi.shape, len(factors)))
    return ArrayVolumes((head.epi[..., None] * factors + noise).astype(np.float32), head.affine)


@pytest.mark.parametrize("n_dummy", [0, 1, 3])
def test_bright_first_volumes_are_counted(head, n_dummy):
    factors = np.ones(40) + np.random.default_rng(1).normal(0, 0.002, 40)
    factors[:n_dummy] = 1 + 0.5 * 0.5 ** np.arange(n_dummy)
    assert count_dummies(series(head, factors), tr=2.0) == n_dummy


def test_drift_and_activity_are_not_counted(head):
    slow = 1 + 0.02 * np.sin(np.arange(60) / 10) - 0.0005 * np.arange(60)
    assert count_dummies(series(head, slow), tr=1.0) == 0


def test_a_later_bright_volume_is_not_counted(head):
    factors = np.ones(40)
    factors[2] = 1.5
    assert count_dummies(series(head, factors), tr=2.0) == 0


def test_brain_mask_of_a_brain(head):
    assert dice(brain_mask(head.epi, head.affine), head.brain) > 0.95


def test_brain_mask_excludes_thinly_connected_tissue(head):
    image = head.epi.copy()
    places = np.indices(image.shape).transpose(1, 2, 3, 0)
    for x in (14, 28):  # eyes, 12 mm in front of the brain, joined to it by a line of voxels
        image[np.linalg.norm(places - (x, 49, 14), axis=-1) < 2.5] = 1500
        image[x, 40:49, 14] = 1000
    assert dice(brain_mask(image, head.affine), head.brain) > 0.94


def test_a_cropped_field_of_view_leaves_no_hole_in_the_mask(head):
    cut = slice(12, 30)
    mask = brain_mask(head.epi[..., cut], head.affine)
    assert dice(mask, head.brain[..., cut]) > 0.95


def test_head_mask_contains_the_brain(head):
    assert (head_mask(head.epi, head.affine) & head.brain).sum() > 0.99 * head.brain.sum()


def test_largest_part_of_two_and_of_none():
    mask = np.zeros((9, 3, 3), bool)
    mask[0], mask[4:8] = True, True
    assert largest_part(mask).sum() == 36
    assert not largest_part(np.zeros((3, 3, 3), bool)).any()
