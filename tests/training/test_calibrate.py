"""Calibration of an adapter with the scans of a site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_app.adapters.file import AdaptedModel, AdapterCard, load_adapter
from bids_app.adapters.predict import Prediction, encode_run
from bids_app.cli.train import main
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.errors import BadDataError
from bids_app.model.api import load_model
from bids_app.outputs.reliability import describe_uncertainty
from bids_app.training.adapt import LabelledScans
from bids_app.training.calibrate import check_classes, fit_calibration, people_of, predict_scans, summarise
from bids_app.training.data.store import ClipStore
from bids_app.training.head import compute_embeddings
from tests.helpers.models import save_random_encoder

SIZE = 6
"""Edge of the cube used as the brain, voxels."""


def simulate_series(amplitude: float, seed: int) -> GridSeries:
    """Simulate noise in a cube; one half is brighter by an amplitude."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[45 : 45 + SIZE, 45 : 45 + SIZE, 45 : 45 + SIZE] = True
    values = rng.normal(1000, 20, (20, SIZE**3)).astype(np.float32)
    values[:, np.argwhere(mask)[:, 0] >= 45 + SIZE // 2] += np.float32(amplitude)
    return GridSeries(values, mask, tr=0.8)


@pytest.fixture
def encoder(tmp_path, tiny_config) -> Path:
    return save_random_encoder(tmp_path / "tiny.safetensors", tiny_config)


@pytest.fixture
def site(tmp_path) -> Callable[..., Path]:
    """Return a function that simulates a site: scans whose amplitude depends on age, and participants.tsv."""

    def make(name: str, participants: int, seed: int) -> Path:
        store = ClipStore(tmp_path / name / "store", "global")
        rng = np.random.default_rng(seed)
        rows = []
        for participant in range(participants):
            label = f"{name}{participant:03d}"
            age = rng.uniform(20, 80)
            signal_age = age + rng.normal(0, 8)
            store.add(f"sub-{label}_task-rest", simulate_series(4 * (signal_age - 50), int(rng.integers(2**31))), label)
            rows.append(
                f"sub-{label}\t{age:.2f}\t{'F' if participant % 2 else 'M'}\t{'old' if age > 50 else 'young'}\n"
            )
        (tmp_path / name / "store" / "participants.tsv").write_text("participant_id\tage\tsex\tera\n" + "".join(rows))
        return store.folder

    return make


def run(*arguments: object) -> int:
    return main([*(str(argument) for argument in arguments), "--batch-size", "4"])


COMMON = ("--normalisation", "global", "--strategy", "linear")


@pytest.mark.slow
def test_calibrated_intervals_have_the_stated_coverage(site, encoder, tmp_path, capsys) -> None:
    model, adapter, output = load_model(encoder), tmp_path / "age.safetensors", tmp_path / "calibrated.safetensors"
    there, here, fresh = site("there", 20, 1), site("here", 40, 2), site("fresh", 24, 3)
    target = ("--target", "participants.tsv:age")
    assert run("adapt", there, "--model", encoder, *target, "--output", adapter, "--validation", 0, *COMMON) == 0
    assert run("calibrate", adapter, here, "--model", encoder, *target, "--output", output, "--source", "site H") == 0
    assert "in 90% of scans" in capsys.readouterr().out

    plain, calibrated = load_adapter(adapter), load_adapter(output)
    assert calibrated.card.calibration["n_scans"] == 40
    assert torch.equal(calibrated.head["head.weight"], plain.head["head.weight"])
    assert plain.domain is not None
    assert plain.card.ranges["age"][0] > 19
    assert plain.card.cohort["sexes"] == {"F": 10, "M": 10}

    scans, adapted = tuple(ClipStore(fresh)), AdaptedModel(model, calibrated)
    predicted = predict_scans(model, adapted, scans, 4)
    truth = dict(line.split("\t")[:2] for line in (fresh / "participants.tsv").read_text().splitlines()[1:])
    predictions = [Prediction(calibrated.card, row[None], np.zeros(1), 16.0) for row in predicted]
    ends = [describe_uncertainty(prediction).interval for prediction in predictions]
    ages = [float(truth[f"sub-{scan.participant}"]) for scan in scans]
    inside = [low <= age <= high for (low, high), age in zip(ends, ages, strict=True)]
    assert np.mean(inside) >= 0.75  # 24 new scans, 40 for calibration: exceeded in 98 % of repetitions

    values, places = scans[0].rows()
    mask = np.zeros(int(np.prod(MODEL_GRID_SHAPE)), bool)
    mask[places] = True
    series = GridSeries(1000 + 50 * values, mask.reshape(MODEL_GRID_SHAPE), 0.8)  # a change of unit has no effect
    _, (prediction,) = encode_run(model, [adapted], ClipReader(series), ())
    assert prediction.values[0] == pytest.approx(predicted[0, 0], rel=0.02)
    embeddings, _ = compute_embeddings(model, scans, 4)
    distances = [plain.domain.measure(row) for row in embeddings.numpy()]
    assert prediction.distances["embedding"].value == pytest.approx(distances[0].value, rel=0.1)
    assert (
        np.mean([distance.is_far for distance in distances]) < 0.21
    )  # 1 in 21 is expected; below in 99.5 % of repeats
    assert describe_uncertainty(prediction).source == "site H"


def test_training_participants_are_excluded(site, encoder, tmp_path, capsys) -> None:
    data, adapter = site("one", 15, 1), tmp_path / "era.safetensors"
    target, output = ("--target", "participants.tsv:era"), ("--output", tmp_path / "c.safetensors")
    assert run("adapt", data, "--model", encoder, *target, "--output", adapter, "--validation", 0.4, *COMMON) == 0
    capsys.readouterr()
    assert run("calibrate", adapter, data, "--model", encoder, *target, *output) == 0
    assert "Excluded 9 participants of the training set (era.split.tsv)" in capsys.readouterr().out
    calibration = load_adapter(tmp_path / "c.safetensors").card.calibration
    numbers = (calibration["n_scans"], calibration["n_participants"], calibration["method"])
    assert numbers == (6, 6, "temperature")
    split = tmp_path / "all.json"
    split.write_text(json.dumps({"training": [f"one{i:03d}" for i in range(15)]}))
    assert run("calibrate", adapter, data, "--model", encoder, *target, *output, "--split", split) == 18
    assert run("calibrate", adapter, data, "--model", encoder, *target, *output, "--other-people") == 0
    (tmp_path / "era.split.tsv").unlink()
    assert run("calibrate", adapter, data, "--model", encoder, *target, *output) == 0
    assert "training set of era is unknown" in capsys.readouterr().out


def test_sites_are_part_of_a_calibration_only_if_all_are_known() -> None:
    scans = tuple(SimpleNamespace(participant=label) for label in ("1", "1", "2@other"))
    examples = LabelledScans(scans, ("1", "2", "3"))
    rows = {"1": {"site": "A"}, "2@other": {"site": "n/a", "site_id": "B"}}
    people = people_of(examples, rows)
    assert (people.participants, people.sites) == (["1", "1", "2@other"], ["A", "A", "B"])
    assert people_of(examples, {"1": {"site": "A"}}).sites == ()
    card = AdapterCard("age", "regression", "age", "0" * 64, "global", unit="years")
    made = fit_calibration(card, np.zeros((3, 1)), examples, people, "none", "here")
    assert (made.n_participants, made.sites) == (2, {"A": 1, "B": 1})
    assert summarise(made, card).startswith("Calibrated on 3 scans of 2 participants. No coverage is promised")


def test_values_that_the_adapter_does_not_predict_are_an_error_that_names_the_column_given(capsys) -> None:
    card = AdapterCard("sex", "classification", "sex", "0" * 64, "global", labels=("f", "m"))
    with pytest.raises(
        BadDataError, match=r"participants.tsv:age: the adapter sex has no class 20, 30; .* f, m"
    ) as error:
        check_classes(card, ["20", "30"], "participants.tsv:age")
    assert "column of sex" in error.value.hint
    check_classes(card, ["f", "m"], "participants.tsv:sex")
    assert capsys.readouterr().out == ""
    check_classes(card, ["f", "f"], "participants.tsv:sex")
    assert capsys.readouterr().out.startswith("Warning: no scan has the class m")


def test_the_scans_of_a_site_can_become_the_reference(site, encoder, tmp_path, capsys) -> None:
    there, here = site("there", 8, 1), site("here", 12, 2)
    adapter, output = tmp_path / "age.safetensors", tmp_path / "own.safetensors"
    target = ("--target", "participants.tsv:age", "--task", "regression")
    assert run("adapt", there, "--model", encoder, *target, "--output", adapter, "--validation", 0, *COMMON) == 0
    assert "8 participants are too few" in capsys.readouterr().out
    assert load_adapter(adapter).domain is None
    calibrating = ("--model", encoder, *target[:2], "--output", output, "--reference")
    assert run("calibrate", adapter, here, *calibrating) == 0
    calibrated = load_adapter(output)
    assert calibrated.domain is not None
    assert calibrated.domain.participants == 12
    assert calibrated.card.cohort["participants"] == 8


def test_invalid_calibrations_raise(site, encoder, tmp_path, capsys) -> None:
    data, adapter = site("one", 12, 1), tmp_path / "age.safetensors"
    target, output = ("--target", "participants.tsv:age"), ("--output", tmp_path / "c.safetensors")
    assert run("adapt", data, "--model", encoder, *target, "--output", adapter, "--validation", 0, *COMMON) == 0
    calibrating = ("calibrate", adapter, data, "--model", encoder, *output, "--other-people")
    assert run(*calibrating, *target, "--method", "temperature") == 64
    assert "requires a classification" in capsys.readouterr().err
    assert run(*calibrating, "--target", "participants.tsv:sex") == 65
    assert (
        'Column "sex" has values that are not finite numbers: "M" in the row of sub-one000' in capsys.readouterr().err
    )
    vectors = tmp_path / "who.safetensors"
    naming = ("--target", "scan:participant", "--task", "embedding", "--dimensions", 4)
    assert run("adapt", data, "--model", encoder, *naming, "--output", vectors, "--validation", 0, *COMMON) == 0
    assert run("calibrate", vectors, data, "--model", encoder, *output, "--target", "scan:participant") == 64


def test_a_diagnosis_is_marked_or_suspected(site, encoder, tmp_path, capsys) -> None:
    data = site("one", 12, 1)
    table = data / "participants.tsv"
    table.write_text(table.read_text().replace("\tera\n", "\tdiagnosis\n"))
    target = ("--target", "participants.tsv:diagnosis", "--model", encoder, "--validation", 0, *COMMON)
    for flags, marked in (((), False), (("--diagnosis",), True)):
        adapter = tmp_path / f"{marked}.safetensors"
        assert run("adapt", data, *target, "--output", adapter, *flags) == 0
        assert ("may be a diagnosis" in capsys.readouterr().out) is not marked
        assert load_adapter(adapter).card.research_only is marked


def test_one_adapter_has_heads_for_both_normalisations(write_derivative, encoder, tmp_path, capsys) -> None:
    data = tmp_path / "derivatives"
    for person in range(2):
        write_derivative(data, f"{person}", "MNI152NLin6Asym", side=1 if person % 2 else -1)
    rows = "".join(f"sub-{person}\t{'right' if person % 2 else 'left'}\n" for person in range(2))
    (data / "participants.tsv").write_text("participant_id\tside\n" + rows)
    adapter = tmp_path / "side.safetensors"
    target = ("--target", "participants.tsv:side", "--model", encoder, "--normalisation", "both")
    linear = ("--strategy", "linear", "--validation", 0)
    assert run("adapt", data, *target, "--output", adapter, *linear) == 0
    calibrated = load_adapter(adapter)
    assert (calibrated.card.normalisation, calibrated.card.twin["normalisation"]) == ("voxel", "global")
    assert calibrated.twin["head.weight"].shape == calibrated.head["head.weight"].shape
    assert not torch.equal(calibrated.twin["head.weight"], calibrated.head["head.weight"])
    low, high = calibrated.card.ranges["tr"]  # of the header, in single precision
    assert low <= 0.8 <= high <= 0.8001
    assert run("adapt", data, *target, "--output", adapter, "--strategy", "ln") == 64
    assert "requires --strategy linear" in capsys.readouterr().err
