"""Re-identification: galleries, scans of other sessions only, and without training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.training.adapt import LabelledScans
from bids_app.training.evaluation import metrics
from bids_app.training.evaluation.comparison import ENCODER
from bids_app.training.evaluation.retrieval import Retrieval
from bids_app.training.tasks import Task


def people(n: int, seed: int = 0, own: float = 1.0, session: float = 0.0, own_session: float = 0.0, width: int = 8):
    """Participants, sessions and embeddings of ``n`` people with two runs in each of two sessions.

    Parts of the embeddings are of the person, of the session, and of the person in one session.
    """
    rng = np.random.default_rng(seed)
    participants = [f"{k:03d}" for k in range(n) for _ in range(4)]
    sessions = [f"{1 + k // 2 % 2}" for k in range(4 * n)]
    rows = own * np.repeat(rng.normal(size=(n, width)), 4, axis=0) + rng.normal(size=(4 * n, width))
    rows += session * rng.normal(size=(2, width))[[int(s) - 1 for s in sessions]]
    return participants, sessions, rows + own_session * np.repeat(rng.normal(size=(2 * n, width)), 2, axis=0)


@pytest.fixture
def reidentify(make_examples, evaluate_given):
    """Return a function that evaluates re-identification of given scans."""

    def run(participants, sessions, rows, features=None, strategy="linear", folds=2, **rules):
        task = Task.from_values("participant", participants, "embedding", dimensions=6)
        examples = make_examples(participants, participants, sessions)
        more = {"strategy": strategy, "folds": folds, "repeats": 1, "retrieval": Retrieval(**rules)}
        return evaluate_given(task, examples, rows, features, **more)

    return run


def test_rank1_falls_with_the_size_of_the_gallery_to_that_of_all_participants() -> None:
    participants, _, rows = people(40)
    found = [
        metrics.retrieval_metrics(metrics.retrieval_results(rows, participants, gallery=size))
        for size in (2, 10, 40, None)
    ]
    rank1 = [row["rank1"] for row in found]
    assert rank1[0] > rank1[1] > rank1[2]
    assert found[2] == pytest.approx(found[3])
    assert rank1[0] > 0.8


def test_at_chance_a_gallery_holds_one_right_vector_among_all_others() -> None:
    """With two random vectors of each of 20 people, one of the 39 other vectors is right."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        participants = [f"{k:03d}" for k in range(60) for _ in range(2)]
        found.append(metrics.retrieval_results(rng.normal(size=(120, 16)), participants, gallery=20, seed=seed))
    rank1 = metrics.retrieval_metrics(np.concatenate(found))["rank1"]
    assert rank1 == pytest.approx(1 / 39, abs=0.006)


def test_galleries_are_the_same_for_the_same_seed() -> None:
    participants, _, rows = people(30)
    first, again, other = (
        metrics.retrieval_results(rows, participants, gallery=7, seed=seed).tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_scans_of_the_same_session_are_not_compared() -> None:
    """A third scan is the nearest to the first, but is of its session."""
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.99, 0.1], [0.9, 0.4], [0.2, 1.0]])
    names, sessions = ["a", "a", "b", "b", "a"], ["1", "2", "1", "2", "1"]
    everything = metrics.retrieval_results(vectors, names)
    across = metrics.retrieval_results(vectors, names, sessions)
    assert everything[4].tolist() == [1.0, pytest.approx((1 + 2 / 4) / 2)]
    assert across[4].tolist() == [1.0, 1.0]
    assert across[0].tolist() == [0.0, 0.5]  # of session 2, b is nearer than a
    assert np.isnan(metrics.retrieval_results(vectors, names, ["1"] * 5)).all()


def test_what_only_a_session_has_in_common_does_not_identify_across_sessions(reidentify) -> None:
    scans = people(60, own=0.0, own_session=4.0)
    within = reidentify(*scans, zero_shot=True).methods[ENCODER].metrics
    across = reidentify(*scans, zero_shot=True, across="session").methods[ENCODER].metrics
    assert within["rank1"] > 0.7
    assert across["rank1"] < 0.15


def test_a_gallery_across_sessions_is_reported_and_applies_to_baselines(reidentify) -> None:
    participants, sessions, rows = people(40, own=4.0)
    noise = {"mean": np.random.default_rng(5).normal(size=rows.shape)}
    found = reidentify(participants, sessions, rows, noise, gallery=10, across="session")
    assert found.methods[ENCODER].metrics["rank1"] > 0.8
    assert found.methods["mean"].metrics["rank1"] < 0.25
    whole = reidentify(participants, sessions, rows, noise, across="session")
    assert found.methods["mean"].metrics["map"] > 1.5 * whole.methods["mean"].metrics["map"]
    assert found.facts["Gallery"] == "10 participants"
    assert found.facts["Compared with"] == "scans of other sessions (by session)"


