"""Properties of all affines, clips, windows and headers, tested with hypothesis."""

from __future__ import annotations

import gzip
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nibabel.orientations import apply_orientation, inv_ornt_aff

from bids_app.bids.fieldmaps import _as_list
from bids_app.clips.cut import MODEL_TR, TimeGrid
from bids_app.clips.grid import MODEL_GRID_AFFINE, map_to_grid
from bids_app.errors import NeurostormError
from bids_app.model.windows import cut_windows, join_windows, plan_windows
from bids_app.preprocess.io.headers import corner_distances, examine_header
from bids_app.preprocess.io.timing import read_slice_times, repetition_time
from bids_app.preprocess.registration.transforms import apply_matrix, linear, rigid
from bids_app.preprocess.sdc.apply import read_readout
from bids_app.preprocess.sdc.choice import choose_correction

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANGLES = st.tuples(*[st.floats(-1.2, 1.2)] * 3)
SHIFTS = st.tuples(*[st.floats(-80, 80)] * 3)
SIZES = st.tuples(*[st.integers(1, 7)] * 4)
NUMBERS = st.one_of(st.integers(), st.floats(), st.just(10**400), st.just(-(10**400)))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=10,
)


# affines
@QUICK
@given(ANGLES, SHIFTS, SHIFTS)
def test_a_rigid_matrix_is_a_rotation_about_its_centre(angles, shift, centre) -> None:
    matrix = rigid(angles, shift, centre)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-10)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(apply_matrix(matrix, np.array([centre])), np.add(centre, shift)[None], atol=1e-7)


@QUICK
@given(ANGLES, SHIFTS, arrays(np.float64, (5, 3), elements=st.floats(-100, 100)))
def test_a_motion_and_its_inverse_cancel(angles, shift, points) -> None:
    matrix = rigid(angles, shift)
    there = apply_matrix(matrix, points)
    np.testing.assert_allclose(apply_matrix(np.linalg.inv(matrix), there), points, atol=1e-8)
    both = linear(matrix).then(linear(np.linalg.inv(matrix)))
    np.testing.assert_allclose(both(points), points, atol=1e-4)


@QUICK
@given(ANGLES, SHIFTS, st.tuples(*[st.floats(0.3, 9)] * 3))
def test_corner_distance_equals_the_shift_of_a_grid(angles, shift, sizes) -> None:
    affine = rigid(angles, shift) @ np.diag([*sizes, 1.0])
    assert corner_distances(affine, affine, (4, 5, 6)).max() == 0
    moved = rigid((0, 0, 0), (3, 4, 0)) @ affine
    np.testing.assert_allclose(corner_distances(affine, moved, (4, 5, 6)), 5)


@settings(QUICK, max_examples=20)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.tuples(*[st.integers(0, 60)] * 3))
def test_the_storage_order_does_not_change_the_resampled_image(axes, flips, start) -> None:
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    affine = MODEL_GRID_AFFINE.copy()
    affine[:3, 3] = (MODEL_GRID_AFFINE @ [*start, 1])[:3]
    turn = np.array(list(zip(axes, flips, strict=True)), dtype=float)
    turned = nib.Nifti1Image(apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape))
    grids = [
        map_to_grid(image, "x").apply(np.asarray(image.dataobj), 1) for image in (nib.Nifti1Image(data, affine), turned)
    ]
    np.testing.assert_array_equal(*grids)
    x, y, z = start
    np.testing.assert_array_equal(grids[0][x : x + 5, y : y + 6, z : z + 7], data)
    assert np.count_nonzero(grids[0]) == np.count_nonzero(data)


# clips
@QUICK
@given(st.integers(1, 400), st.floats(0.3, 5))
def test_interpolated_times_are_within_the_series(n_volumes, tr) -> None:
    time = TimeGrid.of(n_volumes, tr)
    before, after, share = time.neighbours(0, time.n_out)
    assert 0 <= before.min() <= after.max() < n_volumes
    assert ((after - before) <= 1).all()
    assert (np.diff(before) >= 0).all()
    assert (share >= 0).all()
    assert (share <= 1).all()
    assert abs(time.n_out * MODEL_TR - n_volumes * tr) <= MODEL_TR


