"""Fitting of calibrations: people are counted and weighted, never scans."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from bids_app.adapters.calibration_fit import People, calibrate_classes, calibrate_values, fit_temperature
from bids_app.errors import BadDataError, UsageError

LABELS = ("a", "b", "c")


def singles(n: int) -> People:
    """Return people with one scan each."""
    return People([f"{k}" for k in range(n)])


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
    made = calibrate_classes(raw, truth, LABELS, singles(2000), "temperature")
    assert made.temperature == pytest.approx(3.0, rel=0.1)
    fresh, fresh_truth = overconfident(1000, 1)
    assert log_loss(made.probabilities(fresh), fresh_truth) < log_loss(fresh, fresh_truth) - 0.2


def test_a_person_with_many_scans_does_not_decide_the_temperature() -> None:
    raw, truth = overconfident(300, 0)
    index = np.array([LABELS.index(t) for t in truth])
    alone = fit_temperature(raw, index, np.ones(300))
    raw, index = np.vstack([raw, np.tile(raw[:1], (3000, 1))]), np.append(index, np.full(3000, index[0]))
    people = People([f"{k}" for k in range(300)] + ["0"] * 3000)
    assert fit_temperature(raw, index, people.weights) == pytest.approx(alone, rel=0.02)


@pytest.mark.parametrize(("kind", "most"), [("regression", 0.92), ("classification", 0.92), ("by class", 0.95)])
def test_ninety_per_cent_cover_88_to_92_per_cent_of_new_people(kind: str, most: float) -> None:
    """Forty people of three scans with correlated errors: mean coverage over cohorts, of one scan of new people.

    Within a class, a label that a person seldom has weighs as much as one that a person often has, so sets are wider.
    """
    covered = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n, runs = 40, 3
        person = np.repeat(np.arange(n + 500), [runs] * n + [1] * 500)
        if kind == "regression":
            age = rng.uniform(20, 80, n + 500)[person]
            error = 6 * rng.standard_t(5, n + 500)[person] + 4 * rng.normal(size=len(person))
            predicted = 50 + 0.7 * (age - 50) + error  # regression to the mean, with heavy tails
            old = person < n
            promise = calibrate_values(predicted[old], age[old], People(person[old].astype(str))).promise()
            ends = np.array([promise.interval(value, 0.9) for value in predicted[~old]])
            inside = (ends[:, 0] <= age[~old]) & (age[~old] <= ends[:, 1])
        else:
            own = rng.normal(0, 1.2, (n + 500, 3))[person]
            honest = own + rng.normal(0, 0.8, (len(person), 3))
            truth = np.array([LABELS[rng.choice(3, p=row)] for row in softmax(own, axis=1)])
            raw, old = softmax(2 * honest, axis=1), person < n
            made = calibrate_classes(raw[old], list(truth[old]), LABELS, People(person[old].astype(str)))
            by_class = kind == "by class"
            p, promise = made.probabilities(raw[~old]), made.promise()
            sets = [promise.label_set(row, LABELS, 0.9, by_class) for row in p]
            inside = np.array([t in s for t, s in zip(truth[~old], sets, strict=True)])
        covered.append(float(inside.mean()))
    assert 0.88 <= np.mean(covered) <= most


def test_twelve_scans_of_three_people_promise_nothing() -> None:
    people = People([f"{k % 3}" for k in range(12)])
    made = calibrate_values(np.zeros(12), np.arange(12.0), people)
    assert (made.n_scans, made.n_participants, made.limits) == (12, 3, {})
    assert "has 3 participants" in made.promise().coverage
    raw, truth = overconfident(12, 0)
    made = calibrate_classes(raw, truth, LABELS, people)
    assert (made.limits, made.class_limits) == ({}, {"a": {}, "b": {}, "c": {}})


def test_a_class_needs_ten_people_of_its_own() -> None:
    raw = np.tile([[0.6, 0.3, 0.1]], (40, 1))
    truth = ["a"] * 25 + ["b"] * 9 + ["c"] * 6
    made = calibrate_classes(raw, truth, LABELS, singles(40))
    assert "0.9" in made.class_limits["a"]
    assert made.class_limits["b"] == made.class_limits["c"] == {}
    assert made.promise().label_set(raw[0], LABELS, 0.9, by_class=True) is None


def test_sites_have_limits_of_their_own() -> None:
    rng = np.random.default_rng(0)
    sites = ["near"] * 30 + ["far"] * 30 + ["small"] * 4
    errors = rng.normal(size=64) * np.repeat([1, 5, 1], [30, 30, 4])
    made = calibrate_values(errors, np.zeros(64), People([f"{k}" for k in range(64)], sites))
    assert made.sites == {"far": 30, "near": 30, "small": 4}
    assert set(made.site_limits) == {"far", "near"}
    assert made.site_limits["far"]["0.9"] > 3 * made.site_limits["near"]["0.9"]
    assert made.new_site_limits == {}  # three sites
    many = People([f"{k}" for k in range(60)], [f"{k % 12}" for k in range(60)])
    assert "0.9" in calibrate_values(errors[:60], np.zeros(60), many).new_site_limits
    alone = calibrate_values(errors[:30], np.zeros(30), People([f"{k}" for k in range(30)], sites[:30]))
    assert (alone.site_limits, alone.sites) == ({}, {"near": 30})


def test_a_few_correct_scans_do_not_give_probabilities_of_one() -> None:
    raw = np.tile([[0.8, 0.1, 0.1]], (10, 1))
    made = calibrate_classes(raw, ["a"] * 10, LABELS, singles(10), "temperature")
    assert made.probabilities(raw[:1])[0, 0] == pytest.approx(1 - 1 / 12, abs=0.01)
    two = People(["0"] * 5 + ["1"] * 5)  # the same scans of two people say less
    made = calibrate_classes(raw, ["a"] * 10, LABELS, two, "temperature")
    assert made.probabilities(raw[:1])[0, 0] == pytest.approx(1 - 1 / 4, abs=0.01)


def test_unknown_methods_and_labels_are_refused() -> None:
    raw, truth = overconfident(30, 0)
    with pytest.raises(UsageError, match="isotonic"):
        calibrate_classes(raw, truth, LABELS, singles(30), "isotonic")
    with pytest.raises(BadDataError, match="unknown to the adapter: d"):
        calibrate_classes(raw[:1], ["d"], LABELS, singles(1))


@pytest.mark.parametrize(("people", "level"), [(1000, 0.99), (30, 30 / 31), (10, 10 / 11)])
def test_low_certainty_is_as_rare_as_the_number_of_calibration_participants_allows(people, level) -> None:
    """Of a nearly perfect classifier, 1 % of the scans are below the minimum of 99 % of the calibration scans."""
    rng = np.random.default_rng(3)
    rates = []
    for _ in range(1 if people == 1000 else 40):
        first = rng.beta(20, 2, people + 500)
        raw = np.stack([first, (1 - first) / 2, (1 - first) / 2], axis=1)
        promise = calibrate_classes(raw[:people], ["a"] * people, LABELS, singles(people), "none").promise()
        found = [promise.certainty(row) for row in raw[people:]]
        assert found[0].level == pytest.approx(level, abs=1e-6)
        rates.append(np.mean([one.probability < one.minimum for one in found]))
    assert np.mean(rates) == pytest.approx(1 - level, abs=0.025)
