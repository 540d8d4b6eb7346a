"""How right answers are: classes, numbers, retrieval; with intervals by drawing participants. Arrays only.

N  answers      K  classes      P  images of a pool
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln
from scipy.stats import rankdata

Scores = dict[str, float]
LESS_IS_BETTER = ("mse", "mae")


def of_classes(answers: np.ndarray, right: Sequence[int]) -> Scores:
    """Accuracy, its mean over classes, and the area under the ROC curve (one against the rest, mean over classes).

    Parameters
    ----------
    answers : np.ndarray, (N, K)
        Probabilities.
    right : sequence of int, (N,)
        Classes; -1 for one that is none of the K, and can only be missed.
    """
    truth = np.asarray(right)
    hits = answers.argmax(axis=1) == truth
    areas = []
    for k in range(answers.shape[1]):
        own = truth == k
        if 0 < own.sum() < len(own):
            ranks = rankdata(answers[:, k])
            areas.append((ranks[own].sum() - own.sum() * (own.sum() + 1) / 2) / (own.sum() * (~own).sum()))
    return {
        "accuracy": float(hits.mean()),
        "balanced_accuracy": float(np.mean([hits[truth == k].mean() for k in np.unique(truth)])),
        "auroc": float(np.mean(areas)) if areas else float("nan"),
    }


def of_numbers(found: np.ndarray, truth: np.ndarray) -> Scores:
    """Pearson's r, mean squared and mean absolute error; both (N,)."""
    spread = truth.std() * found.std()
    r = float(((truth - truth.mean()) * (found - found.mean())).mean() / spread) if spread > 0 else 0.0
    return {"r": r, "mse": float(np.mean((truth - found) ** 2)), "mae": float(np.abs(truth - found).mean())}


def of_length_one(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, O) divided by their lengths; those of length 0 stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def retrievals(vectors: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    """How well each vector finds others of its kind among all others.

    Parameters
    ----------
    vectors : np.ndarray, (N, O)
    kinds : sequence of str, (N,)

    Returns
    -------
    np.ndarray, (N, 2)
        Whether the nearest by cosine is of its kind, and the average precision; NaN for one that is alone of its kind.
    """
    unit = of_length_one(vectors)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    names = np.asarray(kinds)
    found = np.full((len(names), 2), np.nan)
    for i, name in enumerate(names):
        order = np.argsort(-similar[i], kind="stable")[:-1]
        hits = names[order] == name
        if hits.any():
            places = np.flatnonzero(hits) + 1
            found[i] = hits[0], np.mean(np.arange(1, len(places) + 1) / places)
    return found


def of_retrieval(found: np.ndarray) -> Scores:
    """Rank-1 and mean average precision of `retrievals`; 0 where nothing could be looked for."""
    known = found[~np.isnan(found[:, 0])]
    return {"rank1": float(known[:, 0].mean()), "map": float(known[:, 1].mean())} if len(known) else _NOTHING.copy()


_NOTHING: Scores = {"rank1": 0.0, "map": 0.0}


def top1_chances(similar: np.ndarray, right: np.ndarray, pool: int = 300) -> np.ndarray:
    """How likely the right image wins against others drawn for a pool.

    Parameters
    ----------
    similar : np.ndarray, (N, P)
    right : np.ndarray of int, (N,)
    pool : int
        Images to choose from, the right one included; all, where there are fewer.

    Returns
    -------
    np.ndarray, (N,)
        Exact, over all pools that could be drawn; images that are as near as the right one win over it.
    """
    n_others = similar.shape[1] - 1
    drawn = min(pool - 1, n_others)
    own = similar[np.arange(len(right)), right]
    better = (similar >= own[:, None]).sum(axis=1) - 1
    worse = n_others - better
    logs = gammaln(worse + 1) - gammaln(np.maximum(worse - drawn, 0) + 1)
    logs = logs - (gammaln(n_others + 1) - gammaln(n_others - drawn + 1))
    return np.where(worse >= drawn, np.exp(logs), 0.0)


def draws_of(groups: Sequence[str], n_draws: int, seed: int) -> list[np.ndarray]:
    """Bootstrap samples: whole groups (participants) drawn with replacement; indices of each sample."""
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(which == k) for k in range(len(names))]
    rng = np.random.default_rng(seed)
    return [np.concatenate([members[k] for k in rng.integers(len(names), size=len(names))]) for _ in range(n_draws)]
