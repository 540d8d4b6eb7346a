"""How well an encoder answers a question about people it has not seen, beside what simple features make of it.

The same folds for all (`folds`), and the same units and draws of participants (`comparison`). Answers are averaged
over the clips of an example, and over the scans of a participant where the question is about the participant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from bids_app.adapters.file import CLASSIFICATION, REGRESSION, AdaptedModel
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model
from bids_app.training.adapt import AdaptSettings, Labelled, adapt, predict
from bids_app.training.data.examples import Examples
from bids_app.training.data.splits import groups_of
from bids_app.training.evaluation.baselines import BASELINES, features_of, fit_predict
from bids_app.training.evaluation.comparison import ENCODER, Method, Units, compare_methods
from bids_app.training.evaluation.folds import Fold, make_folds
from bids_app.training.head import embeddings_of, solve_head
from bids_app.training.tasks import Question

CUBES = "cubes of 24 mm"


@dataclass(frozen=True)
class EvaluateSettings:
    """How to evaluate.

    Attributes
    ----------
    adaptation : AdaptSettings
    folds : int
        At most one for each participant.
    baselines : tuple of str
        Entries of `BASELINES`.
    permutations, draws : int
        Of labels, for the test; of participants, for the intervals.
    pool : int
        Images to choose from.
    seed : int
    """

    adaptation: AdaptSettings
    folds: int = 5
    baselines: tuple[str, ...] = tuple(BASELINES)
    permutations: int = 200
    draws: int = 1000
    pool: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.permutations < 0 or self.draws < 1 or self.pool < 2:
            raise UsageError(
                f"{self.folds} folds, {self.permutations} permutations, {self.draws} draws, a pool of {self.pool}.",
                "At least 2 folds, 1 draw and a pool of 2 are needed.",
            )


@dataclass
class Evaluation:
    """What came out.

    Attributes
    ----------
    question : Question
    methods : dict of str to Method
        The encoder first.
    p_value : float, optional
        Of the encoder's main score under permuted labels.
    facts : dict
        What was evaluated on, as the report lists it.
    table : dict of str to list
        Columns of the table of answers: one row an example, or a participant.
    notes : list of str
    """

    question: Question
    methods: dict[str, Method]
    p_value: float | None
    facts: dict[str, Any]
    table: dict[str, list[Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def main(self) -> str:
        """The score that decides."""
        return self.question.score

    def verdict(self) -> str:
        """Whether the encoder beats the baselines, in a sentence each."""
        own = self.methods[ENCODER]
        low, high = own.intervals[self.main]
        lines = [f"{own.title}: {self.main} {own.scores[self.main]:.3f} ({low:.3f} to {high:.3f})."]
        if self.p_value is not None:
            lines.append(f"Under permuted labels p = {self.p_value:.4f}.")
        for name, method in self.methods.items():
            if name != ENCODER and method.lead is not None:
                lead, low, high = method.lead
                said = "beats" if low > 0 else "does worse than" if high < 0 else "cannot be told apart from"
                lines.append(
                    f"The encoder {said} {method.title} ({method.scores[self.main]:.3f}): "
                    f"difference {lead:+.3f} ({low:+.3f} to {high:+.3f})."
                )
        return "\n".join(lines)


def evaluate(
    model: Model,
    question: Question,
    examples: Examples,
    settings: EvaluateSettings,
    normalisation: str,
    images: Mapping[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    parcels: str = CUBES,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Cross-validate.

    Parameters
    ----------
    question : Question
        About all examples; what depends on the training examples is made anew in each fold.
    examples : Examples
    normalisation : str
        Of the clips.
    images : mapping, optional
        Vectors of the images shown.
    labels : np.ndarray of int, optional, (96, 96, 96)
        Parcels of the connectivity, called ``parcels`` in the report.
    """
    data = examples.data
    folds = make_folds(question, examples, settings.folds, settings.seed, images is not None)
    run = _Run(model, question, data, settings, normalisation, images, folds)
    groups = groups_of(data.scans, examples.families)
    answers = {ENCODER: run.encoder(say)}
    notes = []
    for name in settings.baselines:
        try:
            features = features_of(name, data.scans, labels)  # type: ignore[arg-type]
        except BadDataError as error:
            notes.append(f"No baseline of {BASELINES[name]}: {error}")
            continue
        say(f"{BASELINES[name]}: {features.shape[1]} features")
        answers[name] = run.answers(partial(_baseline, features, data.values, groups))
    titles = {ENCODER: f"Encoder ({settings.adaptation.strategy})", **BASELINES}
    titles["connectivity"] += f" ({parcels})"
    units = Units(question, data, folds, images, settings.pool)
    methods = compare_methods(
        {name: units.of(rows) for name, rows in answers.items()}, titles, units, settings.draws, settings.seed
    )
    p_value = run.p_value(units, answers[ENCODER], say) if settings.permutations else None
    facts = {
        "Target": question.target,
        "Task": question.task,
        "Encoder": f"{model.name} (sha256 {model.weights_sha256[:12]}…)",
        "Strategy": settings.adaptation.strategy,
        "Normalisation": normalisation,
        "Participants": len({e.participant for e in data.scans}),
        "Examples": len(data.scans),
        "Scored by": units.kind,
        "Folds": f"{len(folds)}, one site out" if examples.sites else f"{len(folds)}, by participant",
        "Families kept together": len(set(examples.families.values())),
        "Images of a pool": units.pool_size,
    }
    return Evaluation(question, methods, p_value, facts, units.table(answers), notes)


