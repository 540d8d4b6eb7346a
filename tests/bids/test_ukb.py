"""Runs of UK Biobank's bulk downloads, with the files of their folders."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.datasets import main_dataset, read_dataset
from bids_app.bids.query import find_runs
from bids_app.bids.ukb import folder_entities
from bids_app.errors import NoInputError
from bids_app.settings import QuerySettings

REST = "fMRI/rfMRI.ica"


def add_run(folder: Path, kind: str = REST, series: str = "filtered_func_data_clean.nii.gz") -> Path:
    """Add a run with all its files."""
    place = folder / kind
    for name in ("mask.nii.gz", "reg/example_func2standard_warp.nii.gz", "reg/example_func2standard.nii.gz"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    (place / "mc").mkdir()
    (place / "mc" / "prefiltered_func_data_mcf.par").touch()
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4))
    image.header["pixdim"][4] = 0.735
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(place / series)
    return place


@pytest.fixture
def ukb(tmp_path: Path) -> Path:
    """One participant with a resting run, a task run and a T1w image; a second visit; and other files."""
    root = tmp_path / "ukb"
    add_run(root / "1234567_20227_2_0")
    add_run(root / "1234567_20249_2_0", "fMRI/tfMRI.feat", "filtered_func_data.nii.gz")
    t1w = root / "1234567_20252_2_0" / "T1" / "T1_brain_to_MNI.nii.gz"
    t1w.parent.mkdir(parents=True)
    t1w.touch()
    add_run(root / "1234567_20227_3_0")
    (root / "1234567_20227_3_0.zip").touch()
    return root


def test_folders_of_fields_and_visits_are_runs_with_their_files(ukb: Path) -> None:
    runs = find_runs(ukb, QuerySettings())
    assert [run.stem for run in runs] == [
        "sub-1234567_ses-2_task-rest",
        "sub-1234567_ses-3_task-rest",
        "sub-1234567_ses-2_task-faces",
    ]
    rest = runs[0].derived
    assert rest is not None
    place = ukb / "1234567_20227_2_0" / REST
    assert rest.bold == place / "filtered_func_data_clean.nii.gz"
    assert rest.warp == place / "reg" / "example_func2standard_warp.nii.gz"
    assert rest.warp in rest.companions
    assert rest.mask == place / "mask.nii.gz"
    assert rest.confounds == place / "mc" / "prefiltered_func_data_mcf.par"
    assert rest.boldref == place / "reg" / "example_func2standard.nii.gz"
    assert rest.t1w == ukb / "1234567_20252_2_0" / "T1" / "T1_brain_to_MNI.nii.gz"
    assert rest.space == "MNI152NLin6Asym"
    assert (runs[0].problem, runs[0].metadata) == (None, {})
    assert any("smoothed" in note for note in runs[2].notes)
    assert main_dataset(ukb) == "ukb"


def test_folders_within_those_of_participants_are_found_with_their_t1w_images(ukb: Path, tmp_path: Path) -> None:
    nested = tmp_path / "nested" / "1234567"
    nested.parent.mkdir()
    ukb.rename(nested)
    runs = find_runs(nested.parent, QuerySettings())
    assert [run.entities.get("ses") for run in runs] == ["2", "3", "2"]
    assert runs[0].derived is not None
    assert runs[0].derived.t1w == nested / "1234567_20252_2_0" / "T1" / "T1_brain_to_MNI.nii.gz"


@pytest.mark.parametrize(
    ("name", "entities"),
    [
        ("1234567_20227_2_0", {"sub": "1234567", "ses": "2"}),
        ("1234567_3_0", {"sub": "1234567", "ses": "3"}),
        ("0000001_01_2_0", {"sub": "0000001", "ses": "2"}),
        ("1234567", {"sub": "1234567"}),
        ("sub-01", {"sub": "sub01"}),
    ],
)
def test_folder_names_become_entities(name: str, entities: dict[str, str]) -> None:
    assert folder_entities(name) == entities


def test_a_series_without_its_transform_is_refused_with_the_reason(ukb: Path) -> None:
    (ukb / "1234567_20227_2_0" / REST / "reg" / "example_func2standard_warp.nii.gz").unlink()
    run = find_runs(ukb, QuerySettings(sessions=("2",), tasks=("rest",)))[0]
    assert isinstance(run.problem, NoInputError)
    assert "in the space of the scan, without its transform" in run.problem.message


def test_excluded_and_uncleaned_runs_are_named(ukb: Path) -> None:
    (ukb / "1234567_20227_2_0" / REST / "filtered_func_data_clean.nii.gz").unlink()
    folder = ukb / "1234567_20227_3_0" / "fMRI"
    (folder / "unusable").mkdir()
    (folder / "rfMRI.ica").rename(folder / "unusable" / "rfMRI.ica")
    found = read_dataset(ukb, "ukb", ["1234567"])
    assert [run.entities["task"] for run in found.runs] == ["faces"]
    assert sorted(found.unusable.values()) == [
        "rfMRI.ica without filtered_func_data_clean.nii.gz",
        "unusable/rfMRI.ica, excluded by UK Biobank",
    ]


def test_a_raw_dataset_is_matched_with_the_derivatives_by_name(ukb: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    bold = raw / "sub-1234567" / "ses-2" / "func" / "sub-1234567_ses-2_task-rest_bold.nii.gz"
    bold.parent.mkdir(parents=True)
    nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4)).to_filename(bold)
    (raw / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0"}))
    (run,) = find_runs(raw, QuerySettings(derivatives={"ukb": ukb}))
    assert run.derived is not None
    assert run.derived.bold.name == "filtered_func_data_clean.nii.gz"
