"""Registration by ANTs, and similarity measures."""

import fcntl
import time

import h5py
import numpy as np
import pytest
from scipy import ndimage

from bids_app.errors import InputOutputError, RegistrationError
from bids_app.preprocess.registration import ants as registration
from bids_app.preprocess.registration.ants import (
    Image,
    Stage,
    best_start,
    centre_of_mass,
    correlation,
    dice,
    isotropic,
    mutual_information,
    optimum_margin,
    register,
    similarity,
    strip_timestamps,
)
from bids_app.preprocess.registration.ants_program import run_ants
from bids_app.preprocess.registration.published import write_itk_composite
from bids_app.preprocess.registration.transforms import (
    Chain,
    Linear,
    apply_matrix,
    grid_points,
    linear,
    read_itk_composite,
    resample_to,
    rigid,
)

RIGID = (Stage("Rigid[0.2]", (50, 30), (2, 1), (1, 0), "MI[{fixed},{moving},1,32,Regular,0.5]"),)
POSE = rigid(np.radians((4, -6, 5)), (5, -4, 6), (0, -20, 10))


@pytest.fixture(scope="module")
def pair(head):
    """The head's EPI, and its T1w in another pose: EPI to T1w is `POSE`."""
    t1w = resample_to(head.t1w, head.affine, head.t1w.shape, head.affine, linear(np.linalg.inv(POSE)))
    return Image(head.epi, head.affine), Image(t1w, head.affine)


def error_mm(head, matrix: np.ndarray) -> float:
    points = grid_points(head.brain.shape, head.affine, head.brain)[::9]
    return float(np.linalg.norm(apply_matrix(matrix, points) - apply_matrix(POSE, points), axis=1).max())


def test_two_contrasts_of_a_head_are_aligned(head, pair, tmp_path):
    found = register(*pair, ndimage.binary_dilation(head.brain), RIGID, tmp_path)
    assert error_mm(head, found.matrix) < 0.7
    np.testing.assert_allclose(found.inverse(found.chain(np.eye(3) * 50)), np.eye(3) * 50, atol=1e-2)


@pytest.mark.slow
def test_a_masked_lesion_of_the_moving_image_does_not_warp_its_surroundings(head, tmp_path):
    healthy = Image(head.t1w, head.affine)
    lesion = np.zeros(head.t1w.shape, bool)
    lesion[26:32, 24:34, 24:32] = True
    sick = Image(np.where(lesion, 0, head.t1w).astype(np.float32), head.affine)
    near = ndimage.binary_dilation(head.brain)
    syn = (Stage("SyN[0.3,3,0]", (30, 10), (2, 1), (1, 0), "MI[{fixed},{moving},1,32]"),)
    points = grid_points(lesion.shape, head.affine, ndimage.binary_dilation(lesion, iterations=3))
    moved = []
    for mask in (None, ~ndimage.binary_dilation(lesion, iterations=2)):
        found = register(healthy, sick, near, syn, tmp_path, moving_mask=mask)
        moved.append(np.linalg.norm(found.chain(points) - points, axis=1).mean())  # the truth is no displacement
    assert moved[1] < 0.5 * moved[0]


def test_the_same_seed_gives_the_same_bits(head, pair, tmp_path):
    matrices = [register(*pair, head.brain, RIGID, tmp_path, seed=7).matrix for _ in range(2)]
    np.testing.assert_array_equal(*matrices)


def test_scratch_files_are_removed(head, pair, tmp_path):
    register(*pair, head.brain, RIGID, tmp_path, name="x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x_Composite.h5", "x_InverseComposite.h5"]


def test_best_start_ignores_failed_starts(head, pair, tmp_path):
    far = np.eye(4)
    far[:3, 3] = 1000
    stages = (Stage("Rigid[0.2]", (30,), (2,), (1,), "MI[{fixed},{moving},1,32,Regular,0.5]"),)

    def score(matrix):
        return similarity(pair[0], head.brain, pair[1], matrix)

    found = best_start(*pair, head.brain, stages, [far, np.eye(4)], score, tmp_path, 1)
    assert error_mm(head, found) < 1.5
    assert not list(tmp_path.iterdir())


