"""What is scored, and how methods compare: metrics and 95 % intervals over the same draws of participants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.training.adapt import Labelled
from bids_app.training.evaluation import metrics as scores
from bids_app.training.evaluation.folds import Fold
from bids_app.training.tasks import Question

ENCODER = "encoder"
"""Key of the method that the others are compared with."""


@dataclass
class Method:
    """One method's results.

    Attributes
    ----------
    title : str
    scores : dict of str to float
    intervals : dict of str to tuple
        95 %, over participants.
    lead : tuple of float
        For a baseline, how far the encoder is ahead in the main score: value and interval.
    """

    title: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    lead: tuple[float, float, float] | None = None


class Units:
    """What is scored: participants where the question is about them, examples otherwise, retrievals fold by fold."""

    def __init__(
        self,
        question: Question,
        data: Labelled,
        folds: list[Fold],
        images: Mapping[str, np.ndarray] | None,
        pool: int,
    ) -> None:
        self.question, self.data, self.folds, self.images, self.pool = question, data, folds, images, pool
        tested = np.unique(np.concatenate([test for _, test in folds]))
        people = np.array([e.participant for e in data.scans])
        values = np.array(data.values)
        one_each = all(len(set(values[people == p])) == 1 for p in set(people[tested]))
        by_person = question.task != EMBEDDING and one_each
        self.members = (
            [tested[people[tested] == p] for p in sorted(set(people[tested]))] if by_person else [[i] for i in tested]
        )
        self.kind = "participant" if by_person else "example"
        self.people = [str(people[m[0]]) for m in self.members]
        self.values = [str(values[m[0]]) for m in self.members]
        self.everyone = np.arange(len(self.members))
        sizes = [len(set(values[test])) for _, test in folds] if images is not None else []
        self.pool_size = min(pool, max(sizes)) if sizes else 0

    def of(self, answers: np.ndarray) -> np.ndarray:
        """Answers (N, K) to those of units; for retrieval, how each fared."""
        if self.question.task != EMBEDDING:
            return np.stack([answers[m].mean(axis=0) for m in self.members])
        found = np.full((len(self.data.scans), 2), np.nan)
        for train, test in self.folds:
            values = [self.data.values[i] for i in test]
            if self.images is None:
                found[test] = scores.retrievals(answers[test], values)
            elif len(test):
                own = [self.data.values[i] for i in train]
                asked = Question.about(self.question.target, own, EMBEDDING, images=self.images)
                similar, right = asked.image_similarity(answers[test], values, self.images)
                found[test, 0] = scores.top1_chances(similar, right, self.pool)
        return np.stack([found[m[0]] for m in self.members])

    def score(self, units: np.ndarray, draw: np.ndarray) -> dict[str, float]:
        """Scores of a sample of units."""
        if self.question.task == EMBEDDING:
            if self.images is not None:
                return {"top1": float(np.nanmean(units[draw, 0]))}
            return scores.of_retrieval(units[draw])
        return self.question.scores(units[draw], [self.values[i] for i in draw])

    def permuted(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Values of examples, exchanged among participants; where a participant has several, within participants."""
        values = list(self.data.values)
        if self.kind == "participant":
            for members, k in zip(self.members, rng.permutation(len(self.members)), strict=True):
                for i in members:
                    values[i] = self.values[k]
            return tuple(values)
        blocks = [test for _, test in self.folds] if self.question.task == EMBEDDING else self._by_person()
        for block in blocks:
            own = [values[i] for i in block]
            for i, k in zip(block, rng.permutation(len(own)), strict=True):
                values[i] = own[k]
        return tuple(values)

    def _by_person(self) -> list[np.ndarray]:
        people = np.array([e.participant for e in self.data.scans])
        return [np.flatnonzero(people == p) for p in dict.fromkeys(people)]

    def table(self, answers: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        """Each unit's truth, and what each method says of it."""
        table: dict[str, list[Any]] = {"participant_id": [f"sub-{p}" for p in self.people]}
        if self.kind == "example":
            table["example"] = [self.data.scans[m[0]].name for m in self.members]  # type: ignore[attr-defined]
        table["truth"] = list(self.values)
        for name, rows in answers.items():
            units = self.of(rows)
            if self.question.task == CLASSIFICATION:
                for k, label in enumerate(self.question.labels):
                    table[f"{name}_p_{label}"] = np.round(units[:, k], 4).tolist()
            elif self.question.task == REGRESSION:
                table[name] = np.round(units[:, 0], 4).tolist()
            else:
                table[f"{name}_right"] = np.round(units[:, 0], 4).tolist()
        return table


def compare_methods(
    units: Mapping[str, np.ndarray], titles: Mapping[str, str], how: Units, n_draws: int, seed: int
) -> dict[str, Method]:
    """Scores and intervals of all methods, and the encoder's lead, over the same draws of participants.

    Parameters
    ----------
    units : mapping of str to numpy.ndarray
        Each method's answers to the units, of `Units.of`; the encoder's under `ENCODER`.
    titles : mapping of str to str
        Of the methods.
    how : Units
    n_draws : int
        Samples of participants, with replacement.
    seed : int
    """
    draws = scores.draws_of(how.people, n_draws, seed)
    sign = -1 if how.question.score in scores.LESS_IS_BETTER else 1
    main = how.question.score
    methods = {}
    sampled = {}
    for name, rows in units.items():
        found = [how.score(rows, draw) for draw in draws]
        sampled[name] = np.array([row[main] for row in found])
        bounds = {key: tuple(np.nanquantile([row[key] for row in found], [0.025, 0.975]).tolist()) for key in found[0]}
        methods[name] = Method(titles[name], how.score(rows, how.everyone), bounds)  # type: ignore[arg-type]
    for name, method in methods.items():
        if name != ENCODER:
            low, high = np.nanquantile(sign * (sampled[ENCODER] - sampled[name]), [0.025, 0.975])
            lead = sign * (methods[ENCODER].scores[main] - method.scores[main])
            method.lead = (float(lead), float(low), float(high))
    return methods
