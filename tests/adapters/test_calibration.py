"""Calibration: limits for participants, sites and new sites, label sets, certainty, and earlier versions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bids_app.adapters.calibration import Calibration, effective_sample_size, standard_error
from bids_app.errors import BadDataError

LABELS = ("a", "b", "c")
LIMITS = {"0.8": 0.5, "0.9": 0.7}
MADE = Calibration(
    60, "temperature", 1.3, limits=LIMITS, class_limits={label: dict(LIMITS) for label in LABELS}, n_participants=30
)


def test_correlated_clips_reduce_the_effective_sample_size() -> None:
    rng = np.random.default_rng(0)
    independent = rng.standard_normal(400)
    slow = np.convolve(rng.standard_normal(420), np.ones(20) / 20, "valid")[:400]
    assert effective_sample_size(independent) > 300
    assert effective_sample_size(slow) < 60
    assert standard_error(slow) > 2 * slow.std() / np.sqrt(400)
    assert effective_sample_size(np.array([1.0, 1.0, 1.0])) == 3
    assert np.isnan(standard_error(np.array([1.0])))


def test_a_set_is_empty_if_no_label_is_probable_enough() -> None:
    promise = MADE.promise()
    assert promise.label_set(np.array([0.5, 0.35, 0.15]), LABELS, 0.9) == ("a", "b")
    assert promise.label_set(np.array([0.5, 0.25, 0.25]), LABELS, 0.8) == ("a",)
    uncertain = np.full(3, 1 / 3)
    assert promise.label_set(uncertain, LABELS, 0.8) == ()
    assert promise.label_set(uncertain, LABELS, 0.8, by_class=True) == ()
    assert promise.label_set(uncertain, LABELS, 0.95) is None


def test_low_certainty_and_an_empty_set_agree() -> None:
    """Whenever the check of the certainty warns, the set at the same level is empty, and otherwise it is not."""
    promise = MADE.promise()
    for top in (0.29, 0.2999, 0.3001, 0.6):
        p = np.array([top, (1 - top) / 8, 1 - top - (1 - top) / 8])
        p[2] = min(p[2], top)
        found = promise.certainty(p)
        assert found.level == 0.9
        assert (found.probability < found.minimum) == (promise.label_set(p, LABELS, 0.9) == ())
    assert Calibration(60, n_participants=30).promise().certainty(np.full(3, 1 / 3)) is None


@pytest.mark.parametrize(("n", "words"), [(9, "has 9 participants, and at least 10"), (0, "by scans, not by partic")])
def test_no_coverage_is_promised_for_few_or_unknown_participants(n: int, words: str) -> None:
    promise = replace(MADE, n_participants=n).promise()
    assert promise.coverage.startswith("No coverage is promised")
    assert words in promise.coverage
    assert promise.interval(30.0, 0.9) is None
    assert promise.label_set(np.array([0.9, 0.05, 0.05]), LABELS, 0.9) is None
    assert promise.certainty(np.array([0.9, 0.05, 0.05])) is None


def test_limits_are_those_of_the_site_of_the_scan() -> None:
    sites = {"A": 15, "B": 12, "C": 3}
    made = replace(MADE, sites=sites, site_limits={"A": {"0.9": 0.2}, "B": {"0.9": 0.4}})
    assert made.promise("A").interval(1.0, 0.9) == (0.8, 1.2)
    assert "the site A (15 participants)" in made.promise("A").coverage
    assert made.promise("C").limits == LIMITS  # too few participants of its own
    assert made.promise("C").coverage.endswith("sites (A, B, C); it is unknown at other sites.")
    unknown = made.promise(None)
    assert unknown.coverage.startswith("Coverage unknown here: the site of the participant is not known")
    assert (unknown.interval(1.0, 0.9), unknown.limits, unknown.class_limits) == (None, {}, {})
    assert replace(made, sites={}).promise(None).limits == LIMITS  # a calibration of one place
    assert made.promise_at_own_sites() == made.promise("C")  # of the adapter's description
    new = made.promise("D")
    assert new.coverage.startswith("Coverage unknown here: the site D is not in the calibration (A, B, C).")
    assert (new.interval(1.0, 0.9), new.limits, new.class_limits) == (None, {}, {})


def test_limits_at_a_new_or_unknown_site_include_the_differences_between_sites() -> None:
    made = replace(MADE, sites={f"{k}": 4 for k in range(12)}, new_site_limits={"0.9": 2.0})
    for site in ("elsewhere", None):
        assert made.promise(site).interval(0.0, 0.9) == (-2.0, 2.0)
        assert "a site like the 12 of the calibration" in made.promise(site).coverage
    assert made.promise("3").limits == LIMITS
    assert "(0, 1, 2, 3, 4 and 7 more)" in made.promise("3").coverage


def test_isotonic_functions_of_earlier_versions_are_bounded_away_from_0_and_1() -> None:
    step = ((0.2, 0.8), (0.0, 1.0))
    made = Calibration.from_dict({"n_scans": 98, "method": "isotonic", "steps": (step, step)})
    assert made.probabilities(np.array([[0.9, 0.1]])) == pytest.approx(np.array([[0.99, 0.01]]))
    assert made.probabilities(np.array([[0.5, 0.5]])) == pytest.approx(np.array([[0.5, 0.5]]))


def test_a_calibration_survives_json_and_an_invalid_one_is_rejected() -> None:
    made = replace(MADE, source="site A", sites={"A": 30}, site_limits={"A": LIMITS}, new_site_limits=LIMITS)
    assert Calibration.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    for wrong in (
        {"temperature": -1},
        {"limits": {"0.9": "x"}},
        {"code": 1},
        {"n_participants": -1},
        {"sites": {"A": "many"}},
        {"site_limits": {"A": {"0.9": float("inf")}}},
        {"new_site_limits": {"level": 1.0}},
    ):
        with pytest.raises(BadDataError, match="Not a valid calibration"):
            Calibration.from_dict({"n_scans": 3, **wrong})
