"""Options and errors of ``neurostorm-cluster``."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from bids_app.cli.cluster import SCHEDULERS, main
from bids_app.cluster import schedulers
from bids_app.errors import BadDataError, NoInputError, NoMatchError, UsageError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    for name in ("sub-01", "sub-02"):
        (raw / name).mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return raw


def test_the_schedulers_of_the_options_are_those_that_exist() -> None:
    assert tuple(schedulers.SCHEDULERS) == SCHEDULERS


def test_sigterm_releases_the_lock_of_a_submission(dataset: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    assert main(["prepare", str(dataset), str(out), "--scheduler", "lists", "--", "--model", "demo"]) == 0
    lock, seen = out / "logs" / "cluster" / "submitting.json", []

    def terminated(*_: object, **__: object) -> None:
        seen.append(lock.exists())
        signal.raise_signal(signal.SIGTERM)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)
    monkeypatch.setattr("sys.argv", ["neurostorm-cluster", "submit", str(out)])
    monkeypatch.setattr("bids_app.cluster.submit.read_progress", terminated)
    try:
        assert main() == 143
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert seen == [True]
    assert not lock.exists()


def test_a_cohort_is_prepared_submitted_and_shown(dataset: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["prepare", str(dataset), str(out), "--scheduler", "lists", "--", "--model", "demo"]) == 0
    content = json.loads((out / "logs" / "cluster" / "cohort.json").read_text())
    assert content["participants"] == ["01", "02"]
    assert content["options"] == ["--model", "demo"]
    assert content["decisive"]["model"] == '"demo"'
    assert main(["submit", str(out)]) == 0
    assert f"2 participants: run bash {out}/logs/cluster/submission-0001/job.sh NUMBER" in capsys.readouterr().out
    assert main(["status", str(out)]) == 0
    assert capsys.readouterr().out == f"2 participants: 0 done, 0 running, 2 waiting\nPage: {out}/progress.html\n"
    assert main(["status", str(out), "--list", "waiting"]) == 0
    assert capsys.readouterr().out == "01\n02\n"
    assert main(["submit", str(out)]) == 0
    assert "Nothing to submit" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["submit", "status"])
def test_a_cohort_of_a_folder_that_was_copied_is_not_that_of_the_copy(dataset, tmp_path, capsys, command) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert main(["prepare", str(dataset), str(out), "--scheduler", "lists", "--", "--model", "demo"]) == 0
    shutil.copytree(out, other)
    assert main([command, str(other)]) == BadDataError.exit_code
    assert f"the cohort is of the output folder {out}" in capsys.readouterr().err
    shutil.rmtree(out)
    assert main([command, str(other)]) == BadDataError.exit_code
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--", "--participant-label", "01"], UsageError.exit_code, "--participants FILE"),
        (["--", "--check"], UsageError.exit_code, "process no participants"),
        (["--", "--attribution-clips", "0"], UsageError.exit_code, "--attribution-clips"),
        (["--neurostorm", ""], UsageError.exit_code, "--neurostorm is empty"),
        (["--participants", "list.txt"], NoMatchError.exit_code, "1 of 2 participants of the list: sub-9."),
        (["--participants", "none.txt"], NoInputError.exit_code, "none.txt"),
    ],
)
def test_errors_are_found_before_anything_is_written(
    dataset, tmp_path, monkeypatch, capsys, options, code, said
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("01, 9")
    assert main(["prepare", str(dataset), "out", *options]) == code
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "options",
    [["--time", "2h"], ["--cpus", "0"], ["--mem", "6"], ["--shard-size", "x"], ["--scheduler-options", "'"],
     ["--neurostorm", "run 'x"],
     ["--", "--no-such-option"]],
)  # fmt: skip
def test_invalid_values_are_refused_by_the_parser(dataset, tmp_path, options) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prepare", str(dataset), str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["submit", "status"])
def test_a_folder_without_a_cohort_is_an_error(tmp_path, capsys, command) -> None:
    assert main([command, str(tmp_path)]) == NoInputError.exit_code
    assert "neurostorm-cluster prepare" in capsys.readouterr().err


def test_empty_paths_are_refused(dataset, capsys) -> None:
    assert main(["prepare", str(dataset), "", "--scheduler", "lists"]) == UsageError.exit_code
    assert "Is a variable unset?" in capsys.readouterr().err
