"""Scans with dynamics: signals where they are said to be, nuisances, and heads of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.phantom.activity import Event
from bids_app.phantom.dynamic_scans import SITES, Nuisances, Site, simulate_head, simulate_scan, summarise_motion
from bids_app.phantom.regional_series import make_model, regions

STEP = 3
NONE = Nuisances(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
QUIET = Site("quiet", 1.0, 0.0, 0.0)
SILENT = replace(make_model(), sd=np.zeros(len(regions().networks)))
HEAD = simulate_head(0, step=STEP)


def scan(model=SILENT, nuisances=NONE, site=QUIET, n_vols=20, keys=(1,), **options):
    return simulate_scan(model, HEAD, site, nuisances, n_vols, 2.0, *keys, **options)


def changes(model=SILENT, nuisances=NONE, site=QUIET, **options) -> np.ndarray:
    """Return the signal relative to its mean over time, (T, V)."""
    values = scan(model, nuisances, site, **options).series.values
    return values / values.mean(axis=0) - 1


def near(*centre: float, mm: float = 10.0) -> np.ndarray:
    return np.linalg.norm(HEAD.points - np.array(centre, np.float32), axis=1) < mm


def test_the_same_keys_give_the_same_scan():
    options = {"model": make_model(), "nuisances": Nuisances(), "site": SITES[0]}
    first, again, other = (scan(**options, keys=(k,)) for k in (1, 1, 2))
    assert np.array_equal(first.series.values, again.series.values)
    assert first.confounds == again.confounds
    assert not np.allclose(first.series.values, other.series.values)


def test_folds_belong_to_a_participant():
    first, again, other = (simulate_head(seed, step=STEP) for seed in (0, 0, 1))
    assert np.array_equal(first.grey, again.grey)
    displaced = np.linalg.norm(first.points - other.points, axis=1)
    assert 4.0 < displaced.mean() < 16.0
    own = [head.grey - simulate_head(5, folds_mm=0.0, step=STEP).grey for head in (first, other)]
    assert abs(np.corrcoef(own[0], own[1])[0, 1]) < 0.5  # both depart from the template where its tissues change
    assert np.abs(first.grey - other.grey).mean() > 0.05


def test_steps_that_leave_too_few_voxels_are_an_error():
    with pytest.raises(UsageError, match="Invalid step"):
        simulate_head(0, step=6)


def test_without_any_signal_the_scan_is_constant():
    assert np.abs(changes()).max() < 1e-5


def test_regional_series_reach_the_grey_matter_of_their_region_only():
    sd = np.zeros(len(regions().networks))
    sd[regions().members("auditory")] = 0.01
    own = np.isin(regions().owners(HEAD.points), np.flatnonzero(sd))
    spread = changes(replace(make_model(), sd=sd)).std(axis=0)
    assert spread[own & (HEAD.grey > 0.5)].min() > 0.003
    assert spread[~own].max() < 1e-5


def test_activation_is_one_to_two_percent_in_the_area_of_its_state():
    events = (Event(0.0, 60.0, "righthand"),)
    rise = scan(events=events, activation=0.02, n_vols=30).series.values
    rise = (rise / rise[0] - 1)[20]
    assert 0.01 < rise[near(-38, -24, 57)].max() < 0.025
    assert np.abs(rise[near(0, -86, 3)]).max() < 0.001
    assert rise[near(38, -24, 57)].mean() < 0  # ipsilateral deactivation
    assert np.abs(changes(events=(Event(0.0, 60.0, "rest"),), activation=0.02)).max() < 1e-5


def test_slices_are_acquired_at_their_own_times():
    model = make_model()
    owners, heights = regions().owners(HEAD.points), np.argwhere(HEAD.mask)[:, 2]
    region = np.bincount(owners).argmax()
    own = (owners == region) & (HEAD.grey > 0.3)

    def courses(share: float) -> np.ndarray:
        found = changes(model, replace(NONE, slice_timing=share), n_vols=60)
        rows = [found[:, own & (heights == z)].mean(axis=1) for z in np.unique(heights[own])]
        return np.corrcoef(rows)

    assert courses(0.0).min() > 0.9999
    assert 0.3 < courses(1.0).min() < 0.995


def test_pulsation_is_strongest_near_vessels():
    spread = changes(nuisances=replace(NONE, cardiac=0.01)).std(axis=0)
    assert spread[near(0, -16, -32)].mean() > 3 * spread[near(30, -50, 55)].mean()


def test_residual_motion_changes_the_edges_of_the_brain_most():
    moved = replace(NONE, motion_mm=0.5, residual_motion=0.2)
    spread = changes(nuisances=moved).std(axis=0)
    volume = HEAD.volume(np.ones(len(spread)))
    edge = np.stack([np.roll(volume, k, axis) for axis in range(3) for k in (-1, 1)]).min(axis=0)[HEAD.inside] == 0
    assert spread[edge].mean() > 1.5 * spread[~edge].mean()


def test_motion_summaries_are_those_of_known_motion():
    motion = np.tile(np.eye(4), (5, 1, 1))
    motion[2:, 0, 3] = 0.4  # mm to the right, from the third volume on
    found = summarise_motion(motion)
    assert found["framewise_displacement_max"] == pytest.approx(0.4)
    assert found["framewise_displacement_mean"] == pytest.approx(0.1)
    assert found["trans_x_std"] == pytest.approx(0.4 * np.sqrt(6) / 5)
    assert found["rot_x_std"] == 0


def test_sites_differ_in_gain_noise_and_smoothness():
    plain, loud = scan().series.values.mean(), scan(site=replace(QUIET, gain=2.0)).series.values.mean()
    assert loud == pytest.approx(2 * plain, rel=1e-5)
    faint, strong = (changes(site=replace(QUIET, noise=noise)).std() for noise in (0.01, 0.02))
    assert strong == pytest.approx(2 * faint, rel=0.05)

    def neighbours(fwhm_mm: float) -> float:
        noise = changes(site=Site("x", 1.0, 0.02, fwhm_mm))
        places = np.argwhere(HEAD.mask)
        follow = np.flatnonzero((np.diff(places[:, 2]) == STEP) & (np.diff(places[:, 0]) == 0))
        return float((noise[:, follow] * noise[:, follow + 1]).mean() / noise.var())

    assert abs(neighbours(0.0)) < 0.05
    assert neighbours(9.0) > 0.4
