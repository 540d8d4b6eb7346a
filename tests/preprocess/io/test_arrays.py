"""Arrays on disk have their space before they are filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_app.preprocess.io.arrays import create_array
from tests.helpers.machine import run_on_small_disk


def test_an_array_is_written_and_read_back(tmp_path: Path) -> None:
    array = create_array(tmp_path / "x.npy", (3, 4))
    array[1] = 5
    array.flush()
    read = np.load(tmp_path / "x.npy")
    assert read.dtype == np.float32
    assert read.sum() == 20


def test_on_a_full_disk_an_error_is_raised_and_the_process_lives(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from bids_app.preprocess.io.arrays import create_array
try:
    create_array(Path({str(tmp_path)!r}) / "x.npy", (1000, 1000))[:] = 1
except OSError as error:
    print(error.errno, error.filename)
"""
    done = run_on_small_disk(code, tmp_path, megabytes=1)
    assert (done.returncode, done.stdout) == (0, f"28 {tmp_path}/x.npy\n"), done.stderr
