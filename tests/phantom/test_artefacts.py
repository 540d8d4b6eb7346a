"""Artefacts of scanners have the stated size and place."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.phantom import artefacts
from bids_app.phantom.geometry import grid_points, rng_for

SHAPE = (30, 36, 32)
AFFINE = np.array([[7.0, 0, 0, -101], [0, 7, 0, -140], [0, 0, 7, -100], [0, 0, 0, 1]])


@pytest.mark.parametrize("ratio", [1.5, 5.0])
def test_a_coil_has_the_stated_bias_over_the_brain(ratio):
    field = artefacts.coil_sensitivity(SHAPE, AFFINE, ratio, rng_for(1))
    near = np.linalg.norm(grid_points(SHAPE, AFFINE) - np.array([0, -18, 8]), axis=-1) < 75
    assert field[near].max() / field[near].min() == pytest.approx(ratio, rel=0.15)
    assert artefacts.coil_sensitivity(SHAPE, AFFINE, 1.0, rng_for(1)).tolist() == np.ones(SHAPE).tolist()


def test_a_coil_is_bright_at_the_back_and_dark_in_face_and_neck():
    field = artefacts.coil_sensitivity(SHAPE, AFFINE, 4.0, rng_for(1))
    back, mouth = (
        field[tuple(np.round(np.linalg.inv(AFFINE)[:3] @ [*p, 1]).astype(int))] for p in ((0, -100, 0), (0, 70, -90))
    )
    assert back > 2 * mouth


def test_wrap_around_moves_what_is_beyond_the_field_of_view_to_the_opposite_side():
    image = np.arange(2 * 10 * 3, dtype=np.float32).reshape(2, 10, 3)
    folded = artefacts.wrap_around(image, 1, 2)
    assert folded.shape == (2, 6, 3)
    np.testing.assert_array_equal(folded[:, 0], image[:, 2] + image[:, 8])
    np.testing.assert_array_equal(folded[:, -1], image[:, 7] + image[:, 1])
    assert folded.sum() == image.sum()


def test_a_ghost_is_half_a_field_of_view_away():
    image = np.zeros((4, 8, 4), np.float32)
    image[2, 1, 2] = 100
    ghosted = artefacts.half_ghost(image, 1, 0.05)
    assert ghosted[2, 5, 2] == pytest.approx(5.0)
    assert ghosted[2, 1, 2] == 100


def test_motion_adds_signal_outside_the_object_along_one_axis():
    image = np.zeros((24, 48, 8), np.float32)
    image[8:16, 16:32] = 1
    moved = artefacts.motion_ghosts(image, 1, 0.5, rng_for(2))
    assert moved[8:16, :10].mean() > 0.01
    assert moved[:8].max() < 1e-5
    np.testing.assert_allclose(artefacts.motion_ghosts(image, 1, 0.0, rng_for(2)), image, atol=1e-5)


def test_a_spike_is_one_frequency():
    image = np.full((32, 32, 4), 100.0, np.float32) + rng_for(1).normal(0, 1e-3, (32, 32, 4)).astype(np.float32)
    stripes = artefacts.spike(image, 0.1, rng_for(3)) - image
    power = np.sort(np.abs(np.fft.fft2(stripes[..., 0])).ravel())
    assert power[-2] > 100 * power[-3]
    assert np.abs(stripes).max() == pytest.approx(10, rel=0.05)


def test_a_uniform_image_has_no_bias_and_noise_in_air():
    signal = np.ones((8, 40, 40), np.float32) * np.linspace(1, 5, 40, dtype=np.float32)
    signal[:4] = 0
    image = artefacts.uniform_image(0.4 * signal, signal, 0.02, rng_for(1))
    assert image[4:, :, :5].mean() == pytest.approx(image[4:, :, -5:].mean(), rel=0.01)
    assert image[:4].std() > 20 * image[4:].std()
    assert image.min() >= 0
    assert image.max() <= 4095


def test_noise_of_a_magnitude_image_has_the_stated_level():
    image = artefacts.rician(np.full((20, 20, 20), 10.0, np.float32), 0.5, rng_for(1))
    assert image.std() == pytest.approx(0.5, rel=0.05)


def test_parallel_imaging_amplifies_noise_in_the_centre():
    factor = artefacts.g_factor(SHAPE, AFFINE, 4.0, rng_for(1))
    assert factor.max() > 1.4
    assert factor[0, 0, 0] < 1.05
    assert artefacts.g_factor(SHAPE, AFFINE, 1.0, rng_for(1)).max() == 1
