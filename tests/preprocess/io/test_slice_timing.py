"""Slice times of sidecars, and slice timing correction."""

import numpy as np
import pytest

from bids_app.preprocess.io.slice_timing import SliceTimed, shift_kernel
from bids_app.preprocess.io.timing import SliceTimes, read_slice_times
from bids_app.preprocess.io.volumes import ArrayVolumes
from bids_app.preprocess.masking import prepare_bold

TR = 2.0
TIMES = (0.0, 1.0, 0.5, 1.5)
SHAPE = (5, 6, 4, 60)


def wave(seconds: np.ndarray) -> np.ndarray:
    return 500 + 20 * np.sin(2 * np.pi * seconds / 16.0) + 8 * np.cos(2 * np.pi * seconds / 9.0 + 1)


def scanned(axis: int = 2, times=TIMES) -> np.ndarray:
    """A series whose every voxel shows the wave at the time at which its slice was measured."""
    series = np.empty((*SHAPE[:3], 60))
    for index, time in enumerate(times):
        where = [slice(None)] * 3
        where[axis] = index
        series[tuple(where)] = wave(TR * np.arange(60) + time)
    return series


@pytest.mark.parametrize(("axis", "times"), [(2, TIMES), (0, (0.0, 0.4, 0.8, 1.2, 1.6))])
def test_slices_are_shifted_to_the_middle_of_the_volume(axis, times):
    slices = SliceTimes(axis, times)
    source = ArrayVolumes(scanned(axis, times), np.eye(4))
    found = SliceTimed(source, slices, TR).read(0, 60)
    truth = wave(TR * np.arange(60) + slices.reference)
    error = np.abs(found - truth[:, None, None, None])
    before = np.abs(source.read(0, 60) - truth[:, None, None, None])
    assert error[4:-4].max() < 0.05 * before.max()
    assert error.max() < 0.25 * before.max()  # extrapolated at the ends


def test_chunks_equal_the_whole_series():
    timed = SliceTimed(ArrayVolumes(scanned(), np.eye(4)), SliceTimes(2, TIMES), TR, n_dummy=2)
    whole = timed.read(0, 60)
    for start, stop in ((0, 1), (0, 3), (1, 9), (20, 33), (55, 60)):
        np.testing.assert_allclose(timed.read(start, stop), whole[start:stop], rtol=1e-6)


def test_dummy_volumes_are_not_corrected_and_do_not_affect_others():
    bright = scanned()
    bright[..., :3] *= 10
    usual = SliceTimed(ArrayVolumes(scanned(), np.eye(4)), SliceTimes(2, TIMES), TR, n_dummy=3).read(0, 60)
    found = SliceTimed(ArrayVolumes(bright, np.eye(4)), SliceTimes(2, TIMES), TR, n_dummy=3).read(0, 60)
    np.testing.assert_array_equal(found[:3], np.moveaxis(bright, 3, 0)[:3].astype(np.float32))
    np.testing.assert_allclose(found[3:], usual[3:], rtol=1e-6)


def test_kernel_is_the_cubic_spline():
    from scipy.ndimage import map_coordinates

    values = np.random.default_rng(0).normal(size=80)
    for shift in (-0.5, -0.1, 0.0, 0.3, 0.5):
        here = shift_kernel(shift) @ values[40 - 8 : 40 + 9]
        assert here == pytest.approx(map_coordinates(values, [[40 + shift]], order=3, mode="mirror")[0], abs=2e-4)


def test_a_negative_direction_reverses_the_slices():
    content = {"SliceTiming": list(TIMES), "SliceEncodingDirection": "k-"}
    slices, _ = read_slice_times(content, TR, SHAPE, "x")
    assert slices == SliceTimes(2, TIMES[::-1])
    assert slices.reference == 0.75
    slices, _ = read_slice_times(
        content | {"SliceEncodingDirection": "i", "SliceTiming": [0, 0.1, 0.2, 0.3, 0.4]}, TR, SHAPE, "x"
    )
    assert slices.axis == 0


@pytest.mark.parametrize("content", [{}, {"SliceTiming": []}, {"SliceTiming": [0.0] * 4}])
def test_no_correction_without_slice_times_or_with_equal_times(content):
    assert read_slice_times(content, TR, SHAPE, "x") == (None, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"SliceTiming": [0, 1, 2]}, "SliceTiming has 3 times for 4 slices"),
        ({"SliceTiming": [0, 1000.0, 500.0, 1500.0]}, "contradict each other"),
        ({"SliceTiming": [0, -1.0, 0.5, 1.5]}, "not a list of seconds"),
        ({"SliceTiming": ["0", "a", "b", "c"]}, "not a list of seconds"),
        ({"SliceTiming": 0.7}, "not a list of seconds"),
        ({"SliceTiming": list(TIMES), "SliceEncodingDirection": "z"}, "SliceEncodingDirection is 'z'"),
    ],
)
def test_invalid_slice_times_are_left_out_with_a_sentence_that_names_file_and_way_out(content, message):
    slices, (said,) = read_slice_times(content, TR, SHAPE, "x_bold.nii.gz")
    assert slices is None
    assert said.startswith("x_bold.nii.gz: ")
    assert message in said
    assert "slice timing was not corrected. Correct the JSON file" in said


def test_all_faults_of_slice_times_are_named():
    content = {"SliceTiming": [0, 3.0, 1.0, 1.0], "SliceEncodingDirection": "q"}
    _, said = read_slice_times(content, TR, SHAPE, "x_bold.nii.gz")
    assert len(said) == 2
    assert "RepetitionTime is 2 s: they contradict" in said[0]
    assert "SliceEncodingDirection is 'q'" in said[1]


def test_a_run_with_invalid_slice_times_is_read_without_correction(tmp_path, write_nifti):
    path = write_nifti(scanned().astype(np.float32))
    series = prepare_bold(path, {"RepetitionTime": TR, "SliceTiming": [0, 700, 350, 1050]}, tmp_path, dummy_scans=0)
    assert series.slices is None
    assert "contradict each other" in series.omitted[0]
    np.testing.assert_array_equal(series.open().read(0, 60), series.open_raw().read(0, 60))


def test_ignore_slicetiming_skips_the_correction(tmp_path, write_nifti):
    data = scanned().astype(np.float32) + np.arange(5, dtype=np.float32)[:, None, None, None]
    path = write_nifti(data)
    metadata = {"RepetitionTime": TR, "SliceTiming": list(TIMES)}
    series = prepare_bold(path, metadata, tmp_path, dummy_scans=0)
    assert series.slices == SliceTimes(2, TIMES)
    assert series.omitted == ()
    changed = np.abs(series.open().read(0, 60) - series.open_raw().read(0, 60)).max(axis=(0, 1, 2))
    assert changed.min() > 1
    ignored = prepare_bold(path, metadata | {"SliceTiming": [9.0]}, tmp_path, dummy_scans=0, ignore=("slicetiming",))
    assert ignored.slices is None
    assert ignored.omitted == ()
    np.testing.assert_array_equal(ignored.open().read(0, 60), series.open_raw().read(0, 60))
