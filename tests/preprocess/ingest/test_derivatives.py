"""Ingestion of derivatives, complete or in parts, in any stored orientation."""

from dataclasses import replace
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from bids_app.bids.derivatives import DerivedRun
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.bids.ukb import read_ukb
from bids_app.catalog.templates import MODEL_SPACE, space
from bids_app.clips import MODEL_GRID_AFFINE
from bids_app.errors import BadDataError
from bids_app.preprocess.ingest.confounds import ConfoundsTable, add_missing_columns, count_marked_dummies, read_table
from bids_app.preprocess.ingest.derivatives import (
    check_forms,
    describe_transform,
    examine_derived,
    ingest_run,
    transform_to_model,
)
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.registration.ants import dice
from bids_app.preprocess.registration.transforms import Chain, grid_points, resample_to
from bids_app.preprocess.resample import resample_to_model_grid
from tests.helpers.datasets import TO_SCAN, PreprocessedTree, fsl_field, write_standard_image, write_ukb_run


def derived(bold, **fields):
    given = {"entities": {"sub": "01", "task": "rest"}, "space": MODEL_SPACE}
    return DerivedRun(bold=bold, pipeline="fMRIPrep 23.2.1", **{**given, **fields})


def go(run, out_dir, metadata=None):
    folders = [out_dir / name for name in ("examine", "take")]
    for folder in folders:
        folder.mkdir(parents=True)
    series = examine_derived(run, metadata or {"RepetitionTime": 1.0}, folders[0])
    return ingest_run(series, run, folders[1])


@pytest.fixture(scope="module")
def tree(standard_brain, tmp_path_factory):
    """A dataset with a whole run, sub-01, and its parts."""
    made = PreprocessedTree(tmp_path_factory.mktemp("derived") / "fmriprep")
    made.write_run("01", standard_brain.series(), standard_brain.mask, standard_brain.affine)
    rows = np.arange(40.0)
    fd = np.concatenate([[np.nan], np.full(39, 0.1)])
    dummies = (rows < 2).astype(float)
    made.write_confounds("01", {"framewise_displacement": fd, "csf": rows, "non_steady_state_outlier00": dummies})
    return made


@pytest.fixture(scope="module")
def whole(tree):
    folder = tree.root / "sub-01" / "func"
    return derived(
        next(folder.glob("*_bold.nii.gz")),
        mask=next(folder.glob("*_mask.nii.gz")),
        confounds=next(folder.glob("*.tsv")),
        metadata={"StartTime": 0.5},
    )


@pytest.fixture(scope="module")
def ingested(whole, tmp_path_factory):
    return go(whole, tmp_path_factory.mktemp("ingested"))


def test_a_run_is_ingested_with_mask_and_confounds(ingested, whole, standard_brain):
    assert (ingested.route, ingested.motion, ingested.chain, ingested.space) == ("derivatives", None, None, MODEL_SPACE)
    assert (ingested.n_volumes, ingested.n_dummy, ingested.tr) == (40, 2, 1.0)
    np.testing.assert_array_equal(nib.load(ingested.brain_mask).get_fdata() > 0, standard_brain.mask)
    table = pd.read_csv(ingested.confounds, sep="\t")
    np.testing.assert_array_equal(table["csf"], np.arange(40))
    assert {"framewise_displacement", "std_dvars", "global_signal"} <= set(table)
    assert ingested.quality["fd_mean"] == pytest.approx(0.1)
    assert np.load(ingested.carpet).shape == (40, standard_brain.mask.sum())
    assert ingested.warnings == ()
    assert ingested.other_sources == (whole.mask, whole.confounds)
    assert ingested.origin.start_time == 0.5
    assert ingested.orientation == Orientation(LeftRight.AS_STORED)
    for path in (ingested.boldref, ingested.dseg, ingested.boldref_in_template):
        assert path.exists()


def test_the_mean_excludes_dummy_volumes(ingested, whole):
    series = nib.load(whole.bold).get_fdata()
    np.testing.assert_allclose(nib.load(ingested.boldref).get_fdata(), series[..., 2:].mean(axis=3), atol=0.01)