def _baseline(
    features: np.ndarray,
    values: Sequence[str],
    groups: Sequence[str],
    question: Question,
    train: np.ndarray,
    test: np.ndarray,
) -> np.ndarray:
    return fit_predict(question, features, values, groups, train, test)


class _Run:
    """One evaluation's folds, and what is fitted in them."""

    def __init__(
        self,
        model: Model,
        question: Question,
        data: Labelled,
        settings: EvaluateSettings,
        normalisation: str,
        images: Mapping[str, np.ndarray] | None,
        folds: list[Fold],
    ) -> None:
        self.model, self.question, self.data, self.settings = model, question, data, settings
        self.normalisation, self.images, self.folds = normalisation, images, folds
        self.embeddings: tuple[torch.Tensor, np.ndarray] | None = None

    def fold_question(self, values: Sequence[str], train: np.ndarray) -> Question:
        """The question as the training examples of a fold put it."""
        own = [values[i] for i in train]
        return Question.about(self.question.target, own, self.question.task, self.question.dimensions, self.images)

    def answers(
        self, fitted: Callable[[Question, np.ndarray, np.ndarray], np.ndarray], values: Sequence[str] | None = None
    ) -> np.ndarray:
        """Answers of all folds, (N, K); NaN for examples that no fold tests."""
        values = self.data.values if values is None else values
        rows: np.ndarray | None = None
        for train, test in self.folds:
            question = self.fold_question(values, train)
            found = fitted(question, train, test)
            if question.task == CLASSIFICATION:
                columns = [self.question.labels.index(label) for label in question.labels]
                whole = np.zeros((len(found), len(self.question.labels)))
                whole[:, columns] = found
                found = whole
            if rows is None:
                rows = np.full((len(values), found.shape[1]), np.nan)
            width = min(rows.shape[1], found.shape[1])
            rows[test, :width], rows[test, width:] = found[:, :width], 0
        assert rows is not None
        return rows

    def encoder(self, say: Callable[[str], None]) -> np.ndarray:
        """The encoder's answers."""
        settings = self.settings.adaptation
        if settings.strategy == "linear":
            values, owners = embeddings_of(self.model, self.data.scans, settings.batch_size)
            self.embeddings = (values, owners.cpu().numpy())
            return self.answers(lambda q, train, test: self.solve(q, train, test, self.data.values))
        count = [0]

        def through(question: Question, train: np.ndarray, test: np.ndarray) -> np.ndarray:
            count[0] += 1
            say(f"fold {count[0]} of {len(self.folds)}")
            data = self.data.pick(train.tolist())
            adapter, _ = adapt(
                self.model, question, data, None, settings, self.normalisation, "evaluated", say=say, images=self.images
            )
            scans = tuple(self.data.scans[i] for i in test)
            return predict(AdaptedModel(self.model, adapter), question, scans, settings.batch_size)

        return self.answers(through)

    def solve(self, question: Question, train: np.ndarray, test: np.ndarray, values: Sequence[str]) -> np.ndarray:
        """A linear head's answers to the test examples, averaged over their clips."""
        assert self.embeddings is not None
        settings, (embeddings, owners) = self.settings.adaptation, self.embeddings
        own = np.isin(owners, train)
        targets = question.targets([values[i] for i in owners[own]]).to(embeddings.device)
        weights = question.class_weights(targets) if settings.balance else None
        head = solve_head(question, embeddings[own], targets, settings.ridge, weights, self.settings.seed)
        asked = np.isin(owners, test)
        with torch.no_grad():
            clips = question.answers(head.from_embedding(embeddings[asked])).cpu().numpy()
        place = np.searchsorted(np.sort(test), owners[asked])
        sums = np.zeros((len(test), clips.shape[1]))
        np.add.at(sums, place, clips)
        means = sums / np.maximum(np.bincount(place, minlength=len(test)), 1)[:, None]
        return means[np.searchsorted(np.sort(test), test)]

    def p_value(self, units: Units, own: np.ndarray, say: Callable[[str], None]) -> float:
        """How often permuted labels score as well; a linear head is fitted anew each time."""
        rng = np.random.default_rng(self.settings.seed + 1)
        refit = self.embeddings is not None and self.question.task in (CLASSIFICATION, REGRESSION)
        reached = 0
        observed = units.score(units.of(own), units.everyone)[self.question.score]
        for k in range(self.settings.permutations):
            if k and k % 50 == 0:
                say(f"{k} of {self.settings.permutations} permutations")
            values = units.permuted(rng)
            if refit:
                answers = self._refitted(values)
                if answers is None:
                    continue
            else:
                answers = own
            shuffled = Units(self.question, Labelled(self.data.scans, values), self.folds, self.images, units.pool)
            found = shuffled.score(shuffled.of(answers), shuffled.everyone)[self.question.score]
            reached += found >= observed
        return (1 + reached) / (1 + self.settings.permutations)

    def _refitted(self, values: tuple[str, ...]) -> np.ndarray | None:
        try:
            return self.answers(lambda q, train, test: self.solve(q, train, test, values), values)
        except BadDataError:  # the permutation left a fold a single class to learn, which scores nothing
            return None
