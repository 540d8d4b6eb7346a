"""Data efficiency: the same evaluation with a share of the training participants of each fold.

Shares are nested: a smaller one is part of a larger one in the same fold and repeat. Whole participants (or families)
are sampled, from the training set of a fold alone, so that no participant is on both sides. Test sets stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_app.adapters.file import CLASSIFICATION
from bids_app.errors import UsageError
from bids_app.training.evaluation.folds import Fold

MIN_TRAINED = 5
"""Minimum number of training participants of a regression or an embedding."""
MIN_PER_CLASS = 2
"""Minimum number of training participants per class."""


def check_shares(shares: Sequence[float]) -> None:
    """Check that shares are above 0, up to 1, and each given once.

    Raises
    ------
    UsageError
        They are not.
    """
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        raise UsageError(f"Invalid value for --train-shares: {wrong[0]:g}.", "Use values above 0, up to 1.")
    if len(set(shares)) < len(shares):
        raise UsageError("--train-shares: a share is given twice.", "Give each share once.")


def limit_fold(
    fold: Fold, share: float, groups: Sequence[str], values: Sequence[str], kind: str, seed: Sequence[int]
) -> Fold:
    """Reduce the training set of a fold to a share of its participants (or families).

    Parameters
    ----------
    fold : Fold
    share : float
        Above 0, up to 1.
    groups, values : sequence of str, (N,)
        Participant or family, and value of the target, of each example.
    kind : str
        Kind of the task; samples are stratified by class if each participant has one.
    seed : sequence of int
        The same seed gives nested samples.

    Raises
    ------
    UsageError
        The share has too few participants, or a class of the training set is missing from it.
    """
    train, test = fold
    if share == 1:
        return fold
    members = [groups[i] for i in train]
    order = nested_order(members, [values[i] for i in train], kind, seed)
    n = round(share * len(order))
    classes = {values[i] for i in train} if kind == CLASSIFICATION else set()
    minimum = max(MIN_PER_CLASS * len(classes), 2 if classes else MIN_TRAINED)
    if n < minimum:
        least = minimum / len(order)
        raise UsageError(
            f"--train-shares {share:g}: {n} of {len(order)} training participants (or families); at least {minimum} "
            "are required" + (f" for {len(classes)} classes." if classes else "."),
            f"Use shares from {np.ceil(1000 * least) / 1000:g}." if least <= 1 else "Omit --train-shares.",
        )
    kept = set(order[:n])
    limited = np.array([i for i, group in zip(train, members, strict=True) if group in kept])
    if missing := classes - {values[i] for i in limited}:
        raise UsageError(
            f"--train-shares {share:g}: no training scan of the class {min(missing)}.", "Use larger shares."
        )
    return limited, test


def nested_order(groups: Sequence[str], values: Sequence[str], kind: str, seed: Sequence[int]) -> list[str]:
    """Return the groups in the order in which samples are filled.

    For classes that do not vary within groups, `MIN_PER_CLASS` groups of each class come first, and the others in
    proportion to the classes.
    """
    first: dict[str, str] = {}
    is_constant = True
    for group, value in zip(groups, values, strict=True):
        is_constant &= first.setdefault(group, value) == value
    rng = np.random.default_rng(list(seed))
    strata: dict[str, list[str]] = {}
    for group, value in first.items():
        strata.setdefault(value if is_constant and kind == CLASSIFICATION else "", []).append(group)
    ranked = []
    for label, members in sorted(strata.items()):
        for rank, k in enumerate(rng.permutation(len(members))):
            is_first = label != "" and rank < MIN_PER_CLASS
            ranked.append((not is_first, rank if is_first else (rank + 0.5) / len(members), rng.random(), members[k]))
    return [group for *_, group in sorted(ranked)]