def test_a_run_without_mask_and_confounds_is_ingested_with_warnings(whole, tmp_path, standard_brain):
    run = go(replace(whole, mask=None, confounds=None), tmp_path)
    assert any("no brain mask" in warning for warning in run.warnings)
    assert any("no confounds table" in warning for warning in run.warnings)
    mask = nib.load(run.brain_mask).get_fdata() > 0
    assert 2 * (mask & standard_brain.mask).sum() / (mask.sum() + standard_brain.mask.sum()) > 0.9
    assert pd.read_csv(run.confounds, sep="\t")["framewise_displacement"].isna().all()
    assert np.isnan(run.quality["fd_mean"])


def test_a_denoised_run_gets_an_offset_and_a_warning(tree, standard_brain, tmp_path):
    series = standard_brain.series(mean=0.0)
    series[~standard_brain.mask] = 0
    bold = tree.write_run("02", series, standard_brain.mask, standard_brain.affine, desc="denoised")
    mask = next(bold.parent.glob("*_mask.nii.gz"))
    run = go(derived(bold, mask=mask, denoised=True), tmp_path)
    assert any("mean image" in warning for warning in run.warnings)
    assert run.offset == pytest.approx(-series[standard_brain.mask].min(), abs=0.01)
    assert "tsnr" not in run.quality
    assert run.n_dummy == 0
    on_grid = resample_to_model_grid(run, tmp_path / "grid")
    assert on_grid.values.min() >= 0
    assert on_grid.values.mean() == pytest.approx(run.offset, rel=0.05)


def test_a_mask_on_another_grid_is_resampled_and_a_poor_overlap_gives_a_warning(tree, standard_brain, tmp_path):
    series = standard_brain.series() * standard_brain.mask[..., None]
    bold = tree.write_run("03", series, None, standard_brain.affine)
    moved = np.roll(standard_brain.mask, 5, axis=1)
    affine = standard_brain.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (2, 3, 0)
    path = write_standard_image(tmp_path / "mask.nii.gz", moved[2:, 3:].astype(np.uint8), affine)
    run = go(derived(bold, mask=path), tmp_path)
    assert any("different grid" in warning for warning in run.warnings)
    assert any("low overlap" in warning for warning in run.warnings)
    np.testing.assert_array_equal(nib.load(run.brain_mask).get_fdata() > 0, moved & standard_brain.mask)


# --- orientation ---------------------------------------------------------------------------------------------------


def test_48_orientations_give_the_same_series_on_the_grid(tmp_path):
    """A small block of voxels on the model's lattice, stored in every way."""
    rng = np.random.default_rng(0)
    affine = space(MODEL_SPACE).affine.copy()
    affine[:3, 3] = (-14, -30, -10)
    data = rng.normal(1000, 50, (14, 12, 11, 3)).astype(np.float32)
    unused = tmp_path / "unused"
    first = None
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turn = np.array([(order.index(axis), flips[order.index(axis)]) for axis in range(3)])
        stored, its_affine = apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape[:3])
        bold = save_image(tmp_path / "bold.nii", stored, its_affine, tr=1.0)
        seen = save_image(tmp_path / "seen.nii.gz", np.ones(stored.shape[:3], np.uint8), its_affine)
        run = PreprocessedRun(
            source=bold, bold=bold, tr=1.0, n_volumes=3, n_dummy=0, motion=None, chain=None, template=MODEL_SPACE,
            data_mask=seen, boldref=unused, brain_mask=unused, dseg=None, confounds=unused, confounds_meta=unused,
            carpet=None, route="derivatives", quality={}, warnings=(),
        )  # fmt: skip
        series = resample_to_model_grid(run, tmp_path / "grid")
        values, mask = np.array(series.values), series.mask
        if first is None:
            first = values, mask
            voxels = (
                np.linalg.inv(affine)
                @ np.c_[grid_points(mask.shape, MODEL_GRID_AFFINE, mask), np.ones(len(values.T))].T
            )
            i, j, k = np.rint(voxels[:3]).astype(int)
            np.testing.assert_array_equal(values, data[i, j, k].T)  # copied, not interpolated
        np.testing.assert_array_equal(mask, first[1])
        np.testing.assert_array_equal(values, first[0])


