"""Intervals over overlapping folds, p values, and their correction for the number of comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.training.evaluation.comparison import (
    ENCODER,
    average_repeats,
    chance_level,
    compare_methods,
    corrected_interval,
    holm,
)
from bids_app.training.evaluation.comparison import p_above as p_of
from bids_app.training.tasks import Task

TASK = Task.from_values("sex", ["F", "M"])


def test_intervals_count_the_overlap_of_training_sets() -> None:
    values = np.array([0.4, 0.6, 0.5, 0.7, 0.3])
    mean, low, high, error = corrected_interval(values, 0.25)
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(np.sqrt((1 / 5 + 1 / 4) * values.var(ddof=1)))
    assert (high - low) / 2 == pytest.approx(2.776 * error, rel=1e-3)  # t with 4 degrees of freedom
    with_gap = np.append(values, np.nan)
    assert corrected_interval(with_gap, 0.25) == corrected_interval(values, 0.25)
    assert np.isnan(corrected_interval(np.array([0.5]), 0.25)[1])


def test_p_values_agree_with_intervals() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.45, 0.5, 0.55, 0.6):
        values = rng.normal(shift, 0.05, 50)
        _, low, high, _ = corrected_interval(values, 0.25)
        assert (p_of(values, 0.25, 0.5) < 0.025) == (low > 0.5)
        assert (p_of(-values, 0.25, -0.5) < 0.025) == (high < 0.5)
    assert p_of(np.ones(5), 0.25, 0.5) == 0.0
    assert p_of(np.full(5, 0.5), 0.25, 0.5) == 1.0


def test_holm_multiplies_by_the_number_of_remaining_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_chance_depends_on_the_number_of_classes() -> None:
    assert chance_level(Task.from_values("x", ["a", "b", "c", "d"])) == 0.25
    assert chance_level(Task("x", "regression")) == 0.0
    assert chance_level(Task("x", "embedding")) is None


def test_differences_are_corrected_for_the_number_of_baselines() -> None:
    rng = np.random.default_rng(1)

    def folds(mean: float) -> list[dict[str, float]]:
        values = rng.normal(mean, 0.12, 50)
        return [{"balanced_accuracy": v, "auroc": v} for v in values]

    scores = {ENCODER: folds(0.68), **{f"b{k}": folds(0.5) for k in range(4)}}
    titles = {name: name for name in scores}
    several = compare_methods(scores, titles, TASK, 0.25)
    alone = compare_methods({name: scores[name] for name in (ENCODER, "b0")}, titles, TASK, 0.25)
    assert several["b0"].p_difference > alone["b0"].p_difference
    assert several["b0"].difference == alone["b0"].difference
    assert several[ENCODER].p_value < 0.05 < several["b1"].p_value


def test_repeats_of_the_same_folds_are_averaged_without_undefined_values() -> None:
    rows = [{"auroc": value} for value in (0.5, 0.7, 0.9, float("nan"))]  # two folds, then the same two again
    assert average_repeats(rows, 2) == [{"auroc": pytest.approx(0.7)}, {"auroc": pytest.approx(0.7)}]
    assert np.isnan(average_repeats([{"auroc": float("nan")}] * 2, 1)[0]["auroc"])
