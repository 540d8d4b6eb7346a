"""Cubic splines of volumes: the native kernel agrees with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.model import native
from bids_app.preprocess import spline


def by_scipy(volume: np.ndarray, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    voxels = points @ matrix[:3, :3].T + matrix[:3, 3]
    return ndimage.map_coordinates(volume.astype(np.float64), voxels.T, order=3, mode="mirror")


@pytest.mark.parametrize("isa", [*native.INSTRUCTION_SETS, None])
@pytest.mark.parametrize("shape", [(20, 17, 9), (6, 5, 4), (3, 2, 30), (7, 1, 8)])
def test_values_within_and_beyond_the_volume_agree_with_scipy(shape, isa, monkeypatch) -> None:
    if isa is None:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None or not native.library().ns_has(isa.encode()):
        pytest.skip(f"this processor or build has no {isa}")
    else:
        monkeypatch.setenv("NEUROSTORM_SCAN_ISA", isa)
    rng = np.random.default_rng(0)
    volume = rng.normal(1000, 100, shape).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.05, (3, 4))
    points = rng.uniform(-8, np.array(shape) + 8, (500, 3))
    points[:10] = np.rint(points[:10])
    for given in (points, np.asfortranarray(points), np.repeat(points, 2, axis=0)[::2]):
        found = spline.evaluate(spline.coefficients(volume), given, matrix)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, by_scipy(volume, points, matrix), rtol=0, atol=2e-3)


def test_points_that_are_not_finite_have_no_value() -> None:
    values = spline.evaluate(
        np.ones((5, 5, 5), np.float32), np.array([[1, 1, np.nan], [1, np.inf, 1], [1, 1, 1]]), np.eye(4)
    )
    assert values.tolist() == [0, 0, 1]


def test_no_points_have_no_values() -> None:
    assert spline.evaluate(np.ones((5, 5, 5), np.float32), np.empty((0, 3)), np.eye(4)).shape == (0,)
