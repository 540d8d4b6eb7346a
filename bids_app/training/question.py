"""What is asked: classes or a number, how it becomes targets and a loss, and how answers are scored. Tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from bids_app.adapters.file import CLASSIFICATION, REGRESSION
from bids_app.errors import BadDataError, UsageError
from bids_app.model.heads import n_outputs


@dataclass(frozen=True)
class Question:
    """A question and the scale of its answer.

    Attributes
    ----------
    target : str
        What is asked for: a column's name.
    task : str
        ``classification`` or ``regression``.
    labels : tuple of str
        Classes, in the order of the outputs.
    mean, std : float
        Of a number, over the training scans; the head answers in units of ``std`` from ``mean``.
    """

    target: str
    task: str
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def about(cls, target: str, values: Sequence[str], task: str | None = None) -> Question:
        """The question whose training answers are these; numbers of more than ten kinds are a regression by default."""
        kinds = sorted(set(values))
        if task is None:
            task = REGRESSION if len(kinds) > 10 and all(_is_number(v) for v in kinds) else CLASSIFICATION
        if len(kinds) < 2:
            raise BadDataError(
                f"{target} is {', '.join(kinds) or 'nothing'} for all scans.", "There is nothing to learn."
            )
        if task == CLASSIFICATION:
            return cls(target, task, tuple(kinds))
        if task != REGRESSION:
            raise UsageError(f"There is no task {task!r}.", f"Choose {CLASSIFICATION} or {REGRESSION}.")
        wrong = [v for v in kinds if not _is_number(v)]
        if wrong:
            raise BadDataError(f"{target} has values that are no numbers: {', '.join(wrong[:5])}.", "Mend the table.")
        numbers = np.array([float(v) for v in values])
        return cls(target, task, (), float(numbers.mean()), float(numbers.std()))

    @property
    def n_outputs(self) -> int:
        """Outputs of the head."""
        return n_outputs(len(self.labels)) if self.task == CLASSIFICATION else 1

    def targets(self, values: Sequence[str]) -> torch.Tensor:
        """Labels as text to class numbers (N,) int64, or to standardised numbers (N,) float32."""
        if self.task == REGRESSION:
            return torch.tensor([(float(v) - self.mean) / self.std for v in values])
        unknown = sorted(set(values) - set(self.labels))
        if unknown:
            raise BadDataError(f"{self.target}: {', '.join(unknown)} is in no training scan.", "Split differently.")
        return torch.tensor([self.labels.index(v) for v in values])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean squared error, or cross entropy.

        Parameters
        ----------
        outputs : torch.Tensor, (B, O)
        targets : torch.Tensor, (B,)
        weights : torch.Tensor, optional, (n_labels,)
            Of the classes.
        """
        if self.task == REGRESSION:
            return F.mse_loss(outputs[:, 0], targets)
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # the same as a sigmoid's cross entropy
        return F.cross_entropy(outputs, targets, weights)

    def class_weights(self, targets: torch.Tensor) -> torch.Tensor | None:
        """Weights (n_labels,) under which all classes count alike; None for a regression."""
        if self.task == REGRESSION:
            return None
        counts = torch.bincount(targets, minlength=len(self.labels)).clamp(min=1)
        return len(targets) / (len(self.labels) * counts.float())

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs (B, O) to what may be averaged over clips: probabilities (B, n_labels), or numbers (B, 1)."""
        if self.task == REGRESSION:
            return outputs * self.std + self.mean
        if outputs.shape[1] == 1:
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        return outputs.softmax(dim=1)

    def scores(self, answers: np.ndarray, values: Sequence[str]) -> dict[str, float]:
        """How right answers (N, K) are.

        Returns
        -------
        dict
            ``accuracy`` and ``balanced_accuracy``; or ``r`` (Pearson) and ``mae`` (in the number's unit).
        """
        if self.task == REGRESSION:
            truth, found = np.array([float(v) for v in values]), answers[:, 0]
            spread = truth.std() * found.std()
            r = float(((truth - truth.mean()) * (found - found.mean())).mean() / spread) if spread > 0 else 0.0
            return {"r": r, "mae": float(np.abs(truth - found).mean())}
        right = np.array([self.labels[k] == v for k, v in zip(answers.argmax(axis=1), values, strict=True)])
        by_class = [right[[v == label for v in values]].mean() for label in self.labels if label in values]
        return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(by_class))}

    @property
    def score(self) -> str:
        """The score that validation goes by; more is better."""
        return "r" if self.task == REGRESSION else "balanced_accuracy"


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
