"""Data efficiency: nested, seeded samples of training participants, none of whom is tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.training.data.splits import participant_groups
from bids_app.training.evaluation.comparison import ENCODER
from bids_app.training.evaluation.folds import make_folds
from bids_app.training.evaluation.report import write_report
from bids_app.training.evaluation.shares import check_shares, limit_fold, nested_order
from bids_app.training.tasks import Task

SHARES = (0.1, 0.3, 1.0)


def cohort(n: int, scans: int = 2) -> tuple[list[str], list[str]]:
    """Values and participants of ``n`` people; every fourth one has the value B."""
    participants = [f"{k:03d}" for k in range(n) for _ in range(scans)]
    return ["B" if int(p) % 4 == 0 else "A" for p in participants], participants


def samples(shares, values, participants, make_examples, families=None, seed=3):
    """Participants of the training samples of each fold, by share, and of the test sets."""
    examples = make_examples(values, participants, families=families)
    groups = participant_groups(examples.data.scans, examples.families)
    folds = make_folds(Task.from_values("x", values), examples, 5, seed=1)
    for k, fold in enumerate(folds):
        limited = [limit_fold(fold, share, groups, values, "classification", (seed, 0, k)) for share in shares]
        assert all(np.array_equal(test, fold[1]) for _, test in limited)
        yield [{participants[i] for i in train} for train, _ in limited], {participants[i] for i in fold[1]}


def test_samples_are_nested_and_never_hold_a_tested_participant(make_examples) -> None:
    values, participants = cohort(80)
    for (small, medium, whole), tested in samples(SHARES, values, participants, make_examples):
        assert small < medium < whole
        assert (len(small), len(medium), len(whole)) == (6, 19, 64)
        assert not whole & tested


def test_all_scans_of_a_sampled_participant_or_family_are_in_the_sample(make_examples) -> None:
    values, participants = cohort(80)
    families = {p: f"f{int(p) // 8}" for p in participants}  # eight members, two of them with the value B
    values = ["AB"[int(p) // 8 % 2] for p in participants]
    for (sample, _), tested in samples((0.5, 1.0), values, participants, make_examples, families):
        sampled, others = {families[p] for p in sample}, {families[p] for p in tested}
        assert len(sample) == 8 * len(sampled)
        assert not sampled & others


def test_samples_depend_on_the_seed_alone(make_examples) -> None:
    values, participants = cohort(80)
    first, again, other = (
        [sets for sets, _ in samples((0.1,), values, participants, make_examples, seed=seed)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_each_class_has_two_participants_in_the_smallest_sample() -> None:
    groups = [f"{k}" for k in range(100)]
    values = ["rare" if k < 5 else "common" for k in range(100)]
    for seed in range(5):
        order = nested_order(groups, values, "classification", (seed,))
        assert sorted(values[int(g)] for g in order[:4]) == ["common", "common", "rare", "rare"]
        assert 1 <= sum(values[int(g)] == "rare" for g in order[:4] + order[4:50]) <= 5
        assert sorted(order) == sorted(groups)


@pytest.mark.parametrize(
    ("kind", "share", "words"),
    [
        ("classification", 0.05, "3 of 60 training participants .* at least 4 are required for 2 classes"),
        ("regression", 0.05, "3 of 60 training participants .* at least 5 are required"),
    ],
)
def test_a_share_of_too_few_participants_is_refused(kind: str, share: float, words: str) -> None:
    groups = [f"{k}" for k in range(60)]
    fold = (np.arange(60), np.array([], int))
    with pytest.raises(UsageError, match=words) as raised:
        limit_fold(fold, share, groups, ["A", "B"] * 30, kind, (0,))
    least = float(raised.value.hint.split("from ")[1].rstrip("."))
    assert len(limit_fold(fold, least, groups, ["A", "B"] * 30, kind, (0,))[0]) >= 4


def test_states_that_one_sample_lacks_are_refused() -> None:
    """The state C occurs in one of twenty participants, whose other scan has the state A."""
    groups = [f"{k:02d}" for k in range(20) for _ in range(2)]
    values = ["A", "B"] * 19 + ["A", "C"]
    fold = (np.arange(40), np.array([], int))
    with pytest.raises(UsageError, match="no training scan of the class C"):
        limit_fold(fold, 0.35, groups, values, "classification", (1,))  # a seed whose sample lacks this participant


@pytest.mark.parametrize("shares", [(0.0,), (1.5,), (-0.1, 1.0), (0.1, 0.1), (float("nan"),)])
def test_shares_outside_of_0_to_1_or_given_twice_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="--train-shares"):
        check_shares(shares)


@pytest.fixture
def curve(make_examples, evaluate_given):
    """Return a function that evaluates a strong effect and a baseline of noise at all shares."""

    def run(n: int = 80, sites=(), scale=1.0, **more):
        values, participants = cohort(n)
        rng = np.random.default_rng(0)
        effect = (1.5 * scale * np.array([v == "B" for v in values]))[:, None]
        embeddings = np.hstack([effect + rng.normal(size=(2 * n, 1)), rng.normal(size=(2 * n, 30))])
        noise = {"mean": rng.normal(size=(2 * n, 20))}
        examples = make_examples(values, participants, sites=sites)
        task = Task.from_values("group", values)
        return evaluate_given(task, examples, embeddings, noise, train_shares=SHARES, **more)

    return run


def test_more_participants_give_better_predictions_of_a_true_effect_only(curve) -> None:
    found = curve(repeats=4)
    encoder, noise = ([s.methods[name].metrics["auroc"] for s in found.shares] for name in (ENCODER, "mean"))
    assert encoder[2] > encoder[0] + 0.1
    assert max(noise) < 0.65
    assert [share.share for share in found.shares] == list(SHARES)
    assert [share.participants for share in found.shares] == [6, 19, 64]
    assert found.shares[2].methods[ENCODER].metrics == found.methods[ENCODER].metrics


def test_intervals_of_a_share_narrow_with_repeated_samples(curve) -> None:
    low, high = zip(*(curve(repeats=k).shares[0].methods[ENCODER].intervals["auroc"] for k in (1, 6)), strict=True)
    assert high[1] - low[1] < high[0] - low[0]


def test_repeats_of_samples_do_not_count_sites_twice(curve) -> None:
    """The effect is there at three of five sites only: the interval stays wide, however often samples are repeated."""
    sites = [f"s{k // 2 % 5}" for k in range(160)]
    with_effect = np.array([site in "s0s1s2" for site in sites])
    once, often = (curve(sites=sites, scale=with_effect, repeats=k) for k in (1, 8))
    assert often.facts["Folds"] == "5, leave one site out, samples repeated 8 times"
    narrow = [float(np.diff(found.shares[1].methods[ENCODER].intervals["auroc"])[0]) for found in (once, often)]
    assert narrow[1] > 0.95 * narrow[0]
    assert often.shares[1].methods[ENCODER].metrics != once.shares[1].methods[ENCODER].metrics


def test_table_and_figure_stand_beside_the_report(curve, tmp_path: Path) -> None:
    found = curve()
    write_report(found, tmp_path)
    rows = (tmp_path / "data_efficiency.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["share", "participants", "method", "score", "value", "low", "high"]
    assert len(rows) == 1 + 3 * 2 * 3  # shares, methods, metrics
    own = found.shares[0].methods[ENCODER]
    expected = f"| 0.1 | 6 | {own.metrics['balanced_accuracy']:.3f} ("
    assert expected in (tmp_path / "report.md").read_text()
    figure = (tmp_path / "data_efficiency.svg").read_text()
    for words in ("Encoder (linear)", "mean image", "balanced accuracy", "(0.3)"):
        assert words in figure
    assert 'src="data_efficiency.svg"' in (tmp_path / "report.html").read_text()


def test_without_shares_no_table_is_written(curve, tmp_path: Path, evaluate_given, make_examples) -> None:
    values, participants = cohort(40)
    rows = np.random.default_rng(0).normal(size=(80, 4))
    found = evaluate_given(Task.from_values("x", values), make_examples(values, participants), rows)
    names = {path.name for path in write_report(found, tmp_path)}
    assert names == {"report.md", "report.html", "scores.tsv", "answers.tsv", "setup.tsv"}