def test_zero_shot_uses_no_identity_of_the_training_set(reidentify, monkeypatch) -> None:
    from bids_app.training.evaluation import run

    monkeypatch.setattr(run, "solve_head", lambda *_: pytest.fail("a head was trained"))
    scans = people(40, own=4.0)
    found = reidentify(*scans, zero_shot=True)
    assert found.methods[ENCODER].title == "Encoder (zero-shot)"
    assert found.methods[ENCODER].metrics["rank1"] > 0.8
    assert found.facts["Head"] == "none: zero-shot"


def test_a_trained_head_finds_what_identifies_people_among_noise(reidentify) -> None:
    participants, sessions, rows = people(60, own=3.0, width=3)
    rows = np.hstack([rows, np.random.default_rng(9).normal(size=(240, 40))])
    trained = reidentify(participants, sessions, rows, across="session").methods[ENCODER].metrics["rank1"]
    untrained = reidentify(participants, sessions, rows, across="session", zero_shot=True)
    assert trained > untrained.methods[ENCODER].metrics["rank1"] + 0.1


def test_runs_can_be_sessions() -> None:
    """HCP Young Adult: REST1 and REST2 are runs of two days."""
    scans = tuple(
        SimpleNamespace(participant=f"{k // 2}", session="", labels={"run": f"{1 + k % 2}"}) for k in range(8)
    )
    data = LabelledScans(scans, tuple(scan.participant for scan in scans))  # type: ignore[arg-type]
    task = Task.from_values("participant", data.values, "embedding")
    folds = [(np.arange(4), np.arange(4, 8))]
    assert Retrieval(across="run").sessions_of(data) == ["1", "2"] * 4
    Retrieval(across="run", gallery=2).check(task, data, folds, "linear")
    with pytest.raises(UsageError, match="8 of 8 scans have no session"):
        Retrieval(across="session").check(task, data, folds, "linear")


def test_one_session_and_sessions_of_one_participant_each_are_refused(reidentify) -> None:
    participants, _, rows = people(20)
    with pytest.raises(UsageError, match="all scans have the same session: 1"):
        reidentify(participants, ["1"] * 80, rows, across="session")
    own = [str(int(p) % 2) for p in participants]
    with pytest.raises(UsageError, match="no participant has scans of two sessions"):
        reidentify(participants, own, rows, across="session")


def test_a_gallery_larger_than_a_test_set_is_refused_with_the_size_that_fits(reidentify) -> None:
    with pytest.raises(UsageError, match="--gallery 11: a test set has only 10 participants") as raised:
        reidentify(*people(20), gallery=11)
    assert "--gallery 10" in raised.value.hint
    assert reidentify(*people(20), gallery=10).facts["Gallery"] == "10 participants"


@pytest.mark.parametrize("rules", [{"gallery": 1}, {"across": "task"}, {"pool": 1}])
def test_values_that_are_not_possible_are_refused(rules: dict) -> None:
    with pytest.raises(UsageError):
        Retrieval(**rules)


@pytest.mark.parametrize("rules", [{"gallery": 5}, {"across": "session"}, {"zero_shot": True}])
def test_rules_of_reidentification_are_refused_for_other_tasks(rules, make_examples, evaluate_given) -> None:
    participants, sessions, rows = people(20)
    values = ["AB"[int(p) % 2] for p in participants]
    examples = make_examples(values, participants, sessions)
    with pytest.raises(UsageError, match="only for re-identification, not for the classification of x"):
        evaluate_given(Task.from_values("x", values), examples, rows, retrieval=Retrieval(**rules))
    images = {value: np.eye(2)[k] for k, value in enumerate("AB")}
    with pytest.raises(UsageError, match="not for images"):
        Retrieval(**rules).check(Task.from_values("x", values, images=images), examples.data, [], "linear")


def test_zero_shot_is_refused_with_anything_to_train(reidentify) -> None:
    with pytest.raises(UsageError, match="--zero-shot trains nothing, but the strategy is prompt"):
        reidentify(*people(20), strategy="prompt", zero_shot=True)
    from bids_app.training.adapt import AdaptSettings
    from bids_app.training.evaluation.run import EvaluateSettings

    with pytest.raises(UsageError, match="--train-shares"):
        EvaluateSettings(AdaptSettings("linear"), retrieval=Retrieval(zero_shot=True), train_shares=(0.5,))
