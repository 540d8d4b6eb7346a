"""Provenance: facts of the sidecars, and no path of this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app import __version__
from bids_app.errors import BadDataError
from bids_app.training.export.provenance import describe_export, name_of_target, sources_of
from bids_app.training.export.runs import read_runs


def test_model_weights_versions_and_dataset_are_named(make_outputs) -> None:
    made = make_outputs(participants=2)
    found = read_runs(made.out, normalisation="voxel")
    about = describe_export(found, made.out, {"task": "classification"})
    assert about["exported_with"] == f"NeuroSTORM {__version__}"
    assert about["processed_with"] == [__version__]
    assert (about["model"], about["normalisation"], about["weights_sha256"]) == ("made", "voxel", "0" * 64)
    assert (about["dataset"], about["dataset_license"]) == ("NeuroSTORM outputs of Simulated", "unknown")
    assert (about["n_runs"], about["n_participants"], about["n_features"]) == (4, 2, 16)
    assert about["task"] == "classification"
    versions = replace(found, configurations={"abcd": {"version": "9.9"}})
    versions.runs[0].record.configurations.add("abcd")
    assert describe_export(versions, made.out, {})["processed_with"] == ["9.9"]


def test_random_weights_are_named(make_outputs) -> None:
    made = make_outputs(participants=2)
    assert describe_export(read_runs(made.out, normalisation="voxel"), made.out, {})["untrained"] is False
    made.change_sidecar("sub-01", Untrained=True)
    assert describe_export(read_runs(made.out, normalisation="voxel"), made.out, {})["untrained"] is True


def test_the_model_has_its_name_and_its_source(make_outputs) -> None:
    made = make_outputs(participants=2)
    for name in made.participants:
        made.change_sidecar(name, Model="brainmarks:maker", ModelCard={"Source": "maker of Brainmarks 0.1.1"})
    found = read_runs(made.out, normalisation="voxel")
    about = describe_export(found, made.out, {})
    assert (about["model"], about["model_source"]) == ("brainmarks:maker", "maker of Brainmarks 0.1.1")
    assert "clips" in about["features"]
    assert "clips" not in describe_export(replace(found, normalisation="none"), made.out, {})["features"]


def test_the_values_are_text_numbers_and_lists_of_text(make_outputs) -> None:
    made = make_outputs(participants=2)
    about = describe_export(read_runs(made.out, normalisation="voxel"), made.out, {})
    assert json.loads(json.dumps(about)) == about
    for value in about.values():
        assert isinstance(value, str | int | float | bool) or all(isinstance(text, str) for text in value)


def test_paths_of_this_machine_are_left_out(make_outputs, tmp_path: Path) -> None:
    made = make_outputs(participants=2)
    made.change_sidecar("sub-01", Sources=["/home/someone/sub-01_bold.nii.gz", "bids:raw:sub-01/func/a_bold.nii.gz"])
    found = read_runs(made.out, normalisation="voxel")
    assert sources_of(found.runs[0]) == "bids:raw:sub-01/func/a_bold.nii.gz"
    assert str(tmp_path) not in json.dumps(describe_export(found, made.out, {}))
    assert name_of_target("/home/someone/phenotype/mood.tsv:score") == "mood.tsv:score"


def test_a_damaged_description_is_named(make_outputs) -> None:
    made = make_outputs(participants=2)
    found = read_runs(made.out, normalisation="voxel")
    (made.out / "dataset_description.json").write_text("{")
    with pytest.raises(BadDataError, match=r"dataset_description\.json"):
        describe_export(found, made.out, {})
    (made.out / "dataset_description.json").unlink()
    assert describe_export(found, made.out, {})["dataset"] == "unknown"
