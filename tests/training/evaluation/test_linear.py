"""Linear model of the encoder and the baselines: leave-one-group-out predictions, nuisances, and no leak."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.training.evaluation.linear import PENALTIES, Split, fit_predict, ridge
from bids_app.training.tasks import Task


def test_left_out_predictions_equal_those_of_refits() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 8)), rng.normal(size=(30, 2))
    groups = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 4, 3, 2])
    weights = rng.uniform(0.5, 2, 30)
    left_out, predicted = ridge(x, y, x[:3], groups, weights)
    centre = weights @ x / weights.sum()
    spectrum = np.linalg.svd(np.sqrt(weights)[:, None] * (x - centre), compute_uv=False) ** 2

    def refit(keep: np.ndarray, rows: np.ndarray, penalty: float) -> np.ndarray:
        design = np.hstack([np.ones((len(x), 1)), x - centre])
        root = np.sqrt(weights[keep])[:, None]
        matrix = (root * design[keep]).T @ (root * design[keep]) + penalty * np.diag([0.0] + [1.0] * 8)
        return design[rows] @ np.linalg.solve(matrix, (root * design[keep]).T @ (root * y[keep]))

    def all_left_out(penalty: float) -> np.ndarray:
        return np.vstack([refit(np.flatnonzero(groups != g), np.flatnonzero(groups == g), penalty) for g in range(9)])

    penalties = PENALTIES * spectrum.mean()
    losses = [(weights[:, None] * (all_left_out(p) - y) ** 2).sum() for p in penalties]
    best = penalties[int(np.argmin(losses))]
    assert left_out == pytest.approx(all_left_out(best), abs=1e-8)
    assert predicted == pytest.approx(refit(np.arange(30), np.arange(3), best), abs=1e-8)


def classify(features: np.ndarray, values: list[str], people: list[str], nuisance=None) -> np.ndarray:
    n = len(values)
    train, test = np.arange(n // 2), np.arange(n // 2, n)
    split = Split.make(features, train, test, nuisance)
    return fit_predict(Task.from_values("x", values), split, values, people)


def test_unequal_classes_do_not_shift_the_decision() -> None:
    rng = np.random.default_rng(0)
    values = (["a"] * 90 + ["b"] * 10) * 2
    x = rng.normal(size=(200, 1)) + 2 * np.array([v == "b" for v in values])[:, None]
    p = classify(x, values, [f"{k}" for k in range(200)])
    truth = np.array(values[100:])
    accuracies = [np.mean((p.argmax(axis=1) == k)[truth == label]) for k, label in enumerate("ab")]
    assert min(accuracies) > 0.6
    assert np.allclose(p.sum(axis=1), 1)


def test_test_values_have_no_influence() -> None:
    rng = np.random.default_rng(1)
    x, people = rng.normal(size=(40, 5)), [f"{k // 2}" for k in range(40)]
    values = ["a", "b"] * 20
    p = classify(x, values, people)
    assert np.array_equal(p, classify(x, values[:20] + ["b", "a"] * 10, people))
    moved = np.vstack([x[:20], x[20:21], 100 * x[21:]])  # other test features: the first prediction stays
    assert classify(moved, values, people)[0] == pytest.approx(p[0])


def test_missing_and_constant_features_are_no_obstacle() -> None:
    rng = np.random.default_rng(2)
    values = ["a", "b"] * 20
    x = rng.normal(size=(40, 4)) + np.array([[3.0 * (v == "b")] for v in values])
    x[::7, 0], x[:, 2], x[:, 3] = np.nan, 5.0, np.nan
    p = classify(x, values, [f"{k}" for k in range(40)])
    assert np.mean(p.argmax(axis=1) == [0, 1] * 10) > 0.8


def test_a_nuisance_is_removed_with_coefficients_of_the_training_set() -> None:
    rng = np.random.default_rng(3)
    motion = rng.normal(size=(400, 1))
    features = np.hstack([2 * motion + 0.1 * rng.normal(size=(400, 1)), rng.normal(size=(400, 1))])
    train, test = np.arange(300), np.arange(300, 400)
    split = Split.make(features, train, test, motion)
    for x, rows in ((split.x, train), (split.x_test, test)):
        assert np.abs(np.corrcoef(x.T, motion[rows].T)[:2, 2]).max() < 0.25
    assert np.abs(np.corrcoef(Split.make(features, train, test).x_test.T, motion[test].T)[:2, 2]).max() > 0.6


def test_vectors_of_unseen_people_keep_what_the_training_set_lacks() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat([f"{k}" for k in range(24)], 2)
    features = np.repeat(rng.normal(size=(24, 500)), 2, axis=0) + rng.normal(size=(48, 500))
    train, test = np.arange(16), np.arange(16, 48)
    task = Task.from_values("participant", [str(p) for p in people], "embedding")
    found = fit_predict(task, Split.make(features, train, test), people.tolist(), people.tolist())
    similarity = found @ found.T
    np.fill_diagonal(similarity, -1)
    assert (people[test][similarity.argmax(axis=1)] == people[test]).mean() > 0.9


def test_the_scans_of_a_single_participant_can_be_a_training_set() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 1))
    left_out, predicted = ridge(x, y, x[:2], np.zeros(4, dtype=int), np.ones(4))
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(left_out, np.full((4, 1), y.mean()))
    assert np.abs(predicted - y.mean()).max() < 0.1  # the strongest penalty
