"""Resampling of raw volumes in a single interpolation."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.catalog.templates import MODEL_SPACE, load_template, space
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE
from bids_app.errors import BadDataError
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.io.volumes import ArrayVolumes
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.transforms import Chain, Warp, apply_matrix, grid_points, linear, rigid
from bids_app.preprocess.resample import (
    find_covered_points,
    model_grid_coverage,
    pull_volumes,
    resample_to_model_grid,
    resample_to_space,
)

TO_BOLDREF = rigid(np.radians((8, -4, 3)), (2, -5, 7), (0, -20, 10))


def landscape(points: np.ndarray, t: int = 0) -> np.ndarray:
    """A smooth function of position and time that a cubic spline on 4 mm voxels approximates well."""
    return 1000 + 3 * t + 200 * np.sin(points[:, 0] / 18) + 150 * np.cos(points[:, 1] / 22 + points[:, 2] / 30)


def make_run(folder: Path, template: str, motion: np.ndarray, warp: Warp | None = None, n_dummy: int = 0, **grid):
    """A raw run whose every volume shows the landscape of its boldref, moved."""
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = grid.get("origin", (98, -130, -80))
    shape = grid.get("shape", (50, 56, 50))
    points = grid_points(shape, affine)
    volumes = [landscape(apply_matrix(np.linalg.inv(pose), points), t).reshape(shape) for t, pose in enumerate(motion)]
    bold = save_image(folder / "bold.nii", np.stack(volumes, -1).astype(np.float32), affine, tr=2.0)
    chain = Chain(() if warp is None else (warp,)).then(linear(TO_BOLDREF))
    mask = save_image(folder / "data_mask.nii.gz", np.ones(shape, np.uint8), affine)
    np.save(folder / "motion.npy", motion)
    return PreprocessedRun(
        source=bold,
        bold=bold,
        tr=2.0,
        n_volumes=len(motion),
        n_dummy=n_dummy,
        motion=folder / "motion.npy",
        chain=chain.save(folder / "chain.npz"),
        template=template,
        data_mask=mask,
        boldref=mask,
        brain_mask=mask,
        dseg=None,
        confounds=mask,
        confounds_meta=mask,
        carpet=None,
        route="t1w",
        quality={},
        warnings=(),
    )


@pytest.fixture
def moved(poses) -> np.ndarray:
    return poses(6, mm=4.0, degrees=3.0)


@pytest.fixture
def warp() -> Warp:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-100, -136, -80)
    places = grid_points((51, 59, 50), affine)
    waves = 4.0 * np.sin(places[:, [1, 2, 0]] / 30.0)
    return Warp(waves.reshape(51, 59, 50, 3).astype(np.float32), affine)


def test_motion_and_warps_are_corrected_in_one_interpolation(tmp_path, moved, warp):
    run = make_run(tmp_path, "MNI152NLin2009aSym", moved, warp)
    series = resample_to_model_grid(run, tmp_path / "grid")
    to_template = chain_between(MODEL_SPACE, "MNI152NLin2009aSym")
    points = to_template(grid_points(MODEL_GRID_SHAPE, MODEL_GRID_AFFINE, series.mask))
    in_boldref = apply_matrix(TO_BOLDREF, warp(points))
    for t in range(len(moved)):
        error = np.abs(series.values[t] - landscape(in_boldref, t))
        assert np.median(error) < 0.5
        assert np.percentile(error, 99) < 6.0  # of some 350 between lowest and highest


def test_left_stays_left_on_the_model_grid(tmp_path):
    run = make_run(tmp_path, "MNI152NLin6Asym_stand_in", np.tile(np.eye(4), (3, 1, 1)))
    run = _replace(run, template="MNI152NLin2009aSym", chain=None)
    series = resample_to_model_grid(run, tmp_path / "grid")
    points = grid_points(MODEL_GRID_SHAPE, MODEL_GRID_AFFINE, series.mask)
    expected = landscape(chain_between(MODEL_SPACE, run.template)(points))
    assert np.corrcoef(series.values[0], expected)[0, 1] > 0.999
    right = points[:, 0] > 30
    assert series.values[0][right].mean() > series.values[0][points[:, 0] < -30].mean() + 100


def _replace(run: PreprocessedRun, **fields) -> PreprocessedRun:
    from dataclasses import replace

    return replace(run, **fields)


def test_dummies_are_dropped_and_the_start_time_is_set(tmp_path, moved):
    run = make_run(tmp_path, "MNI152NLin2009aSym", moved, n_dummy=2)
    series = resample_to_model_grid(run, tmp_path)
    assert series.values.shape[0] == 4
    assert series.start == 4.0
    assert series.tr == 2.0


def test_mask_is_the_brain_where_the_run_has_data(tmp_path):
    still = np.tile(np.eye(4), (3, 1, 1))
    slab = {"origin": (98, -130, -20), "shape": (50, 56, 20)}
    run = _replace(make_run(tmp_path, "MNI152NLin2009aSym", still, **slab), chain=None)
    series = resample_to_model_grid(run, tmp_path / "grid")
    height = grid_points(MODEL_GRID_SHAPE, MODEL_GRID_AFFINE, series.mask)[:, 2]
    assert height.min() > -23
    assert height.max() < 60
    assert 0.4 < model_grid_coverage(run, series) < 0.9


def test_a_run_outside_the_brain_is_refused_by_name(tmp_path):
    still = np.tile(np.eye(4), (3, 1, 1))
    run = make_run(tmp_path, "MNI152NLin2009aSym", still, origin=(98, -130, 300), shape=(50, 56, 20))
    with pytest.raises(BadDataError, match=r"bold.nii: no data in the brain"):
        resample_to_model_grid(run, tmp_path / "grid")


def test_covered_points_consider_field_of_view_motion_and_constant_voxels():
    source = ArrayVolumes(np.zeros((10, 10, 10, 20), np.float32), np.eye(4))
    motion = np.tile(np.eye(4), (20, 1, 1))
    motion[10:, 0, 3] = 3.0
    data_mask = np.ones((10, 10, 10), np.float32)
    data_mask[:, 5:] = 0
    points = np.array([[2.0, 2, 2], [8, 2, 2], [2, 8, 2], [2, 2, 12]])
    assert find_covered_points(source, motion, points, data_mask).tolist() == [True, False, False, False]


def test_the_result_does_not_depend_on_threads(moved):
    data = np.random.default_rng(0).normal(size=(12, 12, 12, 6)).astype(np.float32)
    points = np.random.default_rng(1).uniform(2, 9, (500, 3))
    one, two = (
        np.concatenate(list(pull_volumes(ArrayVolumes(data, np.eye(4)), moved, points, threads=n))) for n in (1, 2)
    )
    assert one.tobytes() == two.tobytes()


def test_series_in_a_space_has_its_grid_units_and_values(tmp_path, moved):
    run = make_run(tmp_path, "MNI152NLin2009aSym", moved)
    path, mask_path = resample_to_space(run, "MNI152NLin2009aSym", tmp_path)
    image, mask = nib.load(path), nib.load(mask_path)
    target = space("MNI152NLin2009aSym")
    assert image.shape == (*target.shape, 6)
    np.testing.assert_allclose(image.affine, target.affine)
    assert image.header.get_zooms()[3] == 2.0
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert int(image.header["sform_code"]) == 4
    brain = mask.get_fdata() > 0
    template = load_template("MNI152NLin2009aSym")
    assert brain.sum() > 0.95 * template.mask.sum()
    points = apply_matrix(TO_BOLDREF, grid_points(target.shape, target.affine, brain))
    values = np.asarray(image.dataobj[..., 3])[brain]
    assert np.percentile(np.abs(values - landscape(points, 3)), 95) < 3.0


def test_a_series_is_written_in_another_space_than_its_template(tmp_path, moved):
    run = make_run(tmp_path, MODEL_SPACE, moved[:2])
    path, _ = resample_to_space(run, "MNI152NLin2009aSym", tmp_path)
    target = space("MNI152NLin2009aSym")
    brain = load_template(target.name).mask
    points = grid_points(brain.shape, load_template(target.name).affine, brain)[::5]
    image = nib.load(path)
    values = Image(np.asarray(image.dataobj[..., 1]), image.affine).at(points)
    by_field = landscape(apply_matrix(TO_BOLDREF, chain_between(target.name, MODEL_SPACE)(points)), 1)
    by_matrix = landscape(apply_matrix(TO_BOLDREF @ target.to_model, points), 1)
    assert np.abs(values - by_field).mean() < 0.3 * np.abs(values - by_matrix).mean()


def test_the_same_series_gives_the_same_bytes(tmp_path, moved):
    run = make_run(tmp_path, "MNI152NLin2009aSym", moved[:2])
    made = [resample_to_space(run, "MNI152NLin2009aSym", tmp_path, threads=n)[0].read_bytes() for n in (1, 2)]
    assert made[0] == made[1]


@pytest.mark.parametrize("moves", [True, False])
def test_a_device_interpolates_as_the_cpu(moved, moves, on_device) -> None:
    data = np.random.default_rng(0).normal(size=(30, 20, 18, 6)).astype(np.float32)
    points = np.random.default_rng(1).uniform(2, 15, (500, 3))
    source, motion = ArrayVolumes(data, np.eye(4)), moved if moves else None
    on_cpu, found = (
        np.concatenate(list(pull_volumes(source, motion, points, 1, device=device))) for device in ("cpu", on_device)
    )
    np.testing.assert_allclose(found, on_cpu, rtol=0, atol=1e-5)


def test_without_motion_only_a_subvolume_is_interpolated():
    rng = np.random.default_rng(0)
    source = ArrayVolumes(rng.normal(size=(40, 38, 36, 2)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    points = rng.uniform(36, 42, (50, 3))
    still = np.concatenate(list(pull_volumes(source, None, points)))
    posed = np.concatenate(list(pull_volumes(source, np.tile(np.eye(4), (2, 1, 1)), points)))
    np.testing.assert_allclose(still, posed, atol=1e-5)
