"""Tasks: their kinds, losses and metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.errors import BadDataError
from bids_app.training.tasks import Task


def test_text_gives_a_classification_and_many_numbers_a_regression():
    assert Task.from_values("sex", ["F", "M", "F"]).labels == ("F", "M")
    assert Task.from_values("group", ["1", "2", "1"]).kind == "classification"
    age = Task.from_values("age", [str(v) for v in range(20, 40)])
    assert (age.kind, age.mean, age.n_outputs) == ("regression", 29.5, 1)


def test_two_classes_have_one_logit():
    task = Task.from_values("sex", ["F", "M"])
    outputs = torch.tensor([[2.0], [-1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], torch.tensor([1.0, 0.0]))
    assert task.loss(outputs, torch.tensor([1, 0])) == pytest.approx(expected.item())
    assert task.to_predictions(outputs)[:, 1] == pytest.approx(torch.sigmoid(outputs[:, 0]))


def test_regression_predictions_are_in_units_of_the_target():
    task = Task.from_values("age", ["20", "30", "40"], "regression")
    targets = task.targets(["20", "30", "40"])
    assert targets.mean() == pytest.approx(0.0, abs=1e-6)
    assert task.to_predictions(targets[:, None])[:, 0] == pytest.approx([20, 30, 40])


def test_class_weights_balance_the_classes():
    task = Task.from_values("state", ["a", "a", "a", "b"])
    targets = task.targets(["a", "a", "a", "b"])
    weights = task.class_weights(targets)
    assert weights[0] * 3 == pytest.approx(weights[1] * 1)


def test_metrics_match_their_definitions():
    task = Task("state", "classification", ("a", "b"))
    predictions = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    expected = {"accuracy": 0.75, "balanced_accuracy": 0.5, "auroc": 1.0}
    assert task.compute_metrics(predictions, ["a", "a", "a", "b"]) == expected
    numbers = Task("age", "regression")
    metrics = numbers.compute_metrics(np.array([[1.0], [2.0], [4.0]]), ["2", "4", "8"])
    assert metrics["r"] == pytest.approx(1.0)
    assert metrics["mae"] == pytest.approx(7 / 3)
    assert metrics["mse"] == pytest.approx((1 + 4 + 16) / 3)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [(["a", "a"], None, "same value for all scans: a"), (["1", "x", "2"], "regression", "non-numeric values: x")],
)
def test_values_that_cannot_be_learned_raise(values, kind, message):
    with pytest.raises(BadDataError, match=message):
        Task.from_values("thing", values, kind)


def test_a_class_outside_the_training_set_raises():
    with pytest.raises(BadDataError, match="c does not occur in the training set"):
        Task.from_values("thing", ["a", "b"]).targets(["c"])
