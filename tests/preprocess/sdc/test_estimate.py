"""Susceptibility distortion correction from EPI pairs and phase images."""

import numpy as np
import pytest
from scipy import ndimage

from bids_app.bids.fieldmaps import Fieldmap
from bids_app.bids.query import find_runs
from bids_app.cli.phantom import main as phantom
from bids_app.errors import BadDataError, NoInputError
from bids_app.phantom.truth import PointField
from bids_app.preprocess.hmc import MotionEstimate, correct_motion
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.io.volumes import ArrayVolumes
from bids_app.preprocess.masking import prepare_bold
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, linear, resample_to, rigid
from bids_app.preprocess.resample import pull_volumes
from bids_app.preprocess.sdc.apply import Readout, apply_correction, read_readout, save_correction
from bids_app.preprocess.sdc.choice import choose_correction
from bids_app.preprocess.sdc.epi_pair import estimate_pair
from bids_app.preprocess.sdc.estimate import correct_distortion
from bids_app.preprocess.sdc.pepolar import Spline, estimate_displacement
from bids_app.preprocess.sdc.phasediff import measured_hz, phase_as_radians, phase_difference_hz
from bids_app.settings import QuerySettings

TRT = 0.05
READ = {"PhaseEncodingDirection": "j", "TotalReadoutTime": TRT}
BACK = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": TRT}


@pytest.fixture(scope="module")
def field_hz(head) -> np.ndarray:
    """A field that displaces the front of the head by up to 8 mm, Hz."""
    points = grid_points(head.epi.shape, head.affine)
    bump = np.exp(-0.5 * ((points - (0, 40, -10)) ** 2).sum(axis=1) / 18**2)
    wave = 0.2 * np.cos(points @ np.array([0.02, 0.015, 0.025]) + 1)
    return ((bump + wave) * 8.0 / (TRT * 4.0) / 1.1).reshape(head.epi.shape)


def measure(image: np.ndarray, affine: np.ndarray, displacement: np.ndarray, axis: int = 1) -> np.ndarray:
    """Distort an image: a point p appears at p + d(p), by fixed-point iteration of the inverse."""
    size = float(np.linalg.norm(affine[:3, axis]))
    index = np.indices(image.shape).astype(float)
    back = -displacement
    for _ in range(30):
        there = index.copy()
        there[axis] += back / size
        back = -ndimage.map_coordinates(displacement, there, order=1, mode="nearest")
    index[axis] += back / size
    spread = 1 + np.gradient(back, size, axis=axis)
    return (ndimage.map_coordinates(image, index, order=3, mode="nearest") * spread).astype(np.float32)


