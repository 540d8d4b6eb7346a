"""Transforms written for other programs: antspyx and nitransforms map points as this package does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nitransforms.manip import TransformChain
from scipy import ndimage

from bids_app.preprocess.registration.published import (
    compose_on_grid,
    cover_grid,
    transforms_to_spaces,
    write_itk_composite,
)
from bids_app.preprocess.registration.transforms import Chain, Linear, Warp, grid_points, read_itk_composite, rigid


@pytest.fixture
def chain() -> Chain:
    """A matrix, then a smooth displacement on an oblique grid, then another matrix."""
    draws = np.random.default_rng(0)
    field = ndimage.gaussian_filter(draws.normal(size=(20, 22, 18, 3)), (3, 3, 3, 0)) * 60
    affine = rigid((0.1, -0.05, 0.2), (-40, -50, -30)) @ np.diag([4.0, 5.0, 6.0, 1.0])
    before, after = (rigid(draws.normal(size=3) / 10, draws.normal(size=3) * 3) for _ in range(2))
    return Chain((Linear(before), Warp(field.astype(np.float32), affine), Linear(after * [[1.1], [0.9], [1], [1]])))


def points_inside() -> np.ndarray:
    return np.random.default_rng(1).uniform(-15, 12, (50, 3))


def test_a_composite_is_read_back(tmp_path: Path, chain: Chain) -> None:
    found = read_itk_composite(write_itk_composite(tmp_path / "x.h5", chain))
    np.testing.assert_allclose(found(points_inside()), chain(points_inside()), atol=1e-4)


def test_antspyx_reads_a_composite(tmp_path: Path, chain: Chain) -> None:
    path = write_itk_composite(tmp_path / "x.h5", chain)
    import ants

    itk = ants.read_transform(str(path))
    lps = np.array([-1, -1, 1])
    found = np.array([itk.apply_to_point(point * lps) for point in points_inside()]) * lps
    np.testing.assert_allclose(found, chain(points_inside()), atol=1e-3)


def test_nitransforms_reads_a_composite(tmp_path: Path, chain: Chain) -> None:
    path = write_itk_composite(tmp_path / "x.h5", chain)
    found = TransformChain.from_filename(path, fmt="itk").map(points_inside())
    # between its points, nitransforms interpolates the field by splines, ITK linearly
    assert np.abs(found - chain(points_inside())).max() < 0.25


def test_an_empty_chain_is_the_identity(tmp_path: Path) -> None:
    found = read_itk_composite(write_itk_composite(tmp_path / "x.h5", Chain()))
    np.testing.assert_allclose(found(points_inside()), points_inside(), atol=1e-6)


def test_equal_transforms_give_equal_bytes(tmp_path: Path, chain: Chain) -> None:
    one, two = (write_itk_composite(tmp_path / name, chain).read_bytes() for name in ("a.h5", "b.h5"))
    assert one == two


def test_transforms_to_another_template_lead_there_and_back(chain: Chain) -> None:
    shift = Chain((Linear(rigid((0, 0, 0), (5, 0, 0))),))
    back = Chain((Linear(rigid((0, 0, 0), (-5, 0, 0))),))
    own, other = transforms_to_spaces("MNI152NLin6Asym", ["MNI152NLin2009aSym", "MNI152NLin6Asym"], shift, back)
    assert (own.space, other.space) == ("MNI152NLin6Asym", "MNI152NLin2009aSym")
    points = points_inside()
    np.testing.assert_allclose(own.chain(points), points + np.array([5, 0, 0]), atol=1e-6)
    assert np.abs(other.chain(points) - own.chain(points)).max() > 0.3
    np.testing.assert_allclose(other.inverse(other.chain(points)), points, atol=0.3)


def test_a_field_is_extended_over_the_grid_and_maps_points_as_before() -> None:
    field = np.random.default_rng(2).normal(size=(8, 9, 10, 3)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-4, -6, -20)
    target = np.diag([2.0, 2.0, 2.0, 1.0])
    target[:3, 3] = (-10, -12, -8)
    before = Chain((Warp(field, affine), Linear(rigid((0, 0, 0.1), (1, 0, 0)))))
    after = cover_grid(before, (14, 9, 12), target)
    first = after.steps[0]
    assert isinstance(first, Warp)
    assert first.displacement.shape == (14, 12, 18, 3)  # both grids
    points = np.random.default_rng(3).uniform(-12, 14, (200, 3))
    np.testing.assert_allclose(after(points), before(points), atol=1e-6)


def test_a_field_with_other_voxels_is_kept(chain: Chain) -> None:
    other = Chain(chain.steps[1:])
    assert cover_grid(other, (10, 10, 10), np.eye(4)) is other


def test_a_composed_chain_is_exact_at_the_voxels_of_its_grid(chain: Chain) -> None:
    grid = np.diag([3.0, 3.0, 3.0, 1.0])
    grid[:3, 3] = (-15, -12, -9)
    composed = compose_on_grid(chain, (9, 8, 7), grid)
    assert [type(step) for step in composed.steps] == [Warp, Linear]
    points = grid_points((9, 8, 7), grid)
    np.testing.assert_allclose(composed(points), chain(points), atol=1e-4)
    matrices = Chain((chain.steps[0], chain.steps[2]))
    far = np.array([[300.0, 200, 100]])
    np.testing.assert_allclose(composed(far), matrices(far), atol=1e-6)
    assert compose_on_grid(matrices, (9, 8, 7), grid) is matrices
