"""Confounds against simulated signals and their definitions."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy

from bids_app.preprocess.confounds import (
    HeadMotion,
    compcor_columns,
    compute_dvars,
    compute_rmsd,
    confounds_table,
    cosine_basis,
    expand,
    high_variance_voxels,
    motion_outliers,
    principal_components,
)
from bids_app.preprocess.registration.transforms import apply_matrix, rigid

N_VOLUMES, N_VOXELS, TR = 80, 600, 2.0
CSF, WM = np.arange(N_VOXELS) < 100, np.arange(N_VOXELS) >= 450
TISSUES = {"csf": CSF, "white_matter": WM}


@pytest.fixture
def breathing() -> np.ndarray:
    return np.sin(np.arange(N_VOLUMES) * 1.1)


@pytest.fixture
def values(breathing) -> np.ndarray:
    """Noise about 1000, with breathing in CSF and white matter, and a jump in volume 50."""
    rng = np.random.default_rng(0)
    made = 1000 + rng.normal(0, 8, (N_VOLUMES, N_VOXELS))
    made[:, CSF] += 20 * breathing[:, None]
    made[:, WM] -= 10 * breathing[:, None]
    made[50] += rng.normal(0, 60, N_VOXELS)
    return made.astype(np.float32)


@pytest.fixture
def motion() -> HeadMotion:
    """A shift of 0.8 mm and a rotation of 0.01 rad in volume 50."""
    parameters = np.zeros((N_VOLUMES, 6))
    parameters[50:, 0] = 0.8
    parameters[50:, 5] = 0.01
    return HeadMotion(parameters, np.concatenate([[np.nan], np.linalg.norm(np.diff(parameters, axis=0), axis=1)]))


def test_columns_are_fmripreps(values, motion):
    table, meta = confounds_table(values, motion, TISSUES, TR, n_dummy=2)
    moved = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
    expanded = [*moved, "global_signal", "csf", "white_matter"]
    for name in expanded:
        for suffix in ("", "_derivative1", "_power2", "_derivative1_power2"):
            assert f"{name}{suffix}" in table
    for name in ("csf_wm", "framewise_displacement", "rmsd", "dvars", "std_dvars", "cosine00", "a_comp_cor_00"):
        assert name in table
    assert [c for c in table if c.startswith("non_steady")] == [
        "non_steady_state_outlier00",
        "non_steady_state_outlier01",
    ]
    assert len(table) == N_VOLUMES
    assert set(meta) == set(table.columns)
    json.dumps(meta)


def test_first_row_of_differences_is_missing(values, motion):
    table, _ = confounds_table(values, motion, TISSUES, TR)
    missing = table.columns[table.iloc[0].isna()]
    assert "framewise_displacement" in missing
    assert "dvars" in missing
    assert "trans_x_derivative1" in missing
    assert "trans_x" not in missing
    assert table.iloc[1:].notna().all().all()


def test_signals_are_means_over_their_voxels(values, motion):
    table, _ = confounds_table(values, motion, TISSUES, TR)
    np.testing.assert_allclose(table["global_signal"], values.mean(axis=1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(table["csf"], values[:, CSF].mean(axis=1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(table["csf_wm"], values[:, CSF | WM].mean(axis=1, dtype=np.float64), rtol=1e-6)


def test_displacement_and_outliers_of_a_jump(values, motion):
    table, meta = confounds_table(values, motion, TISSUES, TR, fd_threshold=0.5)
    assert table["framewise_displacement"][50] == pytest.approx(0.8 + 50 * 0.01)
    assert table["framewise_displacement"].drop([0, 50]).max() == 0
    outliers = [c for c in table if c.startswith("motion_outlier")]
    assert [int(table[c].to_numpy().argmax()) for c in outliers] == [50, 51]  # DVARS sees the way back as well
    assert "0.5 mm" in meta[outliers[0]]["Threshold"]


def test_rmsd_of_a_shift_is_the_shift():
    poses = np.stack([np.eye(4), rigid((0, 0, 0), (0, 2, 0)), rigid((0, 0, 0), (0, 2, 0))])
    np.testing.assert_allclose(compute_rmsd(poses, np.array([10.0, 0, 0]))[1:], [2.0, 0.0], atol=1e-12)


def test_rmsd_of_a_rotation_is_the_root_mean_square_over_the_sphere():
    centre = np.array([10.0, -20.0, 5.0])
    poses = np.stack([np.eye(4), rigid((0.02, 0, 0.01), (0.5, 0, 0), (0, 0, 0))])
    points = np.random.default_rng(3).normal(size=(200_000, 3))
    points *= (
        80
        * np.random.default_rng(4).uniform(size=(len(points), 1)) ** (1 / 3)
        / np.linalg.norm(points, axis=1, keepdims=True)
    )
    points += centre
    moved = apply_matrix(np.linalg.inv(poses[1]), points) - points
    assert compute_rmsd(poses, centre)[1] == pytest.approx(np.sqrt((moved**2).sum(axis=1).mean()), rel=0.01)


def test_dvars_by_its_definition(values):
    dvars, std_dvars, voxelwise = compute_dvars(values)
    scaled = values.astype(np.float64) * 1000 / np.median(values[:: N_VOLUMES // 20])
    expected = np.sqrt((np.diff(scaled, axis=0) ** 2).mean(axis=1))
    np.testing.assert_allclose(dvars[1:], expected, rtol=1e-9)
    usual = []
    for series in values.T.astype(np.float64):
        spread = np.subtract(*np.percentile(series, [75, 25], method="lower")) / 1.349
        centred = series - series.mean()
        carry = (centred[1:] * centred[:-1]).sum() / (centred**2).sum()
        usual.append(np.sqrt(2 * (1 - carry)) * spread)
    change = np.sqrt((np.diff(values.astype(np.float64), axis=0) ** 2).mean(axis=1))
    np.testing.assert_allclose(std_dvars[1:], change / np.mean(usual), rtol=1e-9)
    change = np.diff(values.astype(np.float64), axis=0) / np.array(usual)
    np.testing.assert_allclose(voxelwise[1:], np.sqrt((change**2).mean(axis=1)), rtol=1e-9)
    assert np.isnan(dvars[0])


def test_standardised_dvars_of_white_noise_is_one():
    noise = np.random.default_rng(0).normal(1000, 10, (300, 500)).astype(np.float32)
    found = compute_dvars(noise)
    assert np.nanmean(found.std) == pytest.approx(1.0, abs=0.03)
    assert found.means()["dvars_vstd"] == pytest.approx(1.0, abs=0.03)


def test_derivatives_and_squares():
    made = expand("x", np.array([1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(made["x_derivative1"], [np.nan, 2, -1])
    np.testing.assert_array_equal(made["x_power2"], [1, 9, 4])
    np.testing.assert_array_equal(made["x_derivative1_power2"], [np.nan, 4, 1])


def test_compcor_finds_the_breathing(values, breathing):
    columns, meta = compcor_columns(values, TISSUES, TR)
    for name in ("a_comp_cor_00", "c_comp_cor_00", "w_comp_cor_00"):
        assert abs(np.corrcoef(columns[name], breathing)[0, 1]) > 0.95
    assert meta["c_comp_cor_00"]["Mask"] == "CSF"
    kept = [k for k in meta if k.startswith("a_comp")]
    shares = [meta[k]["CumulativeVarianceExplained"] for k in kept]
    assert shares[-1] >= 0.5
    assert all(share < 0.5 for share in shares[:-1])


def test_components_are_orthonormal_filtered_and_of_fixed_sign(values):
    components, singular, share = principal_components(values, CSF, TR)
    gram = components[:, :5].T @ components[:, :5]
    np.testing.assert_allclose(gram, np.eye(5), atol=1e-6)
    slow = np.column_stack([np.ones(N_VOLUMES), cosine_basis(N_VOLUMES, TR)])
    assert np.abs(slow.T @ components[:, :5]).max() < 1e-6
    assert (components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])] > 0).all()
    assert (np.diff(singular) <= 1e-6).all()
    assert share.sum() == pytest.approx(1)


def test_dummies_are_zero_in_components_and_cosines(values, motion):
    table, _ = confounds_table(values, motion, TISSUES, TR, n_dummy=3)
    for name in ("a_comp_cor_00", "cosine00"):
        assert (table[name][:3] == 0).all()
        assert (table[name][3:] != 0).any()


def test_cosines_are_orthonormal_with_long_periods():
    basis = cosine_basis(200, 2.0)
    assert basis.shape == (200, 5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-9)
    assert cosine_basis(20, 1.0).shape == (20, 0)


def test_temporal_compcor_uses_the_voxels_with_the_highest_variance(values, motion):
    drift = np.linspace(-500, 500, N_VOLUMES)  # slow drifts are filtered first
    artefact = np.random.default_rng(2).normal(size=N_VOLUMES)
    values[:, 200:260] += drift[:, None].astype(np.float32)
    values[:, 300:312] += 60 * artefact[:, None].astype(np.float32)
    np.testing.assert_array_equal(np.flatnonzero(high_variance_voxels(values, TR)), np.arange(300, 312))
    table, meta = confounds_table(values, motion, TISSUES, TR)
    assert abs(np.corrcoef(table["t_comp_cor_00"], artefact)[0, 1]) > 0.95
    assert meta["t_comp_cor_00"]["Method"] == "tCompCor"


def test_tissue_without_voxels_leaves_its_columns_out_of_compcor(values, motion):
    none = {"csf": np.zeros(N_VOXELS, bool), "white_matter": WM}
    table, _ = confounds_table(values, motion, none, TR)
    assert table["csf"].isna().all()
    assert not [c for c in table if c.startswith("c_comp_cor")]
    assert "w_comp_cor_00" in table


def test_table_is_written_with_na(tmp_path, values, motion):
    table, _ = confounds_table(values, motion, TISSUES, TR)
    table.to_csv(tmp_path / "c.tsv", sep="\t", index=False, na_rep="n/a")
    assert (tmp_path / "c.tsv").read_text().splitlines()[1].count("n/a") == int(table.iloc[0].isna().sum())
    assert pd.read_csv(tmp_path / "c.tsv", sep="\t").shape == table.shape


def test_volumes_with_much_motion_have_a_column_each_but_dummies_have_none():
    fd = np.array([np.nan, 0.9, 0.1, 0.6, 0.1])
    std_dvars = np.array([np.nan, 1.0, 1.0, 2.0, 1.6])
    spikes = motion_outliers(fd, std_dvars, n_dummy=2, fd_threshold_mm=0.5)
    assert spikes.to_dict("list") == {"motion_outlier00": [0, 0, 0, 1, 0], "motion_outlier01": [0, 0, 0, 0, 1]}


def test_a_run_without_motion_has_no_outliers():
    assert motion_outliers(np.zeros(4), np.ones(4), n_dummy=0, fd_threshold_mm=0.5).shape == (4, 0)


@pytest.fixture
def published(values, motion, tmp_path) -> Path:
    """A run under its published names, with two dummy volumes; returns the series."""
    func = tmp_path / "sub-01" / "func"
    func.mkdir(parents=True)
    table, meta = confounds_table(values, motion, TISSUES, TR, n_dummy=2)
    table.to_csv(func / "sub-01_task-rest_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    (func / "sub-01_task-rest_desc-confounds_timeseries.json").write_text(json.dumps(meta))
    series = func / "sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"
    nib.Nifti1Image(np.zeros((2, 2, 2, N_VOLUMES), np.float32), np.eye(4)).to_filename(series)
    return series


@pytest.mark.parametrize(
    ("strategy", "wanted", "n_columns"),
    [
        ({"denoise_strategy": "simple"}, {"csf", "white_matter", "cosine00", "trans_x_derivative1_power2"}, 27),
        ({"denoise_strategy": "scrubbing"}, {"csf_derivative1_power2", "cosine00"}, 33),
        ({"denoise_strategy": "compcor", "compcor": "anat_combined"}, {"a_comp_cor_00", "cosine00"}, None),
        (
            {"denoise_strategy": "compcor", "compcor": "temporal_anat_combined"},
            {"a_comp_cor_00", "t_comp_cor_00", "cosine00"},
            None,
        ),
        (
            {"denoise_strategy": "compcor", "compcor": "temporal_anat_separated"},
            {"c_comp_cor_00", "w_comp_cor_00", "t_comp_cor_00"},
            None,
        ),
    ],
)
def test_nilearn_reads_the_confounds_of_its_strategies(published, strategy, wanted, n_columns):
    confounds, sample_mask = load_confounds_strategy(str(published), **strategy)
    assert wanted <= set(confounds.columns)
    assert n_columns in (None, confounds.shape[1])
    assert len(confounds) == N_VOLUMES
    assert confounds.notna().all().all()
    assert not {0, 1} & set(sample_mask)  # dummy volumes
    assert (50 in sample_mask) == (strategy["denoise_strategy"] != "scrubbing")