def removed(found: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Compute the share of the displacement that is removed."""
    return float(1 - np.abs(found - truth)[where].mean() / np.abs(truth)[where].mean())


@pytest.mark.parametrize("axis", [0, 1])
def test_opposite_images_give_the_displacement(head, field_hz, axis):
    order = (1, 0, 2) if axis == 0 else (0, 1, 2)
    epi, moves, brain = (a.transpose(order) for a in (head.epi, field_hz * TRT * 4.0, head.brain))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    first, second = measure(epi, affine, moves, axis), measure(epi, affine, -moves, axis)
    found = estimate_displacement(first, second, np.full(3, 4.0), axis)
    assert np.abs(moves[brain]).max() > 6
    assert removed(found, moves, brain) > 0.85
    assert removed(-estimate_displacement(second, first, np.full(3, 4.0), axis), moves, brain) > 0.85


def test_unequal_readout_times_are_supported(head, field_hz):
    moves = field_hz * TRT * 4.0
    first, second = measure(head.epi, head.affine, moves), measure(head.epi, head.affine, -0.5 * moves)
    found = estimate_displacement(first, second, np.full(3, 4.0), 1, ratio=-0.5)
    assert removed(found, moves, head.brain) > 0.8


def test_no_displacement_without_distortion(head):
    found = estimate_displacement(head.epi, head.epi, np.full(3, 4.0), 1)
    assert np.abs(found).max() < 0.05


def test_head_motion_between_the_two_images_is_estimated(head, field_hz):
    moves = field_hz * TRT * 4.0
    pose = rigid(np.radians((1.5, -1.0, 1.0)), (0.8, 0.0, -0.6), (0, -18, 8))
    moved = resample_to(head.epi, head.affine, head.epi.shape, head.affine, linear(np.linalg.inv(pose)), order=3)
    moved_by = resample_to(moves, head.affine, head.epi.shape, head.affine, linear(np.linalg.inv(pose)))
    first = Image(measure(head.epi, head.affine, moves), head.affine)
    second = Image(measure(moved, head.affine, -moved_by), head.affine)
    found, seen, quality = estimate_pair(first, second, axis=1)
    assert removed(found, moves, head.brain) > 0.8
    assert np.abs(seen - pose)[:3, :3].max() < 0.01
    assert quality["sdc_pair_correlation_after"] > 0.99 > quality["sdc_pair_correlation_before"]


def test_gather_is_the_transpose_of_values_and_slopes():
    import torch

    spline = Spline.on((9, 8, 12), np.array([3.0, 4.0, 2.0]), 9.0, np.array([1, 1, 2]))
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(tuple(m.shape[1] for m in spline.axes), generator=generator)
    values, slopes = spline.values(nodes), spline.slopes(nodes)
    ones, twos = torch.randn(values.shape, generator=generator), torch.randn(values.shape, generator=generator)
    there = float((values * ones + slopes * twos).sum())
    assert float((spline.gather(ones, twos) * nodes).sum()) == pytest.approx(there, rel=1e-3)
    torch.testing.assert_close(spline.values(spline.fit(values)), values, rtol=1e-3, atol=1e-3)


def test_slopes_are_derivatives_of_the_values():
    import torch

    spline = Spline.on((6, 6, 200), np.array([3.0, 3.0, 0.1]), 5.0, np.ones(3, int))
    nodes = torch.randn(tuple(m.shape[1] for m in spline.axes), generator=torch.Generator().manual_seed(1))
    rise = np.gradient(spline.values(nodes).numpy(), 0.1, axis=2)
    np.testing.assert_allclose(rise[..., 2:-2], spline.slopes(nodes).numpy()[..., 2:-2], atol=0.02)


@pytest.mark.parametrize("steps", [4096, 8192])
def test_a_wrapped_phase_is_converted_to_the_field(head, field_hz, steps):
    seconds, field = 0.0125, field_hz + 20.0
    turns = field * seconds
    assert np.ptp(turns[head.brain]) > 0.5
    outside = head.epi < 0.05 * head.epi.max()
    turns = np.where(outside, np.random.default_rng(0).uniform(-0.5, 0.5, turns.shape), turns)
    stored = np.round((turns - np.round(turns)) * steps)
    stored = stored if steps == 8192 else stored % steps  # -4096 to 4095, or 0 to 4095
    found = phase_difference_hz(phase_as_radians(stored, "arbitrary", "x"), seconds, head.epi, head.affine)
    assert np.abs(found - field)[head.brain].mean() < 0.05 * np.abs(field[head.brain]).mean()


def test_phase_noise_outside_the_head_does_not_spread(head, field_hz):
    phase = 2 * np.pi * field_hz * 0.004
    outside = head.epi < 0.05 * head.epi.max()
    phase[outside] = np.random.default_rng(0).uniform(-np.pi, np.pi, outside.sum())
    found = phase_difference_hz(phase, 0.004, head.epi, head.affine)
    assert removed(found, field_hz, head.brain) > 0.9
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("units", "factor"), [("Hz", 1.0), ("rad/s", 2 * np.pi), ("T", 1 / 42.577478e6)])
def test_a_measured_field_is_converted_from_its_units(head, field_hz, units, factor):
    found = measured_hz(field_hz * factor, units, head.epi, head.affine, "x")
    assert removed(found, field_hz, head.brain) > 0.9


def test_unknown_units_are_refused(head, field_hz):
    with pytest.raises(BadDataError, match="unsupported Units 'ppm'"):
        measured_hz(field_hz, "ppm", head.epi, head.affine, "sub-01_fieldmap.nii.gz")


def test_correction_restores_positions_and_intensity(tmp_path, head, field_hz):
    moves = field_hz * TRT * 4.0
    seen = measure(head.epi, head.affine, moves)
    wrong = np.abs(seen - head.epi)[head.brain].mean()
    assert np.abs(apply_correction(seen, head.affine, moves, 1) - head.epi)[head.brain].mean() < 0.3 * wrong
    path = save_image(tmp_path / "seen.nii.gz", seen, head.affine)
    _, sdc = save_correction(tmp_path, path, moves.astype(np.float32), 1, "a test", phase_encoding="j")
    points = grid_points(seen.shape, head.affine, head.brain)
    measured, gain = sdc.distort_points(points)
    source = ArrayVolumes(np.repeat(seen[..., None], 3, axis=3), head.affine)
    corrected = np.concatenate(list(pull_volumes(source, None, measured, gain=gain)))
    assert np.abs(corrected - head.epi[head.brain]).mean() < 0.3 * wrong


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (READ, TRT),
        ({"PhaseEncodingDirection": "j", "EffectiveEchoSpacing": 0.001}, 0.051),
        ({"PhaseEncodingDirection": "j", "EffectiveEchoSpacing": 0.001, "ReconMatrixPE": 101}, 0.1),
        ({"PhaseEncodingDirection": "j"}, None),
    ],
)
def test_readout_time_is_read_or_computed_from_the_sidecar(content, seconds):
    found = read_readout(content, (50, 52, 30), "x")
    assert found == Readout(1, 1.0, pytest.approx(seconds) if seconds else None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no PhaseEncodingDirection"),
        (READ | {"PhaseEncodingDirection": "AP"}, "no PhaseEncodingDirection"),
        (READ | {"TotalReadoutTime": 50.0}, "invalid total readout time of 50.0 s"),
    ],
)
def test_invalid_readouts_are_refused(content, message):
    with pytest.raises(BadDataError, match=message):
        read_readout(content, (50, 52, 30), "x")


@pytest.mark.parametrize(
    ("kind", "metadata", "options", "method", "words"),
    [
        ("pepolar", READ | {"EchoTime": 0.031}, {}, "pepolar", "a.nii.gz and the run's own reference image"),
        ("pepolar", READ | {"EchoTime": 0.05}, {}, "", "two opposite EPIs are needed"),
        ("pepolar", READ | {"EchoTime": 0.03, "ScanningSequence": "GR"}, {}, "", "a single EPI"),
        ("pepolar", READ, {}, "", "without the run's echo time"),
        ("pepolar", READ, {"syn": True}, "syn", "a single EPI of another contrast"),
        ("pepolar", READ, {"ignore": ("fieldmaps",)}, "", "--ignore fieldmaps"),
        ("pepolar", {}, {}, "", "no PhaseEncodingDirection"),
        ("phasediff", READ, {}, "phasediff", "a phase difference"),
        ("phasediff", {"PhaseEncodingDirection": "j"}, {}, "", "no TotalReadoutTime"),
        (None, READ, {}, "", "there is no fieldmap for it"),
        (None, READ, {"syn": True}, "syn", "the T1w image"),
        (None, READ, {"syn": True, "has_t1w": False}, "", "neither a fieldmap nor a T1w image"),
        ("pepolar", READ | {"EchoTime": 0.03}, {"syn": True}, "pepolar", "PEPOLAR"),
    ],
)
def test_choice_of_the_correction_is_explained(tmp_path, kind, metadata, options, method, words):
    other = {"ScanningSequence": "SE"} if "ScanningSequence" in metadata else {}
    fieldmap = Fieldmap(kind, (tmp_path / "a.nii.gz",), ({"EchoTime": 0.03, **other},)) if kind else None
    wanted = {"has_t1w": True, "ignore": (), "syn": False} | options
    found, sentence = choose_correction("sub-01_bold.nii.gz", metadata, fieldmap, **wanted)
    assert found == method
    assert words in sentence


def boldref_of(tmp_path, head, seen) -> MotionEstimate:
    boldref = save_image(tmp_path / "measured.nii.gz", seen, head.affine)
    return MotionEstimate(tmp_path / "motion.npy", boldref, tmp_path / "hmc.txt")


@pytest.mark.slow
def test_a_phase_difference_corrects_a_run_in_another_position(tmp_path, head, field_hz):
    moves = field_hz * TRT * 4.0
    motion = boldref_of(tmp_path, head, measure(head.epi, head.affine, moves))
    pose = rigid(np.radians((2, -1, 1)), (2.0, -1.0, 1.5), (0, -18, 8))
    back = linear(np.linalg.inv(pose))
    there = [resample_to(i, head.affine, head.epi.shape, head.affine, back) for i in (head.epi, field_hz)]
    files = (tmp_path / "sub-01_phasediff.nii.gz", tmp_path / "sub-01_magnitude1.nii.gz")
    save_image(files[0], np.angle(np.exp(2j * np.pi * there[1] * 0.005)).astype(np.float32), head.affine)
    save_image(files[1], there[0], head.affine)
    fieldmap = Fieldmap("phasediff", files, ({"EchoTime1": 0.005, "EchoTime2": 0.01, "Units": "rad"}, {}))
    found = correct_distortion(tmp_path / "sub-01_bold.nii.gz", READ, motion, fieldmap, tmp_path)
    points = grid_points(head.epi.shape, head.affine)
    moved = (found.sdc.distort_points(points)[0] - points)[:, 1].reshape(head.epi.shape)
    assert removed(moved, moves, head.brain) > 0.8
    assert found.boldref != motion.boldref
    broken = Fieldmap("phasediff", files, ({"EchoTime2": 0.01}, {}))
    with pytest.raises(BadDataError, match=r"echo times of None and 0\.01"):
        correct_distortion(tmp_path / "sub-01_bold.nii.gz", READ, motion, broken, tmp_path)


def test_invalid_fieldmap_files_are_named(tmp_path, head):
    motion = boldref_of(tmp_path, head, head.epi)
    gone = Fieldmap("pepolar", (tmp_path / "a_epi.nii.gz", tmp_path / "b_epi.nii.gz"), (READ, BACK))
    with pytest.raises(NoInputError, match=r"a_epi\.nii\.gz: no such file"):
        correct_distortion(tmp_path / "x_bold.nii.gz", READ, motion, gone, tmp_path)
    for path in gone.files:
        save_image(path, head.epi, head.affine)
    same = Fieldmap("pepolar", gone.files, (READ, READ))
    with pytest.raises(BadDataError, match=r"phase encoding is not opposite \("):
        correct_distortion(tmp_path / "x_bold.nii.gz", READ, motion, same, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pepolar", "phasediff"])
def test_most_of_a_simulated_distortion_is_removed(tmp_path, kind):
    """A complete correction from files, with a fieldmap shifted relative to the run."""
    raw = tmp_path / "raw"
    arguments = ["--participants", "1", "--seed", "3", "--states", "rest", "--size", "small", "--volumes", "24"]
    assert phantom([str(raw), *arguments, "--no-t1w", "--nprocs", "1", "--fieldmaps", kind]) == 0
    (run,) = find_runs(raw, QuerySettings())
    series = prepare_bold(run.bold, run.metadata, tmp_path, dummy_scans=0)
    found = correct_distortion(run.bold, run.metadata, correct_motion(series, tmp_path), run.fieldmap, tmp_path)
    folder = raw / "derivatives/truth/sub-01/func"
    truth = PointField.load(folder / "sub-01_task-rest_from-boldref_to-distorted_mode-points_xfm.nii.gz")
    brain, affine = read_volume(folder / "sub-01_task-rest_desc-brain_mask.nii.gz")
    points = grid_points(brain.shape, affine, brain > 0.5)
    moves = truth(points) - points
    poses = np.load(folder / "sub-01_task-rest_desc-motion_xfm.npy")
    here = apply_matrix(np.linalg.inv(np.load(found.motion)[0]) @ poses[0], points)  # two references of one run
    error = np.linalg.norm(found.sdc.distort_points(here)[0] - here - moves, axis=1)
    assert np.linalg.norm(moves, axis=1).max() > 7
    assert 1 - error.mean() / np.linalg.norm(moves, axis=1).mean() > 0.8
