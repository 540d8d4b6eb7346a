"""Conformal limits: nominal coverage for new people and new sites, however alike the scans of a person are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from bids_app.adapters.conformal import group_limits


def group_limit(scores, groups, level: float, **more) -> float | None:
    return group_limits(scores, groups, (level,), **more).get(level)


def coverage(people: int, runs: int, correlation: float, cohorts: int = 60) -> float:
    """Return the mean coverage at 90 % over cohorts; errors have an intraclass correlation."""
    rng = np.random.default_rng(people + runs)
    person = np.repeat(np.arange(people), runs)
    found = []
    for _ in range(cohorts):
        own = np.sqrt(correlation) * rng.normal(size=people)[person]
        errors = np.abs(own + np.sqrt(1 - correlation) * rng.normal(size=len(person)))
        limit = group_limit(errors, person.astype(str), 0.9)
        found.append(2 * norm.cdf(limit) - 1)
    return float(np.mean(found))


@pytest.mark.parametrize(("people", "runs"), [(10, 10), (15, 4), (40, 2)])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_runs_of_few_people_keep_the_nominal_coverage(people: int, runs: int, correlation: float) -> None:
    assert 0.88 <= coverage(people, runs, correlation) <= 0.92


def test_fewer_than_ten_people_have_no_limit() -> None:
    scores = np.arange(100.0)
    assert group_limit(scores, [str(k % 9) for k in range(100)], 0.9) is None
    assert group_limit(scores, [str(k % 10) for k in range(100)], 0.9) is not None
    assert group_limit(scores, [str(k % 18) for k in range(100)], 0.95) is None
    assert group_limit(scores, [str(k % 19) for k in range(100)], 0.95) is not None


def test_one_scan_per_person_gives_the_conformal_quantile() -> None:
    scores = np.arange(1.0, 20.0)  # 19 people: the 18th of 19
    assert group_limit(scores, [f"{k}" for k in range(19)], 0.9) == pytest.approx(18.0)
    assert group_limit(np.arange(1.0, 100.0), [f"{k}" for k in range(99)], 0.9) == pytest.approx(90.0)


def test_a_person_with_many_scans_weighs_as_much_as_any_other() -> None:
    rng = np.random.default_rng(0)
    usual, odd = np.abs(rng.normal(size=19)), 50 + np.abs(rng.normal(size=400))
    people = [f"{k}" for k in range(19)] + ["odd"] * 400
    assert group_limit(np.concatenate([usual, odd]), people, 0.9) < 10


def test_a_new_site_is_covered_whatever_the_differences_between_sites() -> None:
    rng = np.random.default_rng(1)
    site = np.repeat(np.arange(12), 8)
    by_person, by_site = [], []
    for _ in range(60):
        errors = np.abs(rng.normal(size=12)[site] + rng.normal(size=len(site)))
        people = [f"{k}" for k in range(len(site))]
        by_site.append(group_limit(errors, site.astype(str), 0.9, members=people))
        by_person.append(group_limit(errors, people, 0.9))
    new_sites = 2 * norm.cdf(np.array(by_site) / np.sqrt(2)) - 1  # a new site: both variances
    assert 0.88 <= new_sites.mean() <= 0.93
    assert np.mean(by_site) > np.mean(by_person)


def test_people_of_a_site_weigh_the_same_whatever_their_number_of_scans() -> None:
    """Each site has one person with a single bad scan, and one with many good ones: half of the draws are bad."""
    scores, sites, people = [], [], []
    for k in range(10):
        scores += [10.0 + k] + [0.1 * k] * 50
        sites += [str(k)] * 51
        people += [f"{k} bad"] + [f"{k} good"] * 50
    assert group_limit(np.array(scores), sites, 0.8, members=people) > 5
    assert group_limit(np.array(scores), sites, 0.8) < 1  # without people, the many scans win
