"""Sidecars of embeddings and predictions are read back unchanged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app.adapters.calibration_fit import People, calibrate_values
from bids_app.adapters.file import AdapterCard
from bids_app.adapters.predict import Embeddings, Encoded, ModelFacts, Prediction
from bids_app.adapters.verdict import judge_scan
from bids_app.outputs.names import RunName
from bids_app.outputs.predictions import describe_verdict, model_outputs, plot_model_outputs
from bids_app.outputs.reliability import describe_embedding_halves, describe_reliability
from bids_app.outputs.schema import LEVELS, EmbeddingsSidecar, PredictionSidecar

ONSETS = 16.0 * np.arange(4)
CARD = AdapterCard("state", "classification", "state", "0" * 64, "global", ("rest", "visual"), demonstration=True)
GOOD = {"tr": 2.0, "seconds": 300.0, "coverage": 0.97}


def answers(refused: bool) -> list[Prediction]:
    rng = np.random.default_rng(0)
    calibration = calibrate_values(np.zeros(99), np.arange(99.0), People([f"{k}" for k in range(99)])).as_dict()
    age = AdapterCard("age", "regression", "age", "0" * 64, "voxel", unit="years", calibration=calibration)
    who = AdapterCard("who", "embedding", "person", "0" * 64, "voxel", dimensions=3)
    verdict = judge_scan(GOOD | {"coverage": 0.1 if refused else 0.97})
    return [
        Prediction(CARD, rng.dirichlet([2, 1], 4), ONSETS, 16.0, mean_image_only=np.array([0.6, 0.4]), verdict=verdict),
        Prediction(age, rng.normal(30, 2, (4, 1)), ONSETS, 16.0, verdict=verdict),
        Prediction(who, rng.normal(size=(4, 3)), ONSETS, 16.0, verdict=verdict),
    ]


@pytest.fixture(params=[False, True], ids=["given", "withheld"])
def encoded(request) -> Encoded:
    values = {name: np.random.default_rng(1).normal(size=(4, 5)) for name in ("global", "voxel")}
    facts = ModelFacts("demo", "0" * 64, False, "cpu", "reference", 1)
    made = answers(request.param)
    return Encoded(Embeddings(values, ONSETS, 16.0, 3.0), tuple(made), facts, made[0].verdict, {"Model": "demo"})


def write(encoded: Encoded, tmp_path: Path) -> dict[str, Path]:
    """Sidecars by their ``desc-`` label."""
    source = tmp_path / "raw" / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz"
    run = SimpleNamespace(source=source, template="MNI152NLin6Asym", slices=None, start_time=None)
    tree = model_outputs(encoded, run, {"sub": "01", "task": "rest"}, {"raw": tmp_path / "raw"}, tmp_path)
    return {path.name.split("desc-")[1].partition("_")[0]: path for path in tree.rglob("*.json")}


def test_predictions_are_read_back_with_all_fields(encoded: Encoded, tmp_path: Path) -> None:
    written = write(encoded, tmp_path)
    assert set(written) == {"demo", "state", "age", "who"}
    for prediction in encoded.predictions:
        path = written[prediction.card.name]
        read = PredictionSidecar.read(path)
        assert read.verdict == describe_verdict(prediction.verdict)
        assert read.withheld is prediction.is_refused
        assert read.reliability == (None if prediction.is_refused else describe_reliability(prediction))
        assert (read.adapter.target, read.demonstration) == (prediction.card.target, prediction.card.demonstration)
        assert read.to_json() == json.loads(path.read_text())


def test_all_columns_of_predictions_are_described(encoded: Encoded, tmp_path: Path) -> None:
    for sidecar in write(encoded, tmp_path).values():
        described = json.loads(sidecar.read_text())
        columns = sidecar.with_suffix(".tsv").read_text().partition("\n")[0].split("\t")
        named = {re.sub(r"^e\d{4}$", "eNNNN", column) for column in columns}
        assert [name for name in sorted(named) if not described.get(name, {}).get("Description")] == []


def test_embeddings_are_read_back_with_their_halves(encoded: Encoded, tmp_path: Path) -> None:
    path = write(encoded, tmp_path)["demo"]
    read = EmbeddingsSidecar.read(path)
    assert read.split_half == describe_embedding_halves(encoded.embeddings)
    assert read.sources == ("bids:raw:sub-01/func/sub-01_task-rest_bold.nii.gz",)
    assert (read.model, read.seconds_dropped, read.model_card) == ("demo", 3.0, {"Model": "demo"})
    assert {"onset", "eNNNN"} <= set(read.columns)
    assert read.to_json() == json.loads(path.read_text())


def test_embeddings_without_a_verdict_have_null(encoded: Encoded, tmp_path: Path) -> None:
    path = write(replace(encoded, verdict=None), tmp_path)["demo"]
    assert json.loads(path.read_text())["Verdict"] is None


def test_levels_of_verdicts_are_those_of_sidecars() -> None:
    from bids_app.adapters import verdict

    assert verdict.LEVELS == LEVELS


@pytest.mark.parametrize(("n_clips", "plotted"), [(1, False), (2, False), (3, True)])
def test_embeddings_of_few_clips_have_no_figure(tmp_path: Path, n_clips: int, plotted: bool) -> None:
    values = {name: np.random.default_rng(1).normal(size=(n_clips, 5)) for name in ("global", "voxel")}
    facts = ModelFacts("demo", "0" * 64, False, "cpu", "reference", 1)
    encoded = Encoded(Embeddings(values, ONSETS[:n_clips], 16.0, 3.0), (), facts, judge_scan(GOOD), {})
    names = RunName(tmp_path, {"sub": "01", "task": "rest"}, ())
    plot_model_outputs(encoded, names)
    assert names.figure("embeddings").is_file() == plotted
