"""The SBRef as reference image of a run."""

import numpy as np
import pytest
from scipy import ndimage

from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, rigid, sample
from bids_app.preprocess.sbref import use_sbref

SHAPE = (32, 36, 28)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = (-46.0, -52.0, -40.0)
POSE = rigid(np.radians((2.0, -1.0, 1.5)), (1.0, -1.5, 0.8))
NAME = "sub-01_task-rest_bold.nii.gz"


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """A textured ellipsoid."""
    points = grid_points(SHAPE, AFFINE).reshape(*SHAPE, 3)
    inside = np.linalg.norm(points / [38, 44, 34], axis=-1) < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5)
    return (inside * (600 + 1500 * texture)).astype(np.float32)


@pytest.fixture
def motion(brain, tmp_path) -> MotionEstimate:
    noisy = np.maximum(brain + np.random.default_rng(1).normal(0, 20, SHAPE), 0).astype(np.float32)
    boldref = save_image(tmp_path / "boldref_of_the_run.nii.gz", noisy, AFFINE)
    return MotionEstimate(tmp_path / "motion.npy", boldref, tmp_path / "hmc.txt")


def moved(image: np.ndarray, pose: np.ndarray = POSE) -> np.ndarray:
    points = apply_matrix(np.linalg.inv(pose), grid_points(SHAPE, AFFINE))
    return sample(image, AFFINE, points, order=3).reshape(SHAPE)


def test_the_sbref_is_aligned_with_the_run(motion, brain, tmp_path):
    sbref = save_image(tmp_path / "sub-01_task-rest_sbref.nii.gz", 4 * moved(brain), AFFINE)
    found = use_sbref(motion, sbref, NAME, tmp_path)
    assert not found.omitted
    assert found.sbref == sbref
    image, affine = read_volume(found.boldref)
    np.testing.assert_allclose(affine, AFFINE)
    inner = ndimage.binary_erosion(brain > 0, iterations=4)
    boldref, _ = read_volume(motion.boldref)
    error, without, before = (1 - np.corrcoef(one[inner], brain[inner])[0, 1] for one in (image, moved(brain), boldref))
    assert error < 0.05 * without
    assert error < before  # less noise than the run's own
    assert np.median(image[inner]) == pytest.approx(np.median(boldref[inner]), rel=0.05)


def test_an_sbref_of_several_volumes_counts_by_its_first(motion, brain, tmp_path):
    series = np.stack([moved(brain), np.zeros(SHAPE, np.float32)], axis=-1)
    found = use_sbref(motion, save_image(tmp_path / "sbref.nii.gz", series, AFFINE, tr=1.0), NAME, tmp_path)
    assert not found.omitted


def shifted_header(brain):
    affine = AFFINE.copy()
    affine[2, 3] += 30
    return brain, affine


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shifted_header, "header differs"),
        (lambda brain: (brain[..., :-2], AFFINE), "header differs"),
        (lambda brain: (np.zeros_like(brain), AFFINE), "empty"),
        (lambda brain: (np.where(brain > 600, np.float32(np.nan), brain), AFFINE), "NaN"),
        (lambda brain: (brain.max() - brain, AFFINE), "not aligned"),
        (lambda brain: (brain[::-1], AFFINE), "left and right flipped"),
    ],
)
def test_an_sbref_that_does_not_fit_is_left_out_with_the_reason(motion, brain, tmp_path, make, reason):
    data, affine = make(brain)
    sbref = save_image(tmp_path / "sub-01_task-rest_sbref.nii.gz", np.asarray(data, np.float32), affine)
    found = use_sbref(motion, sbref, NAME, tmp_path)
    assert (found.boldref, found.sbref) == (motion.boldref, None)
    (warning,) = found.omitted
    assert warning.startswith(f"{NAME}: the SBRef was not used")
    assert reason in warning
    assert sbref.name in warning


def test_an_unreadable_sbref_is_left_out(motion, tmp_path):
    broken = tmp_path / "sub-01_task-rest_sbref.nii.gz"
    broken.write_bytes(b"no image")
    found = use_sbref(motion, broken, NAME, tmp_path)
    assert found.boldref == motion.boldref
    assert broken.name in found.omitted[0]