@QUICK
@given(st.integers(2, 120), st.floats(0.3, 4), st.data())
def test_chunks_of_a_series_equal_the_whole(n_volumes, tr, data) -> None:
    rows = np.random.default_rng(n_volumes).normal(size=(n_volumes, 3)).astype(np.float32)
    time = TimeGrid.of(n_volumes, tr)
    start = data.draw(st.integers(0, time.n_out - 1))
    stop = data.draw(st.integers(start + 1, time.n_out))
    asked: list[tuple[int, int]] = []

    def read(first: int, last: int) -> np.ndarray:
        asked.append((first, last))
        return rows[first:last]

    whole = time.sample(lambda first, last: rows[first:last], 0, time.n_out)
    np.testing.assert_array_equal(time.sample(read, start, stop), whole[start:stop])
    assert 0 <= asked[0][0] < asked[0][1] <= n_volumes
    assert whole.min() >= rows.min() - 1e-6
    assert whole.max() <= rows.max() + 1e-6


# windows
@QUICK
@given(SIZES, SIZES, st.booleans(), st.integers(1, 2))
def test_windows_contain_each_token_once_and_are_reversible(grid, window, shifted, batch) -> None:
    plan = plan_windows(grid, window, shifted)
    tokens = torch.arange(1, batch * math.prod(grid) + 1).reshape(batch, *grid, 1)
    windows = cut_windows(tokens, plan)
    assert windows.shape == (batch * math.prod(plan.counts), plan.n_tokens, 1)
    held = windows[windows > 0]
    assert sorted(held.tolist()) == list(range(1, batch * math.prod(grid) + 1))
    assert torch.equal(join_windows(windows, plan, batch), tokens)


# headers and sidecars
@pytest.fixture
def quiet_nibabel():
    """Silence nibabel, which logs every header field that it corrects."""
    logger = logging.getLogger("nibabel.global")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


PLAIN = nib.Nifti1Image(np.zeros((6, 6, 6, 25), np.int16), np.diag([4.0, 4.0, 4.0, 1.0])).to_bytes()


@settings(QUICK, max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_header_with_random_bytes_is_read_or_refused_by_name(tmp_path: Path, quiet_nibabel, changes) -> None:
    content = bytearray(PLAIN)
    for place_, value in changes:
        content[place_] = value
    path = tmp_path / "sub-01_bold.nii.gz"
    path.write_bytes(gzip.compress(bytes(content), 1))
    error, header = None, None
    try:
        header = examine_header(path, {"RepetitionTime": 2.0})
    except NeurostormError as caught:
        error = caught
    if error is not None:
        assert path.name in error.message
        assert error.hint
    else:
        assert header.n_volumes >= 20
        assert math.prod(header.shape) < 10**9


@settings(QUICK, max_examples=100)
@given(
    tr=JSON, timing=JSON, slices=JSON, direction=st.one_of(JSON, st.sampled_from(["j", "k-"])), readout=JSON, lines=JSON
)
def test_a_sidecar_with_random_values_is_read_or_refused(tr, timing, slices, direction, readout, lines) -> None:
    header = nib.Nifti1Image(np.zeros((6, 6, 6, 25), np.int16), np.eye(4)).header
    metadata: dict[str, Any] = {"RepetitionTime": tr, "SliceTiming": slices, "SliceEncodingDirection": direction}
    with suppress(NeurostormError):
        assert 0.1 <= repetition_time(header, metadata, "x", 25).tr <= 20
    with suppress(NeurostormError):
        repetition_time(header, {"VolumeTiming": timing}, "x", 25)
    with suppress(NeurostormError):
        read_slice_times(metadata, 2.0, (6, 6, 6, 25), "x")
    encoding = {"PhaseEncodingDirection": direction, "EffectiveEchoSpacing": readout, "ReconMatrixPE": lines}
    for content in (encoding, {"PhaseEncodingDirection": "j", "TotalReadoutTime": readout, "EchoTime": lines}):
        with suppress(NeurostormError):
            read_readout(content, (6, 6, 6), "x")
        choose_correction("x", content, None, True, (), False)
    assert all(isinstance(item, str) for item in _as_list(tr))
