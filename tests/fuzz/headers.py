"""NIfTI files: whatever their headers say, they are read or refused."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bids_app", "nibabel"]):
    import nibabel as nib
    import numpy as np
    from harness import fuzz

    from bids_app.errors import NeurostormError
    from bids_app.preprocess.io.headers import examine_anatomy, examine_header
    from bids_app.preprocess.io.images import examine_bold

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
BOLD = nib.Nifti1Image(np.zeros((4, 4, 4, 25), np.uint8), np.diag([4.0, 4.0, 4.0, 1.0])).to_bytes()
T1W = nib.Nifti2Image(np.zeros((4, 4, 4), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0])).to_bytes()


def read(data: bytes, folder: Path) -> None:
    path = folder / "x.nii"
    path.write_bytes(data)
    with suppress(NeurostormError):
        examine_anatomy(path)
    with suppress(NeurostormError):
        examine_header(path, {"RepetitionTime": 2.0})
        examine_bold(path, {"RepetitionTime": 2.0}, folder)


if __name__ == "__main__":
    fuzz(read, [BOLD, T1W])
