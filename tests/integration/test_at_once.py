"""Parallel commands on different participants share an output folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bids_app.cli.neurostorm import main
from bids_app.cli.phantom import main as phantom
from bids_app.workflow.locks import Locks, lock_files

LABELS = ("01", "02", "03", "04")


@pytest.mark.parametrize("held_in", ["output", "scratch"])
def test_a_locked_participant_is_skipped_and_the_others_are_processed(
    tiny_dataset, tmp_path: Path, capsys, held_in: str
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    for label in ("01", "02"):
        tiny_dataset.write_bold(label, data=np.ones((12, 12, 8, 5), np.float32))  # what is worked on fails at once
    command = [str(tiny_dataset.root), str(out), "participant", "-w", str(work), "--model", "demo", "--nprocs", "1"]
    with Locks() as locks:
        shown, hidden = lock_files("01", out, work)
        locks.acquire(shown if held_in == "output" else hidden)
        assert main([*command, "--mem", "8GB", "--participant-label", "01"]) == 75
        assert "another run is processing this participant" in capsys.readouterr().err
        assert not list(out.glob("sub-01/log/*/summary.json"))
        assert main([*command, "--mem", "8GB"]) == 65
        said = capsys.readouterr().err
        assert "sub-02_task-rest failed" in said
        assert "skipped: " in said
        assert 0 < said.index("sub-01 is skipped: ") < said.index("1 BOLD runs of 1 participants")  # at the start
    assert list(out.glob("sub-02/log/*/summary.json"))
    assert not list(out.glob("sub-*/log/running.json"))
    assert main([*command, "--mem", "8GB", "--participant-label", "01"]) == 65


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_parallel_commands_write_all_outputs_and_nothing_else(tmp_path: Path) -> None:
    raw, out, home = tmp_path / "raw", tmp_path / "out", tmp_path / "home"
    home.mkdir()
    arguments = ["--participants", "4", "--size", "small", "--no-t1w", "--states", "rest"]
    assert phantom([str(raw), *arguments]) == 0
    package = Path(sys.modules["bids_app"].__file__ or "").parent
    before = {path: path.stat().st_mtime_ns for path in package.rglob("*") if path.suffix in (".yml", ".json", ".bib")}
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "NEUROSTORM_"))}
    environment = keep | {"HOME": str(home), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "bids_app.cli.neurostorm",
        str(raw),
        str(out),
        "participant",
        "--model",
        "demo",
        "--nprocs",
        "1",
    ]
    running = [
        subprocess.Popen([*command, "--participant-label", label], env=environment, stderr=subprocess.PIPE, text=True)
        for label in LABELS
    ]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    for label in LABELS:
        assert (out / f"sub-{label}.html").is_file()
        (table,) = out.glob(f"sub-{label}/func/*_desc-demo_embeddings.tsv")
        with table.open(newline="") as file:
            assert len({row["normalisation"] for row in csv.DictReader(file, delimiter="\t")}) == 2
        (summary,) = out.glob(f"sub-{label}/log/*/summary.json")
        assert json.loads(summary.read_text())["status"] == "ok"
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert (out / ".bidsignore").read_text().endswith("\n")
    assert (out / "logs" / "CITATION.md").stat().st_size > 1000
    assert not [path for path in out.rglob("*") if path.name.startswith(".") and path.name != ".bidsignore"]
    assert not list(home.rglob("*")), "something was written into HOME"
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
