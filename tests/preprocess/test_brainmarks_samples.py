"""Samples of Brainmarks: the order of voxels and parcels, z-scores, and columns without data."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.clips import GridSeries, labels_to_model_grid
from bids_app.clips.series import series_from_image
from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.preprocess import brainmarks_samples
from bids_app.preprocess.brainmarks_samples import BRAIN_MASK, CBIG_FILE, columns_on_grid, make_sample, source_of

N_VOLS = 5


@pytest.fixture(scope="module")
def mask() -> nib.Nifti1Image:
    return nib.load(BRAIN_MASK)


@pytest.fixture(scope="module")
def image(mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return 5 volumes of noise on the 2 mm grid, stored L-A-S."""
    draws = np.random.default_rng(1)
    data = draws.normal(1000, 150, (*mask.shape, 1)) + draws.normal(0, 40, (*mask.shape, N_VOLS))
    return nib.Nifti1Image(data.astype(np.float32), mask.affine).as_reoriented([[0, -1], [1, 1], [2, 1]])


@pytest.fixture
def series(image: nib.Nifti1Image, mask: nib.Nifti1Image, tmp_path: Path) -> GridSeries:
    return series_from_image(image, tmp_path / "grid", tr=2.0, mask=mask, start=4.0)


@pytest.fixture
def rows(image: nib.Nifti1Image) -> np.ndarray:
    """Return the volumes as Brainmarks reads them: R-A-S, (t, z, y, x)."""
    return nib.as_closest_canonical(image).get_fdata().T


@pytest.fixture
def atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: nib.Nifti1Image) -> np.ndarray:
    """Put an atlas of 400 slabs of the brain, stored L-A-S, into the cache; return it R-A-S."""
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    labels = np.zeros(mask.shape, np.int16)
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)[::2]
    labels[tuple(inside.T)] = 1 + np.arange(len(inside)) * 400 // len(inside)
    stored = nib.Nifti1Image(labels, mask.affine).as_reoriented([[0, -1], [1, 1], [2, 1]])
    (tmp_path / "cache/atlases").mkdir(parents=True)
    stored.to_filename(tmp_path / "cache/atlases" / CBIG_FILE)
    return nib.as_closest_canonical(stored).get_fdata()


def test_every_voxel_of_the_brain_is_on_the_model_grid() -> None:
    columns = columns_on_grid("mni")
    assert sorted(columns[columns > 0]) == list(range(1, 228_484))


def test_voxels_are_those_that_brainmarks_reads_in_its_order(series, rows, mask) -> None:
    found = make_sample(series, "mni")
    expected = rows[:, nib.as_closest_canonical(mask).get_fdata().T > 0]
    assert found.bold.shape == (N_VOLS, 228_483)
    assert np.abs(found.bold * found.std + found.mean - expected).max() < 0.01
    assert np.abs(found.bold.mean(axis=0)).max() < 1e-5
    assert np.allclose(found.bold.std(axis=0), 1, atol=1e-4)
    assert (found.tr, found.n_without_data) == (2.0, 0)
    assert {name: np.shape(value) for name, value in found.as_dict().items()} == {
        "bold": (N_VOLS, 228_483), "mean": (1, 228_483), "std": (1, 228_483), "tr": ()
    }  # fmt: skip


def test_voxels_outside_the_run_and_constant_ones_are_0_and_counted(series, mask) -> None:
    values, inside = np.array(series.values), series.mask.copy()
    values[:, 0] = 700
    lost = np.flatnonzero(inside)[-1000:]
    inside.flat[lost] = False
    found = make_sample(GridSeries(values[:, :-1000], inside, 2.0), "mni")
    assert found.n_without_data == 1001
    empty = found.std[0] == 0
    assert not found.bold[:, empty].any()
    assert not found.mean[0, empty].any()


def test_the_offset_of_series_without_their_mean_image_is_taken_off(series) -> None:
    plain, moved = make_sample(series, "mni"), make_sample(series, "mni", offset=300.0)
    assert np.allclose(plain.mean - moved.mean, 300, atol=0.01)
    assert np.allclose(plain.bold, moved.bold, atol=1e-3)


def test_parcels_are_means_over_their_voxels_in_the_order_of_their_labels(series, rows, atlas) -> None:
    found = make_sample(series, "schaefer400")
    expected = np.stack([rows[:, label == atlas.T].mean(axis=1) for label in range(1, 401)], axis=1)
    assert found.bold.shape == (N_VOLS, 400)
    assert np.allclose(found.bold * found.std + found.mean, expected, atol=0.01)


def test_cortical_voxels_are_those_of_the_atlas(series, rows, atlas, monkeypatch) -> None:
    with pytest.raises(
        BadDataError, match=rf"{(atlas > 0).sum()} columns; the space mni_cortex .* has 132032"
    ) as error:
        make_sample(series, "mni_cortex")
    assert CBIG_FILE in error.value.hint
    monkeypatch.setitem(brainmarks_samples.N_COLUMNS, "mni_cortex", int((atlas > 0).sum()))
    found = make_sample(series, "mni_cortex")
    assert np.allclose(found.bold * found.std + found.mean, rows[:, atlas.T > 0], atol=0.01)


def test_a_missing_atlas_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEUROSTORM_CACHE", "NILEARN_DATA", "TEMPLATEFLOW_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(NoInputError, match="schaefer2018-400-17networks") as caught:
        source_of("mni_cortex")
    assert "400Parcels17Networks" in caught.value.hint
    assert source_of("mni") == BRAIN_MASK


def test_atlases_on_another_grid_or_with_missing_parcels_are_refused(atlas, tmp_path: Path) -> None:
    path = tmp_path / "cache/atlases" / CBIG_FILE
    labels = np.where(atlas == 7, 0, atlas).astype(np.int16)
    affine = nib.load(BRAIN_MASK).affine
    nib.Nifti1Image(labels, affine).to_filename(path)
    with pytest.raises(BadDataError, match="399 columns"):
        columns_on_grid("schaefer400")
    nib.Nifti1Image(labels[1:], affine).to_filename(path)
    with pytest.raises(BadDataError, match=r"invalid shape \(90, 109, 91\)"):
        columns_on_grid("schaefer400")


def test_other_spaces_are_refused() -> None:
    with pytest.raises(UsageError, match="space flat") as caught:
        source_of("flat")
    assert "mni, mni_cortex, schaefer400" in caught.value.hint


def test_a_run_without_data_is_an_error(series) -> None:
    with pytest.raises(BadDataError, match="no data in the space mni"):
        make_sample(GridSeries(np.full_like(series.values, 5), series.mask, 2.0), "mni")


def test_the_grid_has_the_voxels_of_the_template(mask) -> None:
    assert ((columns_on_grid("mni") > 0) == (labels_to_model_grid(mask) > 0)).all()
