"""A prepared cohort, its logs, and stubs of schedulers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bids_app.cluster.cohort import Cohort, Resources, write_cohort
from bids_app.outputs.schema import OK, RunOutcome, Summary

Log = Callable[..., Path]


def make_cohort(folder: Path, labels: tuple[str, ...] = ("01", "02", "03"), **changes) -> Cohort:
    """Prepare a cohort whose paths have spaces, commas, quotes and percent signs."""
    out = folder / "out, 'a' 100%j"
    values = {
        "bids_dir": str(folder / "raw data"), "out_dir": str(out), "participants": labels,
        "options": ("--model", "demo"), "decisive": {"model": '"demo"'}, "working_folder": str(folder),
        "command": "neurostorm", "scheduler": "lists",
        "shard_size": 1, "resources": Resources(cpus=1, memory_gb=2.0, time="01:00:00", max_array=1000),
    }  # fmt: skip
    cohort = Cohort(**values | changes)
    write_cohort(cohort)
    return cohort


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return make_cohort(tmp_path)


def write_log(
    cohort: Cohort, label: str, *runs: RunOutcome, status: str = OK, model: str = "demo", day: int = 1
) -> Path:
    """Write the log of an invocation as the participant level does."""
    folder = Path(cohort.out_dir, f"sub-{label}", "log", f"202601{day:02d}-120000_0a1b2c3d-0000-4000-8000-{day:012d}")
    folder.mkdir(parents=True)
    code = next((run.exit_code for run in runs if run.status != OK), 0)
    summary = Summary(run_id=folder.name, participant=label, status=status, exit_code=code, seconds=60.0, runs=runs)
    (folder / "summary.json").write_text(json.dumps(summary.to_json()))
    (folder / "neurostorm.toml").write_text(f'[options]\nmodel = "{model}"\nnprocs = 8\n')
    return folder


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write a command to a folder at the start of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def write(name: str, body: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
        return path

    return write
