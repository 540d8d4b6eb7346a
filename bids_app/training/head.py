"""Heads on embeddings: solved at once where the encoder stays as it is, standardised where it is trained with them.

N  clips      C  width of the embedding      O  outputs
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bids_app.adapters.file import EMBEDDING
from bids_app.bids.writer import atomic_path
from bids_app.model.api import Model
from bids_app.model.heads import LinearHead, pool
from bids_app.training.data.loader import ClipBatches, Readable
from bids_app.training.tasks import Question

COMPARED = 1024
"""Clips that are compared with each other at a time."""


class StandardisedHead(nn.Module):
    """A linear head on embeddings, standardised over each batch while training and by their running moments after it.

    Parameters
    ----------
    n_features, outputs : int
    memory : float
        Share of each batch in the running moments, once enough batches have been seen.
    from_zero : bool
        Whether the head begins by answering nothing; vectors that are compared need some length, and begin at random.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    batches: torch.Tensor

    def __init__(self, n_features: int, outputs: int, memory: float = 0.02, from_zero: bool = True) -> None:
        super().__init__()
        self.memory = memory
        self.head = nn.Linear(n_features, outputs)
        (nn.init.zeros_ if from_zero else nn.init.orthogonal_)(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("variance", torch.ones(n_features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z, T) to (B, O)."""
        embedding = pool(features)
        if not self.training:
            return self.head((embedding - self.mean) / self._spread(self.variance))
        mean, variance = embedding.mean(dim=0), embedding.var(dim=0, correction=0)
        with torch.no_grad():
            self.batches += 1
            share = max(self.memory, 1 / self.batches.item())
            self.mean.lerp_(mean, share)
            self.variance.lerp_(variance * len(embedding) / (len(embedding) - 1), share)
        return self.head((embedding - mean) / self._spread(variance))

    def folded(self) -> LinearHead:
        """The same answers from embeddings as they are."""
        return fold(self.head.weight, self.head.bias, self.mean, self._spread(self.variance))

    @staticmethod
    def _spread(variance: torch.Tensor) -> torch.Tensor:
        return (variance + 1e-8).sqrt()


@torch.no_grad()
def fold(weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> LinearHead:
    """A head (O, C) for embeddings that were standardised by mean and spread (C,) as one for embeddings as they are."""
    head = LinearHead(weight.shape[1], weight.shape[0]).to(weight.device)
    head.head.weight.copy_(weight / spread)
    head.head.bias.copy_(bias - (weight / spread) @ mean)
    return head


@torch.no_grad()
def embeddings_of(
    model: Model, scans: Sequence[Readable], batch_size: int, keep: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of all clips that do not overlap; kept beside the scans, and read from there the next time.

    Parameters
    ----------
    model : Model
    scans : sequence of Readable
        Those of a store, and stretches of them, can keep what was computed.
    keep : bool

    Returns
    -------
    embeddings : torch.Tensor, (N, C)
    scans : torch.Tensor of int64, (N,)
        Index of the scan that each is of.
    """
    paths = [_kept(scan, model.weights_sha256) if keep else None for scan in scans]
    known = {i: np.load(path) for i, path in enumerate(paths) if path is not None and path.is_file()}
    missing = [i for i, scan in enumerate(scans) if i not in known and scan.n_clips]
    if missing:
        batches = ClipBatches(tuple(scans[i] for i in missing), batch_size, moving=False)
        found: dict[int, list[np.ndarray]] = {}
        for batch in batches.epoch(0):
            rows = pool(model.encode(batch.clips.to(model.device))).float().cpu().numpy()
            for k, row in zip(batch.scans.tolist(), rows, strict=True):
                found.setdefault(missing[k], []).append(row)
                if len(found[missing[k]]) == scans[missing[k]].n_clips:
                    known[missing[k]] = _keep(np.stack(found.pop(missing[k])), paths[missing[k]])
    order = sorted(known)
    values = np.concatenate([known[i] for i in order])
    owners = np.repeat(order, [len(known[i]) for i in order])
    return torch.from_numpy(values).to(model.device), torch.from_numpy(owners).to(model.device)


def _kept(scan: Readable, sha256: str) -> Path | None:
    """Where the embeddings of a scan, or of a stretch of one, are kept; None where it is of no store."""
    folder = getattr(scan, "folder", None)
    if folder is not None:
        return Path(folder) / f"embeddings_{sha256[:16]}.npy"
    whole, first = getattr(scan, "scan", None), getattr(scan, "first", 0)
    if whole is None:
        return None
    return Path(whole.folder) / f"embeddings_{sha256[:16]}_{first}_{scan.n_vols}.npy"


def _keep(values: np.ndarray, path: Path | None) -> np.ndarray:
    if path is not None and os.access(path.parent, os.W_OK):
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, values)
    return values


def solve_head(
    question: Question,
    embeddings: torch.Tensor,
    targets: torch.Tensor,
    ridge: float,
    weights: torch.Tensor | None = None,
    seed: int = 0,
) -> LinearHead:
    """The penalised best linear head on embeddings; standardisation is folded into its weights.

    Parameters
    ----------
    question : Question
    embeddings : torch.Tensor, (N, C)
    targets : torch.Tensor, (N,)
    ridge : float
        Penalty on the squares of the standardised weights.
    weights : torch.Tensor, optional
        Of the classes.
    seed : int
        Of the vectors' first directions, and of the groups in which they are compared where they are many.
    """
    mean, std = embeddings.mean(dim=0), embeddings.std(dim=0, correction=0).clamp(min=1e-6)
    standard = (embeddings - mean) / std
    weight = _first_weights(question, standard, targets, ridge, seed).requires_grad_(True)
    parts = _parts(question, targets, seed)
    bias = torch.zeros(question.n_outputs, device=embeddings.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = ridge * weight.square().sum()
        for part in parts:
            loss = loss + question.loss(standard[part] @ weight.T + bias, targets[part], weights) / len(parts)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return fold(weight, bias, mean, std)


def _first_weights(
    question: Question, standard: torch.Tensor, targets: torch.Tensor, ridge: float, seed: int
) -> torch.Tensor:
    """Where the solver begins, (O, C): at zero; at the ridge solution towards given images; or in random directions."""
    outputs, features = question.n_outputs, standard.shape[1]
    if question.task != EMBEDDING:
        return torch.zeros(outputs, features, device=standard.device)
    if question.images is not None:
        given = question.images.to(standard)[targets]
        penalty = max(ridge, 1e-2) * len(standard) * torch.eye(features, device=standard.device)
        return torch.linalg.solve(
            standard.T @ standard + penalty, standard.T @ (given - given.mean(dim=0))
        ).T.contiguous()
    directions = torch.randn(outputs, features, generator=torch.Generator().manual_seed(seed))
    return (directions / features**0.5).to(standard.device)


def _parts(question: Question, targets: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Groups of clips whose losses are added: all of them, or some hundred kinds at a time where they are compared."""
    if question.task != EMBEDDING or len(targets) <= COMPARED:
        return [torch.arange(len(targets), device=targets.device)]
    kinds = targets.unique().cpu()
    kinds = kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))]
    n_parts = min(-(-len(targets) // COMPARED), max(len(kinds) // 2, 1))
    return [torch.isin(targets, part.to(targets.device)).nonzero()[:, 0] for part in kinds.chunk(n_parts)]
