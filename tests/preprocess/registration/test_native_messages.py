"""On a full disk, the messages of ITK and HDF5 do not hide the one that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.machine import run_on_small_disk

CODE = """
import logging
from pathlib import Path
import numpy as np
from scipy.ndimage import gaussian_filter
from bids_app.preprocess.registration.ants import Image, Stage, register
logging.basicConfig(level="{level}")
data = gaussian_filter(np.random.default_rng(0).normal(size=(48, 48, 48)), 3).astype(np.float32)
image = Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))
stage = Stage("SyN[0.2,3,0]", (2,), (1,), (0.0,), "MI[{{fixed}},{{moving}},1,16]")
register(image, image, None, [stage], Path({folder!r}))
"""


def registered_on_a_full_disk(folder: Path, level: str) -> str:
    done = run_on_small_disk(CODE.format(level=level, folder=str(folder)), folder, megabytes=1)
    assert "InputOutputError" in done.stderr
    return done.stderr


def test_a_full_disk_is_reported_without_the_dumps_of_libraries(tmp_path: Path) -> None:
    assert "HDF5-DIAG" not in registered_on_a_full_disk(tmp_path, "INFO")


@pytest.mark.slow
def test_debug_messages_have_the_dumps_of_libraries(tmp_path: Path) -> None:
    assert "HDF5-DIAG" in registered_on_a_full_disk(tmp_path, "DEBUG")
