"""Mean series of regions and their correlations equal those of nilearn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.connectome import ConnectivityMeasure
from nilearn.maskers import NiftiLabelsMasker
from nilearn.signal import clean
from sklearn.covariance import EmpiricalCovariance

from bids_app.catalog.atlases import Atlas
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries, GridSeriesWriter
from bids_app.errors import BadDataError
from bids_app.preprocess import regions
from bids_app.preprocess.confounds import HeadMotion, confounds_table
from bids_app.preprocess.denoise import load_confounds
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.regions import MIN_COVERAGE, denoise_regions, extract_regions

N_DUMMY, N_VOLUMES, TR = 2, 90, 2.0
BRAIN = (slice(30, 42), slice(30, 42), slice(30, 40))
PARTS = {4: slice(30, 33), 7: slice(33, 36), 9: slice(36, 38), 12: slice(38, 48)}
"""Extent of each region along the first axis; the last one is for the most part outside the brain."""


@pytest.fixture
def series(tmp_path: Path) -> GridSeries:
    """90 volumes without the 2 dummies, with one signal per region, a nuisance signal, and an outlier at volume 50."""
    draws = np.random.default_rng(0)
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[BRAIN] = True
    times = np.arange(N_VOLUMES)
    values = 1000 + draws.normal(0, 5, (N_VOLUMES, int(mask.sum()))) + 30 * np.sin(times * 1.1)[:, None]
    where = np.nonzero(mask)[0]
    for part in PARTS.values():
        values[:, (where >= part.start) & (where < part.stop)] += draws.normal(0, 8, (N_VOLUMES, 1))
    values[50] += draws.normal(0, 60, values.shape[1])
    with GridSeriesWriter(tmp_path / "series", mask, TR, N_VOLUMES - N_DUMMY, start=N_DUMMY * TR) as writer:
        writer.append(values[N_DUMMY:])
    return GridSeries.open(tmp_path / "series")


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    labels = np.zeros(MODEL_GRID_SHAPE, np.int16)
    for label, part in PARTS.items():
        labels[part, 31:41, 32:38] = label
    path = save_image(tmp_path / "parts.nii.gz", labels, MODEL_GRID_AFFINE, space_code=4)
    return Atlas("parts", path, {4: "front", 7: "middle", 9: "back"})


@pytest.fixture
def run(series: GridSeries, tmp_path: Path) -> SimpleNamespace:
    """A run with its table of confounds; the values of the dummy volumes do not matter."""
    whole = np.vstack([np.full((N_DUMMY, series.values.shape[1]), 1500.0), series.values])
    draws = np.random.default_rng(1)
    parameters = draws.normal(0, 0.01, (N_VOLUMES, 6)) * [1, 1, 1, 0.01, 0.01, 0.01]
    csf, wm = (np.arange(whole.shape[1]) % 4 == k for k in (0, 1))
    tissues = {"csf": csf, "white_matter": wm}
    table, meta = confounds_table(whole, HeadMotion(parameters, np.zeros(N_VOLUMES)), tissues, TR, n_dummy=N_DUMMY)
    path = tmp_path / "confounds.tsv"
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    path.with_suffix(".json").write_text(json.dumps(meta))
    return SimpleNamespace(source=Path("sub-01_task-rest_bold.nii.gz"), confounds=path, tr=TR)


def images_of(series: GridSeries, atlas: Atlas) -> tuple[nib.Nifti1Image, nib.Nifti1Image, nib.Nifti1Image]:
    """Return the series, the brain mask and the atlas as images."""
    values = np.zeros((*MODEL_GRID_SHAPE, series.n_vols), np.float32)
    values[series.mask] = series.values.T
    mask = nib.Nifti1Image(series.mask.astype(np.uint8), MODEL_GRID_AFFINE)
    return nib.Nifti1Image(values, MODEL_GRID_AFFINE), mask, nib.load(atlas.path)


def test_means_equal_those_of_the_masker_of_nilearn(
    series: GridSeries, atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "VOLUMES", 7)  # several blocks
    found = extract_regions(series, atlas, N_DUMMY)
    image, mask, labels = images_of(series, atlas)
    wanted = NiftiLabelsMasker(labels, mask_img=mask, standardize=None).fit_transform(image)
    np.testing.assert_allclose(found.values[:, :3], wanted[:, :3], rtol=1e-6)
    assert found.labels.tolist() == [4, 7, 9, 12]
    assert found.volumes.tolist() == list(range(N_DUMMY, N_VOLUMES))


def test_a_region_that_is_for_the_most_part_outside_has_no_series(series: GridSeries, atlas: Atlas) -> None:
    found = extract_regions(series, atlas, N_DUMMY)
    assert found.n_voxels.tolist() == [180, 180, 120, 600]
    assert found.coverage.tolist() == [1, 1, 1, 0.4]
    assert MIN_COVERAGE == 0.5
    assert np.isnan(found.values).all(axis=0).tolist() == [False, False, False, True]
    missing = np.isnan(found.correlations)
    assert missing[3].all()
    assert missing[:, 3].all()
    assert not missing[:3, :3].any()


def test_correlations_equal_those_of_nilearn(series: GridSeries, atlas: Atlas) -> None:
    found = extract_regions(series, atlas, N_DUMMY)
    measure = ConnectivityMeasure(kind="correlation", cov_estimator=EmpiricalCovariance(), standardize=None)
    wanted = measure.fit_transform([found.values[:, :3]])[0]
    np.testing.assert_allclose(found.correlations[:3, :3], wanted, atol=1e-6)


def test_the_whole_series_is_never_in_memory(series: GridSeries, atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "VOLUMES", 5)
    read = []
    original = GridSeries.rows
    monkeypatch.setattr(GridSeries, "rows", lambda self, *span: read.append(span) or original(self, *span))
    extract_regions(series, atlas, N_DUMMY)
    assert max(stop - start for start, stop in read) == 5
    assert len(read) == 18


def test_what_was_added_to_a_series_without_mean_is_taken_off(series: GridSeries, atlas: Atlas) -> None:
    plain, shifted = (extract_regions(series, atlas, N_DUMMY, offset) for offset in (0.0, 900.0))
    np.testing.assert_allclose(shifted.values[:, :3], plain.values[:, :3] - 900)


@pytest.mark.parametrize("strategy", ["simple", "scrubbing", "compcor"])
def test_denoised_means_are_the_means_of_denoised_voxels(
    series: GridSeries, atlas: Atlas, run: SimpleNamespace, strategy: str, tmp_path: Path
) -> None:
    found = denoise_regions(extract_regions(series, atlas, N_DUMMY), run, strategy, tmp_path)
    confounds, kept = load_confounds(run.confounds, strategy, tmp_path)
    assert found.volumes.tolist() == kept.tolist()
    assert (50 in found.volumes) == (strategy != "scrubbing")
    whole = np.vstack([np.zeros((N_DUMMY, series.values.shape[1])), series.values])
    voxels = clean(whole, confounds=confounds, sample_mask=kept, t_r=TR, detrend=True, standardize=None, filter=False)
    labels = nib.load(atlas.path).get_fdata()[series.mask]
    for column, label in enumerate((4, 7, 9)):
        wanted = (voxels + whole[kept].mean(axis=0))[:, labels == label].mean(axis=1)
        np.testing.assert_allclose(found.values[:, column], wanted, atol=1e-3)
    assert found.confounds == tuple(confounds.columns)
    assert np.isnan(found.values[:, 3]).all()


def test_a_region_without_variance_has_no_correlations_also_after_denoising(
    series: GridSeries, atlas: Atlas, run: SimpleNamespace, tmp_path: Path
) -> None:
    found = extract_regions(series, atlas, N_DUMMY)
    found.values[:, 1] = 1234.567
    for one in (found, denoise_regions(found, run, "simple", tmp_path)):
        np.testing.assert_allclose(one.values[:, 1], 1234.567)
        assert np.isnan(one.correlations[1]).all()
        assert np.isfinite(one.correlations[0, [0, 2]]).all()


def test_a_run_with_too_few_volumes_without_motion_is_named(
    series: GridSeries, atlas: Atlas, run: SimpleNamespace, tmp_path: Path
) -> None:
    table = pd.read_csv(run.confounds, sep="\t")
    table["framewise_displacement"] = 3.0
    table.to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
    found = extract_regions(series, atlas, N_DUMMY)
    with pytest.raises(BadDataError, match=r"sub-01_task-rest_bold.*scrubbing: 0 volumes remain, too few for \d+"):
        denoise_regions(found, run, "scrubbing", tmp_path)
    assert len(denoise_regions(found, run, "simple", tmp_path).volumes) == N_VOLUMES - N_DUMMY


def test_a_table_without_the_columns_of_a_strategy_is_named(
    series: GridSeries, atlas: Atlas, run: SimpleNamespace, tmp_path: Path
) -> None:
    table = pd.read_csv(run.confounds, sep="\t")
    table[["csf"]].to_csv(run.confounds, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(BadDataError, match="not denoised by the strategy simple"):
        denoise_regions(extract_regions(series, atlas, N_DUMMY), run, "simple", tmp_path)


def test_names_are_unique(series: GridSeries, atlas: Atlas) -> None:
    same = replace(atlas, names={4: "front", 7: "side", 9: "side"})
    assert extract_regions(series, same, N_DUMMY).names == ("front", "side_7", "side_9", "region_12")
    nodes = replace(atlas, names={4: "Node", 7: "a\tb"})
    assert extract_regions(series, nodes, N_DUMMY).names[:2] == ("Node_4", "a b")
    suffixed = replace(atlas, names={4: "side", 7: "side", 9: "side_4", 12: "region_12"})
    found = extract_regions(series, suffixed, N_DUMMY).names
    assert found == ("side_4_4", "side_7", "side_4_9", "region_12")


def test_an_atlas_without_a_region_on_the_grid_is_named(series: GridSeries, atlas: Atlas) -> None:
    empty = save_image(atlas.path.with_name("empty.nii.gz"), np.zeros(MODEL_GRID_SHAPE, np.int16), MODEL_GRID_AFFINE)
    with pytest.raises(BadDataError, match=r"empty\.nii\.gz: no region"):
        extract_regions(series, replace(atlas, path=empty), N_DUMMY)
