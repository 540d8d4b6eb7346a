"""Cross-validation folds that never split a participant, a family or (on request) a site."""

from __future__ import annotations

import warnings

import numpy as np

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.errors import BadDataError, NoMatchError
from bids_app.training.data.examples import Examples
from bids_app.training.data.splits import participant_groups
from bids_app.training.tasks import Task

MIN_TESTED = 5
"""Minimum number of participants in a test set of a regression, whose metric is a correlation."""
MIN_CLASS = 5
"""Classes with fewer participants are warned of."""
Fold = tuple[np.ndarray, np.ndarray]
"""Indices of training and test examples."""


def make_folds(task: Task, examples: Examples, n_folds: int, seed: int, by_image: bool = False) -> list[Fold]:
    """Split examples into training and test sets.

    Folds are grouped by participant or family and stratified by class (or quantiles of a number); with sites, each fold
    leaves one site out.

    Parameters
    ----------
    by_image : bool
        Split images as well: the training set of a fold shares neither participants nor images with its test set.

    Raises
    ------
    NoMatchError
        There is only one participant or one site.
    BadDataError
        A class has only one participant.
    """
    from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, StratifiedGroupKFold

    groups = np.array(participant_groups(examples.data.scans, examples.families))
    values, indices = np.array(examples.data.values), np.arange(len(groups))
    if examples.sites:
        sites = np.array(examples.sites)
        if len(set(examples.sites)) < 2:
            raise NoMatchError(
                f"All scans come from one site: {examples.sites[0]}.", "Omit --site-column (--leave-out)."
            )
        pairs = list(LeaveOneGroupOut().split(indices, values, sites))
        return [(train[~np.isin(groups[train], groups[test])], test) for train, test in pairs]
    n_folds = min(n_folds, len(set(groups)))
    if n_folds < 2:
        raise NoMatchError(
            "Cannot cross-validate the scans of one participant (or family).", "At least two are required."
        )
    if task.kind == EMBEDDING:
        folds = list(GroupKFold(n_folds, shuffle=True, random_state=seed).split(indices, values, groups))
        return _by_image(folds, values, seed) if by_image else folds
    if task.kind == REGRESSION:
        n_folds = max(2, min(n_folds, len(set(groups)) // MIN_TESTED))
        strata = _quantile_bins(values, max(1, min(5, len(set(groups)) // n_folds)))
    else:
        rarest, size = _smallest_class(values, groups)
        if size < 2:
            raise BadDataError(
                f'Class "{rarest}" has only one participant.',
                "Remove the class from the table or merge it with another.",
            )
        strata, n_folds = values, min(n_folds, size)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # see `describe_limits`
        return [fold for fold in splitter.split(indices, strata, groups) if len(fold[1])]


def describe_limits(task: Task, examples: Examples, wanted: int, made: int) -> list[str]:
    """Describe what few participants do to an evaluation: a small class, and fewer folds than wanted.

    Parameters
    ----------
    task : Task
    examples : Examples
    wanted, made : int
        Number of folds.
    """
    groups = np.array(participant_groups(examples.data.scans, examples.families))
    found, reason = [], f"there are {len(set(groups))} participants (or families)"
    if task.kind == CLASSIFICATION:
        rarest, n = _smallest_class(np.array(examples.data.values), groups)
        if n < MIN_CLASS:
            found.append(
                f'Warning: class "{rarest}" has only {n} participants (or families), on whom a large part of the '
                "score depends."
            )
        reason = f'class "{rarest}" has {n} participants (or families)' if n < len(set(groups)) else reason
    elif task.kind == REGRESSION:
        reason += f", and a test set of a regression needs {MIN_TESTED}"
    if made < wanted:
        found.append(f"Warning: {made} folds instead of {wanted}: {reason}.")
    return found


def _quantile_bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Bin numbers by quantiles into ``n_bins`` bins."""
    numbers = values.astype(float)
    return np.searchsorted(np.quantile(numbers, np.arange(1, n_bins) / n_bins), numbers)


def _smallest_class(values: np.ndarray, groups: np.ndarray) -> tuple[str, int]:
    """Return the smallest class, and its number of participants (or families)."""
    counts = {str(label): len(set(groups[values == label])) for label in np.unique(values)}
    rarest = min(counts, key=counts.__getitem__)
    return rarest, counts[rarest]


def _by_image(folds: list[Fold], values: np.ndarray, seed: int) -> list[Fold]:
    images = np.random.default_rng(seed).permutation(np.unique(values))
    parts = np.array_split(images, len(folds))
    return [
        (train[~np.isin(values[train], part)], test[np.isin(values[test], part)])
        for (train, test), part in zip(folds, parts, strict=True)
    ]
