"""Training, validation and test set of each run: folds of ``evaluate``, or a split file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.terminal import count_of
from bids_app.training.adapt import LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.data.splits import (
    TEST,
    TRAINING,
    VALIDATION,
    Split,
    check_sets,
    read_split,
    split_from_indices,
)
from bids_app.training.evaluation.folds import describe_limits, make_folds
from bids_app.training.export.runs import EmbeddedRun
from bids_app.training.tasks import Task

SETS = (TRAINING, VALIDATION, TEST)


@dataclass(frozen=True)
class Sets:
    """Sets of N runs.

    Attributes
    ----------
    names : tuple of str, (N,)
        Set of each run; empty for a run whose participant is in none.
    folds : tuple of int, (N,)
        Number of the fold that tests the run, from 1; empty with a split file.
    origin : str
        How the sets were made.
    warnings : tuple of str
        What few participants do to them.
    """

    names: tuple[str, ...]
    folds: tuple[int, ...]
    origin: str
    warnings: tuple[str, ...] = ()

    def split(self, runs: Sequence[EmbeddedRun]) -> Split:
        """Return the participants of each set, in the order of `SETS`."""
        members = {name: [i for i, own in enumerate(self.names) if own == name] for name in SETS}
        return split_from_indices(runs, {name: indices for name, indices in members.items() if indices})


def sets_from_folds(
    task: Task, runs: Sequence[EmbeddedRun], values: Sequence[str], families: Mapping[str, str], n_folds: int, seed: int
) -> Sets:
    """Make sets from the folds of ``evaluate`` in its first repeat: the first one is the test set.

    The second fold is the validation set and the others are the training set; of two folds, the second is the training
    set. Errors as in `make_folds`.
    """
    examples = Examples(LabelledScans(tuple(runs), tuple(values)), dict(families))  # type: ignore[arg-type]
    made = make_folds(task, examples, n_folds, seed)
    folds = np.zeros(len(runs), int)
    for number, (_, test) in enumerate(made, 1):
        folds[test] = number
    held_out = {1: TEST, 2: VALIDATION} if len(made) > 2 else {1: TEST}
    names = tuple(held_out.get(int(number), TRAINING) for number in folds)
    origin = f"{count_of(len(made), 'fold')} by participant, seed {seed}"
    warnings = describe_limits(task, examples, n_folds, len(made))
    return Sets(names, tuple(folds.tolist()), origin, tuple(warnings))


def sets_from_file(path: Path, runs: Sequence[EmbeddedRun], families: Mapping[str, str]) -> Sets:
    """Read the sets from a split file; errors as in `read_split` and `check_sets`."""
    split = read_split(path, families)
    check_sets(split, path)
    by_participant = {label: name for name, labels in split.items() for label in labels}
    return Sets(tuple(by_participant.get(run.participant, "") for run in runs), (), f"split file {path.name}")
