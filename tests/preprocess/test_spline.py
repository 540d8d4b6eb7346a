"""Interpolation of volumes: the native kernel agrees with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.model import native
from bids_app.preprocess import spline


@pytest.fixture(params=[*native.INSTRUCTION_SETS, None])
def isa(request, monkeypatch) -> None:
    """Kernels of each instruction set, and scipy."""
    if request.param is None:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None or not native.library().ns_has(request.param.encode()):
        pytest.skip(f"this processor or build has no {request.param}")
    else:
        monkeypatch.setenv("NEUROSTORM_SCAN_ISA", request.param)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(20, 17, 9), (6, 5, 4), (3, 2, 30), (7, 1, 8)])
def test_values_within_and_beyond_the_volume_agree_with_scipy(shape) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(1000, 100, (*shape, 2)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.05, (3, 4))
    points = rng.uniform(-8, np.array(shape) + 8, (500, 3))
    points[:10] = np.rint(points[:10])
    voxels = (points @ matrix[:3, :3].T + matrix[:3, 3]).T
    first, other = np.moveaxis(volume.astype(np.float64), -1, 0)
    cubic = ndimage.map_coordinates(first, voxels, order=3, mode="mirror")
    linear = [ndimage.map_coordinates(one, voxels, order=1, mode="grid-constant") for one in (first, other)]
    for given in (points, np.asfortranarray(points), np.repeat(points, 2, axis=0)[::2]):
        found = spline.cubic(spline.coefficients(volume[..., 0]), given, matrix)
        np.testing.assert_allclose(found, cubic, rtol=0, atol=2e-3)
        both = spline.linear(volume, given, matrix)
        np.testing.assert_allclose(both.T, linear, rtol=0, atol=5e-4)
        assert found.dtype == both.dtype == np.float32
    nearest = np.clip(voxels, 0, np.array(shape)[:, None] - 1)
    expected = ndimage.map_coordinates(first, nearest, order=3, mode="mirror")
    found = spline.cubic(spline.coefficients(volume[..., 0]), points, matrix, nearest=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    expected = ndimage.map_coordinates(other, voxels, order=1, mode="nearest")
    np.testing.assert_allclose(spline.linear(volume, points, matrix, nearest=True)[:, 1], expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("shape", [(20, 17, 9), (6, 5, 4), (3, 2, 30), (7, 1, 8)])
def test_a_device_gives_the_values_of_the_cpu(shape, nearest, on_device) -> None:
    rng = np.random.default_rng(0)
    volume, matrix = rng.normal(1000, 100, shape).astype(np.float32), np.eye(4)
    matrix[:3] += rng.normal(0, 0.05, (3, 4))
    points = rng.uniform(-8, np.array(shape) + 8, (500, 3))
    points[:3] = [[np.nan, 1, 1], [1, np.inf, 1], [0, 0, 0]]
    expected = spline.points_on("cpu", points).cubic(volume, matrix, nearest=nearest)
    found = spline.points_on(on_device, points).cubic(volume, matrix, nearest=nearest)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    assert found.dtype == np.float32


def test_points_that_are_not_finite_have_the_value_0() -> None:
    points = np.array([[1, 1, np.nan], [1, np.inf, 1], [1, 1, 1]])
    volume = np.ones((5, 5, 5), np.float32)
    assert spline.cubic(volume, points, np.eye(4)).tolist() == [0, 0, 1]
    assert spline.linear(volume[..., None], points, np.eye(4)).tolist() == [[0], [0], [1]]


def test_no_points_have_no_values() -> None:
    assert spline.cubic(np.ones((5, 5, 5), np.float32), np.empty((0, 3)), np.eye(4)).shape == (0,)
