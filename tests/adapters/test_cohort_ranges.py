"""Ranges of an adapter's cohort: the weight of a scan falls with the distance beyond them."""

from __future__ import annotations

import math

import pytest

from bids_app.adapters.cohort_ranges import range_evidence

RANGES = {"tr": [0.72, 2.0], "duration": [200, 600], "fd_mean": [0.05, 0.45], "tsnr": [30, 110], "age": [20, 40]}
INSIDE = {"tr": 2.1, "seconds": 190.0, "fd_mean": 0.45, "tsnr": 30.0, "age": 40.0}


def test_within_all_ranges_and_their_margins_the_weight_is_one() -> None:
    assert range_evidence(INSIDE, RANGES) == 1
    better = {"seconds": 9000.0, "fd_mean": 0.01, "tsnr": 900.0}
    assert range_evidence(INSIDE | better, RANGES) == 1
    assert range_evidence({"age": None, "tr": float("nan")}, RANGES) == 1
    assert range_evidence({"age": 99.0}, {}) == 1


def test_the_weight_falls_with_the_distance_in_standard_deviations_of_the_cohort() -> None:
    weights = [range_evidence(INSIDE | {"age": age}, RANGES) for age in (40.5, 45.0, 60.0, 99.0)]
    assert weights == pytest.approx([math.exp(-0.1), math.exp(-1), math.exp(-4), 0], abs=1e-5)
    both = range_evidence(INSIDE | {"age": 45.0, "fd_mean": 0.65}, RANGES)
    assert both == pytest.approx(math.exp(-2))  # the measure that is furthest beyond decides


@pytest.mark.parametrize("far", [{"age": 99.0}, {"seconds": 27.0}, {"tr": 6.0}, {"fd_mean": 2.0}, {"tsnr": 1.0}])
def test_far_outside_of_any_range_hardly_any_weight_is_left(far) -> None:
    assert range_evidence(INSIDE | far, RANGES) < 0.3


def test_a_cohort_of_one_protocol_has_a_spread() -> None:
    same = {"tr": [2.0, 2.0]}
    assert range_evidence({"tr": 2.2}, same) == 1
    assert range_evidence({"tr": 2.42}, same) == pytest.approx(math.exp(-1))
    assert range_evidence({"fd_mean": 0.3}, {"fd_mean": [0.0, 0.0]}) == 0
