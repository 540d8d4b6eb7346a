"""``neurostorm-train``: from datasets to encoders, adapters and reports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.adapters.file import AdaptedModel, load_adapter
from bids_app.adapters.predict import encode_run
from bids_app.cli.train import main
from bids_app.clips import MODEL_GRID_AFFINE, ClipReader, series_from_image
from bids_app.errors import BadDataError, NoInputError
from bids_app.model.api import load_model
from bids_app.model.checkpoint import read_checkpoint
from bids_app.outputs.ratings import Rating, store_rating
from bids_app.training.data.examples import label_scans, load_datasets, read_images
from bids_app.training.data.store import ClipStore
from bids_app.workflow.locks import Locks
from tests.helpers.models import save_random_encoder


@pytest.fixture
def encoder(tmp_path, tiny_config):
    """Write a tiny encoder and return its path."""
    return str(save_random_encoder(tmp_path / "tiny.safetensors", tiny_config))


def test_pretrain_and_adapt_write_an_encoder_and_an_adapter(make_store, tmp_path, capsys, tiny_config):
    store = make_store(2)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    encoder, adapter = tmp_path / "encoder.safetensors", tmp_path / "side.safetensors"
    common = ["--normalisation", "global", "--batch-size", "2"]
    pretraining = [
        "--config",
        str(tmp_path / "config.json"),
        "--epochs",
        "1",
        "--no-augment",
        "--validation-share",
        "0.5",
        "--checkpoint-steps",
        "1",
        "--output",
        str(encoder),
        *common,
    ]
    assert main(["pretrain", str(store.folder), *pretraining]) == 0
    adapting = ["--model", str(encoder), "--target", "scan:side", "--strategy", "linear", "--output", str(adapter)]
    assert main(["adapt", str(store.folder), *adapting, "--validation", "0.5", *common]) == 0
    assert "balanced_accuracy" in capsys.readouterr().out
    split = (tmp_path / "side.split.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[1] for line in split) == ["split", "training", "validation"]
    card = load_adapter(adapter).card
    assert (card.target, card.labels, card.strategy) == ("side", ("left", "right"), "linear")
    training = tmp_path / "encoder.training"
    assert "held_out" in (training / "log.csv").read_text()
    split = (training / "split.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[1] for line in split) == ["split", "training", "validation"]
    for name in ("best", "step-0000001"):
        assert load_model(str(training / "checkpoints" / f"{name}.safetensors"), "cpu").name == "pretrained"
    assert "Held-out loss" in (training / "summary.html").read_text()
    assert not (training / "running.json").exists()


def test_scans_that_people_rated_as_failed_are_not_trained_with(make_store, tmp_path, capsys, encoder):
    store = make_store(3)
    command = ["adapt", str(store.folder), "--model", encoder, "--target", "scan:side", "--strategy", "linear",
               "--validation", "0", "--output", str(tmp_path / "a.safetensors"), "--exclude-failed",
               "--normalisation", "global"]  # fmt: skip
    assert main(command) == 66
    assert "--exclude-failed" in capsys.readouterr().err
    store_rating(store.folder, "AB", Rating("sub-00_task-left_desc-carpet_bold", "fail"))
    assert main(command) == 0
    assert "Left out as rated as failed: 1 of 6 scans" in capsys.readouterr().out
    assert load_adapter(tmp_path / "a.safetensors").card.cohort["scans_of_each"] == {"left": 2, "right": 3}


def test_error_messages_name_the_option_or_file(make_store, tmp_path, capsys):
    store = str(make_store(1).folder)
    assert main(["pretrain", store, "--mask", "atlas", "--output", str(tmp_path / "e.safetensors")]) == 64
    assert "--atlas" in capsys.readouterr().err
    adapting = ["--model", str(tmp_path / "none.safetensors"), "--target", "scan:side", "--output", "a.safetensors"]
    assert main(["adapt", store, *adapting]) == 66
    assert "none.safetensors" in capsys.readouterr().err
    damaged = tmp_path / "parcels.nii.gz"
    damaged.write_bytes(b"no image")
    by_regions = ["--mask", "atlas", "--atlas", str(damaged), "--output", str(tmp_path / "e.safetensors")]
    assert main(["pretrain", store, *by_regions]) == 65
    assert "parcels.nii.gz" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_labels_that_cannot_be_read_are_named_before_clips_are_prepared(tmp_path, capsys, encoder):
    """Clips are not even searched for: the folder has no series."""
    data, table = tmp_path / "data", tmp_path / "labels.tsv"
    data.mkdir()
    command = [str(data), "--model", str(encoder), "--strategy", "linear", "--output", str(tmp_path / "a.safetensors")]
    table.write_text("participant_id\tsex\nsub-01\tF\n")
    for target, code, said in ((f"{table}:age", 65, "'age' is missing"), ("missing.tsv:age", 64, "missing.tsv")):
        assert main(["adapt", *command, "--target", target]) == code
        assert said in capsys.readouterr().err
    for option in ("--family-column", "--site-column"):
        assert main(["evaluate", *command, "--target", f"{table}:sex", option, f"{table}:scanner"]) == 65
        assert "scanner" in capsys.readouterr().err
    table.unlink()
    os.mkfifo(table)
    assert main(["adapt", *command, "--target", f"{table}:sex"]) == 66
    assert f"{table}: is a named pipe" in capsys.readouterr().err


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_wrong_number_of_processes_is_refused_before_anything_is_written(make_store, tmp_path, monkeypatch, capsys):
    store = make_store(1)
    pretraining = ["pretrain", str(store.folder), "--output", str(tmp_path / "e.safetensors")]
    before = contents(tmp_path)
    assert main([*pretraining, "--nodes", "2"]) == 64
    assert "torchrun or srun" in capsys.readouterr().err
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main([*pretraining, "--devices", "1"]) == 64
    assert "--devices 1 does not match torchrun" in capsys.readouterr().err
    assert (
        main(["adapt", str(store.folder), "--target", "scan:side", "--output", str(tmp_path / "a.safetensors")]) == 64
    )
    assert "adapt runs in one process, but torchrun has started 4" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_second_launch_into_the_same_output_is_refused(make_store, tmp_path, capsys, encoder, tiny_config):
    store = make_store(2)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    pretraining = ["pretrain", "--config", str(tmp_path / "config.json")]
    adapting = ["adapt", "--model", encoder, "--target", "scan:side", "--strategy", "ln"]
    for command, name in ((pretraining, "e"), (adapting, "a")):
        output = tmp_path / f"{name}.safetensors"
        with Locks() as locks:
            locks.acquire(output.with_suffix(".training") / "running.json")
            before = contents(tmp_path)
            assert main([*command, str(store.folder), "--output", str(output), "--normalisation", "global"]) == 75
            assert "another run is training into this output (process" in capsys.readouterr().err
            assert contents(tmp_path) == before


def test_region_masking_lists_unresolved_regions(make_store, tmp_path, capsys, tiny_config):
    store = make_store(1)
    labels = np.zeros((96, 96, 96), np.int16)
    labels[:48], labels[48:, :48], labels[90, 90, 90] = 3, 5, 9
    nib.save(nib.Nifti1Image(labels, MODEL_GRID_AFFINE), tmp_path / "atlas.nii.gz")
    (tmp_path / "atlas.tsv").write_text("index\tname\n3\tfront\n5\tback\n9\tspeck\n")
    (tmp_path / "weights.tsv").write_text("index\tweight\n3\t2.5\n")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    options = [
        "--mask",
        "atlas",
        "--atlas",
        str(tmp_path / "atlas.nii.gz"),
        "--atlas-rule",
        "pure",
        "--epochs",
        "1",
        "--no-augment",
    ]
    options += ["--region-weights", str(tmp_path / "weights.tsv"), "--config", str(tmp_path / "config.json")]
    assert main(["pretrain", str(store.folder), *options, "--output", str(tmp_path / "e.safetensors")]) == 0
    output = capsys.readouterr().out
    assert "2 of 3 regions" in output
    assert "speck" in output
    table = (tmp_path / "e.training" / "regions.tsv").read_text().splitlines()
    assert table[3].split("\t") == ["9", "speck", "0.0", "False"]


@pytest.mark.parametrize("option", [["--atlas-redraw"], ["--atlas-count", "patches"]])
@pytest.mark.parametrize("mask", ["random", "window"])
def test_options_of_atlas_masks_are_refused_with_other_masks(tmp_path, capsys, mask, option):
    output = tmp_path / "e.safetensors"
    assert main(["pretrain", str(tmp_path), "--mask", mask, *option, "--output", str(output)]) == 64
    assert f"no effect with --mask {mask}" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("change", [["--recipe", "published"], ["--learning-rate", "0.002"], ["--no-strd"]])
def test_another_recipe_is_refused_before_anything_is_written(make_store, tmp_path, capsys, tiny_config, change):
    store = str(make_store(1).folder)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    output, clips = tmp_path / "e.safetensors", tmp_path / "clips"
    options = ["--config", str(tmp_path / "config.json"), "--batch-size", "2", "--no-augment", "--output", str(output)]
    assert main(["pretrain", store, *options, "--epochs", "1"]) == 0
    folder = output.with_suffix(".training")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["pretrain", store, *options, "--epochs", "2", "--store", str(clips), *change]) == 64
    assert "has another recipe" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not clips.exists()


def test_scans_are_not_compared_with_each_other_before_pre_training(make_store, tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr("bids_app.training.data.examples.find_copies", lambda _: pytest.fail("reads all scans"))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    options = ["--config", str(tmp_path / "config.json"), "--batch-size", "2", "--no-augment", "--no-strd"]
    options += ["--output", str(tmp_path / "e.safetensors"), "--epochs", "1"]
    assert main(["pretrain", str(make_store(1).folder), *options]) == 0


def test_a_run_is_not_continued_with_other_scans(make_store, invented_series, tmp_path, capsys, tiny_config):
    store = make_store(1)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    options = ["--config", str(tmp_path / "config.json"), "--batch-size", "2", "--no-augment", "--no-strd"]
    options += ["--output", str(tmp_path / "e.safetensors"), "--epochs"]
    assert main(["pretrain", str(store.folder), *options, "1"]) == 0
    other = ClipStore(tmp_path / "other", "global")
    for name in ("sub-00_task-left", "sub-00_task-other"):
        other.add(name, invented_series(0, 22, 60.0, 0), "00")
    assert main(["pretrain", str(other.folder), *options, "2"]) == 64
    assert re.search(r"scans 2 \(\w+\) instead of 2 \(\w+\)", capsys.readouterr().err)


def test_a_run_is_not_continued_with_a_scan_that_was_prepared_again(
    make_store, invented_series, tmp_path, capsys, tiny_config
):
    store = make_store(1)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    command = ["pretrain", str(store.folder), "--config", str(tmp_path / "config.json"), "--batch-size", "2"]
    command += ["--no-augment", "--no-strd", "--output", str(tmp_path / "e.safetensors"), "--epochs"]
    assert main([*command, "1"]) == 0
    store.add("sub-00_task-left", invented_series(7, 22, 60.0, -1), "00", stamp="changed")
    assert main([*command, "2"]) == 64
    assert re.search(r"scans 2 \(\w+\) instead of 2 \(\w+\)", capsys.readouterr().err)


@pytest.mark.parametrize("training", [["00", "02"], ["00", "01", "02"]])
def test_an_adapter_is_not_continued_with_other_training_participants(make_store, tmp_path, encoder, capsys, training):
    """Its metrics would be of participants that it was trained with."""
    store, split = make_store(4), tmp_path / "split.json"
    split.write_text(json.dumps({"training": ["01", "02"], "validation": ["03"]}))
    command = ["adapt", str(store.folder), "--model", encoder, "--target", "scan:side", "--strategy", "ln"]
    command += ["--normalisation", "global", "--batch-size", "4", "--epochs", "1", "--split", str(split)]
    command += ["--output", str(tmp_path / "a.safetensors")]
    assert main(command) == 0
    split.write_text(json.dumps({"training": training, "validation": ["03"]}))
    before = (tmp_path / "a.safetensors").read_bytes()
    assert main(command) == 64
    assert re.search(r"has another recipe: training 4 \(\w+\) instead of \d \(\w+\)", capsys.readouterr().err)
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_dataset_that_is_given_twice_is_refused(make_store, tmp_path, capsys, tiny_config):
    store = make_store(1).folder
    (tmp_path / "link").symlink_to(store)
    command = ["pretrain", str(store), str(tmp_path / "link"), "--output", str(tmp_path / "e.safetensors")]
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    assert main([*command, "--config", str(tmp_path / "config.json")]) == 64
    assert f"{store}: is given twice." in capsys.readouterr().err


def test_a_store_without_scans_is_named(make_store, tmp_path, capsys, tiny_config):
    stores = [str(make_store(1).folder), str(ClipStore(tmp_path / "empty", "global").folder)]
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    command = ["pretrain", *stores, "--config", str(tmp_path / "config.json"), "--batch-size", "1"]
    assert main([*command, "--output", str(tmp_path / "e.safetensors")]) == 18
    assert f"{tmp_path / 'empty'}: has no scans." in capsys.readouterr().err


@pytest.mark.parametrize("length", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_the_length_of_clips_is_that_of_the_encoder(make_store, tmp_path, capsys, tiny_config, length):
    store = make_store(2, n_vols=42)
    config = replace(tiny_config, img_size=(96, 96, 96, length))
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict()))
    encoder, adapter = tmp_path / "e.safetensors", tmp_path / "a.safetensors"
    common = [str(store.folder), "--batch-size", "4", "--epochs", "1", "--normalisation", "global"]
    pretraining = ["--config", str(tmp_path / "config.json"), "--no-augment", "--no-strd", "--output", str(encoder)]
    assert main(["pretrain", *common, *pretraining]) == 0
    adapting = ["--model", str(encoder), "--target", "scan:side", "--strategy", "ln", "--validation", "0"]
    assert main(["adapt", *common, *adapting, "--output", str(adapter)]) == 0
    scan = replace(next(iter(store)), clip_volumes=length)
    assert scan.n_clips == 42 // length
    model = load_model(encoder)
    assert AdaptedModel(model, load_adapter(adapter))(scan.clip(0)[None]).shape == (1, 1)


def test_an_encoder_of_another_grid_is_an_error_that_names_it(make_store, tmp_path, capsys, tiny_config):
    config = replace(tiny_config, img_size=(48, 48, 48, 20))
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict()))
    options = ["--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "e.safetensors")]
    assert main(["pretrain", str(make_store(1).folder), *options]) == 65
    assert "config.json: the encoder reads clips of 48 x 48 x 48 voxels" in capsys.readouterr().err


def test_a_split_file_defines_the_validation_set(make_store, tmp_path, encoder):
    store = make_store(3)
    (tmp_path / "split.json").write_text('{"training": ["00", "02"], "validation": ["01"]}')
    adapter = tmp_path / "a.safetensors"
    options = ["--model", encoder, "--target", "scan:side", "--strategy", "linear", "--normalisation", "global"]
    options += ["--split", str(tmp_path / "split.json"), "--output", str(adapter)]
    assert main(["adapt", str(store.folder), *options]) == 0
    assert load_adapter(adapter).card.cohort["participants"] == 2
    lines = (tmp_path / "a.split.tsv").read_text().splitlines()
    assert lines[1:] == ["sub-00\ttraining", "sub-01\tvalidation", "sub-02\ttraining"]


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"train": ["00", "02"], "validation": ["01"]}', "unknown set: train"), ('{"test": ["01"]}', "no set training")],
)
def test_a_split_file_with_other_sets_is_refused(make_store, tmp_path, encoder, capsys, content, words):
    (tmp_path / "split.json").write_text(content)
    options = ["--model", encoder, "--target", "scan:side", "--strategy", "linear", "--normalisation", "global"]
    options += ["--split", str(tmp_path / "split.json"), "--output", str(tmp_path / "a.safetensors")]
    assert main(["adapt", str(make_store(3).folder), *options]) == 65
    assert words in capsys.readouterr().err


def test_evaluate_writes_a_report(make_store, tmp_path, encoder, capsys):
    store = make_store(4)
    options = ["--model", encoder, "--target", "scan:side", "--strategy", "linear", "--normalisation", "global"]
    options += ["--folds", "2", "--permutations", "4", "--repeats", "2", "--output", str(tmp_path / "report")]
    assert main(["evaluate", str(store.folder), *options]) == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "functional connectivity (cubes of 24 mm)" in report
    assert "Baseline omitted: motion and confounds" in report
    assert "mean image" in capsys.readouterr().out


@pytest.fixture(scope="module")
def eight_people(tmp_path_factory, invented_series, tiny_config):
    """A store of eight participants with two scans each, and a tiny encoder; embeddings are cached in the store."""
    from bids_app.training.data.store import ClipStore

    folder = tmp_path_factory.mktemp("eight")
    store = ClipStore(folder / "store", "global")
    for k in range(16):
        side = "lr"[k % 2]
        series = invented_series(k, 22, 60.0, -1 if side == "l" else 1)
        store.add(f"sub-{k // 2:02d}_task-{side}", series, f"{k // 2:02d}", labels={"side": side})
    return store, str(save_random_encoder(folder / "tiny.safetensors", tiny_config))


@pytest.fixture
def evaluate_store(eight_people, tmp_path):
    """Return a function that evaluates a store of eight participants with tables, and the folder of its reports."""
    store, encoder = eight_people
    rows = [f"sub-{k:02d}\t{'FM'[k % 2]}\t{20 + 3 * k}\t{'ab'[k // 4]}" for k in range(8)]
    (tmp_path / "people.tsv").write_text("participant_id\tsex\tage\tsite\n" + "\n".join(rows) + "\n")

    def run(target: str, *options: str) -> tuple[int, Path]:
        target = target if ":" in target else f"{tmp_path / 'people.tsv'}:{target}"
        common = ["--model", encoder, "--normalisation", "global", "--baselines", "mean", "--permutations", "0"]
        folds = [] if "--split" in options else ["--folds", "2"]
        command = ["evaluate", str(store.folder), "--target", target, *common, *folds, *options]
        return main([*command, "--output", str(tmp_path / "report")]), tmp_path / "report"

    return run


def test_several_targets_are_evaluated_with_one_table(evaluate_store, tmp_path):
    people = tmp_path / "people.tsv"
    code, report = evaluate_store("sex", "--also-target", f"{people}:age", "--task", "classification", "--repeats", "1")
    assert code == 65  # each participant has another age
    code, report = evaluate_store("scan:side", "--also-target", f"{people}:sex", "--repeats", "2")
    assert code == 0
    text = (report / "report.md").read_text()
    assert "| target | participants | metric | Encoder (linear) | mean image | p |" in text
    assert "| scan:side | 8 | balanced accuracy |" in text
    assert (report / "side" / "report.md").is_file()
    assert (report / "sex" / "scores.tsv").is_file()
    rows = [line.split("\t") for line in (report / "scores.tsv").read_text().splitlines()]
    assert rows[0] == ["target", "method", "score", "value", "low", "high"]
    assert {row[0] for row in rows[1:]} == {"scan:side", f"{people}:sex"}
    assert len(rows) == 1 + 2 * 2 * 3


def test_baselines_of_the_same_scans_are_computed_once_for_all_targets(evaluate_store, tmp_path, monkeypatch):
    from bids_app.training.evaluation import run

    computed, compute = [], run.compute_features
    monkeypatch.setattr(run, "compute_features", lambda name, *given: computed.append(name) or compute(name, *given))
    people = tmp_path / "people.tsv"
    assert evaluate_store("scan:side", "--also-target", f"{people}:sex", "--repeats", "1")[0] == 0
    assert computed == ["mean"]
    people.write_text(people.read_text().replace("sub-07\tM", "sub-07\tn/a"))  # other scans
    assert evaluate_store("scan:side", "--also-target", f"{people}:sex", "--repeats", "1")[0] == 0
    assert computed == ["mean"] * 3


def test_targets_that_make_no_table_are_refused(evaluate_store, capsys):
    assert evaluate_store("sex", "--also-target", "other.tsv:sex")[0] == 64
    assert "same column" in capsys.readouterr().err
    embedding = ("--task", "embedding", "--also-target", "scan:side")
    assert evaluate_store("scan:participant", *embedding)[0] == 64
    assert "--also-target is not for embeddings" in capsys.readouterr().err


def test_data_efficiency_is_a_table_and_a_figure(evaluate_store):
    code, report = evaluate_store("scan:side", "--train-shares", "1", "0.99", "--repeats", "3")
    assert code == 0
    rows = [line.split("\t") for line in (report / "data_efficiency.tsv").read_text().splitlines()]
    assert [row[0] for row in rows[1:]] == ["0.99"] * 6 + ["1.0"] * 6
    assert (report / "data_efficiency.svg").read_text().startswith("<?xml")
    setup = dict(line.split("\t") for line in (report / "setup.tsv").read_text().splitlines())
    assert setup["Strategy"] == "linear"
    assert setup["Recipe"].startswith("ours")
    assert setup["Folds"] == "2, by participant, repeated 3 times"


@pytest.mark.parametrize(
    ("target", "options", "code", "words"),
    [
        ("scan:side", ["--train-shares", "0.1"], 64, "0 of 4 training participants (or families); at least 4"),
        ("scan:side", ["--train-shares", "0.5", "2"], 64, "Invalid value for --train-shares: 2"),
        ("scan:side", ["--gallery", "100"], 64, "--gallery: only for re-identification"),
        ("scan:side", ["--zero-shot"], 64, "--zero-shot: only for re-identification"),
        ("scan:participant", ["--task", "embedding", "--gallery", "100"], 64, "a test set has only 4 participants"),
        ("scan:participant", ["--task", "embedding", "--across-sessions"], 64, "16 of 16 scans have no session"),
        ("sex", ["--leave-out", "age", "--task", "regression"], 65, "not finite numbers"),
        ("sex", ["--leave-out", "participants.tsv:site"], 64, "participants.tsv was not found"),
    ],
)
def test_options_that_make_no_sense_are_refused(evaluate_store, tmp_path, capsys, target, options, code, words):
    options = [f"{tmp_path / 'people.tsv'}:age" if option == "age" else option for option in options]
    assert evaluate_store(target, *options)[0] == code
    assert words in capsys.readouterr().err


def test_a_given_split_replaces_folds(evaluate_store, tmp_path, capsys):
    rows = [f"sub-{k:02d}\t{'training' if k < 4 else 'test'}" for k in range(7)]
    (tmp_path / "split.tsv").write_text("participant_id\tsplit\n" + "\n".join(rows) + "\n")
    code, report = evaluate_store("scan:side", "--split", str(tmp_path / "split.tsv"))
    assert code == 0
    setup = (report / "setup.tsv").read_text()
    assert "Folds\tone split, as given\n" in setup
    assert "Participants\t7\n" in setup
    assert len((report / "answers.tsv").read_text().splitlines()) == 1 + 6
    families = tmp_path / "families.tsv"
    families.write_text("participant_id\tfamily\nsub-00\tx\nsub-05\tx\n")
    capsys.readouterr()
    option = ("--family-column", f"{families}:family", "--split", str(tmp_path / "split.tsv"))
    assert evaluate_store("scan:side", *option)[0] == 65
    assert "families in more than one set: x" in capsys.readouterr().err
    for text, wrong in ((rows[:4], "no test set"), ([*rows, "sub-07\tholdout"], "unknown set: holdout")):
        (tmp_path / "split.tsv").write_text("participant_id\tsplit\n" + "\n".join(text) + "\n")
        assert evaluate_store("scan:side", "--split", str(tmp_path / "split.tsv"))[0] in (64, 65)
        assert wrong in capsys.readouterr().err


def test_one_site_cannot_be_left_out(evaluate_store, tmp_path, capsys):
    people = tmp_path / "people.tsv"
    people.write_text(people.read_text().replace("\tb", "\ta"))
    assert evaluate_store("scan:side", "--leave-out", f"{people}:site")[0] == 18
    assert "All scans come from one site: a" in capsys.readouterr().err


def test_each_site_is_left_out_once(evaluate_store, tmp_path):
    code, report = evaluate_store("scan:side", "--leave-out", f"{tmp_path / 'people.tsv'}:site")
    assert code == 0
    assert "Folds\t2, leave one site out\n" in (report / "setup.tsv").read_text()


def test_people_are_reidentified_without_training(evaluate_store):
    options = ["--task", "embedding", "--zero-shot", "--gallery", "2"]
    code, report = evaluate_store("scan:participant", *options)
    assert code == 0
    assert "Gallery\t2 participants\n" in (report / "setup.tsv").read_text()
    assert "Encoder (zero-shot)" in (report / "report.md").read_text()


def test_equal_labels_in_several_datasets_are_distinguished(make_store, invented_series, tmp_path):
    from bids_app.training.data.store import ClipStore

    first = make_store(2)
    second = ClipStore(tmp_path / "second", "global")
    second.add("sub-00_task-left", invented_series(9), "00", labels={"side": "left"})
    datasets = load_datasets([first.folder, second.folder], tmp_path / "clips", "global")
    examples = label_scans(datasets, "scan:side")
    assert {e.participant for e in examples.data.scans} == {"00@store", "01@store", "00@second"}
    assert set(label_scans(datasets[:1], "scan:participant").data.values) == {"00", "01"}


def test_image_vectors_are_read_from_tsv_and_npy(tmp_path):
    (tmp_path / "a.tsv").write_text("stim_file\tx\ty\nimages/1.png\t1\t2\nimages/2.png\t3\t4\n")
    expected = read_images(tmp_path / "a.tsv")
    assert expected["images/2.png"].tolist() == [3.0, 4.0]
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]]))
    assert read_images(tmp_path / "a.npy").keys() == expected.keys()
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    with pytest.raises(BadDataError, match="2 images"):
        read_images(tmp_path / "a.npy")
    with pytest.raises(NoInputError, match=r"b\.npy"):
        read_images(tmp_path / "b.npy")


@pytest.mark.slow
def test_adapt_trains_an_adapter_from_derivatives_and_a_column(
    write_derivative, tmp_path, tiny_model, encoder, monkeypatch
):
    """The table is in the raw dataset that the derivatives link to."""
    out, raw = tmp_path / "out", tmp_path / "raw"
    for k, label in enumerate("abcd"):
        write_derivative(out, label, "MNI152NLin6Asym", n_vols=42, side=k % 2)
    raw.mkdir()
    rows = "".join(f"sub-{label}\t{'FM'[k % 2]}\n" for k, label in enumerate("abcd"))
    (raw / "participants.tsv").write_text("participant_id\tsex\n" + rows)
    (out / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"raw": raw.as_uri()}}))
    monkeypatch.chdir(tmp_path)
    target = ["--target", "participants.tsv:sex", "--strategy", "prompt"]
    quick = ["--epochs", "2", "--validation", "0", "--prompt-len", "2"]
    assert main(["adapt", str(out), *target, "--model", encoder, *quick]) == 0
    adapter = load_adapter(tmp_path / "sex.safetensors")
    assert (adapter.card.target, adapter.card.labels, adapter.card.strategy) == ("sex", ("F", "M"), "prompt")
    assert adapter.card.cohort["participants"] == 4
    reader = ClipReader(series_from_image(nib.load(next(out.rglob("sub-a*_bold.nii.gz"))), tmp_path / "grid"))
    _, (prediction,) = encode_run(tiny_model, [AdaptedModel(tiny_model, adapter)], reader, ["voxel"])
    assert prediction.clips.shape == (reader.n_clips, 2)
    assert prediction.values.sum() == pytest.approx(1.0)


@pytest.mark.slow
def test_reading_processes_change_no_weight(make_store, invented_series, tmp_path, capsys, tiny_config):
    from bids_app.training.data.store import ClipStore

    second = ClipStore(tmp_path / "second", "global")
    for label in "xyz":
        second.add(f"sub-{label}_task-rest", invented_series(n_vols=45), label)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    data = [str(make_store(1).folder), str(second.folder)]
    common = [
        "--config",
        str(tmp_path / "config.json"),
        "--epochs",
        "1",
        "--batch-size",
        "1",
        "--normalisation",
        "global",
    ]
    outputs = [tmp_path / f"{name}.safetensors" for name in ("thread", "processes")]
    for output, workers in zip(outputs, ("0", "2"), strict=True):
        options = ["--dataset-weights", "uniform", "--workers", workers, "--output", str(output)]
        assert main(["pretrain", *data, *common, *options]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    steps = (tmp_path / "thread.training" / "steps.csv").read_text().splitlines()
    assert len(steps) - 1 == 4  # two clips of each dataset; without weights there are eight
    capsys.readouterr()
    wrong = ["--dataset-weights", "1", "2", "3", "--output", str(tmp_path / "e.safetensors")]
    assert main(["pretrain", *data, *common, *wrong]) == 64
    assert "one number for each of the 2 datasets" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_equal_one_with_twice_the_batch_size(make_store, tmp_path, tiny_config):
    store = make_store(2)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    common = ["--config", str(tmp_path / "config.json"), "--epochs", "2"]
    for name, options in (("one", ["--batch-size", "4"]), ("two", ["--batch-size", "2", "--devices", "2"])):
        output = ["--output", str(tmp_path / f"{name}.safetensors")]
        command = [sys.executable, "-m", "bids_app.cli.train", "pretrain", str(store.folder), *output]
        subprocess.run([*command, *common, *options], check=True, timeout=800)
    curves = [np.loadtxt(tmp_path / f"{k}.training" / "steps.csv", delimiter=",", skiprows=1) for k in ("one", "two")]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_command_resumes(make_store, tmp_path, tiny_config):
    """Killed with SIGKILL after the first epoch and started again: same losses and weights."""
    store = make_store(1)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.as_dict()))
    common = ["--config", str(tmp_path / "config.json"), "--epochs", "3", "--batch-size", "1", "--no-augment"]

    def command(name: str) -> list[str]:
        output = ["--output", str(tmp_path / f"{name}.safetensors")]
        return [sys.executable, "-m", "bids_app.cli.train", "pretrain", str(store.folder), *output, *common]

    subprocess.run(command("whole"), check=True, timeout=800)
    process = subprocess.Popen(command("killed"))
    while not (tmp_path / "killed.training" / "log.csv").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "killed.safetensors").exists()
    subprocess.run(command("killed"), check=True, timeout=800)
    steps = [(tmp_path / f"{name}.training" / "steps.csv").read_text() for name in ("whole", "killed")]
    assert steps[0] == steps[1]
    states = [read_checkpoint(tmp_path / f"{name}.safetensors").encoder for name in ("whole", "killed")]
    assert all(np.array_equal(states[0][key], states[1][key]) for key in states[0])
