"""A scan has the same clips in training as in prediction, whichever tree it comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_app.bids.query import BoldRun, find_runs
from bids_app.cli.train import main
from bids_app.clips import GridSeries
from bids_app.errors import NoMatchError
from bids_app.outputs.publish import remove_earlier, write_manifest
from bids_app.outputs.schema import PREPROCESSING, read_manifest
from bids_app.settings import PreprocessSettings, QuerySettings
from bids_app.training.data.examples import load_datasets
from bids_app.training.data.scan import Scan
from bids_app.training.data.sources import find_own_clips, prepare
from bids_app.training.data.store import ClipStore
from bids_app.workflow.in_process import run_in_process, steps_of
from tests.helpers.datasets import PreprocessedTree, write_hcp_run, write_ukb_run
from tests.helpers.images import StandardBrain


def write_fmriprep(root: Path, brain: StandardBrain) -> None:
    made = PreprocessedTree(root)
    bold = made.write_run("01", brain.series(32), brain.mask, brain.affine)
    sidecar = {"RepetitionTime": 1.0, "StartTime": 0.4, "ManufacturersModelName": "Prisma"}
    bold.with_suffix("").with_suffix(".json").write_text(json.dumps(sidecar))
    dummy = np.eye(32)[0]
    made.write_confounds("01", {"global_signal": np.ones(32), "non_steady_state_outlier00": dummy})


def write_xcpd(root: Path, brain: StandardBrain) -> None:
    made = PreprocessedTree(root, "XCP_D", "0.10.0")
    made.write_run("01", brain.series(32, mean=0.0), brain.mask, brain.affine, desc="denoised")


def write_own(root: Path, brain: StandardBrain) -> None:
    made = PreprocessedTree(root, "NeuroSTORM", "1.0.0")
    made.write_run("01", brain.series(32), brain.mask, brain.affine, space="MNI152NLin2009aSym")


TREES = {
    "fmriprep": write_fmriprep,
    "xcpd": write_xcpd,
    "own outputs": write_own,
    "hcp": write_hcp_run,
    "ukb": write_ukb_run,
}


def grid_in_prediction(run: BoldRun, folder: Path) -> GridSeries:
    """Return the series on the model grid with the steps of the participant level."""
    graph, steps = steps_of(run, folder)
    return GridSeries.open(run_in_process(graph, folder, steps.grid)[steps.grid.name].folder)


def assert_same_scan(found: Scan, expected: Scan) -> None:
    """Compare masks, codes and values."""
    indices = expected.voxel_indices
    assert np.array_equal(found.voxel_indices, indices)
    assert np.array_equal(found.codes(indices), expected.codes(indices))
    assert (found.scale, found.background) == (expected.scale, expected.background)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TREES if name != "fmriprep"]


@pytest.mark.parametrize("tree", ["fmriprep", *SLOW])
def test_training_and_prediction_have_the_same_clips(standard_brain, tmp_path: Path, tree: str) -> None:
    root = tmp_path / "tree"
    TREES[tree](root, standard_brain)
    (run,) = find_runs(root, QuerySettings())
    expected = ClipStore(tmp_path / "expected", "voxel").add(run.stem, grid_in_prediction(run, tmp_path / "work"), "x")
    (scan,) = prepare(root, ClipStore(tmp_path / "store", "voxel"), report=lambda _: None)
    assert scan.name == run.stem
    assert_same_scan(scan, expected)
    assert scan.signal == expected.signal
    assert len(scan.voxel_indices) > 150_000
    assert list((tmp_path / "store").glob(".*")) == []


def publish_run(run: BoldRun, folder: Path, **options: object) -> dict[str, object]:
    """Preprocess a run and publish it in ``folder/out``, without the model; return the results of the steps."""
    graph, steps = steps_of(run, folder, PreprocessSettings(**options))  # type: ignore[arg-type]
    work = folder / f"work{len(list(folder.glob('work*')))}"
    results = run_in_process(graph, work, steps.published[0])
    remove_earlier(folder / "out", run.stem)
    return results


def load(out: Path, base: Path, normalisation: str) -> list[Scan]:
    (dataset,) = load_datasets([out], base, normalisation, report=lambda _: None)
    return dataset.scans


@pytest.mark.slow
def test_runs_kept_by_the_participant_level_are_used_and_removed_when_stale(standard_brain, tmp_path: Path) -> None:
    write_fmriprep(tmp_path / "tree", standard_brain)
    (run,) = find_runs(tmp_path / "tree", QuerySettings())
    results = publish_run(run, tmp_path, output_clips=("voxel", "global"))
    out = tmp_path / "out"
    entry = out / "sub-01" / "clips" / "voxel" / "sub-01_task-rest"
    (scan,) = load(out, tmp_path / "stores", "voxel")
    assert scan.folder == entry  # read where it is
    assert not (tmp_path / "stores").exists()
    grid = GridSeries.open(results["sub_01_task_rest_grid"].folder)  # type: ignore[attr-defined]
    assert_same_scan(scan, ClipStore(tmp_path / "expected", "voxel").add("x", grid, "01"))
    (prepared,) = prepare(tmp_path / "tree", ClipStore(tmp_path / "store", "voxel"), report=lambda _: None)
    assert_same_scan(scan, prepared)
    for fact in ("participant", "session", "labels", "confounds", "quality", "signal", "start", "n_vols", "scanner"):
        assert getattr(scan, fact) == getattr(prepared, fact), fact
    assert (scan.start, scan.scanner) == (pytest.approx(1.4), {"ManufacturersModelName": "Prisma"})
    assert str(tmp_path) not in (entry / "scan.json").read_text()
    assert [found.name for found in load(out, tmp_path / "stores", "global")] == [run.stem]

    publish_run(run, tmp_path, output_clips=("voxel",), dummy_scans=3)
    (changed,) = load(out, tmp_path / "stores", "voxel")
    assert changed.n_vols < scan.n_vols
    assert not (out / "sub-01" / "clips" / "global").exists()
    with pytest.raises(NoMatchError, match="voxel normalisation, not global") as caught:
        load(out, tmp_path / "stores", "global")
    assert "--output-clips global" in caught.value.hint

    publish_run(run, tmp_path, dummy_scans=4)
    assert not (out / "sub-01" / "clips").exists()
    assert find_own_clips(out, "voxel") == ({}, set())


def test_entries_that_the_manifest_does_not_vouch_for_are_not_used(standard_brain, tmp_path: Path) -> None:
    write_fmriprep(tmp_path / "tree", standard_brain)
    (run,) = find_runs(tmp_path / "tree", QuerySettings())
    publish_run(run, tmp_path, output_clips=("voxel",))
    out = tmp_path / "out"
    manifest = read_manifest(out, run.stem, PREPROCESSING)
    assert manifest is not None
    values = out / "sub-01" / "clips" / "voxel" / run.stem / "values.npy"
    assert manifest.files[values.relative_to(out).as_posix()].size == values.stat().st_size
    (own,) = find_own_clips(out, "voxel")[0].values()
    assert own.name == run.stem
    assert main(["store", "build", str(out), str(tmp_path / "built"), "--normalisation", "voxel"]) == 0
    (built,) = ClipStore(tmp_path / "built")
    assert_same_scan(built, own)
    assert (built.name, built.confounds, built.quality) == (own.name, own.confounds, own.quality)
    write_manifest(out, run.stem, PREPROCESSING, replace(manifest, complete=False))
    assert find_own_clips(out, "voxel")[0] == {}
    write_manifest(out, run.stem, PREPROCESSING, manifest)
    values.write_bytes(values.read_bytes()[:-1])
    assert find_own_clips(out, "voxel")[0] == {}
