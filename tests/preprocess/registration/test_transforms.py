"""Transforms, their files, and agreement with ANTs."""

import numpy as np
import pytest

from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.registration.ants import ants_library
from bids_app.preprocess.registration.transforms import (
    Chain,
    Linear,
    Warp,
    apply_matrix,
    grid_points,
    linear,
    read_itk_composite,
    resample_to,
    rigid,
    rigid_parameters,
    sample,
    write_itk_text,
)

POINTS = np.random.default_rng(0).uniform(-20, 20, (50, 3))
MATRIX = rigid(np.radians((10, -5, 20)), (3, -4, 5), (1, 2, 3))


def bump(amplitude: float = 3.0) -> Warp:
    """A smooth displacement that vanishes towards the edge of its grid."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -40
    places = grid_points((21, 21, 21), affine).reshape(21, 21, 21, 3)
    height = amplitude * np.exp(-(places**2).sum(axis=-1) / 300)
    return Warp((height[..., None] * np.array([1.0, -0.5, 0.25])).astype(np.float32), affine)


def test_chains_are_applied_from_first_to_last():
    chain = linear(MATRIX).then(Chain((bump(),)))
    np.testing.assert_allclose(chain(POINTS), bump()(apply_matrix(MATRIX, POINTS)))


def test_adjacent_matrices_are_multiplied():
    chain = Chain((bump(),)).then(linear(MATRIX)).then(linear(MATRIX))
    assert len(chain.steps) == 2
    assert isinstance(chain.steps[1], Linear)
    np.testing.assert_allclose(chain.steps[1].matrix, MATRIX @ MATRIX)


def test_a_chain_is_saved_and_loaded(tmp_path):
    chain = linear(MATRIX).then(Chain((bump(),))).then(linear(np.diag([1.1, 0.9, 1.0, 1.0])))
    read = Chain.load(chain.save(tmp_path / "chain.npz"))
    np.testing.assert_array_equal(read(POINTS), chain(POINTS))


def test_a_warp_is_zero_outside_its_grid():
    far = np.array([[500.0, 0, 0]])
    np.testing.assert_array_equal(bump()(far), far)


def test_rigid_parameters_are_the_inverse_of_rigid():
    given = np.array([[1.0, -2.0, 3.0, 0.1, -0.2, 0.3], [0, 0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0, -0.01]])
    centre = (5, -20, 12)
    matrices = np.stack([rigid(p[3:], p[:3], centre) for p in given])
    np.testing.assert_allclose(rigid_parameters(matrices, centre), given, atol=1e-12)


def test_sampling_on_the_grid_gives_the_voxels():
    data = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
    affine = rigid((0.3, 0.1, -0.2), (1, 2, 3)) @ np.diag([2.0, 3.0, 4.0, 1.0])
    np.testing.assert_allclose(sample(data, affine, grid_points(data.shape, affine)), data.ravel(), atol=1e-4)


def test_resampling_through_a_shift_moves_the_image_the_other_way():
    data = np.zeros((8, 8, 8), np.float32)
    data[5, 3, 3] = 1
    pull = np.eye(4)
    pull[0, 3] = 2.0  # the reference's point x is sampled at x + 2
    assert resample_to(data, np.eye(4), data.shape, np.eye(4), linear(pull))[3, 3, 3] == 1


def test_ants_reads_the_same_transform_from_itk_text(tmp_path):
    path = write_itk_text(tmp_path / "xfm.txt", MATRIX)
    transform = ants_library().read_transform(str(path))
    flip = np.array([-1, -1, 1])
    mapped = np.array([transform.apply_to_point(tuple(p * flip)) for p in POINTS]) * flip
    np.testing.assert_allclose(mapped, apply_matrix(MATRIX, POINTS), atol=1e-4)


def test_several_matrices_in_one_itk_file(tmp_path):
    text = write_itk_text(tmp_path / "hmc.txt", np.stack([np.eye(4), MATRIX])).read_text()
    assert text.startswith("#Insight Transform File V1.0")
    assert [line for line in text.splitlines() if line.startswith("#T")] == ["#Transform 0", "#Transform 1"]


@pytest.mark.parametrize("turned", [False, True])
def test_ants_composite_files_are_read_as_ants_applies_them(tmp_path, turned):
    ants = ants_library()
    turn = rigid(np.radians((5, -8, 3)), (0, 0, 0)) if turned else np.eye(4)
    affine = turn @ np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-30, -33, -27)
    shape = (21, 22, 19)
    places = grid_points(shape, affine)
    blob = np.exp(-((places / (12, 16, 10)) ** 2).sum(axis=1)).reshape(shape) * 100
    other = np.exp(-(((places - (3, 2, -2)) / (14, 13, 11)) ** 2).sum(axis=1)).reshape(shape) * 100
    for name, image in (("fixed", blob), ("moving", other)):
        save_image(tmp_path / f"{name}.nii", image.astype(np.float32), affine)
    fixed, moving = str(tmp_path / "fixed.nii"), str(tmp_path / "moving.nii")
    arguments = ["-d", "3", "--float", "1", "--random-seed", "1", "-r", f"[{fixed},{moving},1]"]
    arguments += ["-m", f"MI[{fixed},{moving},1,16]", "-t", "Affine[0.1]", "-c", "20", "-f", "2", "-s", "0vox"]
    arguments += ["-m", f"MI[{fixed},{moving},1,16]", "-t", "SyN[0.3,3,0]", "-c", "8", "-f", "1", "-s", "0vox"]
    ants.registration([*arguments, "-z", "1", "-a", "1", "-o", str(tmp_path / "x_")], None)
    flip = np.array([-1, -1, 1])
    inner = grid_points((7, 7, 7), np.diag([4.0, 4.0, 4.0, 1.0])) - 12
    for name in ("x_Composite.h5", "x_InverseComposite.h5"):
        transform = ants.read_transform(str(tmp_path / name))
        expected = np.array([transform.apply_to_point(tuple(p * flip)) for p in inner]) * flip
        chain = read_itk_composite(tmp_path / name)
        assert any(isinstance(step, Warp) for step in chain.steps)
        np.testing.assert_allclose(chain(inner), expected, atol=2e-3)
