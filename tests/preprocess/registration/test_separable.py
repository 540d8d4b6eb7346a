"""Interpolation and smoothing axis by axis give what scipy gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.preprocess.registration.separable import are_parallel, resample_parallel
from bids_app.preprocess.registration.transforms import rigid


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(17, 12, 9)).astype(np.float32)


@pytest.mark.parametrize("outside", ["constant", "nearest"])
@pytest.mark.parametrize(
    ("scale", "shift", "shape"),
    [((0.5, 0.4, 0.3), (-0.25, -0.6, 0.1), (36, 33, 31)), ((1.7, -1.3, 2.0), (0.3, 11.0, -1.0), (10, 9, 6))],
    ids=["finer", "coarser and flipped"],
)
def test_it_agrees_with_scipy(data, scale, shift, shape, outside) -> None:
    pull = np.diag([*scale, 1.0])
    pull[:3, 3] = shift
    wanted = ndimage.affine_transform(data, pull[:3, :3], pull[:3, 3], shape, order=1, mode=outside)
    np.testing.assert_allclose(resample_parallel(data, pull, shape, outside=outside), wanted, atol=1e-5)


def test_smoothing_agrees_with_scipy_also_at_the_edges(data) -> None:
    sigma = (0.7, 0.0, 2.6)
    wanted = ndimage.gaussian_filter(data, sigma)
    np.testing.assert_allclose(resample_parallel(data, np.eye(4), data.shape, sigma=sigma), wanted, atol=1e-5)


def test_an_axis_of_one_voxel_is_kept() -> None:
    flat = np.ones((4, 5, 1), np.float32)
    np.testing.assert_array_equal(resample_parallel(flat, np.eye(4), flat.shape, sigma=(0, 0, 1)), flat)


def test_oblique_grids_are_not_parallel() -> None:
    assert are_parallel(np.diag([0.5, 2.0, -1.0, 1.0]), (100, 100, 100))
    assert are_parallel(rigid((1e-6, 0, 0), (1, 2, 3)), (100, 100, 100))
    assert not are_parallel(rigid((1e-4, 0, 0), (0, 0, 0)), (100, 100, 100))
