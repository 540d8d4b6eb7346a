"""Confounds are regressed out of written series as nilearn does it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.image import clean_img
from nilearn.interfaces.fmriprep import load_confounds_strategy

from bids_app.errors import BadDataError
from bids_app.preprocess import denoise
from bids_app.preprocess.confounds import HeadMotion, confounds_table
from bids_app.preprocess.denoise import denoise_series
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.io.series_writer import SeriesWriter

SHAPE, N_VOLUMES, TR = (9, 8, 7), 90, 2.0
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def func(tmp_path: Path) -> Path:
    """A run with a nuisance signal, motion, two dummy volumes and an outlier at volume 50, under published names."""
    draws = np.random.default_rng(0)
    folder = tmp_path / "sub-01" / "func"
    folder.mkdir(parents=True)
    nuisance = np.sin(np.arange(N_VOLUMES) * 1.1)
    brain = np.zeros(SHAPE, bool)
    brain[2:, 1:, 1:] = True
    inside = 1000 + draws.normal(0, 5, (N_VOLUMES, int(brain.sum()))) + 30 * nuisance[:, None]
    inside[50] += draws.normal(0, 60, inside.shape[1])
    everywhere = np.zeros((N_VOLUMES, *SHAPE), np.float32)
    everywhere[:, brain] = inside
    parameters = draws.normal(0, 0.01, (N_VOLUMES, 6)) * [1, 1, 1, 0.01, 0.01, 0.01]
    csf, wm = (np.arange(inside.shape[1]) % 4 == k for k in (0, 1))
    motion = HeadMotion(parameters, np.zeros(N_VOLUMES))
    table, meta = confounds_table(inside, motion, {"csf": csf, "white_matter": wm}, TR, n_dummy=2)
    stem = folder / "sub-01_task-rest"
    table.to_csv(f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
    Path(f"{stem}_desc-confounds_timeseries.json").write_text(json.dumps(meta))
    whole = np.ones(SHAPE, bool)
    path = Path(f"{stem}_space-T1w_desc-preproc_bold.nii.gz")
    with SeriesWriter(path, whole, AFFINE, 4, TR, N_VOLUMES, (-100.0, 2000.0)) as writer:
        writer.append(everywhere[:, whole])
    save_image(Path(f"{stem}_space-T1w_desc-brain_mask.nii.gz"), brain.astype(np.uint8), AFFINE, space_code=4)
    return folder


def denoised(func: Path, strategy: str) -> denoise.Denoised:
    name = "sub-01_task-rest_space-T1w_desc-{}.nii.gz"
    series, mask, out = (func / name.format(kind) for kind in ("preproc_bold", "brain_mask", "denoised_bold"))
    table = func / "sub-01_task-rest_desc-confounds_timeseries.tsv"
    return denoise_series(series, table, mask, strategy, TR, out, func)


@pytest.mark.parametrize("strategy", ["simple", "scrubbing", "compcor"])
def test_the_series_equals_that_of_nilearn(func: Path, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "BLOCK", 100)  # several blocks
    found = denoised(func, strategy)
    series = nib.load(func / "sub-01_task-rest_space-T1w_desc-preproc_bold.nii.gz")
    brain = nib.load(func / "sub-01_task-rest_space-T1w_desc-brain_mask.nii.gz").get_fdata() > 0
    confounds, kept = load_confounds_strategy(series.get_filename(), denoise_strategy=strategy)
    wanted = clean_img(
        series, confounds=confounds, standardize=None, t_r=TR, filter=False, clean__sample_mask=kept
    ).get_fdata()[brain]
    values = nib.load(found.path).get_fdata()
    assert values.shape[3] == found.n_volumes == len(kept)
    change = values[brain] - values[brain].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(change, wanted - wanted.mean(axis=1, keepdims=True), atol=0.05)
    assert np.abs(values[brain].mean(axis=1) - series.get_fdata()[brain][:, kept].mean(axis=1)).max() < 0.05
    assert np.abs(values[~brain]).max() < 0.05
    assert found.columns == tuple(confounds.columns)
    assert {0, 1} <= set(found.left_out)
    assert (50 in found.left_out) == (strategy == "scrubbing")


def test_a_path_that_contains_tsv_is_read(func: Path, tmp_path: Path) -> None:
    wanted = denoised(func, "compcor").columns
    folder = func.rename(tmp_path / "my_tsv_files")
    for path in folder.glob("sub-01_task-rest_*"):
        path.rename(folder / path.name.replace("task-rest", "task-tsv"))
    name = "sub-01_task-tsv_space-T1w_desc-{}.nii.gz"
    table = folder / "sub-01_task-tsv_desc-confounds_timeseries.tsv"
    series, mask, out = (folder / name.format(kind) for kind in ("preproc_bold", "brain_mask", "denoised_bold"))
    assert denoise_series(series, table, mask, "compcor", TR, out, folder).columns == wanted
    assert any(name.startswith("a_comp_cor") for name in wanted)


def test_the_header_is_that_of_the_series(func: Path) -> None:
    header = nib.load(denoised(func, "simple").path).header
    assert (header["qform_code"], header["sform_code"]) == (4, 4)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header.get_zooms()[3] == TR


def test_the_whole_series_is_never_in_memory(func: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "BLOCK", 50)
    sizes = []
    original = np.asarray

    def seen(value, *args, **kwargs):
        made = original(value, *args, **kwargs)
        sizes.append(made.size)
        return made

    monkeypatch.setattr(denoise.np, "asarray", seen)
    denoised(func, "simple")
    assert max(sizes) <= 50 * N_VOLUMES


def test_a_run_with_too_few_volumes_without_motion_is_named(func: Path) -> None:
    path = func / "sub-01_task-rest_desc-confounds_timeseries.tsv"
    table = pd.read_csv(path, sep="\t")
    table["framewise_displacement"] = 3.0
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(BadDataError, match=r"strategy scrubbing: 0 volumes remain, too few for \d+ confounds") as error:
        denoised(func, "scrubbing")
    assert "simple" in error.value.hint
    assert denoised(func, "simple").n_volumes == N_VOLUMES - 2


def test_a_table_without_the_columns_of_a_strategy_is_named(func: Path) -> None:
    path = func / "sub-01_task-rest_desc-confounds_timeseries.tsv"
    table = pd.read_csv(path, sep="\t")
    table[["csf", "framewise_displacement"]].to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(BadDataError, match=r"desc-preproc_bold\.nii\.gz: not denoised by the strategy simple"):
        denoised(func, "simple")
    assert not (func / "sub-01_task-rest_space-T1w_desc-denoised_bold.nii.gz").exists()
