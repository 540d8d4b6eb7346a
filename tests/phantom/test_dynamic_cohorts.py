"""Cohorts with effects in dynamics: each trait has its own effect, and the mean image has none."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from bids_app.phantom.dynamic_cohorts import (
    GROUPS,
    LAGGED,
    LINKS,
    NO_EFFECTS,
    VARIED,
    CohortPlan,
    Confounding,
    DynamicEffects,
    dynamic_runs,
    dynamic_sessions,
    dynamic_states,
    dynamic_traits,
    model_of,
    participants_of,
    random_participant,
)
from bids_app.phantom.regional_series import regions

SHORT = CohortPlan(seconds=8.0, step=3)
SEEDS = range(5)


def person(**changes):
    whole = random_participant(0, 0, Confounding())
    return replace(whole, **{"age": 50.0, "score": 100.0, "sex": "F", "group": "control", **changes})


def models(effects=None, **changes):
    return tuple(model_of(p, effects or DynamicEffects(), 0) for p in (person(), person(**changes)))


def blocks() -> np.ndarray:
    whole = np.zeros((len(regions().networks),) * 2, bool)
    for first, second in LINKS:
        part = np.outer(regions().members(first), regions().members(second))
        whole |= part | part.T
    return whole


def test_the_group_changes_the_connectivity_of_the_links_only():
    control, patient = models(group="patient")
    change = patient.covariance - control.covariance
    assert change[blocks()] == pytest.approx(2 * DynamicEffects().connectivity)
    assert np.abs(change[~blocks()]).max() < 1e-12
    assert (patient.exponent, patient.sd.tolist()) == (control.exponent, control.sd.tolist())


def test_sex_changes_the_lag_of_one_network_only():
    women, men = models(sex="M")
    late = regions().members(LAGGED)
    assert (men.lags_s[late] == 1.0).all()
    assert (women.lags_s[late] == -1.0).all()
    assert not men.lags_s[~late].any()
    assert np.array_equal(men.covariance, women.covariance)


def test_age_changes_the_spectrum_only():
    middle, old = models(age=50.0 + 17.3)
    assert old.exponent == pytest.approx(middle.exponent + DynamicEffects().slowing)
    assert np.array_equal(old.covariance, middle.covariance)
    assert np.array_equal(old.sd, middle.sd)


def test_the_score_changes_the_variance_of_its_networks_only():
    average, high = models(score=115.0)
    own = regions().members(*VARIED)
    assert high.sd[own] / average.sd[own] == pytest.approx(np.exp(DynamicEffects().variance))
    assert np.array_equal(high.sd[~own], average.sd[~own])


def test_without_effects_traits_change_nothing():
    first, second = models(NO_EFFECTS, age=80.0, sex="M", score=140.0, group="patient")
    assert all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def test_every_participant_has_a_model_at_the_default_strengths():
    for seed in SEEDS:
        for someone in participants_of(CohortPlan(), 40, seed):
            assert np.linalg.eigvalsh(model_of(someone, DynamicEffects(), seed).covariance)[0] > 0


def mean_images(folder, plan: CohortPlan, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean images (participants, cubes) of a cohort, and who is a patient."""
    people = participants_of(plan, 24, seed)
    rows = []
    for scan in dynamic_traits(folder, 24, plan, seed):
        series = scan.simulate().series
        cube = np.ravel_multi_index(tuple(np.argwhere(series.mask).T // 12), (8, 8, 8))
        rows.append(
            np.bincount(cube, series.values.mean(axis=0), 512) / np.maximum(np.bincount(cube, minlength=512), 1)
        )
    return np.array(rows), np.array([p.group == GROUPS[1] for p in people])


def n_correct(images: np.ndarray, labels: np.ndarray) -> int:
    """Train a linear classifier of images on the first half of the participants; return how many others it predicts.

    Errors of a cross-validation depend on each other, so that their number varies more than binomially.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.preprocessing import StandardScaler

    half = len(labels) // 2
    scaler = StandardScaler().fit(images[:half])
    model = RidgeClassifierCV(np.logspace(0, 5, 6)).fit(scaler.transform(images[:half]), labels[:half])
    return int((model.predict(scaler.transform(images[half:])) == labels[half:]).sum())


def test_a_linear_classifier_of_the_mean_image_is_at_chance(tmp_path):
    correct = sum(n_correct(*mean_images(tmp_path, SHORT, seed)) for seed in SEEDS)
    low, high = binomtest(correct, 12 * len(SEEDS)).proportion_ci(0.95)
    assert low < 0.5 < high


def test_a_linear_classifier_of_the_mean_image_finds_a_confounded_site(tmp_path):
    confounded = replace(SHORT, confounding=Confounding(site=1.0))
    assert n_correct(*mean_images(tmp_path, confounded, 0)) >= 10  # of 12


def test_site_and_motion_follow_the_group_only_on_request(tmp_path):
    free = [(p.group, p.site) for p in participants_of(CohortPlan(), 60, 0)]
    assert all(len({site for group, site in free if group == name}) == 3 for name in GROUPS)
    bound = [(p.group, p.site) for p in participants_of(CohortPlan(confounding=Confounding(site=1.0)), 60, 0)]
    assert all(len({site for group, site in bound if group == name}) == 1 for name in GROUPS)
    calm, moving = (
        [scan.simulate().confounds["framewise_displacement_mean"] for scan in dynamic_traits(tmp_path, 4, plan)]
        for plan in (SHORT, replace(SHORT, confounding=Confounding(motion=1.0)))
    )
    assert calm[::2] == moving[::2]
    assert moving[1] > 1.5 * calm[1]
    assert moving[3] > 1.5 * calm[3]


def test_a_cohort_lists_its_scans_and_repeats_them(tmp_path):
    first, again = (dynamic_traits(tmp_path, 3, SHORT)[1].simulate() for _ in range(2))
    assert np.array_equal(first.series.values, again.series.values)
    assert [scan.name for scan in dynamic_traits(tmp_path, 3, SHORT)] == [f"sub-00{k}_task-x" for k in range(3)]
    with open(tmp_path / "participants.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["group"] for row in rows] == ["control", "patient", "control"]


def test_sessions_share_the_connectome_and_nothing_else(tmp_path):
    scans = dynamic_sessions(tmp_path, 3, SHORT)
    assert [(scan.participant, scan.session) for scan in scans[:3]] == [("000", "1"), ("000", "2"), ("001", "1")]
    images = [scan.simulate().series.values.mean(axis=0) for scan in scans]
    images = [image / image.mean() for image in images]
    alike = np.corrcoef(np.array(images) - np.mean(images, axis=0))
    within = np.mean([alike[0, 1], alike[2, 3], alike[4, 5]])
    assert within < 0.2
    with open(tmp_path / "participants.tsv", newline="") as file:
        assert {row["site"] for row in csv.DictReader(file, delimiter="\t")} == {"n/a"}


def test_states_have_balanced_short_blocks(tmp_path):
    (first, _) = dynamic_states(tmp_path, 2, SHORT, blocks=2)
    with open(tmp_path / "sub-000" / "func" / "sub-000_task-x_events.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert sorted(row["trial_type"] for row in rows[:4]) == ["lefthand", "rest", "righthand", "visual"]
    assert {row["duration"] for row in rows} == {"16.0"}
    assert first.simulate().series.n_vols * 2.0 == 8 * 16.0 + 8.0


def test_runs_of_one_state_are_labelled(tmp_path):
    scans = dynamic_runs(tmp_path, 2, SHORT)
    assert [scan.labels["state"] for scan in scans[:4]] == ["rest", "lefthand", "righthand", "visual"]
    assert scans[1].name == "sub-000_task-lefthand"
