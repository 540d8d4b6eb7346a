"""Transforms, their files, and agreement with ANTs."""

import nibabel as nib
import numpy as np
import pytest
from nitransforms.io.fsl import FSLLinearTransform

from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.registration.transforms import (
    Chain,
    Linear,
    Warp,
    apply_matrix,
    fsl_parameters,
    grid_points,
    linear,
    read_itk_composite,
    resample_to,
    rigid,
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


def fsl_matrix(parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Volume to reference in FSL's coordinates, as FSL builds it (``construct_rotmat_euler`` of miscmaths)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(parameters[3:]), np.sin(parameters[3:])
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_x @ about_y @ about_z
    matrix[:3, 3] = parameters[:3] + centre - matrix[:3, :3] @ centre
    return matrix


@pytest.mark.parametrize("orientation", [(-1, 1, 1), (1, 1, 1), (1, -1, 1)])
def test_motion_parameters_are_those_of_mcflirt(orientation):
    given = np.array([[1.0, -2.0, 3.0, 0.1, -0.2, 0.3], [0, 0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0, -0.01]])
    affine = rigid((0.3, 0.1, -0.2), (-70, -90, -40)) @ np.diag([3.0 * orientation[0], 3.5, 4.0 * orientation[2], 1.0])
    affine[:, 1] *= orientation[1]
    reference = nib.Nifti1Image(np.zeros((40, 36, 30), np.uint8), affine)
    centre = (np.array(reference.shape) - 1) * np.array([3.0, 3.5, 4.0]) / 2
    poses = [FSLLinearTransform(fsl_matrix(row, centre)).to_ras(reference, reference) for row in given]
    np.testing.assert_allclose(fsl_parameters(np.stack(poses), reference.shape, affine), given, atol=1e-9)


def test_motion_to_the_right_forward_and_up_has_the_signs_of_fsl():
    poses = rigid((0.01, 0.02, 0.03), (1, 2, 3))[None]
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (39, -39, -39)  # the centre of the field of view is at 0
    found = fsl_parameters(poses, (40, 40, 40), affine)[0]
    np.testing.assert_allclose(found, [1, -2, -3, 0.01, -0.02, -0.03], atol=0.15)
    np.testing.assert_array_equal(np.sign(found), [1, -1, -1, 1, -1, -1])


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
    import ants

    transform = ants.read_transform(str(path))
    flip = np.array([-1, -1, 1])
    mapped = np.array([transform.apply_to_point(tuple(p * flip)) for p in POINTS]) * flip
    np.testing.assert_allclose(mapped, apply_matrix(MATRIX, POINTS), atol=1e-4)


def test_several_matrices_in_one_itk_file(tmp_path):
    text = write_itk_text(tmp_path / "hmc.txt", np.stack([np.eye(4), MATRIX])).read_text()
    assert text.startswith("#Insight Transform File V1.0")
    assert [line for line in text.splitlines() if line.startswith("#T")] == ["#Transform 0", "#Transform 1"]


@pytest.mark.parametrize("turned", [False, True])
def test_ants_composite_files_are_read_as_ants_applies_them(tmp_path, turned):
    import ants

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
