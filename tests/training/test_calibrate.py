"""From a site's own scans to an adapter that says how far its answers can be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.adapters.file import AdaptedModel, load_adapter
from bids_app.adapters.predict import Prediction, encode_run
from bids_app.cli.train import main
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.model.api import load_model
from bids_app.outputs.reliability import describe_uncertainty
from bids_app.training.calibrate import answers_of
from bids_app.training.data.store import ClipStore
from bids_app.training.head import embeddings_of
from tests.helpers.models import save_random_encoder

SIZE = 6
"""Edge of the cube that stands for the brain, voxels."""


def invented(amplitude: float, seed: int) -> GridSeries:
    """Noise in a cube whose one half is brighter by an amplitude."""
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
    """A function that simulates a site: a store of scans, with ages of which the scans tell something, and sides."""

    def make(name: str, participants: int, seed: int) -> Path:
        store = ClipStore(tmp_path / name / "store", "global")
        rng = np.random.default_rng(seed)
        rows = []
        for person in range(participants):
            label = f"{name}{person:03d}"
            age = rng.uniform(20, 80)
            seen = age + rng.normal(0, 8)
            store.add(f"sub-{label}_task-rest", invented(4 * (seen - 50), int(rng.integers(2**31))), label)
            rows.append(f"sub-{label}\t{age:.2f}\t{'F' if person % 2 else 'M'}\t{'old' if age > 50 else 'young'}\n")
        (tmp_path / name / "store" / "participants.tsv").write_text("participant_id\tage\tsex\tera\n" + "".join(rows))
        return store.folder

    return make


def run(*words: object) -> int:
    return main([*(str(word) for word in words), "--batch-size", "4"])


COMMON = ("--normalisation", "global", "--strategy", "linear")


def test_a_calibrated_adapter_promises_what_it_keeps(site, encoder, tmp_path, capsys) -> None:
    model, adapter, output = load_model(encoder), tmp_path / "age.safetensors", tmp_path / "calibrated.safetensors"
    there, here, fresh = site("there", 20, 1), site("here", 40, 2), site("fresh", 24, 3)
    asking = ("--target", "participants.tsv:age")
    assert run("adapt", there, "--model", encoder, *asking, "--output", adapter, "--validation", 0, *COMMON) == 0
    assert run("calibrate", adapter, here, "--model", encoder, *asking, "--output", output, "--source", "site H") == 0
    assert "in 90% of scans" in capsys.readouterr().out

    plain, made = load_adapter(adapter), load_adapter(output)
    assert made.card.calibration["n_scans"] == 40
    assert torch.equal(made.head["head.weight"], plain.head["head.weight"])
    assert plain.domain is not None
    assert plain.card.ranges["age"][0] > 19
    assert plain.card.cohort["sexes"] == {"F": 10, "M": 10}

    scans, adapted = tuple(ClipStore(fresh)), AdaptedModel(model, made)
    answers = answers_of(model, adapted, scans, 4)
    truth = dict(line.split("\t")[:2] for line in (fresh / "participants.tsv").read_text().splitlines()[1:])
    predictions = [Prediction(made.card, answer[None], np.zeros(1), 16.0) for answer in answers]
    ends = [describe_uncertainty(prediction).interval for prediction in predictions]
    ages = [float(truth[f"sub-{scan.participant}"]) for scan in scans]
    inside = [low <= age <= high for (low, high), age in zip(ends, ages, strict=True)]
    assert np.mean(inside) >= 0.75  # of 24 scans by 40: 98 % of such draws are above

    values, places = scans[0].rows()
    mask = np.zeros(int(np.prod(MODEL_GRID_SHAPE)), bool)
    mask[places] = True
    series = GridSeries(1000 + 50 * values, mask.reshape(MODEL_GRID_SHAPE), 0.8)  # a change of unit changes nothing
    _, (prediction,) = encode_run(model, [adapted], ClipReader(series), ())
    assert prediction.values[0] == pytest.approx(answers[0, 0], rel=0.02)
    embeddings, _ = embeddings_of(model, scans, 4)
    distances = [plain.domain.measure(row) for row in embeddings.numpy()]
    assert prediction.distance.value == pytest.approx(distances[0].value, rel=0.1)
    assert np.mean([distance.is_far for distance in distances]) < 0.21  # 1 in 21 is stated; below in 99.5 % of draws
    assert describe_uncertainty(prediction).source == "site H"


def test_who_trained_is_left_out_and_nobody_left_is_an_error(site, encoder, tmp_path, capsys) -> None:
    data, adapter = site("one", 30, 1), tmp_path / "era.safetensors"
    asking, output = ("--target", "participants.tsv:era"), ("--output", tmp_path / "c.safetensors")
    assert run("adapt", data, "--model", encoder, *asking, "--output", adapter, "--validation", 0.4, *COMMON) == 0
    capsys.readouterr()
    assert run("calibrate", adapter, data, "--model", encoder, *asking, *output) == 0
    assert "18 participants trained the adapter by era.split.tsv" in capsys.readouterr().out
    calibration = load_adapter(tmp_path / "c.safetensors").card.calibration
    assert (calibration["n_scans"], calibration["method"]) == (12, "temperature")
    split = tmp_path / "all.json"
    split.write_text(json.dumps({"training": [f"one{i:03d}" for i in range(30)]}))
    assert run("calibrate", adapter, data, "--model", encoder, *asking, *output, "--split", split) == 18
    assert run("calibrate", adapter, data, "--model", encoder, *asking, *output, "--other-people") == 0
    (tmp_path / "era.split.tsv").unlink()
    assert run("calibrate", adapter, data, "--model", encoder, *asking, *output) == 0
    assert "not known who trained" in capsys.readouterr().out


def test_a_sites_own_scans_can_become_the_reference(site, encoder, tmp_path, capsys) -> None:
    there, here = site("there", 8, 1), site("here", 12, 2)
    adapter, output = tmp_path / "age.safetensors", tmp_path / "own.safetensors"
    asking = ("--target", "participants.tsv:age", "--task", "regression")
    assert run("adapt", there, "--model", encoder, *asking, "--output", adapter, "--validation", 0, *COMMON) == 0
    assert "8 participants are too few" in capsys.readouterr().out
    assert load_adapter(adapter).domain is None
    calibrating = ("--model", encoder, *asking[:2], "--output", output, "--reference")
    assert run("calibrate", adapter, here, *calibrating) == 0
    made = load_adapter(output)
    assert made.domain is not None
    assert made.domain.participants == 12
    assert made.card.cohort["participants"] == 8


def test_what_cannot_be_calibrated_says_so(site, encoder, tmp_path, capsys) -> None:
    data, adapter = site("one", 12, 1), tmp_path / "age.safetensors"
    asking, output = ("--target", "participants.tsv:age"), ("--output", tmp_path / "c.safetensors")
    assert run("adapt", data, "--model", encoder, *asking, "--output", adapter, "--validation", 0, *COMMON) == 0
    calibrating = ("calibrate", adapter, data, "--model", encoder, *output, "--other-people")
    assert run(*calibrating, *asking, "--method", "isotonic") == 64
    assert "is for probabilities" in capsys.readouterr().err
    assert run(*calibrating, "--target", "participants.tsv:sex") == 65
    assert "no numbers" in capsys.readouterr().err
    vectors = tmp_path / "who.safetensors"
    naming = ("--target", "scan:participant", "--task", "embedding", "--dimensions", 4)
    assert run("adapt", data, "--model", encoder, *naming, "--output", vectors, "--validation", 0, *COMMON) == 0
    assert run("calibrate", vectors, data, "--model", encoder, *output, "--target", "scan:participant") == 64


def test_a_diagnosis_is_marked_or_asked_about(site, encoder, tmp_path, capsys) -> None:
    data = site("one", 12, 1)
    table = data / "participants.tsv"
    table.write_text(table.read_text().replace("\tera\n", "\tdiagnosis\n"))
    asking = ("--target", "participants.tsv:diagnosis", "--model", encoder, "--validation", 0, *COMMON)
    for flags, marked in (((), False), (("--diagnosis",), True)):
        adapter = tmp_path / f"{marked}.safetensors"
        assert run("adapt", data, *asking, "--output", adapter, *flags) == 0
        assert ("sounds like a diagnosis" in capsys.readouterr().out) is not marked
        assert load_adapter(adapter).card.research_only is marked


def test_heads_for_both_normalisations_stand_in_one_file(write_derivative, encoder, tmp_path, capsys) -> None:
    data = tmp_path / "derivatives"
    for person in range(2):
        write_derivative(data, f"{person}", "MNI152NLin6Asym", side=1 if person % 2 else -1)
    rows = "".join(f"sub-{person}\t{'right' if person % 2 else 'left'}\n" for person in range(2))
    (data / "participants.tsv").write_text("participant_id\tside\n" + rows)
    adapter = tmp_path / "side.safetensors"
    asking = ("--target", "participants.tsv:side", "--model", encoder, "--normalisation", "both")
    linear = ("--strategy", "linear", "--validation", 0)
    assert run("adapt", data, *asking, "--output", adapter, *linear) == 0
    made = load_adapter(adapter)
    assert (made.card.normalisation, made.card.twin["normalisation"]) == ("voxel", "global")
    assert made.twin["head.weight"].shape == made.head["head.weight"].shape
    assert not torch.equal(made.twin["head.weight"], made.head["head.weight"])
    assert made.card.ranges["tr"] == [0.8, 0.8]
    assert run("adapt", data, *asking, "--output", adapter, "--strategy", "ln") == 64
    assert "only heads" in capsys.readouterr().err
