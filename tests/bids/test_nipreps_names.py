"""Output names equal those of niworkflows' DerivativesDataSink."""

import json
from pathlib import Path

import pytest
from bids.layout.writing import build_path
from niworkflows import data

from bids_app.bids.writer import output_path

SPEC = json.loads(Path(str(data.load("nipreps.json"))).read_text())["default_path_patterns"]
LONG = {"sub": "subject", "ses": "session", "acq": "acquisition", "rec": "reconstruction", "dir": "direction",
        "res": "resolution"}  # fmt: skip
RUN = {"sub": "01", "ses": "a", "task": "rest", "acq": "fast", "rec": "x", "dir": "AP", "run": "2"}
T1W = {"sub": "01", "ses": "a", "acq": "fast", "run": "2"}
SPACE = {"space": "MNI152NLin6Asym", "res": "2"}


def xfm(start, end):
    return {"from": start, "to": end, "mode": "image"}


OUTPUTS = [
    ("func", RUN, "timeseries", ".tsv", {"desc": "confounds"}),
    ("func", RUN, "timeseries", ".json", {"desc": "confounds"}),
    ("func", RUN, "mask", ".nii.gz", {"desc": "brain"}),
    ("func", RUN, "mask", ".nii.gz", {"desc": "brain"} | SPACE),
    ("func", RUN, "boldref", ".nii.gz", {"desc": "hmc"}),
    ("func", RUN, "bold", ".nii.gz", {"desc": "preproc"} | SPACE),
    ("func", RUN, "xfm", ".txt", {"desc": "hmc"} | xfm("orig", "boldref")),
    ("func", RUN, "xfm", ".txt", {"desc": "coreg"} | xfm("boldref", "T1w")),
    ("func", RUN, "xfm", ".h5", xfm("boldref", "MNI152NLin6Asym")),
    ("anat", T1W, "T1w", ".nii.gz", {"desc": "preproc"}),
    ("anat", T1W, "mask", ".nii.gz", {"desc": "brain"}),
    ("anat", T1W, "xfm", ".h5", xfm("T1w", "MNI152NLin6Asym")),
    ("anat", T1W, "xfm", ".h5", xfm("MNI152NLin6Asym", "T1w")),
]


@pytest.mark.parametrize(("datatype", "source", "suffix", "extension", "extra"), OUTPUTS)
def test_output_name_equals_nipreps(datatype, source, suffix, extension, extra):
    entities = {LONG.get(key, key): label for key, label in {**source, **extra}.items()}
    entities |= {"datatype": datatype, "suffix": suffix, "extension": extension}
    ours = output_path(Path(), source, suffix, extension, datatype=datatype, **extra)
    assert ours.as_posix() == build_path(entities, SPEC)
