"""Simulated scans agree with their ground truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.phantom import activity
from bids_app.phantom.bold import Body, SimulatedRun, simulate_run
from bids_app.phantom.geometry import apply, grid_points, rng_for, sample
from bids_app.phantom.head_shape import HeadShape, random_head_shape
from bids_app.phantom.motion import MAX_MOTION, random_motion
from bids_app.phantom.protocol import AnatomicalProtocol, Protocol
from bids_app.phantom.t1w import simulate_t1w
from bids_app.phantom.tissues import TISSUES, epi_signal, template_tissues

QUIET = Body(networks=dict.fromkeys(activity.NETWORKS, 0.003), breathing=0.001, heart=0.002, drift=0.001)
COARSE = Protocol(voxel_mm=(5.0, 5.0, 5.0), matrix=(40, 44, 32), n_volumes=40, snr=300.0)


@pytest.fixture(scope="module")
def head_shape() -> HeadShape:
    return random_head_shape(3, "someone")


@pytest.fixture(scope="module")
def lefthand(head_shape) -> SimulatedRun:
    return simulate_run(head_shape, replace(COARSE, motion_mm=0.1), "lefthand", (3, "run"), QUIET)


def on_template(run: SimulatedRun) -> np.ndarray:
    """Return the template positions of a run's voxels, (X, Y, Z, 3), mm."""
    return run.head_shape.t1w_to_template(apply(run.boldref_to_t1w, grid_points(run.bold.shape[:3], run.affine)))


def correlation_with_design(run: SimulatedRun, at_template_mm: tuple[float, float, float]) -> float:
    """Correlate the design with the signal within 8 mm of a template position."""
    positions = on_template(run)
    near = np.linalg.norm(positions - np.array(at_template_mm), axis=-1) < 8.0
    signal = run.bold[near].mean(axis=0)
    trend = np.vander(np.linspace(-1, 1, len(signal)), 3)
    signal = signal - trend @ np.linalg.lstsq(trend, signal, rcond=None)[0]
    return float(np.corrcoef(signal, run.design)[0, 1])


def test_left_hand_activates_the_right_hemisphere_only(lefthand):
    assert correlation_with_design(lefthand, (38, -24, 57)) > 0.8
    assert correlation_with_design(lefthand, (-38, -24, 57)) < 0.4


def test_right_hand_activates_the_left_hemisphere_and_vision_both_occipital_lobes(head_shape):
    right = simulate_run(head_shape, COARSE, "righthand", (3, "run"), QUIET)
    assert correlation_with_design(right, (-38, -24, 57)) > 0.8
    assert correlation_with_design(right, (38, -24, 57)) < 0.4
    visual = simulate_run(head_shape, COARSE, "visual", (3, "run"), QUIET)
    assert min(correlation_with_design(visual, (x, -86, 3)) for x in (-10, 10)) > 0.8


def test_rest_has_no_events_and_no_activation(head_shape):
    rest = simulate_run(head_shape, replace(COARSE, n_volumes=6), "rest", (3, "run"))
    assert rest.events == ()
    assert not rest.design.any()
    assert not rest.activation.any()


def test_the_brain_mask_is_the_warped_template_mask(lefthand):
    maps = template_tissues(2)
    positions = on_template(lefthand)
    expected = sample(maps.brain, maps.affine, positions) >= 0.5
    both = (expected & lefthand.brain_mask).sum()
    assert 2 * both / (expected.sum() + lefthand.brain_mask.sum()) > 0.97
    # the mean signal has its edge where the mask has
    mean = lefthand.bold.mean(axis=-1)
    assert np.median(mean[lefthand.brain_mask]) > 4 * np.median(mean[~lefthand.brain_mask])


def test_correcting_the_true_motion_reduces_the_variance(head_shape):
    quiet = Body(networks=dict.fromkeys(activity.NETWORKS, 0.0), breathing=0.0, heart=0.0, drift=0.0)
    run = simulate_run(head_shape, replace(COARSE, motion_mm=1.0, n_volumes=12, snr=1000.0), "rest", (5,), quiet)
    positions = grid_points(run.bold.shape[:3], run.affine).astype(float)[run.brain_mask]
    corrected = [sample(run.bold[..., t], run.affine, apply(run.motion[t], positions), order=3) for t in range(12)]
    wrong = [
        sample(run.bold[..., t], run.affine, apply(np.linalg.inv(run.motion[t]), positions), order=3) for t in range(12)
    ]
    moved = run.bold[run.brain_mask].std(axis=-1).mean()
    assert np.std(corrected, axis=0).mean() < 0.5 * moved < np.std(wrong, axis=0).mean()


def test_forward_and_inverse_warp_agree(head_shape):
    points = rng_for(0).uniform([-60, -95, -40], [60, 60, 70], (500, 3))
    there = head_shape.template_to_t1w(points)
    assert np.abs(head_shape.t1w_to_template(there) - points).max() < 0.01
    assert 2.0 < np.linalg.norm(apply(head_shape.t1w_to_head, there) - points, axis=1).mean() < 20.0


def test_participants_differ_and_are_reproducible():
    points = rng_for(0).uniform(-50, 50, (100, 3))
    first, again, other = (random_head_shape(1, n).head_to_template(points) for n in ("a", "a", "b"))
    assert (first == again).all()
    assert np.linalg.norm(first - other, axis=1).mean() > 2.0


