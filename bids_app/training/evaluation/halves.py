"""Variance of cross-validated metrics, from cross-validations of disjoint halves of the participants.

The folds of one cross-validation share most of their training data, so that their spread does not tell how much the
metric varies between studies. Two disjoint halves of the participants are like two studies of half the size: half of
the squared difference of their metrics is the variance of a study of that size (Nadeau and Bengio 2003, whose
"conservative Z" takes it for that of the whole study). The variance is taken to be inversely proportional to the number
of participants. The folds of each half are repeated, which tells the part of the variance that comes from the random
division into folds (`bids_app.training.evaluation.comparison.estimate`). Scores after removal of nuisance variables
vary more: of 70 simulated sets (`benchmarks/evaluation.py confounded`), 95 % intervals would hold chance in 86 %
without that part, and do in 97 % with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bids_app.adapters.file import CLASSIFICATION
from bids_app.errors import NeurostormError
from bids_app.training.evaluation.comparison import ENCODER, Halves, average_repeats
from bids_app.training.evaluation.metrics import Metrics
from bids_app.training.evaluation.run import Run

MIN_PARTICIPANTS = 10
"""Minimum number of participants (or families) for halves."""
N_HALVES = 12
"""Number of random divisions into halves."""
REPEATS = 2
"""Repeats of the folds of a half."""


def evaluate_halves(run: Run, features: Mapping[str, np.ndarray], nuisance: np.ndarray | None = None) -> Halves:
    """Cross-validate the encoder and baselines in halves of the participants.

    Parameters
    ----------
    run : Run
        Of a frozen encoder, whose embeddings are known.
    features : mapping of str to np.ndarray, (N, F)
        Features of each baseline.
    nuisance : np.ndarray, (N, V), optional
        Variables to remove from the embeddings.

    Returns
    -------
    Halves
        Without scores if the folds are not repeated (strategies that train the encoder, embeddings, folds by site), or
        if the halves are too small for a cross-validation.
    """
    n_groups = len(set(run.groups))
    if not run.is_repeated or n_groups < MIN_PARTICIPANTS:
        return Halves()
    n_repeats = REPEATS if nuisance is None else 1
    found = Halves({name: [] for name in (ENCODER, *features)}, n_groups / 2, len(run.repeats))
    rng = np.random.default_rng(run.settings.seed + 2)
    for number in range(N_HALVES):
        parts = split_in_halves(run, rng)
        try:
            rows = [_score(subset(run, part, number, n_repeats), part, features, nuisance) for part in parts]
        except NeurostormError:  # a half lacks a class, for example
            continue
        for name, pairs in found.scores.items():
            pairs.append((rows[0][name], rows[1][name]))
    return found


def split_in_halves(run: Run, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divide examples into two halves of the participants (or families), stratified by class; indices of examples."""
    groups, values = np.array(run.groups), np.array(run.data.values)
    names, first = np.unique(groups, return_index=True)
    strata = values[first] if run.task.kind == CLASSIFICATION else np.zeros(len(names))
    order = rng.permutation(len(names))
    order = order[np.argsort(strata[order], kind="stable")]
    side = np.empty(len(names), dtype=int)
    side[order] = (np.arange(len(names)) + rng.integers(2)) % 2
    is_second = side[np.searchsorted(names, groups)] == 1
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def _score(
    half: Run, part: np.ndarray, features: Mapping[str, np.ndarray], nuisance: np.ndarray | None
) -> dict[str, list[Metrics]]:
    """Compute the metrics of all methods in cross-validations of some examples (indices), for each repeat."""
    predictions = {ENCODER: half.cross_validate_encoder(None if nuisance is None else nuisance[part])}
    predictions |= {name: half.cross_validate_linear(rows[part]) for name, rows in features.items()}
    return {name: _average_folds(half.fold_metrics(rows), len(half.repeats)) for name, rows in predictions.items()}


def _average_folds(rows: Sequence[Metrics], n_repeats: int) -> list[Metrics]:
    """Average the metrics of the folds of each repeat."""
    n = len(rows) // n_repeats
    return [average_repeats(rows[k * n : (k + 1) * n], n_folds=1)[0] for k in range(n_repeats)]


def subset(run: Run, part: np.ndarray, number: int, n_repeats: int) -> Run:
    """Return the evaluation of some examples (indices) in repeated cross-validations."""
    assert run.embeddings is not None
    clips, owners = run.embeddings
    settings = replace(run.settings, repeats=n_repeats, train_shares=(), seed=run.settings.seed + number)
    found = Run(
        run.model, run.task, run.examples.pick(part.tolist()), settings, run.normalisation, run.images, run.report
    )
    is_own = np.isin(owners, part)
    found.embeddings = clips[is_own], np.searchsorted(part, owners[is_own])
    return found
