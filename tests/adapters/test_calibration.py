"""Calibration: prediction intervals and label sets have their nominal coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import softmax

from bids_app.adapters.calibration import (
    Calibration,
    calibrate_classes,
    calibrate_values,
    conformal_limit,
    effective_sample_size,
    standard_error,
)
from bids_app.errors import BadDataError, UsageError

LABELS = ("a", "b", "c")


def overconfident(n: int, seed: int, sharper: float = 3.0) -> tuple[np.ndarray, list[str]]:
    """Simulate probabilities (n, 3) of an overconfident classifier, and the true labels."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (n, 3))
    p = softmax(honest, axis=1)
    truth = [LABELS[rng.choice(3, p=row)] for row in p]
    return softmax(honest * sharper, axis=1), truth


def log_loss(p: np.ndarray, truth: list[str]) -> float:
    return float(-np.log(p[np.arange(len(truth)), [LABELS.index(t) for t in truth]]).mean())


def test_temperature_scaling_recovers_the_overconfidence_of_a_classifier() -> None:
    raw, truth = overconfident(2000, 0)
    made = calibrate_classes(raw, truth, LABELS, "temperature")
    assert made.temperature == pytest.approx(3.0, rel=0.1)
    fresh, fresh_truth = overconfident(1000, 1)
    assert log_loss(made.probabilities(fresh), fresh_truth) < log_loss(fresh, fresh_truth) - 0.2


def test_isotonic_regression_calibrates_probabilities() -> None:
    made = calibrate_classes(*overconfident(4000, 0), LABELS, "isotonic")
    fresh, truth = overconfident(4000, 1)
    p = made.probabilities(fresh)
    assert np.allclose(p.sum(axis=1), 1)
    sure = p[:, 0] > 0.7
    assert np.mean([t == "a" for t in np.array(truth)[sure]]) == pytest.approx(p[sure, 0].mean(), abs=0.05)


def test_intervals_have_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(40):  # cohorts of 200 to calibrate with, 500 scans each
        truth = rng.normal(40, 12, 700)
        predicted = truth + rng.standard_t(4, 700) * 5
        made = calibrate_values(predicted[:200], truth[:200])
        limits = np.array([made.interval(value, 0.9) for value in predicted[200:]])
        covered.append(np.mean((limits[:, 0] <= truth[200:]) & (truth[200:] <= limits[:, 1])))
    assert 0.89 < np.mean(covered) < 0.92


def test_label_sets_have_nominal_coverage_overall_and_within_each_class() -> None:
    raw, truth = overconfident(1500, 2)
    made = calibrate_classes(raw, truth, LABELS)
    fresh, fresh_truth = overconfident(3000, 3)
    p = made.probabilities(fresh)
    for by_class in (False, True):
        sets = [made.label_set(row, LABELS, 0.9, by_class) for row in p]
        inside = np.array([t in (s or ()) for t, s in zip(fresh_truth, sets, strict=True)])
        assert inside.mean() == pytest.approx(0.9, abs=0.025)
        if by_class:
            for label in LABELS:
                assert inside[np.array(fresh_truth) == label].mean() == pytest.approx(0.9, abs=0.04)


def test_levels_that_need_more_scans_have_no_limits() -> None:
    assert conformal_limit(np.arange(8.0), 0.9) is None
    assert conformal_limit(np.arange(9.0), 0.9) == 8.0
    made = calibrate_values(np.zeros(12), np.arange(12.0))
    assert made.interval(5.0, 0.9) == (-6.0, 16.0)
    assert made.interval(5.0, 0.95) is None
    with pytest.raises(UsageError, match="too few"):
        calibrate_classes(*overconfident(30, 0), LABELS, "isotonic")


def test_correlated_clips_reduce_the_effective_sample_size() -> None:
    rng = np.random.default_rng(0)
    independent = rng.standard_normal(400)
    slow = np.convolve(rng.standard_normal(420), np.ones(20) / 20, "valid")[:400]
    assert effective_sample_size(independent) > 300
    assert effective_sample_size(slow) < 60
    assert standard_error(slow) > 2 * slow.std() / np.sqrt(400)
    assert effective_sample_size(np.array([1.0, 1.0, 1.0])) == 3
    assert np.isnan(standard_error(np.array([1.0])))


