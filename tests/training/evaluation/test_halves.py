"""Halves of the participants: disjoint, stratified, and evaluated like the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bids_app.training.adapt import AdaptSettings, LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.evaluation.comparison import ENCODER, Halves
from bids_app.training.evaluation.halves import N_HALVES, REPEATS, evaluate_halves, split_in_halves
from bids_app.training.evaluation.run import EvaluateSettings, Run
from bids_app.training.tasks import Task

MODEL: Any = SimpleNamespace(name="x", weights_sha256="0" * 64)


def make_run(n_people: int, runs: int = 2, families: dict[str, str] | None = None, **changes) -> Run:
    """Return the evaluation of a group from embeddings; the first feature differs between groups by 4 SD."""
    rng = np.random.default_rng(1)
    scans = tuple(
        SimpleNamespace(participant=f"{k:02d}", session="", n_clips=1, name=f"{k}-{r}")
        for k in range(n_people)
        for r in range(runs)
    )
    groups = [k % 2 for k in range(n_people) for _ in range(runs)]
    data = LabelledScans(scans, tuple("ab"[g] for g in groups))  # type: ignore[arg-type]
    settings = EvaluateSettings(AdaptSettings("linear"), repeats=2, baselines=(), **changes)
    run = Run(MODEL, Task.from_values("x", data.values), Examples(data, families or {}), settings, "voxel", None, print)
    values = rng.normal(size=(len(scans), 4))
    values[:, 0] += 4 * np.array(groups)
    run.embeddings = torch.from_numpy(values), np.arange(len(scans))
    return run


def test_participants_are_never_on_both_sides_and_classes_are_divided_evenly() -> None:
    run = make_run(20, families={"00": "f", "02": "f", "04": "f"})
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        parts = split_in_halves(run, rng)
        people = [{run.data.scans[i].participant for i in part} for part in parts]
        assert people[0] | people[1] == {f"{k:02d}" for k in range(20)}
        assert not people[0] & people[1]
        assert sum(len(own & {"00", "02", "04"}) > 0 for own in people) == 1
        counts = [[len({p for p in own if int(p) % 2 == group}) for group in (0, 1)] for own in people]
        assert [first[1] for first in counts] == [5, 5]
        seen.add(frozenset(people[0]))
    assert len(seen) > 15


def test_methods_are_evaluated_in_both_halves_of_each_division() -> None:
    run = make_run(24)
    noise = np.random.default_rng(2).normal(size=(48, 3))
    found = evaluate_halves(run, {"noise": noise}).scores
    assert {name: len(pairs) for name, pairs in found.items()} == {ENCODER: N_HALVES, "noise": N_HALVES}
    scores = {
        name: np.array([[[row["balanced_accuracy"] for row in half] for half in pair] for pair in pairs])
        for name, pairs in found.items()
    }
    assert scores[ENCODER].shape == (N_HALVES, 2, REPEATS)
    assert scores[ENCODER].mean() > 0.9
    assert (np.ptp(scores["noise"], axis=2) > 0).any()  # each repeat has folds of its own
    assert 0.3 < scores["noise"].mean() < 0.7
    assert scores["noise"].std() > scores[ENCODER].std()
    known = evaluate_halves(run, {}, np.array([v == "b" for v in run.data.values], float)[:, None]).scores
    assert all(len(half) == 1 for pair in known[ENCODER] for half in pair)  # its variance is not corrected
    removed = np.mean([half["balanced_accuracy"] for pair in known[ENCODER] for rows in pair for half in rows])
    assert removed < 0.7  # the group itself was removed from the embeddings


def test_halves_that_are_too_small_are_left_out() -> None:
    assert evaluate_halves(make_run(8, 1), {}) == Halves()


@pytest.mark.parametrize("strategy", ["prompt", "full"])
def test_strategies_that_train_the_encoder_are_not_repeated_in_halves(strategy: str) -> None:
    run = make_run(8)
    assert make_run(8).is_repeated
    settings = EvaluateSettings(AdaptSettings(strategy), repeats=2, baselines=())
    trained = Run(MODEL, run.task, run.examples, settings, "voxel", None, print)
    assert evaluate_halves(trained, {}) == Halves()
