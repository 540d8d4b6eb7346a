"""Runs that do not fit on the disk are refused before they start, with the space that they need."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.bids.derivatives import DerivedRun
from bids_app.bids.query import BoldRun
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.cli.neurostorm import main
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE
from bids_app.errors import BadDataError, CannotCreateError
from bids_app.preprocess.registration.spaces import template_brain
from bids_app.settings import PARTICIPANT, PreprocessSettings, ResourceSettings, Settings
from bids_app.workflow import disk
from bids_app.workflow.disk import anatomy_space, check_disk, run_space, space_of_participants
from tests.workflow.test_memory import LONG, claim

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folders = (tmp_path / "raw", tmp_path / "out", PARTICIPANT, tmp_path / "work")
    return Settings(*folders, resources=ResourceSettings(n_procs=2))


def runs_of(tmp_path: Path, n_participants: int, n_runs: int = 1) -> list[BoldRun]:
    """Make runs of 1,200 volumes, each participant with a T1w image of 1 mm; headers only."""
    bold = claim(tmp_path / "raw" / "bold.nii.gz", LONG)
    runs = []
    for participant in range(n_participants):
        t1w = claim(tmp_path / "raw" / f"sub-{participant}_T1w.nii.gz", (192, 256, 256))
        runs += [BoldRun(bold, {"sub": f"{participant}", "run": f"{run}"}, t1w=t1w) for run in range(n_runs)]
    return runs


def with_free_space(monkeypatch, n_bytes: float) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(10**12, 0, int(n_bytes)))


def test_the_t1w_of_a_participant_counts_once(tmp_path: Path, settings: Settings) -> None:
    runs = runs_of(tmp_path, 1, n_runs=3)
    found = space_of_participants(runs, settings)["0"]
    assert runs[0].t1w is not None
    assert found.scratch == 3 * run_space(runs[0], settings).scratch + anatomy_space(runs[0].t1w).scratch


def test_the_series_on_the_model_grid_and_in_each_output_space_count(tmp_path: Path, settings: Settings) -> None:
    run = runs_of(tmp_path, 1)[0]
    plain = run_space(run, settings)
    uncompressed = 2 * LONG[0] * LONG[1] * LONG[2] * LONG[3]
    assert plain.scratch > uncompressed + 1200 * 200_000 * 4
    spaces = PreprocessSettings(output_spaces=("MNI152NLin6Asym", "MNI152NLin2009aSym"))
    more = run_space(run, replace(settings, preprocess=spaces))
    assert more.scratch - plain.scratch == more.output - plain.output > 2 * 1200 * 10**6
    denoised = run_space(run, replace(settings, preprocess=replace(spaces, denoise="simple")))
    assert denoised.output - plain.output == 2 * (more.output - plain.output)


def test_the_clips_that_are_kept_count_by_the_duration_of_the_run(tmp_path: Path, settings: Settings) -> None:
    run = replace(runs_of(tmp_path, 1)[0], metadata={"RepetitionTime": 0.5})  # 10 min
    plain = run_space(run, settings)
    kept = run_space(run, replace(settings, preprocess=PreprocessSettings(output_clips=("voxel", "global"))))
    brain = template_brain(MODEL_SPACE, MODEL_SPACE, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE).sum()
    assert kept.output - plain.output == pytest.approx(2 * brain * 600 / 0.8, rel=0.03)
    assert kept.scratch - plain.scratch == pytest.approx(kept.output - plain.output)


def test_a_series_in_the_space_of_the_scan_needs_scratch_for_its_copy(tmp_path: Path, settings: Settings) -> None:
    run = runs_of(tmp_path, 1)[0]
    derived = DerivedRun(run.bold, run.entities, MODEL_SPACE, "UK Biobank", warp=run.bold)
    ingested = [replace(run, derived=each) for each in (replace(derived, warp=None), derived)]
    plain, warped = (run_space(each, settings).scratch for each in ingested)
    assert warped - plain >= 1200 * 91 * 109 * 91 * 4


def test_runs_with_a_problem_need_nothing(tmp_path: Path, settings: Settings) -> None:
    run = replace(runs_of(tmp_path, 1)[0], problem=BadDataError("x"))
    assert space_of_participants([run], settings) == {}


def test_runs_that_do_not_fit_are_refused_with_the_space_they_need(tmp_path, settings, monkeypatch) -> None:
    runs = runs_of(tmp_path, 10)
    total = sum(s.scratch + s.output for s in space_of_participants(runs, settings).values())
    with_free_space(monkeypatch, total + 1)
    assert "GB of scratch" in check_disk(runs, settings)
    with_free_space(monkeypatch, total - 1)
    with pytest.raises(CannotCreateError, match=rf"10 participants need about {total / 1e9:.1f} GB") as caught:
        check_disk(runs, settings)
    assert "--clean-workdir" in caught.value.hint
    check_disk(runs, replace(settings, clean_workdir=True))


def test_two_disks_are_checked_separately(tmp_path, settings, monkeypatch) -> None:
    runs = runs_of(tmp_path, 1)
    needed = space_of_participants(runs, settings)["0"]
    places = {settings.work_dir: settings.work_dir, settings.out_dir: settings.out_dir}
    monkeypatch.setattr(disk, "_by_device", lambda *folders: {places[f]: [(f, n)] for f, n in folders})
    with_free_space(monkeypatch, needed.scratch + 1)
    check_disk(runs, settings)
    with_free_space(monkeypatch, needed.scratch - 1)
    with pytest.raises(CannotCreateError, match=rf"^{settings.work_dir}: 1 participant needs"):
        check_disk(runs, settings)


@pytest.mark.parametrize(
    ("full", "advised", "not_advised"),
    [
        ("scratch", ("--work-dir", "--clean-workdir", "--participant-label"), ("output folder",)),
        ("output", ("output folder on another disk", "--participant-label"), ("--work-dir", "--clean-workdir")),
        ("both", ("--work-dir", "--clean-workdir", "output folder on another disk"), ()),
    ],
)
def test_the_remedies_are_those_of_the_full_disk(
    tmp_path, settings, monkeypatch, full: str, advised: tuple[str, ...], not_advised: tuple[str, ...]
) -> None:
    small = {
        "scratch": [settings.work_dir],
        "output": [settings.out_dir],
        "both": [settings.work_dir, settings.out_dir],
    }
    disks = {path: tmp_path / ("small" if path in small[full] else "large") for path in small["both"]}

    def by_device(*folders: tuple[Path, float]) -> dict[Path, list[tuple[Path, float]]]:
        return {disk: [each for each in folders if disks[each[0]] == disk] for disk in set(disks.values())}

    monkeypatch.setattr(disk, "_by_device", by_device)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, 10**6 if path.name == "small" else 10**15))
    with pytest.raises(CannotCreateError) as caught:
        check_disk(runs_of(tmp_path, 3), settings)
    hint = caught.value.hint
    assert [text for text in advised if text not in hint] + [text for text in not_advised if text in hint] == []
    with pytest.raises(CannotCreateError) as caught:
        check_disk(runs_of(tmp_path, 1), settings)
    assert "--participant-label" not in caught.value.hint


def test_results_of_an_earlier_invocation_count_as_available(tmp_path, settings, monkeypatch) -> None:
    runs = runs_of(tmp_path, 1)
    needed = space_of_participants(runs, settings)["0"]
    with_free_space(monkeypatch, needed.scratch + needed.output - 1000)
    with pytest.raises(CannotCreateError):
        check_disk(runs, settings)
    settings.work_dir.mkdir()
    (settings.work_dir / "result").write_bytes(bytes(2000))
    check_disk(runs, settings)


@pytest.mark.parametrize("check", [["--check"], []])
def test_the_command_refuses_a_disk_that_is_too_small(tiny_dataset, tmp_path, monkeypatch, check, capsys) -> None:
    monkeypatch.setattr(disk, "RUN_BYTES", 1e18)
    out = tmp_path / "out"
    command = [str(tiny_dataset.root), str(out), "participant", "--model", "demo", "-w", str(tmp_path / "work"), *check]
    assert main(command) == 73
    said = capsys.readouterr()
    assert "1 participant needs about 1000000000.0 GB" in said.out + said.err
    assert not out.exists()


def test_sizes_are_those_of_a_folder_on_this_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(123))
    os.symlink("nowhere", tmp_path / "a" / "c")
    assert disk._bytes_in(tmp_path) == 123 + len("nowhere")
    place = disk._by_device((tmp_path / "x" / "y", 1.0), (tmp_path, 2.0))
    assert place == {tmp_path: [(tmp_path / "x" / "y", 1.0), (tmp_path, 2.0)]}
    assert shutil.disk_usage(next(iter(place))).total > 0
