"""Folds of cross-validation: no participant, family or (where asked) site is on both sides."""

from __future__ import annotations

import numpy as np

from bids_app.adapters.file import EMBEDDING, REGRESSION
from bids_app.errors import BadDataError, NoMatchError
from bids_app.training.data.examples import Examples
from bids_app.training.data.splits import groups_of
from bids_app.training.tasks import Question

Fold = tuple[np.ndarray, np.ndarray]
"""Indices of training and of test examples."""


def make_folds(question: Question, examples: Examples, n_folds: int, seed: int, by_image: bool = False) -> list[Fold]:
    """Training and test examples of each fold.

    By participant or family, with classes (or levels of a number) spread evenly; or one site out each time.

    Parameters
    ----------
    by_image : bool
        Whether images, too, are on one side only: a fold tests some participants with some images, and trains with
        other participants and other images.
    """
    from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, StratifiedGroupKFold

    groups = np.array(groups_of(examples.data.scans, examples.families))
    values, indices = np.array(examples.data.values), np.arange(len(groups))
    if examples.sites:
        sites = np.array(examples.sites)
        if len(set(examples.sites)) < 2:
            raise NoMatchError(f"All scans are of the site {examples.sites[0]}.", "Leave out --site-column.")
        pairs = list(LeaveOneGroupOut().split(indices, values, sites))
        return [(train[~np.isin(groups[train], groups[test])], test) for train, test in pairs]
    n_folds = min(n_folds, len(set(groups)))
    if n_folds < 2:
        raise NoMatchError("Scans of one participant cannot be cross-validated.", "At least two are needed.")
    if question.task == EMBEDDING:
        folds = list(GroupKFold(n_folds, shuffle=True, random_state=seed).split(indices, values, groups))
        return _by_image(folds, values, seed) if by_image else folds
    if question.task == REGRESSION:
        strata = _levels(values, max(1, min(5, len(set(groups)) // n_folds)))
    else:
        strata, n_folds = values, min(n_folds, _fewest_groups(values, groups))
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return [fold for fold in splitter.split(indices, strata, groups) if len(fold[1])]


def _levels(values: np.ndarray, n_levels: int) -> np.ndarray:
    """Numbers in so many levels of the same size."""
    numbers = values.astype(float)
    return np.searchsorted(np.quantile(numbers, np.arange(1, n_levels) / n_levels), numbers)


def _fewest_groups(values: np.ndarray, groups: np.ndarray) -> int:
    """Participants (or families) of the class that has fewest."""
    counts = {str(label): len(set(groups[values == label])) for label in np.unique(values)}
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] < 2:
        raise BadDataError(
            f"Only one participant is {rarest}.", "Leave that class out of the table, or join it with another."
        )
    return counts[rarest]


def _by_image(folds: list[Fold], values: np.ndarray, seed: int) -> list[Fold]:
    images = np.random.default_rng(seed).permutation(np.unique(values))
    parts = np.array_split(images, len(folds))
    return [
        (train[~np.isin(values[train], part)], test[np.isin(values[test], part)])
        for (train, test), part in zip(folds, parts, strict=True)
    ]
