"""Sets of an export equal the folds of ``evaluate``, and never divide a participant or a family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_app.errors import BadDataError
from bids_app.training.adapt import LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.evaluation.folds import make_folds
from bids_app.training.export.runs import read_runs, read_values
from bids_app.training.export.sets import SETS, sets_from_file, sets_from_folds
from bids_app.training.tasks import Task


@pytest.fixture
def labelled(make_outputs):
    """Return the runs of 20 participants in two sessions, with their sex and the task."""
    made = make_outputs(participants=20)
    runs = read_runs(made.out, normalisation="global").runs
    values = read_values("participants.tsv:sex", runs, made.out)
    return runs, values, Task.from_values("sex", values)


def test_the_folds_are_those_of_evaluate_for_each_seed(labelled) -> None:
    runs, values, task = labelled
    seen = set()
    for seed in (0, 1):
        folds = make_folds(task, Examples(LabelledScans(runs, tuple(values)), {}), 5, seed)
        sets = sets_from_folds(task, runs, values, {}, 5, seed)
        test, validation = folds[0][1], folds[1][1]
        assert np.flatnonzero(np.array(sets.names) == "test").tolist() == test.tolist()
        assert np.flatnonzero(np.array(sets.names) == "validation").tolist() == validation.tolist()
        assert [np.flatnonzero(np.array(sets.folds) == k + 1).tolist() for k in range(5)] == [
            each.tolist() for _, each in folds
        ]
        assert sets == sets_from_folds(task, runs, values, {}, 5, seed)
        seen.add(sets.names)
    assert len(seen) == 2


def test_participants_and_families_are_in_one_set(labelled) -> None:
    runs, values, task = labelled
    families = {f"{i:02d}": f"family{(i - 1) // 4}" for i in range(1, 21)}
    for known in ({}, families):
        split = sets_from_folds(task, runs, values, known, 5, 0).split(runs)
        members = [label for labels in split.values() for label in labels]
        assert len(members) == len(set(members)) == 20
        assert set(split) == set(SETS)
    groups = {name: {families[label] for label in labels} for name, labels in split.items()}
    assert not groups["training"] & groups["test"]
    assert not groups["training"] & groups["validation"]


def test_two_folds_have_no_validation_set(labelled) -> None:
    runs, values, task = labelled
    assert set(sets_from_folds(task, runs, values, {}, 2, 0).names) == {"training", "test"}


def test_sets_of_a_file_are_kept_and_other_participants_are_in_none(labelled, tmp_path: Path) -> None:
    runs, _, _ = labelled
    path = tmp_path / "own.tsv"
    path.write_text("participant_id\tsplit\nsub-01\ttraining\nsub-02\ttest\n")
    sets = sets_from_file(path, runs, {})
    assert sets.names[:6] == ("training", "training", "test", "test", "", "")
    assert (sets.folds, sets.origin) == ((), "split file own.tsv")
    path.write_text("participant_id\tsplit\nsub-01\ttrain\n")
    with pytest.raises(BadDataError, match="unknown set: train"):
        sets_from_file(path, runs, {})
