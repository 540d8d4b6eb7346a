"""Mapping of images to the model grid by their affine, in any stored orientation."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.clips import (
    MODEL_GRID_AFFINE,
    MODEL_GRID_SHAPE,
    labels_to_model_grid,
    to_model_grid,
)
from bids_app.errors import BadDataError
from tests.helpers.images import TEMPLATE_AFFINE, ball_of_noise, stored_as

ORIENTATIONS = [codes for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)]


def test_model_grid_is_the_padded_and_cropped_template_grid():
    first = np.linalg.inv(TEMPLATE_AFFINE) @ MODEL_GRID_AFFINE @ [0, 0, 0, 1]
    assert first.tolist() == [-3, 6, -3, 1]
    assert nib.aff2axcodes(MODEL_GRID_AFFINE) == ("L", "A", "S")


def test_all_48_orientations_give_the_same_clip():
    img = ball_of_noise(n_vols=1)
    brain = nib.Nifti1Image((np.asarray(img.dataobj)[..., 0] > 900).astype(np.uint8), img.affine)
    expected = to_model_grid(img, mask=brain)
    assert len(set(ORIENTATIONS)) == 48
    for codes in ORIENTATIONS:
        assert torch.equal(to_model_grid(stored_as(img, codes), mask=stored_as(brain, codes)), expected), codes


def test_orientations_give_the_same_clip_off_the_lattice():
    img = ball_of_noise(
        n_vols=1, shape=(46, 55, 46), affine=np.diag([-4.0, 4, 4, 1]) + np.c_[np.zeros((4, 3)), [91.3, -127, -71, 0]]
    )
    expected = to_model_grid(img)
    for codes in ORIENTATIONS[::5]:
        assert torch.equal(to_model_grid(stored_as(img, codes)), expected), codes


def test_left_hemisphere_stays_left():
    data = np.zeros((91, 109, 91, 1), dtype=np.float32)
    data[20:70, 30:80, 20:70] = 100
    world = np.array([-30, 0, 20, 1])  # in the left hemisphere
    i, j, k, _ = np.rint(np.linalg.inv(TEMPLATE_AFFINE) @ world).astype(int)
    data[i, j, k] = 1000
    i, j, k, _ = np.rint(np.linalg.inv(MODEL_GRID_AFFINE) @ world).astype(int)
    for codes in ("LAS", "RAS", "PIR"):
        clip = to_model_grid(stored_as(nib.Nifti1Image(data, TEMPLATE_AFFINE), codes), tr=0.8)
        assert np.unravel_index(clip.argmax(), clip.shape)[:3] == (i, j, k)


def test_coarser_image_keeps_its_position():
    """A smooth image sampled at 3 mm is close to the same image sampled at 2 mm."""

    def smooth(affine, shape):
        x, y, z, _ = affine @ np.vstack([np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
        values = 1000 + 200 * np.sin(x / 15) + 100 * np.cos(y / 12) + z
        return nib.Nifti1Image(values.reshape(*shape, 1).astype(np.float32), affine)

    coarse_affine = np.array([[3.0, 0, 0, -89], [0, 3, 0, -125], [0, 0, 3, -71], [0, 0, 0, 1]])
    box = nib.Nifti1Image(
        np.ones((30, 40, 30), np.uint8), np.array([[4.0, 0, 0, -60], [0, 4, 0, -90], [0, 0, 4, -40], [0, 0, 0, 1]])
    )
    fine = to_model_grid(smooth(TEMPLATE_AFFINE, (91, 109, 91)), tr=0.8, mask=box)
    coarse = to_model_grid(smooth(coarse_affine, (60, 73, 60)), tr=0.8, mask=box)
    assert (fine - coarse).abs().max() < 0.06


def test_labels_are_whole_numbers_on_the_grid():
    data = np.zeros((91, 109, 91), dtype=np.int16)
    data[45, 60, 40] = 7
    labels = labels_to_model_grid(stored_as(nib.Nifti1Image(data, TEMPLATE_AFFINE), "RAS"))
    assert labels.shape == MODEL_GRID_SHAPE
    assert np.argwhere(labels).tolist() == [[48, 54, 43]]
    with pytest.raises(BadDataError, match="whole numbers"):
        labels_to_model_grid(nib.Nifti1Image(data + 0.5, TEMPLATE_AFFINE))
