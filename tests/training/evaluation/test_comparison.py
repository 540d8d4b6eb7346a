"""Intervals over overlapping folds, p values, and their correction for the number of comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.training.evaluation.comparison import (
    ENCODER,
    Halves,
    average_repeats,
    chance_level,
    compare_methods,
    estimate,
    estimate_from_folds,
    holm,
)
from bids_app.training.tasks import Task

TASK = Task.from_values("sex", ["F", "M"])


def test_intervals_count_the_overlap_of_training_sets() -> None:
    values = np.array([0.4, 0.6, 0.5, 0.7, 0.3])
    found = estimate_from_folds(values, 0.25)
    low, high = found.interval
    assert found.mean == pytest.approx(0.5)
    assert found.error == pytest.approx(np.sqrt((1 / 5 + 1 / 4) * values.var(ddof=1)))
    assert (high - low) / 2 == pytest.approx(2.776 * found.error, rel=1e-3)  # t with 4 degrees of freedom
    assert estimate_from_folds(np.append(values, np.nan), 0.25) == found
    assert np.isnan(estimate_from_folds(np.array([0.5]), 0.25).interval[0])


def test_the_variance_of_independent_halves_is_twice_that_of_the_whole() -> None:
    """Metrics of halves vary with a standard deviation of 0.1, the mean of the whole with one of 0.1 / sqrt(2)."""
    settings, halves = Halves(degrees=30), np.random.default_rng(3).normal(0.6, 0.1, (4000, 2, 1))
    found = estimate(np.full(5, 0.7), halves, settings, 0.25)
    assert found.error == pytest.approx(0.1 / np.sqrt(2), rel=0.05)
    assert found.interval == pytest.approx((0.7 - 2.042 * found.error, 0.7 + 2.042 * found.error), rel=1e-3)
    halves[12:] = np.nan
    assert estimate(np.full(5, 0.7), halves, settings, 0.25).degrees == 30
    halves[5:] = np.nan  # too few halves: the folds count
    values = np.array([0.4, 0.6, 0.5])
    assert estimate(values, halves, settings, 0.25) == estimate_from_folds(values, 0.25)


def test_the_variance_of_the_division_into_folds_is_that_of_the_repeats() -> None:
    """People vary with SD 0.1 in a half, divisions into folds with SD 0.2; all people have 10 repeats, a half has 2."""
    rng = np.random.default_rng(4)
    halves = rng.normal(0.6, 0.1, (8000, 2, 1)) + rng.normal(0, 0.2, (8000, 2, 2))
    found = estimate(np.full(5, 0.7), halves, Halves(degrees=30, repeats=10), 0.25)
    assert found.error == pytest.approx(np.sqrt(0.1**2 / 2 + 0.2**2 / 2 / 10), rel=0.05)


def test_p_values_agree_with_intervals() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.45, 0.5, 0.55, 0.6):
        found = estimate_from_folds(rng.normal(shift, 0.05, 50), 0.25)
        low, high = found.interval
        assert (found.p_above(0.5) < 0.025) == (low > 0.5)
        assert (found.p_below(0.5) < 0.025) == (high < 0.5)
    assert estimate_from_folds(np.ones(5), 0.25).p_above(0.5) == 0.0
    assert estimate_from_folds(np.full(5, 0.5), 0.25).p_above(0.5) == 1.0


def test_intervals_end_at_the_ends_of_the_range_of_a_metric() -> None:
    folds = {ENCODER: [{"balanced_accuracy": v, "auroc": 1 - v} for v in (1.0, 1.0, 0.8, 1.0)]}
    found = compare_methods(folds, {ENCODER: "Encoder"}, TASK, 0.25)[ENCODER]
    assert found.intervals["balanced_accuracy"][1] == 1.0
    assert found.intervals["balanced_accuracy"][0] < 0.95
    assert found.intervals["auroc"][0] == 0.0
    rows = [{"r": 0.9, "mse": v, "mae": v} for v in (0.0, 3.0, 0.1)]
    wide = compare_methods({ENCODER: rows}, {ENCODER: "Encoder"}, Task("age", "regression"), 0.25)[ENCODER]
    assert wide.intervals["mse"][0] == 0.0
    assert wide.intervals["mse"][1] > 3


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
