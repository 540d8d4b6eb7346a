"""Average of several T1w images, without outliers."""

import numpy as np
import pytest

from bids_app.errors import BadDataError
from bids_app.preprocess import anatomical as anatomy
from bids_app.preprocess import t1w_average as merge
from bids_app.preprocess.anatomical import prepare_t1w
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration.ants import Image, correlation
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, linear, resample_to, rigid
from bids_app.preprocess.t1w_average import average, find_consistent, merge_t1w

POSE = rigid(np.radians((4, -3, 5)), (5, -4, 6), (0, -20, 10))
"""First image's points to the second's."""


@pytest.fixture(autouse=True)
def coarse_steps(monkeypatch):
    """The heads of these tests have voxels of 4 mm."""
    monkeypatch.setattr(merge, "WORKING_MM", 4.0)
    monkeypatch.setattr(anatomy, "find_t1w_brain", lambda image, original, name, threads: (None, False, ()))
    monkeypatch.setattr(anatomy, "bias_field", lambda image, *_: np.ones_like(image.data))


@pytest.fixture
def scans(head, tmp_path):
    """Two noisy scans of one head; the second in another pose, brighter, on another grid."""
    rng = np.random.default_rng(0)
    level = np.percentile(head.t1w, 95)

    def noisy(image):
        return np.abs(image + rng.normal(0, 0.1 * level, image.shape)).astype(np.float32)

    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (92, -130, -80)
    moved = resample_to(head.t1w, head.affine, (46, 56, 50), affine, linear(np.linalg.inv(POSE)))
    return (
        save_image(tmp_path / "sub-01_run-1_T1w.nii.gz", noisy(head.t1w), head.affine),
        save_image(tmp_path / "sub-01_run-2_T1w.nii.gz", 3 * noisy(moved), affine),
    )


def test_the_mean_has_less_noise_than_one_scan(head, scans, tmp_path):
    merged = merge_t1w(scans, tmp_path)
    assert merged.used == scans
    assert merged.warnings == ()
    alone, _ = read_volume(scans[0])
    inner = head.brain
    assert merged.image.data.shape == alone.shape
    assert correlation(merged.image.data[inner], head.t1w[inner]) > correlation(alone[inner], head.t1w[inner]) + 0.02
    residual = [np.std((image - head.t1w)[inner]) for image in (merged.image.data, alone)]
    assert residual[0] < 0.85 * residual[1]


def test_the_average_is_preprocessed_and_lists_its_files(scans, tmp_path):
    prepared = prepare_t1w(scans[0], tmp_path, scans[1:])
    assert prepared.used == scans
    assert prepared.merged is not None
    assert read_volume(prepared.merged)[0].shape == read_volume(scans[0])[0].shape
    single = prepare_t1w(scans[0], tmp_path)
    assert single.merged is None
    assert single.used == scans[:1]


def test_an_inconsistent_image_is_excluded_with_a_warning(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "_to_first", lambda *args: np.eye(4))
    noise = np.random.default_rng(1).gamma(2, 100, (46, 56, 50)).astype(np.float32)
    other = save_image(tmp_path / "sub-01_run-3_T1w.nii.gz", noise, np.diag([4.0, 4.0, 4.0, 1.0]))
    merged = merge_t1w((scans[0], other), tmp_path)
    assert merged.used == scans[:1]
    assert "sub-01_run-3_T1w.nii.gz: differs from" in merged.warnings[0]
    np.testing.assert_array_equal(merged.image.data, read_volume(scans[0])[0])


def test_an_unreadable_repeat_is_excluded_and_an_unreadable_first_is_refused(scans, tmp_path):
    broken = tmp_path / "sub-01_run-2_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    merged = merge_t1w(scans, tmp_path)
    assert merged.used == scans[:1]
    assert "sub-01_run-2_T1w.nii.gz" in merged.warnings[0]
    with pytest.raises(BadDataError, match="run-2"):
        merge_t1w(scans[::-1], tmp_path)


def test_the_inconsistent_one_of_three_is_found_even_if_it_is_the_first():
    rng = np.random.default_rng(0)
    head = rng.normal(size=5000)
    similar = [head + 0.2 * rng.normal(size=5000) for _ in range(2)]
    assert find_consistent(np.stack([rng.normal(size=5000), *similar])) == [False, True, True]
    assert find_consistent(np.stack([*similar, head + 0.9 * rng.normal(size=5000)])) == [True, True, False]
    assert find_consistent(rng.normal(size=(3, 5000))) == [True, False, False]
    assert find_consistent(np.stack([head, -head])) == [True, False]


def test_points_outside_one_image_come_from_the_other():
    first = Image(np.full((6, 6, 6), 10.0, np.float32), np.eye(4))
    half = Image(np.full((6, 6, 3), 30.0, np.float32), np.eye(4))
    mean = average(first, [first, half], [np.eye(4), np.eye(4)])
    np.testing.assert_allclose(mean.data, 10.0)


def test_the_mean_has_the_grid_of_the_first(scans, tmp_path, head):
    first, second = (Image(*read_volume(path)) for path in scans)
    points = grid_points(head.brain.shape, head.affine, head.brain)
    found = merge._to_first(first, second, head.brain, tmp_path, 1)
    error = np.linalg.norm(apply_matrix(found, points) - apply_matrix(POSE, points), axis=1)
    assert np.median(error) < 0.7
