"""Repetition time from sidecar and header."""

import nibabel as nib
import pytest

from bids_app.errors import BadDataError
from bids_app.preprocess.io.timing import repetition_time


def header(tr: float = 2.0, unit: str = "sec") -> nib.Nifti1Header:
    made = nib.Nifti1Header()
    made.set_data_shape((4, 4, 4, 30))
    made.set_xyzt_units("mm", unit)
    made["pixdim"][4] = tr
    return made


def test_sidecar_and_header_agree():
    timing = repetition_time(header(2.0), {"RepetitionTime": 2.0}, "x_bold.nii.gz", 30)
    assert timing.tr == 2.0
    assert timing.warnings == ()


def test_sidecar_wins_over_header_with_a_warning():
    timing = repetition_time(header(1.79), {"RepetitionTime": 2.0}, "x_bold.nii.gz", 30)
    assert timing.tr == 2.0
    assert "1.79" in timing.warnings[0]
    assert "x_bold.nii.gz" in timing.warnings[0]


@pytest.mark.parametrize(("value", "unit"), [(0.72, "sec"), (720.0, "msec"), (720_000.0, "usec")])
def test_header_is_read_in_its_units_when_the_sidecar_has_none(value, unit):
    timing = repetition_time(header(value, unit), {}, "x_bold.nii.gz", 30)
    assert timing.tr == pytest.approx(0.72)
    assert "the header's" in timing.warnings[0]


@pytest.mark.parametrize("made", [header(0.0), header(1.0, "unknown"), header(2000.0)])
def test_missing_tr_names_the_sidecar(made):
    with pytest.raises(BadDataError, match=r"x_bold.nii.gz: RepetitionTime is missing from the sidecar") as error:
        repetition_time(made, {}, "x_bold.nii.gz", 30)
    assert "JSON" in error.value.hint
    assert error.value.exit_code == 65


@pytest.mark.parametrize("tr", [0, -2.0, "2.0", True, float("nan"), 2000])
def test_impossible_tr_of_the_sidecar_is_refused(tr):
    with pytest.raises(BadDataError, match=r"x_bold.nii.gz: RepetitionTime is"):
        repetition_time(header(), {"RepetitionTime": tr}, "x_bold.nii.gz", 30)


def test_tr_together_with_volume_timing_is_refused():
    with pytest.raises(BadDataError, match="both RepetitionTime and VolumeTiming"):
        repetition_time(header(), {"RepetitionTime": 2.0, "VolumeTiming": [0, 2]}, "x_bold.nii.gz", 2)


def test_even_volume_timing_gives_the_tr():
    times = [3.0 * i for i in range(30)]
    assert repetition_time(header(3.0), {"VolumeTiming": times}, "x_bold.nii.gz", 30).tr == pytest.approx(3.0)


def test_uneven_volume_timing_is_refused():
    with pytest.raises(BadDataError, match="not evenly spaced"):
        repetition_time(header(), {"VolumeTiming": [0, 2, 5]}, "x_bold.nii.gz", 3)
