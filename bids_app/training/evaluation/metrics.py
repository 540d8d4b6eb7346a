"""Metrics of classification, regression and retrieval. Arrays only.

N  predictions      K  classes      P  images of a pool
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln
from scipy.stats import rankdata

Metrics = dict[str, float]
LOWER_IS_BETTER = ("mse", "mae")
RANGES = {"r": (-1.0, 1.0), "mse": (0.0, np.inf), "mae": (0.0, np.inf)}
"""Lowest and highest value of a metric, if not 0 to 1."""
GALLERIES = 10
"""Random partitions of the participants into galleries."""


def classification_metrics(probabilities: np.ndarray, truth: Sequence[int]) -> Metrics:
    """Compute accuracy, balanced accuracy and the area under the ROC curve (one-vs-rest, mean over classes).

    Parameters
    ----------
    probabilities : np.ndarray, (N, K)
    truth : sequence of int, (N,)
        True classes; -1 for a class outside the K, which counts as an error.
    """
    classes = np.asarray(truth)
    is_correct = probabilities.argmax(axis=1) == classes
    areas = []
    for k in range(probabilities.shape[1]):
        own = classes == k
        if 0 < own.sum() < len(own):
            ranks = rankdata(probabilities[:, k])
            areas.append((ranks[own].sum() - own.sum() * (own.sum() + 1) / 2) / (own.sum() * (~own).sum()))
    return {
        "accuracy": float(is_correct.mean()),
        "balanced_accuracy": float(np.mean([is_correct[classes == k].mean() for k in np.unique(classes)])),
        "auroc": float(np.mean(areas)) if areas else float("nan"),
    }


def regression_metrics(predicted: np.ndarray, truth: np.ndarray) -> Metrics:
    """Compute Pearson's r, the mean squared error and the mean absolute error from arrays (N,)."""
    spread = truth.std() * predicted.std()
    r = float(((truth - truth.mean()) * (predicted - predicted.mean())).mean() / spread) if spread > 0 else 0.0
    return {"r": r, "mse": float(np.mean((truth - predicted) ** 2)), "mae": float(np.abs(truth - predicted).mean())}


def clip_interval(key: str, interval: tuple[float, float]) -> tuple[float, float]:
    """Limit an interval to the range of its metric; NaN stays."""
    low, high = np.clip(interval, *RANGES.get(key, (0.0, 1.0)))
    return float(low), float(high)


def to_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors (N, O) to unit length; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def retrieval_results(
    vectors: np.ndarray,
    identities: Sequence[str],
    sessions: Sequence[str] | None = None,
    gallery: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Rank other vectors by cosine similarity to each vector.

    Parameters
    ----------
    vectors : np.ndarray, (N, O)
    identities : sequence of str, (N,)
    sessions : sequence of str, optional, (N,)
        A vector is compared only with those of other sessions; None: with all others.
    gallery : int, optional
        Number of identities to choose from, including the right one: results are means over `GALLERIES` random
        partitions of the identities into galleries of this size. None: all identities.
    seed : int
        Of the partitions.

    Returns
    -------
    np.ndarray, (N, 2)
        1 if the nearest vector has the same identity, else 0; and the average precision. NaN where no vector that is
        compared has the same identity.
    """
    unit = to_unit_length(vectors)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    if sessions is not None:
        labels = np.asarray(sessions)
        similarity[labels[:, None] == labels[None]] = -np.inf
    names = np.asarray(identities)
    if gallery is None:
        return _rank(similarity, names)
    sums, counts = np.zeros((len(names), 2)), np.zeros((len(names), 1))
    rng, unique = np.random.default_rng(seed), np.unique(names)
    for _ in range(GALLERIES):
        order = rng.permutation(unique)
        for first in range(0, len(order) - gallery + 1, gallery):  # the rest is too small for a gallery
            own = np.flatnonzero(np.isin(names, order[first : first + gallery]))
            found = _rank(similarity[np.ix_(own, own)], names[own])
            known = ~np.isnan(found[:, 0])
            sums[own[known]] += found[known]
            counts[own[known]] += 1
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _rank(similarity: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Return rank-1 and average precision of each row of similarities (N, N), (N, 2); -inf: not compared."""
    results = np.full((len(names), 2), np.nan)
    for i, name in enumerate(names):
        order = np.argsort(-similarity[i], kind="stable")
        hits = names[order[similarity[i, order] > -np.inf]] == name
        if hits.any():
            ranks = np.flatnonzero(hits) + 1
            results[i] = hits[0], np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return results


def retrieval_metrics(results: np.ndarray) -> Metrics:
    """Compute rank-1 accuracy and mean average precision from `retrieval_results`; 0 if all rows are NaN."""
    known = results[~np.isnan(results[:, 0])]
    if not len(known):
        return {"rank1": 0.0, "map": 0.0}
    return {"rank1": float(known[:, 0].mean()), "map": float(known[:, 1].mean())}


def top1_probabilities(similarity: np.ndarray, truth: np.ndarray, pool: int = 300) -> np.ndarray:
    """Compute the probability that the true image is the most similar one in a random pool.

    Parameters
    ----------
    similarity : np.ndarray, (N, P)
    truth : np.ndarray of int, (N,)
        Index of the true image.
    pool : int
        Number of images in the pool, including the true one; all images if there are fewer.

    Returns
    -------
    np.ndarray, (N,)
        Exact over all possible pools; ties count against the true image.
    """
    n_others = similarity.shape[1] - 1
    n_sampled = min(pool - 1, n_others)
    own = similarity[np.arange(len(truth)), truth]
    better = (similarity >= own[:, None]).sum(axis=1) - 1
    worse = n_others - better
    logs = gammaln(worse + 1) - gammaln(np.maximum(worse - n_sampled, 0) + 1)
    logs = logs - (gammaln(n_others + 1) - gammaln(n_others - n_sampled + 1))
    return np.where(worse >= n_sampled, np.exp(logs), 0.0)
