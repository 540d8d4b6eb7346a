"""Re-identification across sessions and detection of swapped runs."""

import numpy as np
import pytest

from bids_app.group import identity
from bids_app.group.identity import (
    find_copies,
    principal_components,
    reidentify,
    sample_for_matrix,
    standardise,
    suspected_swaps,
)


def sessions_of(n_people, n_sessions, noise=0.5, seed=0, n_features=40):
    """Simulate embeddings sorted by participant; return them with indices of participants and sessions."""
    rng = np.random.default_rng(seed)
    people, sessions = np.repeat(np.arange(n_people), n_sessions), np.tile(np.arange(n_sessions), n_people)
    own = rng.normal(size=(n_people, n_features))
    return own[people] + noise * rng.normal(size=(len(people), n_features)) + 100, people, sessions


def swap(values, one, other):
    values[[one, other]] = values[[other, one]]


def test_runs_are_reidentified_across_sessions():
    values, people, sessions = sessions_of(20, 2)
    found = reidentify(standardise(values), people, sessions)
    assert found.tried.all()
    assert found.hits.all()
    assert np.median(found.margins()) == pytest.approx(-1, abs=0.01)
    assert found.mean_same > 0.6
    assert found.mean_different == pytest.approx(0, abs=0.1)
    assert found.same.sum() == 40
    assert found.different.sum() == 40 * 19


def test_noise_is_reidentified_at_chance_level():
    values, people, sessions = sessions_of(40, 2, noise=1000)
    found = reidentify(standardise(values), people, sessions)
    assert found.hits.mean() < 0.15


@pytest.mark.parametrize(("n_people", "n_sessions", "chance"), [(10, 2, 1 / 10), (5, 4, 3 / 15)])
def test_chance_is_the_share_of_own_runs_among_other_sessions(n_people, n_sessions, chance):
    values, people, sessions = sessions_of(n_people, n_sessions, noise=1000)
    assert reidentify(standardise(values), people, sessions).chance == pytest.approx(chance)


def test_blocks_equal_the_full_similarity_matrix(monkeypatch):
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


def test_a_swap_in_one_of_two_sessions_lists_both_participants():
    values, people, sessions = sessions_of(20, 2)
    swap(values, 2 * 4 + 1, 2 * 11 + 1)
    (found,) = suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5)
    assert found.participants == (4, 11)
    assert found.mutual
    assert found.runs == (8, 9, 22, 23)  # with two sessions it is unknown which one is swapped


def test_a_swap_in_one_of_three_sessions_lists_the_runs():
    values, people, sessions = sessions_of(20, 3)
    swap(values, 3 * 4 + 2, 3 * 11 + 2)
    (found,) = suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5)
    assert found.participants == (4, 11)
    assert found.runs == (14, 35)


@pytest.mark.parametrize("seed", range(5))
def test_no_swap_is_suspected_without_a_swap(seed):
    values, people, sessions = sessions_of(30, 2, seed=seed)
    assert suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5) == []


def test_a_mislabelled_run_is_not_a_mutual_swap():
    values, people, sessions = sessions_of(20, 3)
    values[3 * 4 + 1] = values[3 * 7] + 0.3 * np.random.default_rng(1).normal(size=values.shape[1])
    (found,) = suspected_swaps(reidentify(standardise(values), people, sessions), people, 0.5)
    assert found.participants == (4, 7)
    assert found.runs == (13,)
    assert not found.mutual


def test_a_participant_with_one_session_is_not_tested():
    values, people, sessions = sessions_of(6, 2)
    keep = np.arange(len(people)) != 3
    found = reidentify(standardise(values[keep]), people[keep], sessions[keep])
    assert found.tried.sum() == 10
    assert np.isnan(found.margins()[2])


def test_constant_features_are_ignored():
    values, *_ = sessions_of(8, 2)
    widened = np.hstack([values, np.full((16, 5), 1e4)])
    np.testing.assert_allclose(standardise(widened)[:, :40], standardise(values), atol=1e-6)


@pytest.mark.parametrize("shape", [(200, 12), (9, 30)])
def test_principal_components_equal_the_svd(shape):
    values = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 4, shape[1])
    scores, shares = principal_components(values, 3)
    _, singular, _ = np.linalg.svd(values - values.mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0), singular[:3], rtol=1e-6)
    np.testing.assert_allclose(shares, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-6)


def test_the_matrix_shows_all_runs_of_selected_participants():
    people = np.array([0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 5])
    shown = sample_for_matrix(people, 6)
    chosen = people[shown]
    assert 4 <= len(shown) <= 6
    assert not {0, 2} & set(chosen.tolist())
    assert all((chosen == p).sum() == (people == p).sum() for p in set(chosen.tolist()))
    assert sample_for_matrix(people, 11).tolist() == list(range(11))


def test_task_effects_are_removed_before_reidentification():
    values, people, _ = sessions_of(12, 2)
    tasks = ["rest", "film"] * 12
    values[1::2] += 30 * np.random.default_rng(1).normal(size=values.shape[1])
    runs = np.arange(len(people))
    assert reidentify(standardise(values), people, runs).hits.mean() < 0.1
    assert reidentify(standardise(values, tasks), people, runs).hits.all()
    alone = standardise(values, ["rest"] * 23 + ["film"])
    assert np.linalg.norm(alone[23]) == pytest.approx(1)


def test_noisy_runs_are_not_suspected_swaps():
    suspected = by_margin = 0
    for seed in range(10):
        values, people, sessions = sessions_of(100, 2, noise=1, seed=seed)
        found = reidentify(standardise(values), people, sessions)
        assert 0.7 < found.hits.mean() < 0.9
        suspected += len(suspected_swaps(found, people, 0.5))
        by_margin += int((found.margins() >= 0.5).sum())
    assert by_margin > 100
    assert suspected <= 3


def test_copies_of_a_run_under_other_labels_are_found_once():
    values, people, _ = sessions_of(6, 2)
    assert find_copies(values, people) == []
    values[2 * 3] = values[2 * 1]
    values[2 * 3 + 1] = values[2 * 1 + 1]
    values[2 * 5] = values[2 * 5 + 1]  # of one participant
    assert find_copies(values, people) == [(1, 3)]


def test_copies_may_differ_in_the_sign_of_zero():
    assert find_copies(np.array([[0.0, 1], [1, 1], [-0.0, 1]]), np.arange(3)) == [(0, 2)]
