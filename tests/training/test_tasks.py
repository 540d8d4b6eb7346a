"""Questions, their losses and their scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.errors import BadDataError
from bids_app.training.tasks import Question


def test_words_are_classes_and_many_numbers_a_regression():
    assert Question.about("sex", ["F", "M", "F"]).labels == ("F", "M")
    assert Question.about("group", ["1", "2", "1"]).task == "classification"
    age = Question.about("age", [str(v) for v in range(20, 40)])
    assert (age.task, age.mean, age.n_outputs) == ("regression", 29.5, 1)


def test_two_classes_are_one_logit_of_the_second():
    question = Question.about("sex", ["F", "M"])
    outputs = torch.tensor([[2.0], [-1.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], torch.tensor([1.0, 0.0]))
    assert question.loss(outputs, torch.tensor([1, 0])) == pytest.approx(expected.item())
    assert question.answers(outputs)[:, 1] == pytest.approx(torch.sigmoid(outputs[:, 0]))


def test_numbers_return_to_their_unit():
    question = Question.about("age", ["20", "30", "40"], "regression")
    targets = question.targets(["20", "30", "40"])
    assert targets.mean() == pytest.approx(0.0, abs=1e-6)
    assert question.answers(targets[:, None])[:, 0] == pytest.approx([20, 30, 40])


def test_class_weights_make_classes_count_alike():
    question = Question.about("state", ["a", "a", "a", "b"])
    targets = question.targets(["a", "a", "a", "b"])
    weights = question.class_weights(targets)
    assert weights[0] * 3 == pytest.approx(weights[1] * 1)


def test_scores_are_what_they_say():
    question = Question("state", "classification", ("a", "b"))
    answers = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    expected = {"accuracy": 0.75, "balanced_accuracy": 0.5, "auroc": 1.0}
    assert question.scores(answers, ["a", "a", "a", "b"]) == expected
    numbers = Question("age", "regression")
    scores = numbers.scores(np.array([[1.0], [2.0], [4.0]]), ["2", "4", "8"])
    assert scores["r"] == pytest.approx(1.0)
    assert scores["mae"] == pytest.approx(7 / 3)
    assert scores["mse"] == pytest.approx((1 + 4 + 16) / 3)


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [(["a", "a"], None, "nothing to learn"), (["1", "x", "2"], "regression", "x")],
)
def test_what_cannot_be_learned_is_said(values, task, message):
    with pytest.raises(BadDataError, match=message):
        Question.about("thing", values, task)


def test_a_class_of_no_training_scan_is_named():
    with pytest.raises(BadDataError, match="c is in no training scan"):
        Question.about("thing", ["a", "b"]).targets(["c"])
