"""Linear heads on embeddings: solved directly for a frozen encoder, or trained with it on standardised embeddings.

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
from bids_app.training.data.batches import ClipSource
from bids_app.training.data.loader import ClipBatches
from bids_app.training.tasks import Task

MAX_CONTRASTED_CLIPS = 1024
"""Maximum number of clips in one contrastive loss."""


class StandardisedHead(nn.Module):
    """Linear head on embeddings that are standardised by batch statistics in training and running statistics after it.

    Parameters
    ----------
    n_features, outputs : int
    momentum : float
        Weight of each batch in the running statistics, after the first 1 / momentum batches.
    zero_init : bool
        Initialise the weights with zeros; embeddings need a random (orthogonal) initialisation.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    batches: torch.Tensor

    def __init__(self, n_features: int, outputs: int, momentum: float = 0.02, zero_init: bool = True) -> None:
        super().__init__()
        self.momentum = momentum
        self.head = nn.Linear(n_features, outputs)
        (nn.init.zeros_ if zero_init else nn.init.orthogonal_)(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("variance", torch.ones(n_features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, C, X, Y, Z, T) to outputs (B, O)."""
        embedding = pool(features)
        if not self.training:
            return self.head((embedding - self.mean) / self._std(self.variance))
        mean, variance = embedding.mean(dim=0), embedding.var(dim=0, correction=0)
        with torch.no_grad():
            self.batches += 1
            momentum = max(self.momentum, 1 / self.batches.item())
            self.mean.lerp_(mean, momentum)
            self.variance.lerp_(variance * len(embedding) / (len(embedding) - 1), momentum)
        return self.head((embedding - mean) / self._std(variance))

    def to_linear_head(self) -> LinearHead:
        """Return the equivalent linear head for raw embeddings."""
        return fold_standardisation(self.head.weight, self.head.bias, self.mean, self._std(self.variance))

    @staticmethod
    def _std(variance: torch.Tensor) -> torch.Tensor:
        return (variance + 1e-8).sqrt()


@torch.no_grad()
def fold_standardisation(weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> LinearHead:
    """Fold the mean and standard deviation (C,) into a head (O, C), so that it applies to raw embeddings."""
    head = LinearHead(weight.shape[1], weight.shape[0]).to(weight.device)
    head.head.weight.copy_(weight / std)
    head.head.bias.copy_(bias - (weight / std) @ mean)
    return head


@torch.no_grad()
def compute_embeddings(
    model: Model, scans: Sequence[ClipSource], batch_size: int, cache: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the embeddings of all non-overlapping clips; embeddings are cached in the folders of the scans.

    Parameters
    ----------
    model : Model
    scans : sequence of ClipSource
        Only scans of a store and their segments are cached.
    batch_size : int
    cache : bool

    Returns
    -------
    embeddings : torch.Tensor, (N, C)
    scans : torch.Tensor of int64, (N,)
        Index of the scan of each embedding.
    """
    paths = [_cache_path(scan, model.weights_sha256) if cache else None for scan in scans]
    known = {i: np.load(path) for i, path in enumerate(paths) if path is not None and path.is_file()}
    missing = [i for i, scan in enumerate(scans) if i not in known and scan.n_clips]
    if missing:
        batches = ClipBatches(tuple(scans[i] for i in missing), batch_size, random_starts=False)
        found: dict[int, list[np.ndarray]] = {}
        for batch in batches.epoch(0):
            rows = pool(model.encode(batch.to(model.device).clips)).float().cpu().numpy()
            for k, row in zip(batch.scans.tolist(), rows, strict=True):
                found.setdefault(missing[k], []).append(row)
                if len(found[missing[k]]) == scans[missing[k]].n_clips:
                    known[missing[k]] = _save_cache(np.stack(found.pop(missing[k])), paths[missing[k]])
    order = sorted(known)
    values = np.concatenate([known[i] for i in order])
    owners = np.repeat(order, [len(known[i]) for i in order])
    return torch.from_numpy(values).to(model.device), torch.from_numpy(owners).to(model.device)


def _cache_path(scan: ClipSource, sha256: str) -> Path | None:
    """Return the cache file of a scan or segment; None outside a store."""
    folder = getattr(scan, "folder", None)
    if folder is not None:
        return Path(folder) / f"embeddings_{sha256[:16]}.npy"
    whole, first = getattr(scan, "scan", None), getattr(scan, "first", 0)
    if whole is None:
        return None
    return Path(whole.folder) / f"embeddings_{sha256[:16]}_{first}_{scan.n_vols}.npy"


def _save_cache(values: np.ndarray, path: Path | None) -> np.ndarray:
    if path is not None and os.access(path.parent if path.parent.is_dir() else path.parents[3], os.W_OK):
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, values)
    return values


def solve_head(
    task: Task,
    embeddings: torch.Tensor,
    targets: torch.Tensor,
    ridge: float,
    weights: torch.Tensor | None = None,
    seed: int = 0,
) -> LinearHead:
    """Fit a linear head with an L2 penalty to embeddings; the standardisation is folded into its weights.

    Parameters
    ----------
    task : Task
    embeddings : torch.Tensor, (N, C)
    targets : torch.Tensor, (N,)
    ridge : float
        L2 penalty on the weights for standardised embeddings.
    weights : torch.Tensor, optional
        Class weights.
    seed : int
        Seed of the initial weights of an embedding, and of the groups of its contrastive loss.
    """
    mean, std = embeddings.mean(dim=0), embeddings.std(dim=0, correction=0).clamp(min=1e-6)
    standardised = (embeddings - mean) / std
    weight = _initial_weights(task, standardised, targets, ridge, seed).requires_grad_(True)
    groups = _loss_groups(task, targets, seed)
    bias = torch.zeros(task.n_outputs, device=embeddings.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = ridge * weight.square().sum()
        for group in groups:
            loss = loss + task.loss(standardised[group] @ weight.T + bias, targets[group], weights) / len(groups)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return fold_standardisation(weight, bias, mean, std)


def _initial_weights(
    task: Task, standardised: torch.Tensor, targets: torch.Tensor, ridge: float, seed: int
) -> torch.Tensor:
    """Return initial weights (O, C): zeros, the ridge solution for image vectors, or random directions."""
    outputs, features = task.n_outputs, standardised.shape[1]
    if task.kind != EMBEDDING:
        return torch.zeros(outputs, features, device=standardised.device)
    if task.images is not None:
        given = task.images.to(standardised)[targets]
        penalty = max(ridge, 1e-2) * len(standardised) * torch.eye(features, device=standardised.device)
        return torch.linalg.solve(
            standardised.T @ standardised + penalty, standardised.T @ (given - given.mean(dim=0))
        ).T.contiguous()
    directions = torch.randn(outputs, features, generator=torch.Generator().manual_seed(seed))
    return (directions / features**0.5).to(standardised.device)


def _loss_groups(task: Task, targets: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Split clips into groups whose losses are averaged: one, or several for the contrastive loss of many clips."""
    if task.kind != EMBEDDING or len(targets) <= MAX_CONTRASTED_CLIPS:
        return [torch.arange(len(targets), device=targets.device)]
    identities = targets.unique().cpu()
    identities = identities[torch.randperm(len(identities), generator=torch.Generator().manual_seed(seed))]
    n_groups = min(-(-len(targets) // MAX_CONTRASTED_CLIPS), max(len(identities) // 2, 1))
    return [torch.isin(targets, group.to(targets.device)).nonzero()[:, 0] for group in identities.chunk(n_groups)]
