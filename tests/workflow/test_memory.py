"""A run that needs more memory than the limit is refused before it starts."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.query import BoldRun
from bids_app.cli.neurostorm import main
from bids_app.workflow import faults
from bids_app.workflow.memory import step_gb

LONG = (104, 104, 72, 1200)


def claim(path: Path, shape: tuple[int, ...]) -> Path:
    """Write a file with the header of a long run and enough noise to make its size plausible."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1, 1), np.int16), np.diag([2.0, 2.0, 2.0, 1.0])).header.copy()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header.set_zooms((2.0, 2.0, 2.0, 0.8)[: len(shape)])
    header.set_xyzt_units("mm", "sec")
    header.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    noise = np.random.default_rng(0).bytes(int(np.prod(shape)) * 2 // 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + noise, 1))
    return path


@pytest.fixture
def long_run(tiny_dataset, monkeypatch) -> Path:
    """Dataset whose participant 01 has a run of 1,200 volumes according to its header, and 02 a short run."""
    monkeypatch.setattr(faults, "check_complete", lambda _: None)  # the run has a header only
    tiny_dataset.write_bold("02")
    claim(tiny_dataset.bold_path("01"), LONG)
    tiny_dataset.write_sidecar({"RepetitionTime": 0.8}, "01")
    return tiny_dataset.root


def command(raw: Path, out: Path, *options: str) -> list[str]:
    return [str(raw), str(out), "participant", "--model", "demo", "-w", str(out.parent / "work"), *options]


def test_a_long_run_needs_between_three_and_four_gigabytes(long_run: Path, tmp_path: Path, capsys) -> None:
    assert main(command(long_run, tmp_path / "out", "--check", "--mem", "4GB")) == 0
    capsys.readouterr()
    assert main(command(long_run, tmp_path / "out", "--check", "--mem", "3GB")) == 75
    said = capsys.readouterr().out
    assert "sub-01_task-rest_bold.nii.gz: needs about 3.0 GB of memory, but the limit is 3.0 GB" in said
    assert "--mem 4GB" in said
    assert "ok    sub-02_task-rest" in said


def test_a_run_that_does_not_fit_is_not_started(long_run: Path, tmp_path: Path, capsys) -> None:
    options = ["--mem", "3GB", "--nprocs", "1", "--participant-label", "01"]
    assert main(command(long_run, tmp_path / "out", *options)) == 75
    assert "sub-01_task-rest failed: sub-01_task-rest_bold.nii.gz: needs about" in capsys.readouterr().err
    assert list((tmp_path / "work").glob("neurostorm/*")) == []
    (summary,) = (tmp_path / "out").glob("sub-01/log/*/summary.json")
    (run,) = json.loads(summary.read_text())["runs"]
    assert run["exit_code"] == 75
    assert "--mem 4GB" in run["hint"]


def test_an_address_space_limit_includes_the_mapped_file(long_run: Path, tmp_path: Path) -> None:
    call = [
        sys.executable,
        "-m",
        "bids_app.cli.neurostorm",
        *command(long_run, tmp_path / "out", "--check", "--mem", "4GB"),
    ]
    limited = subprocess.run(
        call,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9,) * 2),
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 75, limited.stdout + limited.stderr
    assert "address space, including 1.9 GB for the file, but the limit is 4.0 GB (ulimit -v)" in limited.stdout


def test_a_high_resolution_t1w_image_counts(tmp_path: Path) -> None:
    bold = claim(tmp_path / "bold.nii.gz", (64, 64, 36, 100))
    t1w = claim(tmp_path / "T1w.nii.gz", (512, 512, 400))
    assert step_gb(BoldRun(bold, {"sub": "01"})) == pytest.approx(1.02, abs=0.02)
    assert step_gb(BoldRun(bold, {"sub": "01"}, t1w=t1w)) == pytest.approx(3.1, abs=0.1)


def test_an_invalid_header_is_left_to_the_step_that_refuses_it(tmp_path: Path) -> None:
    bold = claim(tmp_path / "bold.nii.gz", (64, 64, 36, 100))
    bold.write_bytes(gzip.compress(gzip.decompress(bold.read_bytes())[:400]))
    assert step_gb(BoldRun(bold, {"sub": "01"})) == 1.0
