"""Sidecars and events: whatever they hold, they are read or refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bids_app"]):
    from harness import fuzz
    from nibabel import Nifti1Header

    from bids_app.bids.fieldmaps import choose_fieldmap
    from bids_app.bids.sidecars import Inheritance, read_json
    from bids_app.errors import NeurostormError
    from bids_app.preprocess.io.timing import read_slice_times, repetition_time
    from bids_app.preprocess.sdc.apply import read_readout
    from bids_app.preprocess.sdc.choice import choose_correction
    from bids_app.workflow.nodes import last_onset

SHAPE = (6, 6, 6, 25)
SOUND = {
    "RepetitionTime": 2.0, "VolumeTiming": [0, 2, 4], "SliceTiming": [0, 1, 0, 1, 0, 1], "EchoTime": 0.03,
    "SliceEncodingDirection": "k-", "PhaseEncodingDirection": "j", "TotalReadoutTime": 0.03, "B0FieldSource": "a",
    "EffectiveEchoSpacing": 0.0005, "ReconMatrixPE": 64, "IntendedFor": ["bids::x"], "B0FieldIdentifier": ["a"],
}  # fmt: skip
HEADER = Nifti1Header()


def read(data: bytes, folder: Path) -> None:
    events = folder / "x_events.tsv"
    events.write_bytes(data)
    with suppress(NeurostormError):
        last_onset(events)
    raw = folder / "raw"
    place = raw / "sub-01" / "fmap"
    place.mkdir(parents=True, exist_ok=True)
    sidecar, image = place / "sub-01_epi.json", place / "sub-01_epi.nii.gz"
    sidecar.write_bytes(data)
    image.write_bytes(b"x")
    try:
        metadata = read_json(sidecar)
    except NeurostormError:
        return
    bold = raw / "sub-01" / "func" / "sub-01_bold.nii.gz"
    fieldmap = choose_fieldmap(bold, metadata, [image], Inheritance(raw), [])
    choose_correction("x", metadata, fieldmap, True, (), True)
    for call in (
        lambda: repetition_time(HEADER, metadata, "x", 25),
        lambda: read_slice_times(metadata, 2.0, SHAPE, "x"),
        lambda: read_readout(metadata, SHAPE, "x"),
    ):
        with suppress(NeurostormError):
            call()


if __name__ == "__main__":
    fuzz(read, [json.dumps(SOUND).encode(), b"onset\tduration\n1\t2\nn/a\t3\n", b"{}"])
