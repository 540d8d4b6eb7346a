"""The final summary fits on a screen; interrupted and killed invocations leave no empty folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.cli.neurostorm import main
from bids_app.errors import TemporaryError, Terminated
from bids_app.outputs.schema import RunOutcome
from bids_app.settings import PARTICIPANT, Settings
from bids_app.workflow import participant
from bids_app.workflow.ends import Notices
from bids_app.workflow.participant import failed, print_summary
from tests.helpers.datasets import TinyDataset
from tests.workflow.test_locks import write_lock

SCREEN = 24


@pytest.mark.parametrize("n_failed", [0, 1, 500])
def test_the_final_summary_fits_on_a_screen(tmp_path: Path, capsys, n_failed: int) -> None:
    settings = Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work")
    outcomes = [failed(f"sub-{n:03}", "examine", "truncated", "Copy it again.", 65) for n in range(n_failed)]
    print_summary([RunOutcome(stem="sub-x"), *outcomes], {}, settings, 12.0)
    said = capsys.readouterr().err
    assert len(said.splitlines()) < SCREEN
    assert said.count("failed: truncated") == min(n_failed, 8)
    assert ("492 more" in said) == (n_failed == 500)
    print_summary(outcomes, {}, replace(settings, verbosity=1), 12.0)
    assert capsys.readouterr().err.count("failed: truncated") == n_failed


def test_a_warning_of_many_runs_is_one_line(tmp_path: Path, capsys) -> None:
    settings = Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work")
    stems = [f"sub-{n:02}_task-rest" for n in range(12)]
    weak = {s: (f"The tSNR is {9 + n / 10}, below 25.", f"{s}_bold.nii.gz: odd.") for n, s in enumerate(stems)}
    notices = {stem: Notices(other=warnings) for stem, warnings in weak.items()}
    notices[stems[3]] = Notices(other=(*weak[stems[3]], "The duration is 40 s."), withheld=(("sex", "Far."),))
    outcomes = [RunOutcome(stem=stem) for stem in stems]
    print_summary(outcomes, notices, settings, 12.0)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("neurostorm")] == [
        "neurostorm: sub-03_task-rest: the prediction of sex is withheld. Far.",
        "neurostorm: 12 runs, such as sub-00_task-rest: The tSNR is 9.0, below 25.",
        "neurostorm: 12 runs, such as sub-00_task-rest_bold.nii.gz: odd.",
        "neurostorm: sub-03_task-rest: The duration is 40 s.",
    ]
    print_summary(outcomes, notices, replace(settings, verbosity=1), 12.0)
    assert capsys.readouterr().err.count("The tSNR") == 12


def start(dataset: TinyDataset, work: Path) -> int:
    """Run the command up to its first batch."""
    out = dataset.root.parent / "out"
    return main([str(dataset.root), str(out), "participant", "--model", "demo", "--mem", "4GB", "-w", str(work)])


@pytest.mark.parametrize(
    ("interruption", "code"), [(Terminated, 143), (KeyboardInterrupt, 130), (TemporaryError("no memory"), 75)]
)
def test_no_empty_crash_folder_is_left_by_an_interruption(
    tiny_dataset: TinyDataset, tmp_path: Path, monkeypatch, interruption, code: int
) -> None:
    def interrupt(runs, context, ends, crash_dir: Path) -> None:
        crash_dir.mkdir()
        raise interruption

    monkeypatch.setattr(participant, "process_batch", interrupt)
    assert start(tiny_dataset, tmp_path / "work") == code
    assert list((tmp_path / "work").glob("crash-*")) == []


@pytest.mark.parametrize("owner_runs", [True, False])
def test_empty_crash_folders_of_killed_invocations_are_removed_at_the_next_start(
    tiny_dataset: TinyDataset, tmp_path: Path, monkeypatch, owner_runs: bool
) -> None:
    work = tmp_path / "work"
    empty, full = work / "crash-1" / "0", work / "crash-2" / "0"
    for folder in (empty, full):
        folder.mkdir(parents=True)
    (full / "crash-x.txt").write_text("Traceback")
    write_lock(work / "running-sub-99.json", **({} if owner_runs else {"started": "before"}))
    monkeypatch.setattr(participant, "process_batch", lambda *_: None)
    start(tiny_dataset, work)
    assert empty.exists() == empty.parent.exists() == owner_runs
    assert (full / "crash-x.txt").exists()
