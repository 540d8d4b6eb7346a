"""Runs find their participant in other sessions, and exchanged runs are found out."""

import numpy as np
import pytest

from bids_app.group import identity
from bids_app.group.identity import principal_components, reidentify, sample_for_matrix, standardise, suspected_swaps


def sessions_of(n_people, n_sessions, noise=0.5, seed=0, n_features=40):
    """Embeddings of runs, sorted by participant; numbers of participants and sessions."""
    rng = np.random.default_rng(seed)
    people, sessions = np.repeat(np.arange(n_people), n_sessions), np.tile(np.arange(n_sessions), n_people)
    own = rng.normal(size=(n_people, n_features))
    return own[people] + noise * rng.normal(size=(len(people), n_features)) + 100, people, sessions


def exchange(values, one, other):
    values[[one, other]] = values[[other, one]]


def test_runs_find_their_participant_among_other_sessions():
    values, people, sessions = sessions_of(20, 2)
    found = reidentify(standardise(values), people, sessions)
    assert found.tried.all()
    assert found.hits.all()
    assert np.median(found.margins()) == pytest.approx(-1, abs=0.01)
    assert found.mean_same > 0.6
    assert found.mean_different == pytest.approx(0, abs=0.1)
    assert found.same.sum() == 40
    assert found.different.sum() == 40 * 19


def test_noise_is_found_again_by_chance_only():
    values, people, sessions = sessions_of(40, 2, noise=1000)
    found = reidentify(standardise(values), people, sessions)
    assert found.hits.mean() < 0.15


def test_blocks_give_what_all_pairs_at_once_give(monkeypatch):
    values, people, sessions = sessions_of(9, 3, noise=2)
    units = standardise(values)
    monkeypatch.setattr(identity, "BLOCK", 7)
    found = reidentify(units, people, sessions)
    similar = units @ units.T
    for i in range(len(units)):
        elsewhere = sessions != sessions[i]
        own = similar[i][elsewhere & (people == people[i])]
        others = np.flatnonzero(elsewhere & (people != people[i]))
        assert found.own[i] == pytest.approx(own.max(), abs=1e-5)
        assert found.other[i] == pytest.approx(similar[i][others].max(), abs=1e-5)
        assert found.nearest[i] == others[similar[i][others].argmax()]


def test_a_swap_in_one_of_two_sessions_names_both_participants():
    values, people, sessions = sessions_of(20, 2)
    exchange(values, 2 * 4 + 1, 2 * 11 + 1)
    (found,) = suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5)
    assert found.participants == (4, 11)
    assert found.mutual
    assert found.runs == (8, 9, 22, 23)  # of two sessions none can be said to be the right one


def test_a_swap_in_one_of_three_sessions_names_the_runs():
    values, people, sessions = sessions_of(20, 3)
    exchange(values, 3 * 4 + 2, 3 * 11 + 2)
    (found,) = suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5)
    assert found.participants == (4, 11)
    assert found.runs == (14, 35)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_swap_none_is_suspected(seed):
    values, people, sessions = sessions_of(30, 2, seed=seed)
    assert suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5) == []


def test_a_run_that_was_put_under_the_wrong_name_is_not_mutual():
    values, people, sessions = sessions_of(20, 3)
    values[3 * 4 + 1] = values[3 * 7] + 0.3 * np.random.default_rng(1).normal(size=values.shape[1])
    (found,) = suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5)
    assert found.participants == (4, 7)
    assert found.runs == (13,)
    assert not found.mutual


def test_a_participant_with_one_session_is_not_tried():
    values, people, sessions = sessions_of(6, 2)
    keep = np.arange(len(people)) != 3
    found = reidentify(standardise(values[keep]), people[keep], sessions[keep])
    assert found.tried.sum() == 10
    assert np.isnan(found.margins()[2])


def test_features_that_do_not_vary_count_for_nothing():
    values, *_ = sessions_of(8, 2)
    widened = np.hstack([values, np.full((16, 5), 1e4)])
    np.testing.assert_allclose(standardise(widened)[:, :40], standardise(values), atol=1e-6)


@pytest.mark.parametrize("shape", [(200, 12), (9, 30)])
def test_components_are_those_of_a_singular_value_decomposition(shape):
    values = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 4, shape[1])
    scores, shares = principal_components(values, 3)
    _, singular, _ = np.linalg.svd(values - values.mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), singular[:3], rtol=1e-6)
    np.testing.assert_allclose(shares, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-6)


def test_the_matrix_shows_whole_participants_with_several_runs():
    people = np.array([0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 5])
    shown = sample_for_matrix(people, 6)
    chosen = people[shown]
    assert 4 <= len(shown) <= 6
    assert not {0, 2} & set(chosen.tolist())
    assert all((chosen == p).sum() == (people == p).sum() for p in set(chosen.tolist()))
    assert sample_for_matrix(people, 11).tolist() == list(range(11))


def test_what_people_did_does_not_hide_who_they_are():
    values, people, _ = sessions_of(12, 2)
    tasks = ["rest", "film"] * 12
    values[1::2] += 30 * np.random.default_rng(1).normal(size=values.shape[1])
    runs = np.arange(len(people))
    assert reidentify(standardise(values), people, runs).hits.mean() < 0.1
    assert reidentify(standardise(values, tasks), people, runs).hits.all()
    alone = standardise(values, ["rest"] * 23 + ["film"])
    assert np.linalg.norm(alone[23]) == pytest.approx(1)


def test_runs_that_are_hard_to_tell_apart_are_not_taken_for_swapped():
    suspected = by_margin = 0
    for seed in range(10):
        values, people, sessions = sessions_of(100, 2, noise=1, seed=seed)
        found = reidentify(standardise(values), people, sessions)
        assert 0.7 < found.hits.mean() < 0.9
        suspected += len(suspected_swaps(found, people, 0.5))
        by_margin += int((found.margins() >= 0.5).sum())
    assert by_margin > 100
    assert suspected <= 3
