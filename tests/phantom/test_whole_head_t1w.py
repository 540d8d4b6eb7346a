"""T1w images of whole heads have their sequence's contrast and the stated artefacts."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.phantom.head_shape import HeadShape, random_head_shape
from bids_app.phantom.protocol import AnatomicalProtocol
from bids_app.phantom.tissues import TISSUES, TissueMaps
from bids_app.phantom.whole_head_t1w import T1wScan, simulate_whole_head_t1w

GRID = AnatomicalProtocol((6.0,) * 3, (34, 40, 40), "PSR", noise=0.01)


@pytest.fixture(scope="module")
def head_shape() -> HeadShape:
    return random_head_shape(1, "someone", warp_mm=0.1)


@pytest.fixture(scope="module")
def maps() -> TissueMaps:
    """A ball of white matter in grey matter, bone and fat."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -120
    index = np.indices((60, 60, 60))
    distance = np.linalg.norm(4.0 * index.T - 120 - np.array([0, -18, 8]), axis=-1).T
    layers = {"wm": (0, 40), "gm": (40, 68), "bone": (68, 74), "fat": (74, 84)}
    fractions = {name: np.zeros(distance.shape, np.float32) for name in TISSUES}
    for name, (inner, outer) in layers.items():
        fractions[name] = ((distance >= inner) & (distance < outer)).astype(np.float32)
    return TissueMaps(fractions, (distance < 68).astype(np.float32), affine)


def medians(head_shape: HeadShape, maps: TissueMaps, scan: T1wScan) -> dict[str, float]:
    """Return the median intensity of white matter, grey matter, and air."""
    image = simulate_whole_head_t1w(head_shape, maps, scan, (1,))
    shape, _ = scan.protocol.grid()
    middle = np.argwhere(image.brain_mask).mean(axis=0)
    distance = 6.0 * np.linalg.norm(np.indices(shape).T - middle, axis=-1).T
    rings = {"wm": distance < 28, "gm": (distance > 46) & (distance < 56), "air": distance > 105}
    return {name: float(np.median(image.image[ring])) for name, ring in rings.items()}


def test_flash_has_less_contrast_than_mprage_and_t2w_the_opposite(head_shape, maps):
    ratio = {}
    for sequence in ("mprage", "flash", "t2w"):
        found = medians(head_shape, maps, T1wScan(GRID, sequence, coil=1.0, transmit=0.0))
        ratio[sequence] = found["gm"] / found["wm"]
        assert found["air"] < 0.05 * found["wm"]
    assert ratio["mprage"] < 0.75 < ratio["flash"] < 0.9
    assert ratio["t2w"] > 1.2


def test_mp2rage_has_noise_in_air_and_no_bias(head_shape, maps):
    image = simulate_whole_head_t1w(head_shape, maps, T1wScan(GRID, "mp2rage", coil=5.0), (1,))
    assert image.image[:, :, :2].std() > 500
    sides = image.image[..., image.image.shape[2] // 2]
    assert sides[image.brain_mask[..., image.image.shape[2] // 2]].std() < 500


def test_removing_the_skull_leaves_the_brain_only_and_wrap_around_shrinks_the_field_of_view(head_shape, maps):
    stripped = simulate_whole_head_t1w(head_shape, maps, T1wScan(GRID, removed="skull"))
    assert not stripped.image[~stripped.brain_mask].any()
    assert stripped.image[stripped.brain_mask].min() > 0
    usual = simulate_whole_head_t1w(head_shape, maps, T1wScan(GRID))
    wrapped = simulate_whole_head_t1w(head_shape, maps, T1wScan(GRID, wrap_mm=36.0))
    assert wrapped.image.shape == (usual.image.shape[0] - 12, *usual.image.shape[1:])  # P is the first axis
    np.testing.assert_allclose(wrapped.affine @ [0, 0, 0, 1], usual.affine @ [6, 0, 0, 1])
    np.testing.assert_array_equal(wrapped.brain_mask, usual.brain_mask[6:-6])


def test_a_defaced_image_keeps_the_brain(head_shape, maps):
    usual, defaced = (simulate_whole_head_t1w(head_shape, maps, T1wScan(GRID, removed=r)) for r in (None, "face"))
    np.testing.assert_array_equal(defaced.image[usual.brain_mask], usual.image[usual.brain_mask])
    assert ((defaced.image == 0) & (usual.image > 200)).sum() > 30


@pytest.mark.parametrize("wrong", [{"sequence": "spgr"}, {"removed": "nose"}, {"coil": 0.5}])
def test_invalid_scans_are_refused(wrong):
    with pytest.raises(UsageError, match="Simulated T1w"):
        T1wScan(GRID, **wrong)
