"""A dataset as the working folder is data: no code and no settings of libraries are read from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.datasets import TinyDataset

COMMAND = "import sys; sys.path.pop(0); from bids_app.cli.neurostorm import main; sys.exit(main())"
"""As the installed command: without the working folder on the path of modules."""
PLANTED = "import pathlib\npathlib.Path({mark!r}).touch()\nraise SystemExit('planted')\n"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with modules of the standard library's names, a nipype.cfg and a matplotlibrc beside the data."""
    root = TinyDataset(tmp_path / "raw").root
    for name in ("selectors", "signal", "numpy", "json"):
        (root / f"{name}.py").write_text(PLANTED.format(mark=str(tmp_path / "executed")))
    (tmp_path / "elsewhere").mkdir()
    (root / "nipype.cfg").write_text(
        f"[execution]\ncrashdump_dir = {tmp_path / 'elsewhere'}\n"
        f"[logging]\nlog_to_file = true\nlog_directory = {tmp_path / 'elsewhere'}\n"
    )
    (root / "matplotlibrc").write_text("font.size: planted\n")
    return root


def test_nothing_of_the_working_folder_is_executed_or_read(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [".", str(out), "participant", "--model", "demo", "-w", str(tmp_path / "work"), "--nprocs", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=dataset,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (tmp_path / "executed").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "planted" not in done.stderr
    (summary,) = out.glob("sub-01/log/*/summary.json")
    (run,) = json.loads(summary.read_text())["runs"]
    assert done.returncode == run["exit_code"] == 65, done.stderr
    assert run["steps"], "workers have started"
