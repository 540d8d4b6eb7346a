"""Series of volumes on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.preprocess.io.volumes import Volumes


def mapped_bytes() -> int:
    """Memory of this process that holds pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssFile:")[1].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_volumes_that_were_read_do_not_stay_in_memory(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (64, 64, 40, 100), dtype=np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "bold.nii")
    source = Volumes(tmp_path / "bold.nii")
    before = mapped_bytes()
    for first in range(0, 100, 10):
        np.testing.assert_array_equal(source.read(first, first + 10)[3], data[..., first + 3])
    assert mapped_bytes() - before < data.nbytes / 4
