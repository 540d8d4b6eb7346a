"""Demonstration model of the package: its files and predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bids_app.adapters.file import AdaptedModel, load_adapter
from bids_app.adapters.predict import Prediction, encode_run
from bids_app.catalog.models import adapter_paths, find_model, weights_path
from bids_app.cli.neurostorm import main
from bids_app.cli.phantom import main as phantom
from bids_app.clips import ClipReader, GridSeries
from bids_app.model.api import load_model
from bids_app.phantom.activity import STATES
from bids_app.phantom.grid_scans import simulated_series

SEED = 4711
"""Seed not used for training or selection of the model."""


@pytest.fixture(scope="module")
def files() -> tuple[Path, Path]:
    entry = find_model("demo")
    (adapter,) = adapter_paths(entry, ())
    return weights_path(entry), adapter


@pytest.fixture(scope="module")
def left_hand() -> GridSeries:
    return simulated_series("lefthand", SEED, "left")


def mirrored(series: GridSeries) -> GridSeries:
    """Flip a scan left-right; the midplane is at voxel 48."""
    grid = np.zeros((series.n_vols, *series.mask.shape), np.float32)
    grid[:, series.mask] = series.values
    grid, mask = (np.roll(np.flip(array, axis), 1, axis) for array, axis in ((grid, 1), (series.mask, 0)))
    return GridSeries(grid[:, mask], np.ascontiguousarray(mask), series.tr, series.start)


def answer(files: tuple[Path, Path], series: GridSeries) -> Prediction:
    model = load_model(files[0])
    adapter = AdaptedModel(model, load_adapter(files[1]))
    _, (prediction,) = encode_run(model, [adapter], ClipReader(series), ())
    return prediction


def test_its_files_are_small_and_marked_as_demonstration(files: tuple[Path, Path]) -> None:
    assert sum(path.stat().st_size for path in files) < 3e6
    card = load_adapter(files[1]).card
    assert load_model(files[0]).demonstration
    assert card.demonstration
    assert "mean nothing" in card.intended_use
    assert set(card.labels) == set(STATES)
    assert card.encoder_sha256 == load_model(files[0]).weights_sha256


def test_left_hand_tapping_is_predicted_and_right_hand_if_flipped(
    files: tuple[Path, Path], left_hand: GridSeries
) -> None:
    straight, reflected = answer(files, left_hand), answer(files, mirrored(left_hand))
    assert straight.label(straight.values) == "lefthand"
    assert reflected.label(reflected.values) == "righthand"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_states_of_held_out_participants_are_predicted_from_raw_files(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert phantom([str(raw), "--participants", "5", "--seed", str(SEED)]) == 0
    assert main([str(raw), str(out), "participant", "--model", "demo", "-w", str(tmp_path / "work")]) == 0
    told, far = {}, []
    for path in sorted(out.glob("sub-*/**/*_desc-demostate_predictions.tsv")):
        with path.open(newline="") as file:
            told[path.name] = next(csv.DictReader(file, delimiter="\t"))["label"]
        verdict = json.loads(path.with_suffix(".json").read_text())["Verdict"]
        levels = {check["Check"]: check["Level"] for check in verdict["Checks"]}
        far += [path.name for name in ("embedding", "clips", "signal") if levels[name] != "pass"]
        assert json.loads(path.with_suffix(".json").read_text())["Demonstration"] is True
    assert len(told) == 20
    right = sum(f"_task-{label}_" in name for name, label in told.items())
    assert right >= 18, told
    assert len(far) <= 3, far  # of 60 distances, of which 2 % are expected above their limits
