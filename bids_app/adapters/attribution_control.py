"""Controls of an attribution: maps of models that have not learned the task, for comparison with the map of a model.

A map reflects the energy of the signal as well as what the model learned. Two controls separate them:

- ``random``: the encoder has random weights (Adebayo et al. 2018). The head of the adapter is kept.
- ``permuted``: the head is one that results from training with permuted labels. The training data are not in an
  adapter's file, but the covariance of their embeddings is. With permuted labels, the gradient of the training loss is
  normally distributed with this covariance (central limit theorem for permutations, Hoeffding 1951), and a linear
  head with an L2 penalty is linear in it as long as its outputs are small. Heads are drawn from this distribution, with
  participants as the units that are permuted. The encoder stays as it is.

    C  features      O  outputs      D  draws      R  regions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bids_app.adapters.domain import Domain
from bids_app.adapters.file import AdaptedModel, Adapter
from bids_app.errors import UsageError
from bids_app.model.encoder import Encoder
from bids_app.model.heads import LinearHead, head_version, n_outputs, pool

RANDOM, PERMUTED = "random", "permuted"
N_HEADS = 499
"""Number of heads of permuted labels; they share the pass through the encoder."""
RIDGE = 0.01
"""L2 penalty of the heads, the default of ``neurostorm-train adapt``."""
MIN_REGIONS = 3
"""Minimum number of regions for a correlation of maps."""


@dataclass(frozen=True)
class Control:
    """Contributions of the regions in a control.

    Attributes
    ----------
    kind : str
        `RANDOM` or `PERMUTED`.
    values : np.ndarray, (R,)
        Contributions in one control, mean over clips.
    image : np.ndarray of float32, (96, 96, 96)
        Map of this control.
    heads : np.ndarray, (D, R)
        Contributions with each head of permuted labels, mean over clips; D is 0 where only one was analysed.
    """

    kind: str
    values: np.ndarray
    image: np.ndarray
    heads: np.ndarray

    def z_values(self, own: np.ndarray, tested: np.ndarray) -> np.ndarray | None:
        """Divide contributions (R,) by their root mean square over the heads of permuted labels; None without these.

        Parameters
        ----------
        own : np.ndarray, (R,)
        tested : np.ndarray of bool, (R,)
            Regions that the encoder can separate from their neighbours; NaN for the others.
        """
        return np.where(tested, own / self._spread, np.nan) if len(self.heads) else None

    def p_values(self, own: np.ndarray, tested: np.ndarray) -> np.ndarray | None:
        """Compute p values (R,) corrected for the number of tested regions; None without heads of permuted labels.

        The share of heads, the trained one included, whose largest absolute z over these regions reaches that of the
        region (maximum statistic, Nichols and Holmes 2002). Parameters as `z_values`.
        """
        if not len(self.heads):
            return None
        found = np.full(len(own), np.nan)
        if tested.any():
            largest = np.abs(self.heads / self._spread)[:, tested].max(axis=1)
            sizes = np.abs(own / self._spread)[tested]
            found[tested] = (1 + (largest[:, None] >= sizes).sum(axis=0)) / (1 + len(largest))
        return found

    @property
    def _spread(self) -> np.ndarray:
        return np.maximum(np.sqrt((self.heads**2).mean(axis=0)), 1e-30)

    def correlations(self, own: np.ndarray, has_signal: np.ndarray) -> tuple[float | None, float | None]:
        """Compute the rank correlation of the map with its control over regions: with sign, and of absolute values."""
        from scipy.stats import spearmanr

        kept = has_signal & np.isfinite(own) & np.isfinite(self.values)
        one, other = own[kept], self.values[kept]
        if kept.sum() < MIN_REGIONS or np.ptp(one) == 0 or np.ptp(other) == 0:
            return None, None
        pairs = ((one, other), (np.abs(one), np.abs(other)))
        found = (float(spearmanr(*pair).statistic) for pair in pairs)
        signed, unsigned = (value if np.isfinite(value) else None for value in found)
        return signed, unsigned


def randomise(encoder: Encoder, seed: int) -> Encoder:
    """Return an encoder of the same configuration with random weights."""
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Encoder(encoder.config)
    return found.to(device).requires_grad_(False).eval()


class PermutedHeads(nn.Module):
    """Linear heads of permuted labels.

    Parameters
    ----------
    weight : torch.Tensor, (D, O, C)
    bias : torch.Tensor, (D, O)
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (B, C, X, Y, Z, T) to the outputs of all heads (B, D, O)."""
        return torch.einsum("bc,doc->bdo", pool(features), self.weight) + self.bias


def check_permuted(adapter: Adapter) -> None:
    """Check that heads of permuted labels can be drawn from an adapter's file.

    Raises
    ------
    UsageError
        The head is not linear, the adapter changes the encoder, or its file has no covariance of the cohort.
    """
    reason = ""
    if adapter.encoder:
        reason = "it changes the encoder, and would have to be trained again"
    elif head_version(adapter.head) != LinearHead.version:
        reason = "its head is not linear"
    elif not adapter.reference:
        reason = "its file has no reference statistics of the training cohort"
    if reason:
        raise UsageError(
            f"{adapter.path or adapter.card.name}: permuted labels are not possible for this adapter: {reason}.",
            "Use --attribution-control random.",
        )


def permute_labels(model: AdaptedModel, n_heads: int, seed: int) -> PermutedHeads:
    """Draw heads from the distribution of heads trained with permuted labels.

    Parameters
    ----------
    model : AdaptedModel
        Its adapter passes `check_permuted`.
    n_heads : int
    seed : int
    """
    head = model.head
    if not isinstance(head, LinearHead) or head.version != LinearHead.version:
        raise UsageError(f"{model.where}: the head is not linear.", "Use --attribution-control random.")
    card = model.card
    weights, biases = draw_heads(model.domains, len(card.labels), n_heads, seed)
    device = next(head.parameters()).device
    return PermutedHeads(torch.from_numpy(weights).float(), torch.from_numpy(biases).float()).to(device)


def draw_heads(domains: Mapping[str, Domain], n_labels: int, n_heads: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw weights (D, O, C) and biases (D, O) of heads trained with permuted labels.

    With standardised features, the weights are (H + k I)^-1 G^1/2 e c / sqrt(n): G is the covariance of the mean
    embeddings of scans, H that of clips (of scans where the adapter has no other), n the number of participants, e
    standard normal, and k the penalty relative to the second derivative of the loss. For K equally frequent classes,
    c is sqrt(K) and k is 2 K `RIDGE`; for the single logit of two classes, c is 2 and k is 8 `RIDGE`; for a regression
    of z-scores, c is 1 and k is `RIDGE`.

    Parameters
    ----------
    domains : mapping of str to Domain
        With ``embedding``, and ``clips`` where known.
    n_labels : int
        Number of classes; 0 for a regression.
    """
    scans = domains["embedding"]
    clips = domains.get("clips", scans)
    scale = np.sqrt(np.diag(clips.covariance))
    gradient, hessian = scans.covariance / np.outer(scale, scale), clips.covariance / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(gradient)
    root = vectors * np.sqrt(np.maximum(values, 0))  # (C, C), root @ root.T is the covariance of the gradient
    outputs = n_outputs(n_labels) if n_labels else 1
    size, penalty = {0: (1.0, RIDGE), 2: (2.0, 8 * RIDGE)}.get(n_labels, (n_labels**0.5, 2 * n_labels * RIDGE))
    draws = np.random.default_rng(seed).standard_normal((n_heads, outputs, len(scale)))
    if outputs > 1:  # each scan has one class, so that the gradients of the classes have the sum 0
        draws -= draws.mean(axis=1, keepdims=True)
    draws = draws @ root.T * size / scans.participants**0.5
    weights = np.linalg.solve(hessian + penalty * np.eye(len(scale)), draws.reshape(-1, len(scale)).T).T
    weights = weights.reshape(draws.shape) / scale
    return weights, -weights @ clips.mean
