"""Metrics: agreement with scikit-learn and with their definitions."""

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

from bids_app.training.evaluation import metrics


def test_classification_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=60)
    probabilities = rng.dirichlet(np.ones(3), 60) + 0.3 * np.eye(3)[truth]
    probabilities /= probabilities.sum(1, keepdims=True)
    found = metrics.classification_metrics(probabilities, truth.tolist())
    assert found["accuracy"] == pytest.approx((probabilities.argmax(1) == truth).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probabilities.argmax(1)))
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))


def test_unknown_classes_count_as_errors():
    rng = np.random.default_rng(3)
    truth = rng.integers(-1, 2, size=50)  # class 2 is absent, as in some bootstrap samples
    probabilities = rng.dirichlet(np.ones(3), 50).round(1)  # with ties
    found = metrics.classification_metrics(probabilities, truth.tolist())
    recalls = recall_score(truth, probabilities.argmax(1), labels=[-1, 0, 1], average=None, zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert found["auroc"] == pytest.approx(np.mean([roc_auc_score(truth == k, probabilities[:, k]) for k in (0, 1)]))


def test_regression_metrics_equal_scikit_learn():
    rng = np.random.default_rng(1)
    truth, predicted = rng.normal(size=(2, 30))
    expected = {
        "r": np.corrcoef(truth, predicted)[0, 1],
        "mse": mean_squared_error(truth, predicted),
        "mae": mean_absolute_error(truth, predicted),
    }
    assert metrics.regression_metrics(predicted, truth) == pytest.approx(expected)
    assert metrics.regression_metrics(np.zeros(30), truth)["r"] == 0.0


def test_retrieval_gives_rank1_and_average_precision():
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.5], [-1.0, 0.0]])
    found = metrics.retrieval_results(vectors, ["a", "a", "b", "b", "c"])
    assert found[0].tolist() == [1.0, 1.0]
    assert found[2].tolist() == [1.0, 1.0]
    assert found[3].tolist() == [0.0, pytest.approx(1 / 3)]  # both vectors of a are nearer
    assert np.isnan(found[4]).all()
    assert metrics.retrieval_metrics(found)["rank1"] == 0.75


def test_top1_probability_is_the_mean_over_all_pools():
    rng = np.random.default_rng(2)
    similarity, truth = rng.normal(size=(8, 7)), rng.integers(7, size=8)
    found = metrics.top1_probabilities(similarity, truth, pool=4)
    for row, k, probability in zip(similarity, truth, found, strict=True):
        others = [i for i in range(7) if i != k]
        wins = [all(row[i] < row[k] for i in pool) for pool in combinations(others, 3)]
        assert probability == pytest.approx(np.mean(wins))
    assert (
        metrics.top1_probabilities(similarity, truth, pool=300).tolist()
        == (similarity.argmax(1) == truth).astype(float).tolist()
    )
