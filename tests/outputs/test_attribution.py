"""Files of an attribution: table, map, figures, and a sidecar that describes the control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app.adapters.attribution import Attribution, RunAttribution
from bids_app.adapters.attribution_control import PERMUTED, RANDOM, Control
from bids_app.adapters.predict import ModelFacts
from bids_app.catalog.atlases import Atlas
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE
from bids_app.clips.series import GridSeriesWriter
from bids_app.outputs.attribution import CONTROL_TITLES, attribution_outputs, describe_attribution
from bids_app.outputs.schema import AttributionSidecar
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.preprocessed import OnGrid
from bids_app.settings import ATTRIBUTION_CONTROLS

FACTS = ModelFacts("demo", "0" * 64, True, "cpu", "native", 1)
IMAGE = np.zeros(MODEL_GRID_SHAPE, np.float32)


@pytest.fixture
def found() -> Attribution:
    return Attribution(
        "occlusion", "log-odds", "rest", np.arange(1, 5), ("a", "b", "c", "d"), np.array([9, 9, 9, 9]),
        np.array([1, 0, 2, 0]), np.array([[1.0, -3.0, 2.0, 0.0], [1.0, -4.0, 2.0, 0.0]]), (0, 5), IMAGE,
    )  # fmt: skip


def describe(found: Attribution) -> AttributionSidecar:
    return describe_attribution(found, Atlas("x", Path("x.nii.gz"), {}), FACTS)


def test_regions_without_a_token_are_named_in_the_sidecar(found) -> None:
    sidecar = describe(found)
    assert sidecar.regions_without_token == 2
    assert sidecar.unresolved_regions == ("b", "d")
    assert sidecar.control is None
    assert sidecar.columns.keys() == {"attribution", "std", "voxels", "tokens"}


def test_the_control_and_its_similarity_are_in_the_sidecar(found) -> None:
    heads = np.random.default_rng(0).standard_normal((20, 4))
    sidecar = describe(replace(found, control=Control(PERMUTED, -found.mean, IMAGE, heads)))
    assert (sidecar.control, sidecar.control_heads) == ("permuted", 20)
    assert "covariance" in sidecar.control_in_words
    assert sidecar.control_correlation == pytest.approx(-1)
    assert sidecar.control_correlation_of_sizes == pytest.approx(1)
    assert {"control", "z", "p"} <= sidecar.columns.keys()


def test_table_map_and_figures_are_written(found, tmp_path) -> None:
    source = tmp_path / "raw" / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz"
    image = IMAGE + np.pad(np.ones((20, 20, 20), np.float32), ((30, 46), (30, 46), (30, 46)))
    atlas = save_image(tmp_path / "x.nii.gz", 2 * image.astype(np.int16), MODEL_GRID_AFFINE)
    control = Control(RANDOM, found.mean, image, np.empty((0, 4)))
    attributed = RunAttribution(Atlas("x", atlas, {}), {"state": replace(found, image=image, control=control)})
    encoded, run, grid = SimpleNamespace(facts=FACTS), SimpleNamespace(source=source), tmp_path / "grid"
    with GridSeriesWriter(grid, image > 0, 2.0, 3) as writer:
        writer.append(np.full((3, 8000), 500.0))
    entities = {"sub": "01", "task": "rest"}
    tree = attribution_outputs(
        attributed, encoded, run, OnGrid(grid, 1.0), entities, {"raw": tmp_path / "raw"}, tmp_path
    )
    files = {path.name.removeprefix("sub-01_task-rest_"): path for path in tree.rglob("*") if path.is_file()}
    table = "seg-x_desc-state_attribution"
    image_name = "space-MNI152NLin6Asym_seg-x_desc-state_boldmap"
    assert files.keys() == {
        f"{table}.tsv", f"{table}.json", f"{image_name}.nii.gz", f"{image_name}.json", "desc-stateattribution_bold.png",
        "desc-statecontributions_bold.svg", "desc-stateviewer_bold.js",
    }  # fmt: skip
    assert '"at":[18.0,-36.0,0.0]' in files["desc-stateviewer_bold.js"].read_text()  # the centre of region b, label 2
    assert files[f"{table}.tsv"].read_text().split("\n")[0].split("\t")[-1] == "control"


def test_every_control_of_the_command_has_a_title() -> None:
    assert set(CONTROL_TITLES) == set(ATTRIBUTION_CONTROLS) == {RANDOM, PERMUTED}