def test_contradictory_sform_and_qform_are_refused(standard_brain, tmp_path):
    image = nib.Nifti1Image(standard_brain.image, standard_brain.affine)
    mirrored = standard_brain.affine @ np.diag([-1.0, 1, 1, 1])
    image.set_sform(standard_brain.affine, 4)
    image.set_qform(mirrored, 4)
    image.to_filename(tmp_path / "x.nii")
    with pytest.raises(BadDataError, match="disagree about left and right"):
        check_forms(tmp_path / "x.nii")
    moved = standard_brain.affine.copy()
    moved[1, 3] += 8
    image.set_qform(moved, 4)
    image.to_filename(tmp_path / "x.nii")
    with pytest.raises(BadDataError, match="differ by up to 8 mm"):
        check_forms(tmp_path / "x.nii")
    image.set_qform(moved, 0)
    image.to_filename(tmp_path / "x.nii")
    check_forms(tmp_path / "x.nii")


# --- spaces --------------------------------------------------------------------------------------------------------


def test_spaces_are_transformed_by_a_matrix_or_templateflows_warp(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    other = "MNI152NLin2009cAsym"
    assert transform_to_model(MODEL_SPACE, tmp_path)[:2] == (MODEL_SPACE, None)
    template, chain, words = transform_to_model(other, tmp_path)
    assert (template, chain) == (other, None)
    assert "affine matrix only" in words
    warp = tmp_path / f"tpl-{MODEL_SPACE}" / f"tpl-{MODEL_SPACE}_from-{other}_mode-image_xfm.h5"
    warp.parent.mkdir()
    write_composite(warp, shift_lps=(-1, -2, 3))
    template, chain, words = transform_to_model(other, tmp_path)
    assert template == MODEL_SPACE
    np.testing.assert_allclose(Chain.load(chain)(np.zeros((1, 3))), [[1, 2, 3]])
    assert warp.name in words
    assert warp.name in describe_transform(other)


def write_composite(path, shift_lps):
    """An ITK composite of one affine transform, which moves points."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, kind in (("0", b"CompositeTransform_double_3_3"), ("1", b"AffineTransform_double_3_3")):
            group = file.create_group(f"TransformGroup/{key}")
            group["TransformType"] = np.array([kind])
        group["TransformFixedParameters"] = np.zeros(3)
        group["TransformParameters"] = np.concatenate([np.eye(3).ravel(), shift_lps])


# --- tables --------------------------------------------------------------------------------------------------------


def test_na_is_read_as_missing(tmp_path):
    (tmp_path / "a.tsv").write_text("framewise_displacement\tcsf\nn/a\t1\n0.5\t2\n")
    table = read_table(tmp_path / "a.tsv", None, 2, "x").columns
    assert np.isnan(table["framewise_displacement"][0])
    assert table["csf"].tolist() == [1, 2]


def test_a_table_of_the_wrong_length_is_ignored_with_a_warning(tmp_path):
    (tmp_path / "a.tsv").write_text("csf\n1\n2\n3\n")
    table = read_table(tmp_path / "a.tsv", None, 2, "run.nii.gz")
    assert list(table.columns) == []
    assert "3 rows" in table.warnings[0]
    assert "run.nii.gz" in table.warnings[0]


@pytest.mark.parametrize("content", ["a\tb\n1\tx\n", ""])
def test_an_invalid_table_is_named(tmp_path, content):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(BadDataError, match=r"a\.tsv"):
        read_table(tmp_path / "a.tsv", None, 1, "x")


def test_hcp_movement_regressors_become_fmriprep_columns(tmp_path):
    rows = np.zeros((4, 12))
    rows[:, 0], rows[:, 3] = [0, 1, 1, 1], [0, 0, 90, 90]
    np.savetxt(tmp_path / "Movement_Regressors.txt", rows)
    table = read_table(tmp_path / "Movement_Regressors.txt", None, 4, "x")
    np.testing.assert_allclose(table.columns["rot_x"], [0, 0, np.pi / 2, np.pi / 2])
    whole = add_missing_columns(table, np.full((4, 5), 100.0) + np.eye(4, 5), 0, denoised=True)
    np.testing.assert_allclose(whole.columns["framewise_displacement"], [np.nan, 1, 50 * np.pi / 2, 0])
    np.savetxt(tmp_path / "Movement_Regressors.txt", rows[:, :5])
    with pytest.raises(BadDataError, match="5 columns"):
        read_table(tmp_path / "Movement_Regressors.txt", None, 4, "x")


def test_motion_of_mcflirt_becomes_fmriprep_columns(tmp_path):
    (tmp_path / "mcf.par").write_text("0.1 0.2 0.3 1 2 3\n0 0 0 0 0 0\n")
    found = read_table(tmp_path / "mcf.par", None, 2, "run").columns
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    assert found[names].iloc[0].tolist() == [1, 2, 3, 0.1, 0.2, 0.3]


def test_dummy_volumes_are_counted_from_the_table():
    def table(**columns):
        return pd.DataFrame(columns)

    assert count_marked_dummies(table(csf=[1, 2, 3])) is None
    assert count_marked_dummies(table(global_signal=[1, 2, 3])) == 0
    marked = {"non_steady_state_outlier00": [1, 0, 0], "non_steady_state_outlier01": [0, 1, 0]}
    assert count_marked_dummies(table(global_signal=[1, 2, 3], **marked)) == 2


def test_missing_columns_are_computed_and_existing_ones_kept():
    values = np.random.default_rng(0).normal(1000, 10, (30, 50))
    found = add_missing_columns(
        ConfoundsTable(pd.DataFrame({"global_signal": np.arange(30.0)})), values, 0, denoised=False
    )
    assert found.columns["global_signal"].tolist() == list(range(30))
    assert found.columns["std_dvars"][1:].mean() == pytest.approx(1, abs=0.3)
    assert set(found.columns) == set(found.meta) | {"global_signal"}


@pytest.fixture(scope="module")
def in_scan_space(standard_brain, tmp_path_factory):
    """A run in the space of the scan, with FSL's field to the template."""
    root = tmp_path_factory.mktemp("ukb")
    write_ukb_run(root, standard_brain)
    ((run,), _) = read_ukb(root, ["1234567"])
    return run


def test_a_run_in_the_space_of_the_scan_is_resampled_by_its_transform(in_scan_space, standard_brain, tmp_path):
    found = go(in_scan_space, tmp_path, {"RepetitionTime": 0.735})
    image, mask = nib.load(found.boldref), nib.load(found.brain_mask).get_fdata() > 0
    assert np.allclose(image.affine, space(MODEL_SPACE).affine)
    expected = resample_to(standard_brain.image * standard_brain.mask, standard_brain.affine, image.shape, image.affine)

    def similarity(shift, axis):
        return np.corrcoef(np.roll(image.get_fdata(), shift, axis)[mask], expected[mask])[0, 1]

    assert similarity(0, 0) > 0.94
    assert all(similarity(shift, axis) < similarity(0, 0) - 0.005 for shift in (-1, 1) for axis in range(3))
    assert found.orientation.left_right is LeftRight.AS_STORED
    assert "boldref" in found.orientation.same_as
    brain = resample_to(standard_brain.mask.astype(float), standard_brain.affine, image.shape, image.affine) > 0.5
    assert dice(mask, brain) > 0.96
    assert not any("overlap" in warning or "no brain mask" in warning for warning in found.warnings)
    assert found.quality["fd_mean"] == pytest.approx(0.05, rel=0.2)
    assert set(found.other_sources) == {in_scan_space.mask, in_scan_space.warp, in_scan_space.confounds}
    assert (found.source, found.n_volumes) == (in_scan_space.bold, 32)
    assert not list(tmp_path.glob("examine/native/*.nii"))  # the uncompressed copy


def test_a_transform_of_another_image_is_refused(in_scan_space, standard_brain, tmp_path):
    shape, affine = nib.load(in_scan_space.bold).shape[:3], nib.load(in_scan_space.bold).affine
    far = np.outer([1, 1, 1, 0], [0, 0, 0, 400.0])
    for name, matrix in (("mirrored", TO_SCAN @ np.diag([-1.0, 1, 1, 1])), ("far", TO_SCAN + far)):
        field = fsl_field(standard_brain.image.shape, standard_brain.affine, shape, affine, matrix)
        warp = write_standard_image(tmp_path / f"{name}.nii.gz", field, standard_brain.affine)
        with pytest.raises(BadDataError, match=r"left|no data"):
            go(replace(in_scan_space, warp=warp), tmp_path / name, {"RepetitionTime": 0.735})