def test_a_calibration_survives_json_and_an_invalid_one_is_rejected() -> None:
    made = calibrate_classes(*overconfident(300, 0), LABELS, "isotonic", source="site A")
    again = Calibration.from_dict(json.loads(json.dumps(made.as_dict())))
    assert again == made
    for wrong in ({"n_scans": 3, "temperature": -1}, {"n_scans": 3, "limits": {"0.9": "x"}}, {"n_scans": 3, "code": 1}):
        with pytest.raises(BadDataError, match="Not a valid calibration"):
            Calibration.from_dict(wrong)
    with pytest.raises(BadDataError, match="unknown to the adapter: d"):
        calibrate_classes(np.ones((1, 3)) / 3, ["d"], LABELS)


def test_a_few_correct_scans_do_not_give_probabilities_of_one() -> None:
    raw = np.tile([[0.8, 0.1, 0.1]], (10, 1))
    made = calibrate_classes(raw, ["a"] * 10, LABELS, "temperature")
    assert made.probabilities(raw[:1])[0, 0] == pytest.approx(1 - 1 / 12, abs=0.01)


@pytest.mark.parametrize("kind", ["regression", "temperature", "isotonic"])
def test_ninety_per_cent_cover_88_to_92_per_cent_of_500_scans(kind: str) -> None:
    """The mean coverage over cohorts is within 88 to 92 %, and each cohort within its sampling error."""
    n_calibration, n_test, cohorts = 400, 500, 30
    covered = []
    for seed in range(cohorts):
        if kind == "regression":
            rng = np.random.default_rng(seed)
            age = rng.uniform(20, 80, n_calibration + n_test)
            predicted = (
                50 + 0.7 * (age - 50) + rng.standard_t(4, len(age)) * 6
            )  # regression to the mean, with heavy tails
            made = calibrate_values(predicted[:n_calibration], age[:n_calibration])
            ends = np.array([made.interval(value, 0.9) for value in predicted[n_calibration:]])
            inside = (ends[:, 0] <= age[n_calibration:]) & (age[n_calibration:] <= ends[:, 1])
        else:
            raw, truth = overconfident(n_calibration + n_test, seed)
            made = calibrate_classes(raw[:n_calibration], truth[:n_calibration], LABELS, kind)
            p = made.probabilities(raw[n_calibration:])
            sets = [made.label_set(row, LABELS, 0.9) or () for row in p]
            inside = np.array([t in s for t, s in zip(truth[n_calibration:], sets, strict=True)])
        covered.append(float(inside.mean()))
    # the coverage varies with the calibration scans (Beta distribution), the count with the test scans
    kept = n_calibration // 2 if kind == "isotonic" else n_calibration
    chance = np.sqrt(0.9 * 0.1 * (1 / kept + 1 / n_test))
    assert 0.88 <= np.mean(covered) <= 0.92
    assert np.abs(np.array(covered) - 0.9).max() < 4 * chance
    assert np.mean([0.88 <= c <= 0.92 for c in covered]) > 0.5


def test_isotonic_label_sets_have_nominal_coverage_within_each_class() -> None:
    covered: dict[str, list[float]] = {label: [] for label in LABELS}
    for seed in range(20):
        raw, truth = overconfident(1100, 50 + seed)
        made = calibrate_classes(raw[:600], truth[:600], LABELS, "isotonic")
        p = made.probabilities(raw[600:])
        sets = [made.label_set(row, LABELS, 0.9, by_class=True) or () for row in p]
        for label in LABELS:
            covered[label].append(np.mean([t in s for t, s in zip(truth[600:], sets, strict=True) if t == label]))
    for values in covered.values():
        assert 0.88 <= np.mean(values) <= 0.92


def test_low_certainty_is_as_frequent_as_the_highest_level_allows() -> None:
    """Of a nearly perfect classifier, 5 % of the scans are below the minimum of 95 % of the calibration scans."""
    rng = np.random.default_rng(3)
    first = rng.beta(20, 2, 3000)
    raw = np.stack([first, (1 - first) / 2, (1 - first) / 2], axis=1)
    made = calibrate_classes(raw[:1000], ["a"] * 1000, LABELS, "none")
    found = [made.certainty(row) for row in raw[1000:]]
    assert found[0].level == 0.95
    assert np.mean([one.probability < one.minimum for one in found]) == pytest.approx(0.05, abs=0.02)
    assert made.certainty(np.full(3, 1 / 3)).probability < found[0].minimum
    few = calibrate_classes(raw[:3], ["a"] * 3, LABELS, "none")
    assert few.certainty(raw[5]) is None
