"""Tables by region: names, sidecars, and what is written if the series cannot be denoised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bids_app.catalog.atlases import Atlas
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE
from bids_app.clips.series import GridSeriesWriter
from bids_app.outputs import regions
from bids_app.outputs.regions import DUMMIES_LEFT_OUT, GAPS, NONE_LEFT_OUT, SCRUBBED, describe_left_out, region_outputs
from bids_app.outputs.schema import RelmatSidecar, TimeseriesSidecar
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.preprocessed import OnGrid, Origin

STEM = "sub-01_ses-a_task-rest"
FILES = {
    f"{STEM}_space-MNI152NLin6Asym_seg-my3_stat-{name}"
    for table in ("coverage_bold", "mean_timeseries", "pearsoncorrelation_relmat")
    for name in (f"{table}.tsv", f"{table}.json")
}
COVERAGE = {name for name in FILES if "coverage" in name}
N_DUMMY, N_VOLUMES, TR = 2, 40, 2.0


@pytest.fixture
def grid(tmp_path: Path) -> OnGrid:
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:36, 30:40, 30:40] = True
    values = np.random.default_rng(0).normal(1000, 10, (N_VOLUMES - N_DUMMY, int(mask.sum())))
    with GridSeriesWriter(tmp_path / "grid", mask, TR, N_VOLUMES - N_DUMMY, start=N_DUMMY * TR) as writer:
        writer.append(values)
    return OnGrid(tmp_path / "grid", 1.0)


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    folder = tmp_path / "raw" / "sub-01" / "ses-a" / "func"
    table = pd.DataFrame({"framewise_displacement": np.full(N_VOLUMES, 0.1)})
    table.to_csv(tmp_path / "confounds.tsv", sep="\t", index=False)
    (tmp_path / "confounds.json").write_text("{}")
    return SimpleNamespace(
        source=folder / f"{STEM}_bold.nii.gz",
        echoes=(),
        n_dummy=N_DUMMY,
        n_volumes=N_VOLUMES,
        offset=0.0,
        tr=TR,
        start_time=1.0,
        origin=None,
        confounds=tmp_path / "confounds.tsv",
    )


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    labels = np.zeros(MODEL_GRID_SHAPE, np.int16)
    labels[30:33, 30:40, 30:40], labels[33:36, 30:40, 30:40], labels[60:64, 30:40, 30:40] = 1, 2, 3
    path = save_image(tmp_path / "my-3.nii.gz", labels, MODEL_GRID_AFFINE, space_code=4)
    return Atlas("my-3", path, {1: "Area_L", 2: "Area_R", 3: "Outside_R"})


@pytest.fixture
def write(grid: OnGrid, run: SimpleNamespace, atlas: Atlas, tmp_path: Path):
    def write_all(denoise: str | None = None, figures: bool = False, **changes) -> dict[str, Path]:
        out_dir = tmp_path / "step"
        out_dir.mkdir()
        entities = {"sub": "01", "ses": "a", "task": "rest"}
        changed = SimpleNamespace(**{**vars(run), **changes})
        datasets = {"raw": tmp_path / "raw"}
        tree = region_outputs(grid, changed, (atlas,), denoise, figures, entities, datasets, "", out_dir)
        return {path.name: path for path in tree.rglob("*") if path.is_file()}

    return write_all


def sidecar_of(files: dict[str, Path], ending: str) -> dict:
    (path,) = (path for name, path in files.items() if name.endswith(f"{ending}.json"))
    return json.loads(path.read_text())


def table_of(files: dict[str, Path], ending: str) -> pd.DataFrame:
    (path,) = (path for name, path in files.items() if name.endswith(f"{ending}.tsv"))
    return pd.read_csv(path, sep="\t", na_values="n/a")


def test_the_tables_have_the_names_of_xcp_d(write) -> None:
    assert write().keys() == FILES


def test_a_row_of_the_series_is_a_volume_and_a_column_a_region(write) -> None:
    files = write()
    table, sidecar = table_of(files, "timeseries"), sidecar_of(files, "timeseries")
    assert table.shape == (N_VOLUMES - N_DUMMY, 3)
    assert list(table.columns) == ["Area_L", "Area_R", "Outside_R"]
    assert table["Outside_R"].isna().all()
    assert not table[["Area_L", "Area_R"]].isna().any().any()
    assert sidecar["SamplingFrequency"] == 0.5
    assert sidecar["StartTime"] == N_DUMMY * TR + 1.0
    assert sidecar["VolumesLeftOut"] == [0, 1]
    assert sidecar["RegionsWithoutSeries"] == ["Outside_R"]
    assert sidecar["Denoised"] is False
    assert sidecar["Sources"] == [f"bids:raw:sub-01/ses-a/func/{STEM}_bold.nii.gz"]
    assert set(table.columns) <= sidecar.keys()
    assert TimeseriesSidecar.from_json(sidecar).to_json() == sidecar


def test_the_matrix_names_its_rows_and_its_source(write) -> None:
    files = write()
    table, sidecar = table_of(files, "relmat"), sidecar_of(files, "relmat")
    series = table_of(files, "timeseries")
    assert list(table["Node"]) == list(table.columns[1:]) == list(series.columns)
    assert table["Area_R"][0] == pytest.approx(np.corrcoef(series["Area_L"], series["Area_R"])[0, 1], abs=1e-6)
    assert table["Area_L"][0] == 1
    assert sidecar["RelationshipMeasure"] == "Pearson correlation"
    assert sidecar["NumberOfVolumes"] == N_VOLUMES - N_DUMMY
    (source,) = sidecar["Sources"]
    assert source.endswith(f"{STEM}_space-MNI152NLin6Asym_seg-my3_stat-mean_timeseries.tsv")
    assert RelmatSidecar.from_json(sidecar).to_json() == sidecar


def test_the_coverage_of_each_region_is_in_a_table_of_its_own(write) -> None:
    table = table_of(write(), "coverage_bold")
    assert table["coverage"].tolist() == [1, 1, 0]
    assert table["voxels"].tolist() == [300, 300, 400]
    assert table["hemisphere"].tolist() == ["L", "R", "R"]
    assert table["network"].isna().all()


def test_a_series_that_cannot_be_denoised_is_not_written_and_the_coverage_says_why(write) -> None:
    files = write("simple", figures=True)
    assert files.keys() == COVERAGE
    (warning,) = sidecar_of(files, "coverage_bold")["Warnings"]
    assert "not denoised by the strategy simple" in warning


@pytest.mark.parametrize("denoise", [None, "simple"])
def test_an_atlas_outside_the_field_of_view_has_no_series_and_the_coverage_says_why(write, atlas, denoise) -> None:
    labels = np.zeros(MODEL_GRID_SHAPE, np.int16)
    labels[60:64, 30:40, 30:40] = 1
    save_image(atlas.path, labels, MODEL_GRID_AFFINE, space_code=4)
    files = write(denoise, figures=True)
    assert files.keys() == COVERAGE
    (warning,) = sidecar_of(files, "coverage_bold")["Warnings"]
    assert warning == f"{STEM}_bold.nii.gz: no region of my-3 has data in at least half of its voxels."


def test_the_sidecar_says_how_the_series_was_denoised(write, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_some(found, run, strategy, scratch):
        return replace(found, values=found.values[5:], volumes=found.volumes[5:], confounds=("csf",))

    monkeypatch.setattr(regions, "denoise_regions", keep_some)
    sidecar = sidecar_of(write("scrubbing"), "timeseries")
    assert (sidecar["Denoised"], sidecar["DenoisingStrategy"], sidecar["ConfoundColumns"]) == (
        True,
        "scrubbing",
        ["csf"],
    )
    assert sidecar["VolumesLeftOut"] == list(range(7))
    assert sidecar["VolumesLeftOutDescription"] == SCRUBBED
    assert sidecar["DenoisingSoftware"].startswith("nilearn ")
    assert f"bids::sub-01/ses-a/func/{STEM}_desc-confounds_timeseries.tsv" in sidecar["Sources"]


def test_rows_that_are_not_equally_spaced_are_said_to_be_so() -> None:
    run = SimpleNamespace(n_volumes=9)
    assert describe_left_out(np.array([0, 1, 5]), run, "scrubbing") == SCRUBBED + GAPS
    assert describe_left_out(np.array([0, 8]), run, "scrubbing") == SCRUBBED
    assert describe_left_out(np.array([], int), run, "scrubbing") == NONE_LEFT_OUT
    assert describe_left_out(np.array([0]), run, "simple") == DUMMIES_LEFT_OUT


def test_a_run_without_dummy_volumes_leaves_none_out(write) -> None:
    sidecar = sidecar_of(write(n_dummy=0, n_volumes=N_VOLUMES - N_DUMMY), "timeseries")
    assert sidecar["VolumesLeftOut"] == []
    assert sidecar["VolumesLeftOutDescription"] == NONE_LEFT_OUT


def test_the_figure_has_the_number_of_regions_and_volumes(write) -> None:
    files = write(figures=True)
    figure = files[f"{STEM}_desc-my3connectivity_bold.svg"].read_text()
    assert "my-3: 2 of 3 regions, 38 volumes, not denoised" in figure
    assert ">left<" in figure
    assert ">right<" in figure


def test_a_series_that_another_pipeline_denoised_is_not_called_plain(write) -> None:
    files = write(
        figures=True, origin=Origin("XCP-D 0.10", "identical", start_time=0.5, denoised=True), start_time=None
    )
    for ending in ("timeseries", "relmat"):
        assert sidecar_of(files, ending)["Denoised"] is True
    sidecar = sidecar_of(files, "timeseries")
    assert sidecar["DenoisingSoftware"] == "XCP-D 0.10"
    assert "DenoisingStrategy" not in sidecar
    assert sidecar["StartTime"] == N_DUMMY * TR + 0.5
    assert "38 volumes, denoised" in files[f"{STEM}_desc-my3connectivity_bold.svg"].read_text()


def test_one_region_has_tables_and_no_figure_of_its_correlation_with_itself(write, atlas) -> None:
    labels = np.zeros(MODEL_GRID_SHAPE, np.int16)
    labels[30:33, 30:40, 30:40] = 1
    save_image(atlas.path, labels, MODEL_GRID_AFFINE, space_code=4)
    files = write(figures=True)
    assert files.keys() == FILES
    assert table_of(files, "relmat")["Area_L"].tolist() == [1]
