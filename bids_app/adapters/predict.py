"""From a run on the model grid to embeddings and predictions, a batch of clips at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION, AdaptedModel, AdapterCard, to_answers
from bids_app.clips import NORMALISATIONS, ClipReader
from bids_app.model.api import Model
from bids_app.model.heads import pool
from bids_app.model.streaming import apply_in_batches, starting_batch

MEAN = "mean"


@dataclass(frozen=True)
class Embeddings:
    """What the encoder made of a run.

    Attributes
    ----------
    values : dict of str to numpy.ndarray, (n_clips, C)
        Per normalisation.
    onsets : numpy.ndarray, (n_clips,)
        Start of each clip in the run as scanned, s.
    duration : float
        Of a clip, s.
    dropped : float
        Seconds at the end of the run that fill no clip.
    """

    values: dict[str, np.ndarray]
    onsets: np.ndarray
    duration: float
    dropped: float = 0.0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table: per normalisation the mean over clips, then each clip."""
        for name, values in self.values.items():
            total = self.duration * len(values)
            yield {
                "normalisation": name,
                "clip": MEAN,
                "onset": float(self.onsets[0]),
                "duration": total,
                **_columns(values.mean(axis=0)),
            }
            for index, row in enumerate(values):
                yield {
                    "normalisation": name,
                    "clip": index,
                    "onset": float(self.onsets[index]),
                    "duration": self.duration,
                    **_columns(row),
                }


@dataclass(frozen=True)
class Prediction:
    """An adapter's answer for a run.

    Attributes
    ----------
    card : AdapterCard
    clips : numpy.ndarray, (n_clips, n_labels), (n_clips, 1) or (n_clips, dimensions)
        Probabilities, values in the card's unit, or the vector, of each clip.
    onsets, duration
        As in `Embeddings`.
    """

    card: AdapterCard
    clips: np.ndarray
    onsets: np.ndarray
    duration: float
    answer: np.ndarray = field(init=False)
    """(n_labels,), (1,) or (dimensions,): the mean over clips, which is the run's answer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", self.clips.mean(axis=0))

    def label(self, values: np.ndarray) -> str:
        """The most probable label."""
        return self.card.labels[int(values.argmax())]

    @property
    def agreement(self) -> float | None:
        """Share of clips whose label is that of the run; None where there are no labels."""
        if self.card.task != CLASSIFICATION:
            return None
        return float((self.clips.argmax(axis=1) == self.answer.argmax()).mean())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table: the mean over clips, then each clip."""
        total = self.duration * len(self.clips)
        yield {"clip": MEAN, "onset": float(self.onsets[0]), "duration": total, **self._cells(self.answer)}
        for index, values in enumerate(self.clips):
            yield {
                "clip": index,
                "onset": float(self.onsets[index]),
                "duration": self.duration,
                **self._cells(values),
            }

    def _cells(self, values: np.ndarray) -> dict[str, Any]:
        if self.card.task == REGRESSION:
            return {"value": float(values[0])}
        if self.card.task == EMBEDDING:
            return _columns(values)
        probabilities = {f"p_{label}": float(p) for label, p in zip(self.card.labels, values, strict=True)}
        return {"label": self.label(values), **probabilities}


def _columns(values: np.ndarray) -> dict[str, float]:
    return {f"e{i:04d}": float(value) for i, value in enumerate(values)}


@torch.inference_mode()
def over_clips(
    apply: Callable[[torch.Tensor], torch.Tensor], reader: ClipReader, normalisation: str, batch: int = 1
) -> np.ndarray:
    """Apply a function to every clip of a run, a batch at a time.

    Parameters
    ----------
    apply : callable
        (B, 1, 96, 96, 96, 20) to (B, K).
    reader : ClipReader
    normalisation : str
        An entry of `bids_app.clips.NORMALISATIONS`.
    batch : int
        Clips at a time to begin with; halved where the device's memory does not suffice.

    Returns
    -------
    numpy.ndarray of float32, (n_clips, K)
    """
    answers = apply_in_batches(apply, reader.clips(normalisation), batch)
    return np.concatenate([answer.float().cpu().numpy() for answer in answers])


def encode_run(
    model: Model, adapters: Sequence[AdaptedModel], reader: ClipReader, normalisations: Sequence[str]
) -> tuple[Embeddings, list[Prediction]]:
    """Embeddings of a run, and what adapters predict from it; the encoder reads each clip no more often than it must.

    Parameters
    ----------
    model : Model
    adapters : sequence of AdaptedModel
    reader : ClipReader
    normalisations : sequence of str
        Under which embeddings are made.
    """
    onsets = np.array([reader.onset(i) for i in range(reader.n_clips)])
    batch = starting_batch(model.config, model.device)
    embeddings: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    for normalisation in NORMALISATIONS:
        sharing = [a for a in adapters if a.card.normalisation == normalisation and a.shares_encoder]
        if normalisation in normalisations or sharing:
            sizes = [model.config.n_features, *(a.card.n_outputs for a in sharing)]
            columns = over_clips(partial(_share, model, sharing), reader, normalisation, batch)
            parts = np.split(columns, np.cumsum(sizes)[:-1], axis=1)
            embeddings[normalisation] = parts[0]
            outputs |= {a.card.name: part for a, part in zip(sharing, parts[1:], strict=True)}
    for adapter in adapters:
        if not adapter.shares_encoder:
            apply = partial(_to_device, adapter, model.device)
            outputs[adapter.card.name] = over_clips(apply, reader, adapter.card.normalisation, batch)
    predictions = [
        Prediction(
            adapter.card,
            to_answers(adapter.card, torch.from_numpy(outputs[adapter.card.name])).numpy(),
            onsets,
            reader.duration,
        )
        for adapter in adapters
    ]
    made = {name: embeddings[name] for name in normalisations}
    return Embeddings(made, onsets, reader.duration, reader.dropped), predictions


def _share(model: Model, adapters: Sequence[AdaptedModel], clips: torch.Tensor) -> torch.Tensor:
    features = model.encode(clips.to(model.device))
    return torch.cat([pool(features), *(adapter.head(features) for adapter in adapters)], dim=1)


def _to_device(adapter: AdaptedModel, device: torch.device, clips: torch.Tensor) -> torch.Tensor:
    return adapter(clips.to(device))
