"""Evaluation of an existing adapter on scans of other participants, by file and by reference to the hub."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app.adapters.file import AdapterCard, load_adapter
from bids_app.cli.train import main
from bids_app.clips import MODEL_GRID_SHAPE, GridSeries
from bids_app.errors import BadDataError
from bids_app.model.encoder import EncoderConfig
from bids_app.training.adapt import LabelledScans
from bids_app.training.data.store import ClipStore
from bids_app.training.external import as_metrics, measure, summary, task_of
from tests.helpers.hub import serve_hub
from tests.helpers.models import save_random_encoder

TINY = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=8, depths=(1, 1))
SIDE = ("--target", "scan:side")
SEX = AdapterCard("sex", "classification", "sex", "0" * 64, "global", labels=("f", "m"))
AGE = AdapterCard("age", "regression", "age", "0" * 64, "global", value_mean=50.0, value_std=10.0)


def simulate_series(amplitude: float, seed: int) -> GridSeries:
    """Simulate noise in a cube, one half of which is brighter."""
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[45:51, 45:51, 45:51] = True
    values = np.random.default_rng(seed).normal(1000, 20, (20, 216)).astype(np.float32)
    values[:, np.argwhere(mask)[:, 0] >= 48] += np.float32(amplitude)
    return GridSeries(values, mask, tr=0.8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return save_random_encoder(tmp_path_factory.mktemp("encoder") / "tiny.safetensors", TINY)


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory) -> tuple[Path, Path]:
    """A store of 12 participants with two scans each, and an adapter that was trained on 8 of them."""
    folder = tmp_path_factory.mktemp("trained")
    store, adapter = ClipStore(folder / "store", "global"), folder / "side.safetensors"
    for k in range(12):
        for side, amplitude in (("left", -80), ("right", 80)):
            series = simulate_series(amplitude, 2 * k + (amplitude > 0))
            store.add(f"sub-{k:02d}_task-{side}", series, f"{k:02d}", labels={"side": side})
    options = ("--model", encoder, *SIDE, "--strategy", "linear", "--normalisation", "global", "--validation", 0.34)
    assert run("adapt", store.folder, *options, "--output", adapter) == 0
    return store.folder, adapter


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def scans(participants: list[str], values: list[str]) -> LabelledScans:
    return LabelledScans(tuple(SimpleNamespace(participant=label) for label in participants), tuple(values))


def test_an_adapter_is_evaluated_on_participants_that_are_not_in_its_training_set(trained, encoder, tmp_path, capsys):
    data, adapter = trained
    out = tmp_path / "report"
    assert run("evaluate", data, *SIDE, "--adapter", adapter, "--model", encoder, "--output", out) == 0
    told = capsys.readouterr().out
    assert "Excluded 8 participants of the training set" in told
    assert "8 scans of 4 participants, who are not in the training set" in told
    assert "balanced accuracy is above chance (0.500)" in told
    assert "nothing was trained" in (out / "report.md").read_text()
    rows = list(csv.DictReader((out / "answers.tsv").open(), delimiter="\t"))
    assert len(rows) == 8
    correct = [(float(row["p_left"]) > 0.5) == (row["true"] == "left") for row in rows]
    card = load_adapter(out / "side.safetensors").card
    assert card.metrics["evaluation on store"]["accuracy"] == pytest.approx(np.mean(correct), abs=1e-4)
    assert card.metrics["evaluation on store"]["participants"] == 4
    assert "validation" in card.metrics


def test_an_adapter_of_the_hub_is_evaluated_and_calibrated(trained, encoder, tmp_path, monkeypatch, capsys):
    from bids_app.cli.models import main as models

    data, adapter = trained
    reference = "hf:lab/side@main:side.safetensors"
    common = ("--model", encoder, *SIDE, "--other-people")
    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("lab/side", {"side.safetensors": adapter.read_bytes()})
        assert run("evaluate", data, "--adapter", reference, *common, "--output", tmp_path / "r") == 66
        assert f"neurostorm-models fetch {reference}" in capsys.readouterr().err
        assert hub.requests == []
        assert models(["fetch", reference]) == 0
    assert run("evaluate", data, "--adapter", reference, *common, "--output", tmp_path / "r") == 0
    assert run("calibrate", reference, data, *common, "--output", tmp_path / "c.safetensors") == 0
    assert load_adapter(tmp_path / "c.safetensors").card.calibration["n_scans"] == 24


def test_labels_that_an_adapter_does_not_know_are_named(trained, encoder, capsys, tmp_path):
    data, adapter = trained
    options = ("--adapter", adapter, "--model", encoder, "--other-people", "--output", tmp_path / "r")
    assert run("evaluate", data, "--target", "scan:participant", *options) == 65
    assert "None of the labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--adapter", "x.safetensors", "--folds", 3), "--folds"),
        (("--adapter", "x.safetensors", "--strategy", "full"), "--strategy"),
        (("--other-people",), "--other-people"),
        (("--split", "x.tsv", "--folds", 3), "--folds"),
    ],
)
def test_options_without_effect_are_refused(options, named, capsys, tmp_path):
    assert run("evaluate", tmp_path, *SIDE, *options) == 64
    assert f"{named} has no effect" in capsys.readouterr().err


def test_intervals_count_participants_and_not_scans():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(20) < 0.7, 5)  # all scans of a participant are right, or none
    truth = np.tile(["f", "m"], 50)
    p_m = np.where(right == (truth == "m"), 0.9, 0.1)
    predictions = np.stack([1 - p_m, p_m], axis=1)
    people = [str(k // 5) for k in range(100)]
    found = measure(task_of(SEX), predictions, scans(people, list(truth)))
    single = measure(task_of(SEX), predictions, scans([str(k) for k in range(100)], list(truth)))
    assert found.values["accuracy"] == pytest.approx(right.mean())

    def width(evaluation):
        return np.subtract(*reversed(evaluation.intervals["accuracy"]))

    assert width(found) > 1.7 * width(single)  # about the square root of 5
    assert (found.scans, found.participants) == (100, 20)


def test_a_regression_is_compared_in_its_unit():
    truth = np.linspace(20, 80, 13)
    evaluation = measure(task_of(AGE), (truth + 2)[:, None], scans([str(k) for k in range(13)], [*map(str, truth)]))
    assert evaluation.values["mae"] == pytest.approx(2)
    assert evaluation.values["r"] == pytest.approx(1)
    assert as_metrics(evaluation)["participants"] == 13


def test_chance_is_not_called_exceeded_if_the_interval_includes_it():
    truth = ["f", "m"] * 10
    predictions = np.random.default_rng(3).dirichlet([1, 1], 20)
    found = measure(task_of(SEX), predictions, scans([str(k) for k in range(20)], truth))
    assert "not above chance" in summary(task_of(SEX), found)[-1]


def test_an_embedding_is_compared_by_retrieval_without_finding_itself():
    card = AdapterCard("who", "embedding", "participant", "0" * 64, "global", dimensions=3)
    vectors = np.repeat(np.eye(3), 2, axis=0)
    found = measure(task_of(card), vectors, scans([*"aabbcc"], [*"aabbcc"]))
    assert found.values["rank1"] == 1
    wrong = measure(task_of(card), vectors, scans([*"abcabc"], [*"abcabc"]))
    assert wrong.intervals["rank1"] == (0, 0)


def test_too_few_participants_and_values_that_are_no_numbers_are_refused():
    with pytest.raises(BadDataError, match="Only 2 participants"):
        measure(task_of(AGE), np.zeros((2, 1)), scans(["1", "2"], ["1", "2"]))
    with pytest.raises(BadDataError, match="non-numeric"):
        measure(task_of(AGE), np.zeros((3, 1)), scans(["1", "2", "3"], ["1", "2", "old"]))
