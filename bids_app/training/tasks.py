"""Prediction tasks: classification, regression and embedding, with their targets, losses and metrics. Tensors only.

B  clips      O  outputs of the head      K  identities (participants or images)      N  scans
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION, TASKS
from bids_app.errors import BadDataError, UsageError
from bids_app.model.heads import n_outputs
from bids_app.training.evaluation import metrics

TEMPERATURE = 0.1
"""Temperature of the contrastive losses."""
MAX_CLASSES = 10
"""Numeric columns with more distinct values are a regression by default."""


@dataclass(frozen=True)
class Task:
    """A prediction task and the scale of its targets.

    Attributes
    ----------
    target : str
        Name of the column to predict.
    kind : str
        ``classification``, ``regression`` or ``embedding``.
    labels : tuple of str
        Classes, in the order of the outputs.
    mean, std : float
        Mean and standard deviation of the targets of a regression over the training scans; the head predicts z scores.
    identities : tuple of str
        Participants or images of the training scans; vectors with the same identity are trained to be similar.
    images : torch.Tensor, optional, (K, O)
        Image vectors of the identities, centred and of unit length; None: vectors are compared with each other.
    image_mean : tuple of float
        Mean that was subtracted from the image vectors.
    dimensions : int
        Length of the vectors.
    """

    target: str
    kind: str
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    identities: tuple[str, ...] = ()
    images: torch.Tensor | None = field(default=None, compare=False)
    image_mean: tuple[float, ...] = ()
    dimensions: int = 0

    @classmethod
    def from_values(
        cls,
        target: str,
        values: Sequence[str],
        kind: str | None = None,
        dimensions: int = 64,
        images: Mapping[str, np.ndarray] | None = None,
    ) -> Task:
        """Define a task from the values of its training scans.

        Parameters
        ----------
        target : str
            Name of the column.
        values : sequence of str
        kind : str, optional
            By default ``embedding`` if images are given, ``regression`` for more than ten distinct numbers, and
            ``classification`` otherwise.
        dimensions : int
            Length of the vectors of an embedding; ignored if images are given.
        images : mapping of str to numpy.ndarray, optional
            Vector (O,) of each value.

        Raises
        ------
        BadDataError
            All values are equal, a value of a regression is not a number, or an image has no vector.
        UsageError
            The kind is unknown.
        """
        unique = tuple(sorted(set(values)))
        if len(unique) < 2:
            raise BadDataError(
                f"{target} has the same value for all scans: {', '.join(unique) or 'none'}.",
                "Choose a target with at least two different values.",
            )
        if kind is None:
            has_numbers = len(unique) > MAX_CLASSES and all(is_number(v) for v in unique)
            kind = EMBEDDING if images else REGRESSION if has_numbers else CLASSIFICATION
        if kind == CLASSIFICATION:
            return cls(target, kind, unique)
        if kind == EMBEDDING:
            if images is None:
                return cls(target, kind, identities=unique, dimensions=dimensions)
            missing = [name for name in unique if name not in images]
            if missing:
                raise BadDataError(
                    f"{len(missing)} of {len(unique)} images have no vector: {', '.join(missing[:3])}.",
                    "Use the image names of the events.tsv files.",
                )
            given = torch.from_numpy(np.stack([images[name] for name in unique])).float()
            mean = given.mean(dim=0)
            vectors = F.normalize(given - mean, dim=1)
            return cls(target, kind, (), 0.0, 1.0, unique, vectors, tuple(mean.tolist()), given.shape[1])
        if kind != REGRESSION:
            raise UsageError(f"Unknown task: {kind!r}.", f"Choose {', '.join(TASKS)}.")
        wrong = [v for v in unique if not is_number(v)]
        if wrong:
            raise BadDataError(
                f'Column "{target}" has non-numeric values: {", ".join(wrong[:5])}.', "Correct the table."
            )
        numbers = np.array([float(v) for v in values])
        return cls(target, kind, (), float(numbers.mean()), float(numbers.std()))

    @property
    def n_outputs(self) -> int:
        """Number of outputs of the head."""
        if self.kind == EMBEDDING:
            return self.dimensions
        return n_outputs(len(self.labels)) if self.kind == CLASSIFICATION else 1

    def targets(self, values: Sequence[str]) -> torch.Tensor:
        """Encode values as indices of classes or identities, (N,) int64, or as z scores, (N,) float32."""
        if self.kind == REGRESSION:
            return torch.tensor([(float(v) - self.mean) / self.std for v in values])
        known = {name: k for k, name in enumerate(self.labels or self.identities)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise BadDataError(
                f"{self.target}: {', '.join(unknown)} does not occur in the training set.", "Change the split."
            )
        return torch.tensor([known[v] for v in values])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the mean squared error, cross entropy or contrastive loss.

        Parameters
        ----------
        outputs : torch.Tensor, (B, O)
        targets : torch.Tensor, (B,)
        weights : torch.Tensor, optional, (n_labels,)
            Class weights.
        """
        if self.kind == REGRESSION:
            return F.mse_loss(outputs[:, 0], targets)
        if self.kind == EMBEDDING:
            vectors = F.normalize(outputs, dim=1)
            if self.images is None:
                return contrastive_loss(vectors, targets)
            return image_contrastive_loss(vectors, targets, self.images.to(vectors))
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # equals a sigmoid's cross entropy
        return F.cross_entropy(outputs, targets, weights)

    def class_weights(self, targets: torch.Tensor) -> torch.Tensor | None:
        """Return weights (n_labels,) that balance the classes; None for other tasks."""
        if self.kind != CLASSIFICATION:
            return None
        counts = torch.bincount(targets, minlength=len(self.labels)).clamp(min=1)
        return len(targets) / (len(self.labels) * counts.float())

    def to_predictions(self, outputs: torch.Tensor) -> torch.Tensor:
        """Convert outputs (B, O) to probabilities (B, n_labels), numbers (B, 1) or unit vectors (B, O)."""
        if self.kind == REGRESSION:
            return outputs * self.std + self.mean
        if self.kind == EMBEDDING:
            return F.normalize(outputs, dim=1)
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        return outputs.softmax(dim=1)

    def compute_metrics(
        self, predictions: np.ndarray, values: Sequence[str], images: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, float]:
        """Compare predictions with the true values; see `bids_app.training.evaluation.metrics`.

        Parameters
        ----------
        predictions : np.ndarray, (N, n_labels), (N, 1) or (N, O)
        values : sequence of str, (N,)
        images : mapping, optional
            Image vectors; may include images outside the training set.

        Returns
        -------
        dict
            ``accuracy``, ``balanced_accuracy``, ``auroc``; or ``r`` (Pearson), ``mse``, ``mae`` (in units of the
            target); or ``rank1`` and ``map``; or ``top1``.
        """
        if self.kind == REGRESSION:
            return metrics.regression_metrics(predictions[:, 0], np.array([float(v) for v in values]))
        if self.kind == EMBEDDING:
            if images is None:
                return metrics.retrieval_metrics(metrics.retrieval_results(predictions, values))
            similarity, truth = self.image_similarity(predictions, values, images)
            return {"top1": float(metrics.top1_probabilities(similarity, truth).mean())}
        truth_indices = [self.labels.index(v) if v in self.labels else -1 for v in values]
        return metrics.classification_metrics(predictions, truth_indices)

    def image_similarity(
        self, predictions: np.ndarray, values: Sequence[str], images: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosine of each prediction with each image, (N, P), and the index of the true image, (N,)."""
        pool = sorted(set(values))
        vectors = np.stack([images[name] for name in pool]) - np.asarray(self.image_mean)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return predictions @ vectors.T, np.array([pool.index(v) for v in values])

    @property
    def main_metric(self) -> str:
        """Metric that selects the best epoch and is tested; higher is better."""
        if self.kind == EMBEDDING:
            return "rank1" if self.images is None else "top1"
        return "r" if self.kind == REGRESSION else "balanced_accuracy"


def contrastive_loss(vectors: torch.Tensor, identities: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Compute the supervised contrastive loss (Khosla et al. 2020).

    For each vector i with others of its identity P(i): mean over p in P(i) of -log softmax_j(v_i v_j / temperature)[p],
    over all j except i; then the mean over all i with a non-empty P(i).

    Parameters
    ----------
    vectors : torch.Tensor, (B, O)
        Unit vectors.
    identities : torch.Tensor of int64, (B,)
    """
    similarity = vectors @ vectors.T / temperature
    is_self = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logs = similarity.masked_fill(is_self, -torch.inf).log_softmax(dim=1)
    positives = (identities[:, None] == identities[None]) & ~is_self
    has_any = positives.any(dim=1)
    mean_logs = torch.where(positives, logs, torch.zeros_like(logs)).sum(1) / positives.sum(1).clamp(min=1)
    return -(mean_logs * has_any).sum() / has_any.sum().clamp(min=1)


def image_contrastive_loss(
    vectors: torch.Tensor, identities: torch.Tensor, images: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Compute the symmetric contrastive loss between predictions and the distinct images of the batch.

    Parameters
    ----------
    vectors : torch.Tensor, (B, O)
        Unit vectors.
    identities : torch.Tensor of int64, (B,)
        Row of the true image in ``images``.
    images : torch.Tensor, (K, O)
        Unit vectors.
    """
    shown, truth = identities.unique(return_inverse=True)
    logits = vectors @ images[shown].T / temperature  # (B, images of the batch)
    is_true = F.one_hot(truth, len(shown)).to(logits)
    image_to_clip = (is_true * logits.log_softmax(dim=0)).sum() / is_true.sum()
    return 0.5 * (F.cross_entropy(logits, truth) - image_to_clip)


def is_number(text: str) -> bool:
    """Return True for the text of a finite number; ``1_000`` is one in Python only."""
    try:
        return "_" not in text and bool(np.isfinite(float(text)))
    except ValueError:
        return False
