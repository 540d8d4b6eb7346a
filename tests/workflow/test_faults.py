"""All faults of a run are found at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.derivatives import DerivedRun
from bids_app.bids.fieldmaps import Fieldmap
from bids_app.bids.query import BoldRun
from bids_app.errors import BadDataError
from bids_app.settings import PARTICIPANT, PreprocessSettings, Settings
from bids_app.workflow.faults import faults_of_optional_images, inspect_run
from tests.helpers.datasets import TinyDataset


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "raw", tmp_path / "out", PARTICIPANT, tmp_path / "work")


def image(path: Path, shape: tuple[int, ...] = (16, 16, 16)) -> Path:
    data = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])).to_filename(path)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.fixture
def run(tiny_dataset: TinyDataset) -> BoldRun:
    """Run of 30 volumes with two T1w images, a fieldmap and events."""
    folder = tiny_dataset.root / "sub-01"
    events = folder / "events.tsv"
    events.write_text("onset\tduration\n1\t1\n")
    bold = tiny_dataset.bold_path()
    return BoldRun(
        bold,
        {"sub": "01", "task": "rest"},
        json.loads(bold.with_suffix("").with_suffix(".json").read_text()),
        t1w=image(folder / "one_T1w.nii.gz"),
        t1w_repeats=(image(folder / "two_T1w.nii.gz"),),
        events=events,
        fieldmap=Fieldmap("fieldmap", (image(folder / "map.nii.gz"), image(folder / "magnitude.nii.gz")), ({}, {})),
    )


def test_a_run_without_faults_has_its_header(run: BoldRun, settings: Settings) -> None:
    header, faults = inspect_run(run, settings)
    assert faults == ()
    assert header is not None
    assert header.n_volumes == 30


def test_an_echo_of_another_length_is_found(run: BoldRun, settings: Settings, tmp_path: Path) -> None:
    shape = nib.load(run.bold).shape
    same, shorter = (image(tmp_path / f"{n}.nii.gz", (*shape[:3], n)) for n in (shape[3], shape[3] - 1))
    same.write_bytes(run.bold.read_bytes())
    for last, expected in ((same, 0), (shorter, 1)):
        _, faults = inspect_run(replace(run, echoes=(run.bold, same, last)), settings)
        assert len(faults) == expected
    assert f"{shorter.name}: its size" in str(faults[0])


def test_all_faults_of_a_run_are_found(tiny_dataset: TinyDataset, run: BoldRun, settings: Settings) -> None:
    short = np.random.default_rng(0).normal(1000, 50, (12, 12, 8, 15)).astype(np.float32)
    cut(tiny_dataset.write_bold(data=short))
    assert run.t1w is not None
    assert run.events is not None
    cut(run.t1w)
    required = replace(settings, preprocess=PreprocessSettings(fail_without_t1w=True))
    run.events.write_text("time\n1\n")
    _, faults = inspect_run(replace(run, metadata={"RepetitionTime": "two"}), required)
    said = "\n".join(map(str, faults))
    expected = (
        "15 volumes, too few",
        "RepetitionTime",
        f"{run.bold.name}: unreadable or truncated",
        "one_T1w.nii.gz: unreadable or truncated",
        "events.tsv: not a valid events table",
    )
    assert [text for text in expected if text not in said] == []
    assert len(faults) == len(expected)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"RepetitionTime": 2.0}, ()),
        ({"RepetitionTime": 0}, ("RepetitionTime is 0",)),
    ],
)
def test_faults_of_timing_do_not_hide_one_another(run, settings, metadata, expected) -> None:
    dropping = replace(settings, preprocess=PreprocessSettings(dummy_scans=60))
    cut(run.bold)
    _, faults = inspect_run(replace(run, metadata=metadata), dropping)
    said = "\n".join(map(str, faults))
    expected = (*expected, "0 volumes", "unreadable or truncated")
    assert [text for text in expected if text not in said] == []
    assert len(faults) == len(expected)


def test_invalid_slice_times_are_no_fault_of_the_run(run: BoldRun, settings: Settings) -> None:
    metadata = run.metadata | {"SliceTiming": [0, 700.0], "SliceEncodingDirection": "q"}
    header, faults = inspect_run(replace(run, metadata=metadata), settings)
    assert faults == ()
    assert header is not None
    assert header.slices is None
    assert ["contradict" in header.omitted[0], "SliceEncodingDirection is 'q'" in header.omitted[1]] == [True, True]


def test_images_that_are_left_out_are_no_faults_of_the_run(run: BoldRun, settings: Settings) -> None:
    assert run.t1w is not None
    assert run.fieldmap is not None
    damaged = [cut(path) for path in (run.t1w, *run.t1w_repeats, run.fieldmap.files[1])]
    assert inspect_run(run, settings)[1] == ()
    found = faults_of_optional_images(run, settings)
    assert list(found) == damaged
    assert all("unreadable or truncated" in str(fault) for faults in found.values() for fault in faults)


@pytest.mark.parametrize(("value", "expected"), [(0, "covers 0.0% of the image"), (1, "covers 100.0% of the image")])
def test_a_lesion_mask_that_is_empty_or_inverted_is_a_fault(
    run: BoldRun, settings: Settings, tmp_path: Path, value: int, expected: str
) -> None:
    lesion = tmp_path / "sub-01_label-lesion_roi.nii.gz"
    mask = np.full((8, 8, 8), value, np.uint8)
    nib.save(nib.Nifti1Image(mask, np.eye(4)), lesion)
    (fault,) = inspect_run(replace(run, lesion=lesion), settings)[1]
    assert f"{lesion.name}: the lesion mask {expected}" in str(fault)
    mask[:2] = 1 - value
    nib.save(nib.Nifti1Image(mask if value == 0 else 1 - mask, np.eye(4)), lesion)
    assert inspect_run(replace(run, lesion=lesion), settings)[1] == ()


def test_an_ignored_fieldmap_is_not_checked(run: BoldRun, settings: Settings) -> None:
    assert run.fieldmap is not None
    cut(run.fieldmap.files[0])
    assert len(faults_of_optional_images(run, settings)) == 1
    ignoring = replace(settings, preprocess=PreprocessSettings(ignore=("fieldmaps",)))
    assert faults_of_optional_images(run, ignoring) == {}


def test_a_problem_of_the_query_does_not_hide_damaged_files(run: BoldRun, settings: Settings) -> None:
    cut(run.bold)
    dropping = replace(settings, preprocess=PreprocessSettings(dummy_scans=60))
    _, faults = inspect_run(replace(run, problem=BadDataError("broken sidecar"), metadata={}), dropping)
    said = [str(fault) for fault in faults]
    assert said[0].startswith("broken sidecar")
    assert "0 volumes remain" in said[1]
    assert "unreadable or truncated" in said[2]
    assert len(said) == 3


def test_images_of_several_runs_are_read_once(run: BoldRun, settings: Settings) -> None:
    assert run.t1w is not None
    required = replace(settings, preprocess=PreprocessSettings(fail_without_t1w=True))
    known = {run.t1w: (BadDataError("known"),)}
    assert [fault.message for fault in inspect_run(run, required, known)[1]] == ["known"]
    assert set(known) >= {run.t1w, run.bold}


def test_a_transform_that_is_no_displacement_field_is_named_by_the_check(run: BoldRun, settings: Settings) -> None:
    warp = run.bold.with_name("warp.nii.gz")
    coefficients = nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4))
    coefficients.header["intent_code"] = 2007
    coefficients.to_filename(warp)
    derived = DerivedRun(run.bold, run.entities, "MNI152NLin6Asym", "UK Biobank", warp=warp)
    _, faults = inspect_run(replace(run, derived=derived), settings)
    assert any("warp.nii.gz: has FNIRT's coefficients" in str(fault) for fault in faults)
    cut(warp)
    _, faults = inspect_run(replace(run, derived=derived), settings)
    assert any("warp.nii.gz" in str(fault) and "truncated" in str(fault) for fault in faults)
