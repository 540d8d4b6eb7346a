"""Spoiled scans differ from the original in one stated way."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.phantom.geometry import apply, grid_affine, rng_for
from bids_app.phantom.spoiled import SPOILED, replace_by, spoil

ORIENTATIONS = ("RAS", "LPI", "PSR")


def scan(orientation: str = "RAS", volumes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a scan whose values are unique, stored in an orientation."""
    shape, affine = grid_affine((10, 12, 20), (2.0, 2.0, 3.0), np.array([1.0, 2.0, 3.0]), orientation)
    data = rng_for(1).random((*shape, volumes) if volumes else shape).astype(np.float32)
    return data, affine


def in_ras(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.asarray(nib.funcs.as_closest_canonical(nib.nifti1.Nifti1Image(data, affine)).dataobj)


def position_of(value: float, data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return apply(affine, np.argwhere(data == value)[0].astype(float))


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("volumes", [0, 2])
def test_the_original_is_not_changed(name, volumes):
    if name == "t2w" and volumes:
        pytest.skip("a contrast of anatomical images")
    data, affine = scan(volumes=volumes)
    before = data.copy(), affine.copy()
    spoiled = spoil(name, data, affine)
    np.testing.assert_array_equal(data, before[0])
    np.testing.assert_array_equal(affine, before[1])
    assert not (np.shape(spoiled[0]) == data.shape and (spoiled[0] == data).all() and (spoiled[1] == affine).all())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_flips_change_the_data_and_not_the_header(orientation):
    data, affine = scan(orientation)
    flipped, header = spoil("flipped", data, affine)
    np.testing.assert_array_equal(header, affine)
    np.testing.assert_array_equal(in_ras(flipped, header), in_ras(data, affine)[::-1])
    turned, header = spoil("upside-down", data, affine)
    np.testing.assert_array_equal(in_ras(turned, header), in_ras(data, affine)[::-1, :, ::-1])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("name", "kept"), [("lower-cut", slice(6, None)), ("upper-cut", slice(0, 14))])
def test_a_cut_removes_30_percent_of_the_slices_and_moves_nothing(orientation, name, kept):
    data, affine = scan(orientation)
    cut, header = spoil(name, data, affine)
    np.testing.assert_array_equal(in_ras(cut, header), in_ras(data, affine)[:, :, kept])
    value = float(cut.flat[77])
    np.testing.assert_allclose(position_of(value, cut, header), position_of(value, data, affine))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("name", "sizes"), [("gap-lost", (2, 2, 2.4)), ("half-voxels", (1, 1, 1.5)), ("small-voxels", (1.6, 1.6, 2.4))]
)
def test_voxel_sizes_are_wrong_by_the_stated_factor(orientation, name, sizes):
    data, affine = scan(orientation)
    same, header = spoil(name, data, affine)
    np.testing.assert_array_equal(same, data)
    canonical = nib.funcs.as_closest_canonical(nib.nifti1.Nifti1Image(same, header))
    np.testing.assert_allclose(nib.affines.voxel_sizes(canonical.affine), sizes)


def test_bias_spans_the_stated_ratio():
    _, affine = grid_affine((40, 44, 40), (5.0, 5.0, 5.0), np.array([3.0, 40.0, -10.0]))
    biased, _ = spoil("bias", np.ones((40, 44, 40)), affine)
    middle = np.linalg.norm(np.indices(biased.shape).T - (np.array(biased.shape) - 1) / 2, axis=-1).T < 15
    assert 4.0 < biased[middle].max() / biased[middle].min() < 6.5


def test_an_inverted_contrast_has_dark_white_matter_and_dark_air():
    image = np.zeros((20, 20, 20))
    image[2:14], image[10:14] = 60.0, 100.0
    inverted, _ = spoil("t2w", image, np.eye(4))
    assert inverted[5].mean() > 2 * inverted[12].mean() > 0
    assert inverted[0].max() == 0


def test_another_persons_scan_has_the_same_centre():
    data, affine = scan()
    other, header = replace_by(data, affine, np.ones((5, 5, 5)), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert other.shape == (5, 5, 5)
    np.testing.assert_allclose(apply(header, np.full(3, 2.0)), apply(affine, (np.array(data.shape) - 1) / 2))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="upside-down"):
        spoil("melted", *scan())
