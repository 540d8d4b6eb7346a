"""Linear models of features, with a penalty that is selected by leaving out one participant at a time.

One model for the encoder and all baselines, so that no method is tuned better than another. It is a ridge regression,
whose leave-one-group-out predictions need no refits (Cook and Weisberg 1982, chapter 2; Hastie, Tibshirani and Friedman
2009, section 5.5 for single cases). Classes are predicted by a regression of their indicators, with classes of equal
weight, as in linear discriminant analysis; a slope turns the regression into probabilities.

    N  examples      F  features      T  targets      K  classes      A  penalties
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.training.evaluation.metrics import to_unit_length
from bids_app.training.tasks import Task

PENALTIES = np.logspace(-3, 4, 15)
"""Penalties, relative to the mean variance of the principal components of the training set."""
SLOPES = np.logspace(-1, 2, 16)
"""Slopes from the regression of class indicators to logits."""
RIDGE_OF_NUISANCE = 1e-3
"""Penalty of the regression of features on nuisance variables, relative to the mean variance of these variables."""


@dataclass(frozen=True)
class Split:
    """Features of a training and a test set, standardised and rotated to the principal components of the training set.

    The rotation does not change a model with an L2 penalty. Vectors that are compared with each other are not rotated:
    with more features than examples, the components of the training set lack what distinguishes other participants.

    Attributes
    ----------
    train, test : np.ndarray of int
        Indices of the examples.
    x, x_test : np.ndarray, (n, components)
    standardised_test : np.ndarray, (n, F)
        All features of the test set, standardised but not rotated.
    """

    train: np.ndarray
    test: np.ndarray
    x: np.ndarray
    x_test: np.ndarray
    standardised_test: np.ndarray

    @classmethod
    def make(
        cls, features: np.ndarray, train: np.ndarray, test: np.ndarray, nuisance: np.ndarray | None = None
    ) -> Split:
        """Standardise the features (N, F) by the training set; NaN is replaced by its median.

        Parameters
        ----------
        nuisance : np.ndarray, optional, (N, V)
            Variables that are regressed out of the features, with coefficients of the training set (Snoek et al.
            2019).
        """
        x, x_test = _standardise(features[train], features[test])
        if nuisance is not None:
            z, z_test = _standardise(nuisance[train], nuisance[test])
            penalty = RIDGE_OF_NUISANCE * len(z) * max(float(z.var(axis=0).mean()), 1e-12) * np.eye(z.shape[1])
            coefficients = np.linalg.solve(z.T @ z + penalty, z.T @ x)
            x, x_test = _standardise(x - z @ coefficients, x_test - z_test @ coefficients)
        _, _, axes = np.linalg.svd(x, full_matrices=False)
        return cls(train, test, x @ axes.T, x_test @ axes.T, x_test)


def _standardise(x: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise the features of both sets by those of the training set; NaN is replaced by its median."""
    known = ~np.isnan(x).all(axis=0)
    median = np.zeros(x.shape[1])
    median[known] = np.nanmedian(x[:, known], axis=0)
    x, x_test = (np.where(np.isnan(rows), median, rows).astype(float) for rows in (x, x_test))
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1e-300), spread, np.inf)  # constant: no information
    return (x - mean) / spread, (x_test - mean) / spread


def fit_predict(task: Task, split: Split, values: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """Fit a linear model to the training set and predict the test set.

    Parameters
    ----------
    task : Task
        Defined on the training set.
    split : Split
    values, groups : sequence of str, (N,)
        True values, and groups that stay together, of all examples.

    Returns
    -------
    np.ndarray
        Predictions of the test set, as from `Task.to_predictions`. For embeddings without image vectors, the features
        themselves, as unit vectors.
    """
    if task.kind == EMBEDDING and task.images is None:
        return to_unit_length(split.standardised_test)
    own = [values[i] for i in split.train]
    _, group_of = np.unique(np.array([groups[i] for i in split.train]), return_inverse=True)
    if task.kind == CLASSIFICATION:
        return _classify(split, task.targets(own).numpy(), len(task.labels), group_of)
    if task.kind == REGRESSION:
        targets = np.array([float(value) for value in own])[:, None]
    else:
        assert task.images is not None  # embeddings without images returned above
        targets = task.images[task.targets(own)].numpy()
    _, predicted = ridge(split.x, targets, split.x_test, group_of, np.ones(len(own)))
    return to_unit_length(predicted) if task.kind == EMBEDDING else predicted


def _classify(split: Split, classes: np.ndarray, n_classes: int, group_of: np.ndarray) -> np.ndarray:
    """Return the class probabilities of the test set."""
    counts = np.bincount(classes, minlength=n_classes)
    weights = (len(classes) / (n_classes * counts))[classes]
    left_out, predicted = ridge(split.x, np.eye(n_classes)[classes], split.x_test, group_of, weights)
    logs = [log_softmax(slope * left_out, axis=1)[np.arange(len(classes)), classes] for slope in SLOPES]
    return softmax(SLOPES[int(np.argmax([row @ weights for row in logs]))] * predicted, axis=1)


def ridge(
    x: np.ndarray, targets: np.ndarray, x_test: np.ndarray, group_of: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a ridge regression with the penalty that predicts left-out groups best.

    Parameters
    ----------
    x, x_test : np.ndarray, (n, F)
    targets : np.ndarray, (n, T)
    group_of : np.ndarray of int, (n,)
        Groups that are left out together, from 0.
    weights : np.ndarray, (n,)

    Returns
    -------
    left_out : np.ndarray, (n, T)
        Predictions of each training example by a model without its group.
    predicted : np.ndarray
        Predictions of the test set.
    """
    root = np.sqrt(weights)[:, None]
    centre, mean = weights @ x / weights.sum(), weights @ targets / weights.sum()
    u, s, axes = np.linalg.svd(root * (x - centre), full_matrices=False)
    y = root * (targets - mean)
    projected = u.T @ y
    penalties = PENALTIES * max(float((s**2).mean()), 1e-12)
    kept = s**2 / (s**2 + penalties[:, None])  # (A, components)
    residual = y - np.einsum("nc,ac,ct->ant", u, kept, projected)
    left_out = np.empty_like(residual)
    sizes = np.bincount(group_of)
    order = np.argsort(group_of, kind="stable")
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        rows = order[starts[sizes == size][:, None] + np.arange(size)]  # (groups of this size, size)
        own, mark = u[rows], root[rows, 0] / np.sqrt(weights.sum())
        hat = np.einsum("gmc,ac,gkc->agmk", own, kept, own) + mark[:, :, None] * mark[:, None, :]  # and the intercept
        left_out[:, rows] = np.linalg.solve(np.eye(size) - hat, residual[:, rows]) if len(sizes) > 1 else y[rows]
    # with a single group, nothing can be left out: the strongest penalty
    best = int(np.argmin((left_out**2).sum(axis=(1, 2)))) if len(sizes) > 1 else len(PENALTIES) - 1
    coefficients = axes.T @ ((s / (s**2 + penalties[best]))[:, None] * projected)
    return targets - left_out[best] / root, (x_test - centre) @ coefficients + mean
