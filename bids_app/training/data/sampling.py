"""Clips of an epoch: how many of each dataset, and in which order; seed and epoch alone determine both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bids_app.errors import UsageError


@dataclass(frozen=True)
class DatasetWeights:
    """Shares of datasets in the clips of an epoch.

    An epoch has as many clips as the shares allow without reading a clip twice; which ones differs between epochs. With
    equal weights, datasets are subsampled to the size of the smallest.

    Attributes
    ----------
    datasets : tuple of int
        Dataset of each scan.
    weights : tuple of float
        Weight of each dataset; only their ratios count.
    """

    datasets: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise UsageError(
                f"Invalid values for --dataset-weights: {' '.join(f'{w:g}' for w in self.weights)}.",
                "Use numbers above 0; leave out a dataset that should not be read.",
            )

    def clips_of_datasets(self, counts: np.ndarray) -> np.ndarray:
        """Return the clips of each dataset in an epoch, (D,); ``counts``: clips of each scan, (S,)."""
        available = np.bincount(self.datasets, weights=counts, minlength=len(self.weights))
        shares = np.array(self.weights) / sum(self.weights)
        n_clips = np.floor(np.min(available / shares) * shares + 1e-6).astype(int)
        if not n_clips.all():
            raise UsageError(
                f"--dataset-weights leave no clip of dataset {int(np.argmin(n_clips)) + 1}.",
                "Use weights that differ less, or add scans.",
            )
        return n_clips

    def select(self, scans: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sample the clips of an epoch, (N,) sorted indices of clips; ``scans``: scan of each clip."""
        owners = np.array(self.datasets)[scans]
        wanted = self.clips_of_datasets(counts)
        parts = [rng.permutation(np.flatnonzero(owners == d))[:n] for d, n in enumerate(wanted)]
        return np.sort(np.concatenate(parts))


def pair(scans: np.ndarray, identities: tuple[int, ...]) -> np.ndarray:
    """Return the order of clips in which two of one identity are adjacent; unpaired clips come last.

    Parameters
    ----------
    scans : np.ndarray of int, (N,)
        Scan of each clip.
    identities : tuple of int
        Identity of each scan.
    """
    waiting: dict[int, int] = {}
    paired: list[int] = []
    for clip, scan in enumerate(scans.tolist()):
        identity = identities[scan]
        if identity in waiting:
            paired += [waiting.pop(identity), clip]
        else:
            waiting[identity] = clip
    return np.array(paired + list(waiting.values()), dtype=int)
