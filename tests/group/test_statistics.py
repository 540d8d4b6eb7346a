"""Group statistics against published examples, exact values and simulations."""

import numpy as np
import pytest

from bids_app.group.statistics import (
    difference_of_groups,
    difference_of_points,
    false_discovery_rate,
    intraclass,
    mean_by,
    proportion,
    rank_correlation,
    robust_z,
)

SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)  # fmt: skip
"""Six targets and four judges: the example of Shrout and Fleiss (1979)."""


def test_intraclass_correlations_equal_the_published_example():
    found = intraclass(SHROUT_FLEISS)
    assert found.agreement.value == pytest.approx(0.290, abs=5e-4)
    assert found.consistency.value == pytest.approx(0.715, abs=5e-4)
    assert (found.agreement.low, found.agreement.high) == pytest.approx((0.019, 0.761), abs=1e-3)
    assert (found.consistency.low, found.consistency.high) == pytest.approx((0.342, 0.946), abs=1e-3)


def test_a_constant_session_difference_lowers_agreement_only():
    rng = np.random.default_rng(0)
    people = rng.normal(0, 3, (200, 1))
    table = people + rng.normal(0, 1, (200, 2))
    steady, shifted = intraclass(table), intraclass(table + np.array([0, 4]))
    assert steady.agreement.value == pytest.approx(0.9, abs=0.03)  # 9 / (9 + 1)
    assert shifted.consistency.value == pytest.approx(steady.consistency.value)
    assert shifted.agreement.value == pytest.approx(9 / (9 + 1 + 8), abs=0.05)


def test_intraclass_intervals_have_nominal_coverage():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        found = intraclass(rng.normal(0, 2, (25, 1)) + rng.normal(0, 1, (25, 2))).agreement
        held += found.low <= 0.8 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_intraclass_of_degenerate_tables():
    assert np.isnan(intraclass(np.ones((10, 2))).agreement.value)
    assert np.isnan(intraclass(SHROUT_FLEISS[:2]).agreement.value)
    same_twice = np.repeat(np.arange(6.0)[:, None], 2, axis=1)
    assert intraclass(same_twice).agreement.value == pytest.approx(1)


def test_robust_z_is_not_affected_by_outliers():
    values = np.random.default_rng(0).normal(10, 2, 1001)
    plain = robust_z(values)
    assert plain.std() == pytest.approx(1, abs=0.1)
    spoiled = robust_z(np.append(values, [1e6] * 20))
    assert np.abs(spoiled[:1001] - plain).max() < 0.2
    assert (spoiled[1001:] > 1e4).all()


def test_robust_z_of_mostly_equal_values():
    values = np.array([5.0] * 20 + [9.0, np.nan])
    z = robust_z(values)
    assert z[20] > 3.5
    assert (z[:20] == 0).all()
    assert np.isnan(z[21])
    assert (robust_z(np.ones(5)) == 0).all()


def test_rank_correlation_intervals_have_nominal_coverage():
    rng = np.random.default_rng(2)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman correlation of a bivariate normal with r = 0.5
    pairs = [rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 60).T for _ in range(300)]
    found = [rank_correlation(x, y) for x, y in pairs]
    assert 0.92 <= np.mean([r.low <= truth <= r.high for r in found]) <= 0.98
    assert rank_correlation(np.arange(9.0), np.arange(9.0) ** 3).value == pytest.approx(1)
    assert np.isnan(rank_correlation(np.ones(9), np.arange(9.0)).value)
    assert rank_correlation(np.array([1.0, 2, 3, 4, 5, np.nan]), np.arange(6.0)).n == 5


def test_group_effects_are_unbiased_under_the_null():
    rng = np.random.default_rng(3)
    names = np.repeat([f"s{i}" for i in range(15)], 4)
    values = [difference_of_groups(rng.normal(size=60), names) for _ in range(200)]
    points = [difference_of_points(rng.normal(size=(60, 5)), names, 19) for _ in range(50)]
    assert np.mean([d.effect for d in values]) == pytest.approx(0, abs=0.02)
    assert np.mean([d.effect for d in points]) == pytest.approx(0, abs=0.02)
    assert np.mean([d.p < 0.05 for d in values]) < 0.1


def test_permanova_detects_a_shift_in_one_feature():
    rng = np.random.default_rng(4)
    names = ["a"] * 30 + ["b"] * 30
    points = rng.normal(size=(60, 8))
    assert difference_of_points(points, names).p > 0.05
    points[30:, 6] += 3
    found = difference_of_points(points, names)
    assert found.p == pytest.approx(0.001)
    assert found.effect == pytest.approx(2.25 / (2.25 + 8), abs=0.08)


def test_degenerate_groups_give_nan():
    assert np.isnan(difference_of_groups(np.arange(5.0), ["a"] * 5).p)
    assert np.isnan(difference_of_groups(np.ones(6), list("ababab")).p)
    assert np.isnan(difference_of_points(np.ones((6, 2)), list("ababab")).p)


def test_false_discovery_rate_follows_benjamini_hochberg():
    p = [0.01, 0.04, np.nan, 0.03, 0.005]
    np.testing.assert_allclose(false_discovery_rate(p), [0.02, 0.04, np.nan, 0.04, 0.02])


def test_means_by_unit_ignore_nan():
    names, means = mean_by(np.array([1.0, 3.0, np.nan, np.nan]), ["b", "b", "b", "a"])
    assert names == ["a", "b"]
    np.testing.assert_array_equal(means, [np.nan, 2.0])


def test_proportions_have_a_wilson_interval():
    found = proportion(9, 10)
    assert (found.low, found.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert np.isnan(proportion(0, 0).value)