def test_best_start_fails_if_all_starts_fail(head, pair, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RegistrationError("ANTs failed.")

    monkeypatch.setattr(registration, "register", refuse)
    with pytest.raises(RegistrationError, match="ANTs failed"):
        best_start(*pair, head.brain, RIGID, [np.eye(4)], lambda m: 0.0, tmp_path, 1)


def fail(*_):
    """Fail without a reason, as ANTs on a full disk."""
    raise RuntimeError("Standard exception.")


def test_a_failure_of_ants_on_a_full_disk_is_no_registration_error(head, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "run_ants", fail)
    with pytest.raises(RegistrationError, match="ANTs failed"):
        register(*pair, head.brain, RIGID, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(registration, "is_full", lambda folder: any(folder.glob("start?_scratch/fixed.nii")))
    with pytest.raises(InputOutputError, match="no space left"):
        best_start(*pair, head.brain, RIGID, [np.eye(4)] * 2, lambda m: 0.0, tmp_path, 1)


def write_truncated(_, arguments, threads):
    """Report success without having written all of the files."""
    prefix = arguments[arguments.index("-o") + 1]
    for name in ("Composite.h5", "InverseComposite.h5"):
        with h5py.File(f"{prefix}{name}", "w") as file:
            file["x"] = np.zeros(5000)
        with open(f"{prefix}{name}", "r+b") as file:
            file.truncate(3000)


def test_truncated_transforms_are_no_registration_error(head, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "run_ants", write_truncated)
    with pytest.raises(InputOutputError, match=r"cannot be read.*truncated file") as caught:
        register(*pair, head.brain, RIGID, tmp_path)
    assert "free some space" in caught.value.hint
    monkeypatch.setattr(registration, "is_full", lambda folder: True)
    with pytest.raises(InputOutputError, match="no space left"):
        register(*pair, head.brain, RIGID, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(registration, "run_ants", lambda *_: None)
    with pytest.raises(RegistrationError, match="wrote no transforms"):
        register(*pair, head.brain, RIGID, tmp_path / "other")


def test_transforms_are_read_although_another_process_has_inherited_their_lock(tmp_path):
    """A process inherits the files that are open when it is started, and their locks, until it begins its program."""
    path = write_itk_composite(tmp_path / "x.h5", Chain((Linear(np.diag([1.0, 1.0, 2.0, 1.0])),)))
    with path.open("rb") as inherited:
        fcntl.flock(inherited, fcntl.LOCK_EX)
        strip_timestamps(path)
    with path.open("rb") as inherited:
        fcntl.flock(inherited, fcntl.LOCK_EX)
        (step,) = read_itk_composite(path).steps
    assert step.matrix[2, 2] == 2


def test_syn_runs_on_two_threads_with_the_same_bits_and_linear_stages_on_one(pair, tmp_path, monkeypatch):
    used = []

    def recorded(program, arguments, threads):
        used.append(threads)
        run_ants(program, arguments, threads)

    monkeypatch.setattr(registration, "run_ants", recorded)
    syn = (Stage("SyN[0.3,3,0]", (4, 2), (2, 1), (1, 0), "MI[{fixed},{moving},1,32]"),)
    found = [register(*pair, None, syn, tmp_path).forward_file.read_bytes() for _ in range(2)]
    register(*pair, None, (Stage("Rigid[0.2]", (2,), (4,), (2,)),), tmp_path)
    assert used == [2, 2, 1]
    assert found[0] == found[1]


def test_isotropic_keeps_positions_and_is_orthogonal():
    affine = rigid((0.2, -0.1, 0.3), (10, -5, 7)) @ np.diag([-1.5, 1.0, 4.0, 1.0])
    affine[0, 1] += 0.05  # a shear, as headers sometimes have
    shape = (60, 80, 25)
    target = apply_matrix(affine, np.array([30, 40, 12]))
    blob = np.exp(-((grid_points(shape, affine) - target) ** 2).sum(axis=1) / 200).reshape(shape).astype(np.float32)
    made = isotropic(Image(blob, affine), 3.0)
    directions = made.affine[:3, :3] / 3.0
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    assert np.linalg.norm(centre_of_mass(made) - target) < 0.1
    corners = apply_matrix(affine, np.array([[0, 0, 0], [59, 79, 24], [59, 0, 24], [0, 79, 0]], dtype=float))
    assert made.inside(corners).all()


def test_cubic_splines_preserve_detail_without_overshoot():
    coarse = np.diag([3.0, 3.0, 3.0, 1.0])

    def stripes(affine, shape):
        return (1 + np.sin(grid_points(shape, affine) / 2.5)).sum(axis=1).reshape(shape)

    image = Image(stripes(coarse, (20, 20, 20)), coarse)
    errors = {}
    for order in (1, 3):
        made = isotropic(image, 2.0, order)
        inner = (slice(5, -5),) * 3
        errors[order] = np.abs(made.data - stripes(made.affine, made.data.shape))[inner].mean()
    assert image.data.min() <= made.data.min() <= made.data.max() <= image.data.max()
    assert errors[3] < errors[1] / 2


def test_mutual_information_detects_nonlinear_dependence():
    rng = np.random.default_rng(0)
    a = rng.normal(size=5000)
    assert mutual_information(a, a) > 0.9
    assert mutual_information(a, a**2) > 0.3
    assert abs(correlation(a, a**2)) < 0.1
    assert mutual_information(a, rng.normal(size=5000)) < 0.15


def test_only_the_correct_alignment_has_a_positive_optimum_margin(head, pair):
    centre = centre_of_mass(pair[0], head.brain)

    def score(matrix):
        return similarity(pair[0], head.brain, pair[1], matrix)

    assert optimum_margin(score, POSE, centre) > 0.1
    assert optimum_margin(score, POSE @ rigid((0, 0, 0), (9, 0, 0)), centre) < 0


def test_similarity_without_overlap_is_zero(head, pair):
    away = np.eye(4)
    away[:3, 3] = 500
    assert similarity(pair[0], head.brain, pair[1], away) == 0


def test_dice_of_equal_disjoint_and_empty_masks():
    mask = np.zeros((4, 4, 4), bool)
    mask[:2] = True
    assert dice(mask, mask) == 1
    assert dice(mask, ~mask) == 0
    assert dice(mask & ~mask, mask & ~mask) == 0


def test_transform_files_have_no_timestamps(tmp_path):
    for name in ("first", "second"):
        with h5py.File(tmp_path / name, "w") as file:
            values = file.create_dataset("G/0/Values", data=np.arange(1000.0), compression="gzip", track_times=True)
            file.create_dataset("G/0/Kind", data=[b"Affine"], dtype=h5py.string_dtype("ascii"), track_times=True)
            del values
        strip_timestamps(tmp_path / name)
        time.sleep(1.1)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    with h5py.File(tmp_path / "first") as file:
        assert file["G/0/Values"][-1] == 999
        assert file["G/0/Kind"][0] == b"Affine"
