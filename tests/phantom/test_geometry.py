"""Rigid transforms, grids and random fields agree with their definitions."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from bids_app.phantom.geometry import apply, grid_affine, grid_points, rigid, rng_for, sample, smooth_noise

PAIRS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(s) for axes in permutations(PAIRS) for s in product(*axes)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_grid_covers_the_same_box_in_every_orientation(orientation):
    shape, affine = grid_affine((10, 12, 8), (3.0, 3.0, 4.0), np.array([1.0, -2.0, 5.0]), orientation)
    corners = apply(affine, np.array([[0, 0, 0], np.array(shape) - 1]))
    assert "".join(nib.aff2axcodes(affine)) == orientation
    assert sorted(corners[:, 0]) == pytest.approx([1 - 13.5, 1 + 13.5])
    assert sorted(corners[:, 1]) == pytest.approx([-2 - 16.5, -2 + 16.5])
    assert sorted(corners[:, 2]) == pytest.approx([5 - 14, 5 + 14])


def test_integer_points_are_not_truncated():
    turn = rigid(np.array([0.5, 0.0, 0.0]), np.array([0.0, 0.0, 30.0]))
    assert apply(turn, np.array([[10, 0, 0]])) == pytest.approx(np.array([[10 * 0.8660254 + 0.5, 5.0, 0.0]]))


def test_a_rotation_keeps_its_centre_fixed():
    centre = np.array([3.0, -7.0, 20.0])
    assert apply(rigid(np.zeros(3), np.array([10.0, -5.0, 3.0]), centre), centre) == pytest.approx(centre)


def test_sampling_a_ramp_returns_positions():
    shape, affine = grid_affine((9, 9, 9), (2.0, 2.0, 2.0), np.zeros(3), "LPS")
    ramp = grid_points(shape, affine)[..., 1]
    points = np.array([[0.3, 1.7, -2.2], [-3.0, -5.1, 0.0]])
    assert sample(ramp, affine, points) == pytest.approx(points[:, 1], abs=1e-5)


def test_noise_has_unit_standard_deviation_and_the_requested_smoothness():
    field = smooth_noise((60, 60, 60), 2.0, 20.0, rng_for(0))
    assert field.std() == pytest.approx(1.0, abs=1e-3)
    steps = [np.diff(field, axis=axis).std() / 2.0 for axis in range(3)]
    # a Gaussian of sigma s in the noise makes a field whose slope has a standard deviation of 1 / (s * sqrt(2)) a mm
    assert np.mean(steps) == pytest.approx(1 / (20.0 / 2.355 * np.sqrt(2)), rel=0.25)


def test_generators_are_independent():
    first = rng_for(1, "a").random()
    rng_for(1, "b").random()
    assert rng_for(1, "a").random() == first
    assert rng_for(1, "b").random() != first
    assert rng_for(2, "a").random() != first
