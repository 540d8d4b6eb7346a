"""Scores against their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    mean_absolute_error,
    mean_squared_error,
    recall_score,
    roc_auc_score,
)

from bids_app.training.evaluation import metrics as scores


def test_classes_are_scored_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    right = rng.integers(3, size=60)
    answers = rng.dirichlet(np.ones(3), 60) + 0.3 * np.eye(3)[right]
    answers /= answers.sum(1, keepdims=True)
    found = scores.of_classes(answers, right.tolist())
    assert found["accuracy"] == pytest.approx((answers.argmax(1) == right).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(right, answers.argmax(1)))
    assert found["auroc"] == pytest.approx(roc_auc_score(right, answers, multi_class="ovr"))


def test_a_class_that_is_none_of_the_labels_counts_as_missed():
    rng = np.random.default_rng(3)
    right = rng.integers(-1, 2, size=50)  # nobody is of class 2, as in some bootstrap samples
    answers = rng.dirichlet(np.ones(3), 50).round(1)  # with ties
    found = scores.of_classes(answers, right.tolist())
    recalls = recall_score(right, answers.argmax(1), labels=[-1, 0, 1], average=None, zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert found["auroc"] == pytest.approx(np.mean([roc_auc_score(right == k, answers[:, k]) for k in (0, 1)]))


def test_numbers_are_scored_as_scikit_learn_does():
    rng = np.random.default_rng(1)
    truth, found = rng.normal(size=(2, 30))
    expected = {
        "r": np.corrcoef(truth, found)[0, 1],
        "mse": mean_squared_error(truth, found),
        "mae": mean_absolute_error(truth, found),
    }
    assert scores.of_numbers(found, truth) == pytest.approx(expected)
    assert scores.of_numbers(np.zeros(30), truth)["r"] == 0.0


def test_retrieval_finds_the_nearest_and_averages_precision():
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.5], [-1.0, 0.0]])
    found = scores.retrievals(vectors, ["a", "a", "b", "b", "c"])
    assert found[0].tolist() == [1.0, 1.0]
    assert found[2].tolist() == [1.0, 1.0]
    assert found[3].tolist() == [0.0, pytest.approx(1 / 3)]  # both of a are nearer
    assert np.isnan(found[4]).all()
    assert scores.of_retrieval(found)["rank1"] == 0.75


def test_chances_in_a_pool_are_those_of_all_pools():
    rng = np.random.default_rng(2)
    similar, right = rng.normal(size=(8, 7)), rng.integers(7, size=8)
    found = scores.top1_chances(similar, right, pool=4)
    for row, k, chance in zip(similar, right, found, strict=True):
        others = [i for i in range(7) if i != k]
        wins = [all(row[i] < row[k] for i in drawn) for drawn in combinations(others, 3)]
        assert chance == pytest.approx(np.mean(wins))
    assert scores.top1_chances(similar, right, pool=300).tolist() == (similar.argmax(1) == right).astype(float).tolist()


def test_draws_keep_participants_whole():
    people = ["a", "a", "b", "c", "c", "c"]
    for draw in scores.draws_of(people, 20, seed=0):
        counts = np.bincount(draw, minlength=6)
        assert counts[0] == counts[1]
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[2] + counts[3] == 3
