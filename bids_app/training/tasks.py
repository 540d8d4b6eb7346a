"""What is asked: classes, a number, or vectors to be compared; how it becomes targets and a loss. Tensors only.

B  clips      O  outputs of the head      K  kinds of answers      N  scans
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
from bids_app.training.evaluation import metrics as scores

TEMPERATURE = 0.1
"""Of the contrastive losses."""


@dataclass(frozen=True)
class Question:
    """A question and the scale of its answer.

    Attributes
    ----------
    target : str
        What is asked for: a column's name.
    task : str
        ``classification``, ``regression`` or ``embedding``.
    labels : tuple of str
        Classes, in the order of the outputs.
    mean, std : float
        Of a number, over the training scans; the head answers in units of ``std`` from ``mean``.
    kinds : tuple of str
        What vectors of training scans share when they shall be near each other: participants, images.
    images : torch.Tensor, optional, (K, O)
        Given vectors of the kinds, of length 1, their mean taken away; None: vectors are compared among themselves.
    image_mean : tuple of float
        That mean.
    dimensions : int
        Of the vectors.
    """

    target: str
    task: str
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    kinds: tuple[str, ...] = ()
    images: torch.Tensor | None = field(default=None, compare=False)
    image_mean: tuple[float, ...] = ()
    dimensions: int = 0

    @classmethod
    def about(
        cls,
        target: str,
        values: Sequence[str],
        task: str | None = None,
        dimensions: int = 64,
        images: Mapping[str, np.ndarray] | None = None,
    ) -> Question:
        """The question whose training answers are these.

        Parameters
        ----------
        values : sequence of str
        task : str, optional
            By default numbers of more than ten kinds are a regression, and what images are given for an embedding.
        dimensions : int
            Of an embedding's vectors, unless images are given, which have their own.
        images : mapping of str to numpy.ndarray, optional
            A vector for each value, (O,).
        """
        kinds = tuple(sorted(set(values)))
        if len(kinds) < 2:
            raise BadDataError(
                f"{target} is {', '.join(kinds) or 'nothing'} for all scans.", "There is nothing to learn."
            )
        if task is None:
            is_number = len(kinds) > 10 and all(_is_number(v) for v in kinds)
            task = EMBEDDING if images else REGRESSION if is_number else CLASSIFICATION
        if task == CLASSIFICATION:
            return cls(target, task, kinds)
        if task == EMBEDDING:
            if images is None:
                return cls(target, task, kinds=kinds, dimensions=dimensions)
            missing = [k for k in kinds if k not in images]
            if missing:
                raise BadDataError(
                    f"{len(missing)} of {len(kinds)} images have no vector: {', '.join(missing[:3])}.",
                    "Name vectors as the events do.",
                )
            given = torch.from_numpy(np.stack([images[k] for k in kinds])).float()
            mean = given.mean(dim=0)
            vectors = F.normalize(given - mean, dim=1)
            return cls(target, task, (), 0.0, 1.0, kinds, vectors, tuple(mean.tolist()), given.shape[1])
        if task != REGRESSION:
            raise UsageError(f"There is no task {task!r}.", f"Choose {', '.join(TASKS)}.")
        wrong = [v for v in kinds if not _is_number(v)]
        if wrong:
            raise BadDataError(f"{target} has values that are no numbers: {', '.join(wrong[:5])}.", "Mend the table.")
        numbers = np.array([float(v) for v in values])
        return cls(target, task, (), float(numbers.mean()), float(numbers.std()))

    @property
    def n_outputs(self) -> int:
        """Outputs of the head."""
        if self.task == EMBEDDING:
            return self.dimensions
        return n_outputs(len(self.labels)) if self.task == CLASSIFICATION else 1

    def targets(self, values: Sequence[str]) -> torch.Tensor:
        """Labels as text to numbers of classes or kinds (N,) int64, or to standardised numbers (N,) float32."""
        if self.task == REGRESSION:
            return torch.tensor([(float(v) - self.mean) / self.std for v in values])
        known = {kind: k for k, kind in enumerate(self.labels or self.kinds)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise BadDataError(f"{self.target}: {', '.join(unknown)} is in no training scan.", "Split differently.")
        return torch.tensor([known[v] for v in values])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean squared error, cross entropy, or a contrastive loss.

        Parameters
        ----------
        outputs : torch.Tensor, (B, O)
        targets : torch.Tensor, (B,)
        weights : torch.Tensor, optional, (n_labels,)
            Of the classes.
        """
        if self.task == REGRESSION:
            return F.mse_loss(outputs[:, 0], targets)
        if self.task == EMBEDDING:
            vectors = F.normalize(outputs, dim=1)
            if self.images is None:
                return contrast(vectors, targets)
            return contrast_with(vectors, targets, self.images.to(vectors))
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # the same as a sigmoid's cross entropy
        return F.cross_entropy(outputs, targets, weights)

    def class_weights(self, targets: torch.Tensor) -> torch.Tensor | None:
        """Weights (n_labels,) under which all classes count alike; None where there are none."""
        if self.task != CLASSIFICATION:
            return None
        counts = torch.bincount(targets, minlength=len(self.labels)).clamp(min=1)
        return len(targets) / (len(self.labels) * counts.float())

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs (B, O) to what may be averaged over clips: probabilities (B, n_labels), numbers (B, 1), vectors."""
        if self.task == REGRESSION:
            return outputs * self.std + self.mean
        if self.task == EMBEDDING:
            return F.normalize(outputs, dim=1)
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        return outputs.softmax(dim=1)

    def scores(
        self, answers: np.ndarray, values: Sequence[str], images: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, float]:
        """How right answers (N, K) are; see `bids_app.training.evaluation.metrics`.

        Parameters
        ----------
        images : mapping, optional
            Given vectors of images that may not have been trained on.

        Returns
        -------
        dict
            ``accuracy``, ``balanced_accuracy``, ``auroc``; or ``r`` (Pearson), ``mse``, ``mae`` (in the number's unit);
            or ``rank1`` and ``map``; or ``top1``.
        """
        if self.task == REGRESSION:
            return scores.of_numbers(answers[:, 0], np.array([float(v) for v in values]))
        if self.task == EMBEDDING:
            if images is None:
                return scores.of_retrieval(scores.retrievals(answers, values))
            return {"top1": float(scores.top1_chances(*self.image_similarity(answers, values, images)).mean())}
        return scores.of_classes(answers, [self.labels.index(v) if v in self.labels else -1 for v in values])

    def image_similarity(
        self, answers: np.ndarray, values: Sequence[str], images: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cosine of each answer with each image shown, (N, P), and which image is right, (N,)."""
        pool = sorted(set(values))
        vectors = np.stack([images[name] for name in pool]) - np.asarray(self.image_mean)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return answers @ vectors.T, np.array([pool.index(v) for v in values])

    @property
    def score(self) -> str:
        """The score that validation goes by; more is better."""
        if self.task == EMBEDDING:
            return "rank1" if self.images is None else "top1"
        return "r" if self.task == REGRESSION else "balanced_accuracy"


def contrast(vectors: torch.Tensor, kinds: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Supervised contrastive loss: vectors of one kind shall be nearer each other than those of others.

    For each vector i with others of its kind P(i): mean over p in P(i) of -log softmax_j(v_i v_j / temperature)[p],
    over all j but i (Khosla et al. 2020); then the mean over those that have any.

    Parameters
    ----------
    vectors : torch.Tensor, (B, O)
        Of length 1.
    kinds : torch.Tensor of int64, (B,)
    """
    similar = vectors @ vectors.T / temperature
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logs = similar.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    same = (kinds[:, None] == kinds[None]) & ~itself
    has_any = same.any(dim=1)
    found = torch.where(same, logs, torch.zeros_like(logs)).sum(1) / same.sum(1).clamp(min=1)
    return -(found * has_any).sum() / has_any.sum().clamp(min=1)


def contrast_with(
    vectors: torch.Tensor, kinds: torch.Tensor, given: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Contrastive loss with given vectors: both ways between answers and the images of the batch, each image once.

    Parameters
    ----------
    vectors : torch.Tensor, (B, O)
        Of length 1.
    kinds : torch.Tensor of int64, (B,)
        Which row of ``given`` is right.
    given : torch.Tensor, (K, O)
        Of length 1.
    """
    shown, right = kinds.unique(return_inverse=True)
    logits = vectors @ given[shown].T / temperature  # (B, images of the batch)
    owners = F.one_hot(right, len(shown)).to(logits)
    back = (owners * logits.log_softmax(dim=0)).sum() / owners.sum()
    return 0.5 * (F.cross_entropy(logits, right) - back)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