def test_motion_is_zero_at_the_reference_and_bounded():
    motion = random_motion(200, 1.0, 3.0, rng_for(1), reference=4)
    assert motion[4] == pytest.approx(np.eye(4))
    turns = motion[:, :3, :3]
    assert turns @ turns.transpose(0, 2, 1) == pytest.approx(np.broadcast_to(np.eye(3), (200, 3, 3)))
    degrees = np.rad2deg(np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert degrees.max() < MAX_MOTION * np.sqrt(3) + 1e-6
    assert degrees.max() > 1.0


def test_non_steady_state_volumes_are_brighter_and_counted(head_shape):
    kept = replace(COARSE, n_volumes=10, dummies_kept=True, tr=0.8, motion_mm=0.0, snr=1000.0)
    run = simulate_run(head_shape, kept, "rest", (1,))
    level = run.bold[run.brain_mask].mean(axis=0)
    assert 1 <= run.reference <= 5
    assert level[0] > 1.1 * level[run.reference :].mean()
    assert level[run.reference] < 1.02 * level[run.reference + 1 :].mean()


def test_csf_is_bright_and_white_matter_dark_in_epi():
    steady = dict(zip(TISSUES, epi_signal(2.0, 0.03, 78.0, 1)[-1], strict=True))
    assert steady["csf"] > steady["gm"] > steady["wm"] > steady["fat"]


COARSE_T1W = AnatomicalProtocol((4.0,) * 3, (45, 56, 56), noise=0.02, bias=0.1)


def test_a_skull_stripped_t1w_shows_the_brain_only(head_shape):
    usual, stripped = (simulate_t1w(head_shape, COARSE_T1W, variant=variant) for variant in ("", "stripped"))
    np.testing.assert_array_equal(stripped.image, usual.image * usual.brain_mask)


def test_a_defaced_t1w_lacks_the_face_and_keeps_the_whole_brain(head_shape):
    usual, defaced = (simulate_t1w(head_shape, COARSE_T1W, variant=variant) for variant in ("", "defaced"))
    gone = (defaced.image == 0) & (usual.image > 100)
    assert gone.sum() * 0.064 > 100  # mL
    np.testing.assert_array_equal(defaced.image[usual.brain_mask], usual.image[usual.brain_mask])
    np.testing.assert_array_equal(defaced.image[~gone & (defaced.image > 0)], usual.image[~gone & (defaced.image > 0)])


def test_the_neck_variant_extends_down_to_the_shoulders(head_shape):
    usual, long = (simulate_t1w(head_shape, COARSE_T1W, variant=variant) for variant in ("", "neck"))
    assert long.image.shape[2] - usual.image.shape[2] == round(110 / 4)
    top_planes = slice(-usual.image.shape[2], None)
    assert (
        abs(int(long.brain_mask[..., top_planes].sum()) - int(usual.brain_mask.sum())) < 0.02 * usual.brain_mask.sum()
    )
    assert (long.image[..., :10] > 200).sum() > 2 * (usual.image[..., :10] > 200).sum()


def test_the_coarse_variant_has_3_mm_voxels(head_shape):
    coarse = simulate_t1w(head_shape, AnatomicalProtocol(matrix=(170, 220, 220)), variant="coarse")
    np.testing.assert_allclose(np.linalg.norm(coarse.affine[:3, :3], axis=0), 3)
    with pytest.raises(UsageError, match="Unknown T1w variant"):
        simulate_t1w(head_shape, COARSE_T1W, variant="blurred")


def test_t1w_has_t1_contrast_and_a_brain_mask(head_shape):
    scan = simulate_t1w(head_shape, AnatomicalProtocol((3.0,) * 3, (60, 75, 75), "PIR", noise=0.01, bias=0.0))
    template = head_shape.t1w_to_template(grid_points(scan.image.shape, scan.affine).astype(float))
    maps = template_tissues(2)
    grey, white, fluid = (
        np.median(scan.image[sample(maps.fractions[n], maps.affine, template) > 0.9]) for n in ("gm", "wm", "csf")
    )
    assert white > 1.2 * grey > 1.2 * 1.8 * fluid
    assert 1100 < scan.brain_mask.sum() * 0.027 < 2000  # mL


def test_same_keys_give_the_same_scan():
    someone, short = random_head_shape(1), replace(COARSE, n_volumes=3)
    first, again, other = (simulate_run(someone, short, "visual", keys).bold for keys in ((7,), (7,), (8,)))
    assert (first == again).all()
    assert not (first == other).all()


def test_the_design_changes_within_each_clip():
    for seed in range(5):
        events = activity.random_events("visual", 100.0, rng_for(seed))
        assert all(10 <= e.duration <= 15 for e in events[:-1])
        design = activity.response(events, 1.0, 100)
        clips = [design[start : start + 16] for start in range(0, 96, 16)]
        assert min(np.ptp(clip) for clip in clips) > 0.3


def test_an_unknown_state_lists_the_known_ones(head_shape):
    with pytest.raises(UsageError, match="lefthand"):
        simulate_run(head_shape, COARSE, "footwork")
