"""From a run on the model grid to embeddings and predictions, a batch of clips at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_app.adapters.calibration import Calibration, Certainty
from bids_app.adapters.domain import Distance
from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION, AdaptedModel, AdapterCard, to_predictions
from bids_app.adapters.verdict import REFUSE, Verdict
from bids_app.clips import NORMALISATIONS, ClipReader
from bids_app.model.api import Model
from bids_app.model.heads import pool
from bids_app.model.streaming import apply_in_batches, starting_batch

MEAN = "mean"
LEVEL = 0.9
"""Frequency with which the intervals and sets that are told hold the truth."""
KEEPS_THE_MEAN_IMAGE = "global"
"""The normalisation under which a run without dynamics still shows something."""


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
    distance : Distance, optional
        Of the run from the adapter's cohort; None where the adapter has no reference statistics.
    other : numpy.ndarray, optional
        Answer of the adapter's twin, from the run under the other normalisation; as ``answer``.
    still : numpy.ndarray, optional
        Answer to the run's mean image alone, as ``answer``; None where the normalisation takes that away.
    verdict : Verdict, optional
        Whether the answer can be trusted, once that was judged.
    """

    card: AdapterCard
    clips: np.ndarray
    onsets: np.ndarray
    duration: float
    distance: Distance | None = None
    other: np.ndarray | None = None
    still: np.ndarray | None = None
    verdict: Verdict | None = None
    answer: np.ndarray = field(init=False)
    """(n_labels,), (1,) or (dimensions,): the mean over clips, as the adapter gives it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", self.clips.mean(axis=0))

    @property
    def calibration(self) -> Calibration | None:
        """The adapter's; None where it was not calibrated."""
        return Calibration.from_dict(self.card.calibration) if self.card.calibration else None

    @property
    def certainty(self) -> Certainty | None:
        """How probable the answer is beside what calibration saw; None where nothing was calibrated, or no labels."""
        if self.calibration is None or self.card.task != CLASSIFICATION:
            return None
        return self.calibration.certainty(self.told)

    @property
    def told(self) -> np.ndarray:
        """The run's answer as it is told: ``answer``, calibrated where the adapter is."""
        if self.calibration is None or self.card.task != CLASSIFICATION:
            return self.answer
        return self.calibration.probabilities(self.answer[None])[0]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Limits that hold the true value with the frequency `LEVEL`; None where that is not known."""
        if self.calibration is None or self.card.task != REGRESSION:
            return None
        return self.calibration.interval(float(self.answer[0]), LEVEL)

    @property
    def is_refused(self) -> bool:
        """Whether the answer is withheld."""
        return self.verdict is not None and self.verdict.level == REFUSE

    @property
    def place(self) -> int:
        """Index of the run's label; of a value 0."""
        return int(self.told.argmax())

    def label(self, values: np.ndarray) -> str:
        """The most probable label."""
        return self.card.labels[int(values.argmax())]

    @property
    def agreement(self) -> float | None:
        """Share of clips whose label is that of the run; None where there are no labels."""
        if self.card.task != CLASSIFICATION:
            return None
        return float((self.clips.argmax(axis=1) == self.place).mean())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table: the run, then each clip; without answers where they are withheld."""
        total = self.duration * len(self.clips)
        yield {
            "clip": MEAN,
            "onset": float(self.onsets[0]),
            "duration": total,
            **self._cells(self.told),
            **self._ends(),
        }
        for index, values in enumerate(self.clips):
            yield {
                "clip": index,
                "onset": float(self.onsets[index]),
                "duration": self.duration,
                **self._cells(values),
            }

    def _ends(self) -> dict[str, Any]:
        """The interval and the verdict, where there are any."""
        found: dict[str, Any] = dict(zip(("lower", "upper"), self.interval or (), strict=False))
        if self.is_refused:
            found = dict.fromkeys(found)
        return found | ({"verdict": self.verdict.level} if self.verdict is not None else {})

    def _cells(self, values: np.ndarray) -> dict[str, Any]:
        cells = self._answer_cells(values)
        return dict.fromkeys(cells) if self.is_refused else cells

    def _answer_cells(self, values: np.ndarray) -> dict[str, Any]:
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


@dataclass(frozen=True)
class ModelFacts:
    """Which model a run was encoded with, and where."""

    model: str
    weights_sha256: str
    demonstration: bool
    """Whether the encoder, or any adapter, is a demonstration's."""
    device: str
    scan_backend: str
    threads: int


@dataclass(frozen=True)
class Encoded:
    """What the model made of a run, and which model it was."""

    embeddings: Embeddings
    predictions: tuple[Prediction, ...]
    facts: ModelFacts
    verdict: Verdict | None = None
    """Of the scan, whatever is asked of it; that of an answer is the prediction's own. None: not judged yet."""
    card: dict[str, Any] | None = None
    """Facts for the model's card, see `bids_app.catalog.cards`."""


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
    answers: dict[int, dict[str, np.ndarray]] = {index: {} for index in range(len(adapters))}
    for normalisation in NORMALISATIONS:
        sharing = {i: head for i, a in enumerate(adapters) if (head := _head_for(a, normalisation)) is not None}
        if normalisation in normalisations or sharing:
            columns = over_clips(partial(_share, model, list(sharing.values())), reader, normalisation, batch)
            sizes = [model.config.n_features, *(adapters[index].card.n_outputs for index in sharing)]
            embeddings[normalisation], *parts = np.split(columns, np.cumsum(sizes)[:-1], axis=1)
            for index, part in zip(sharing, parts, strict=True):
                answers[index][normalisation] = part
    stills = _answers_to_the_mean_image(model, adapters, reader)
    predictions = []
    for index, adapter in enumerate(adapters):
        card, own = adapter.card, adapter.card.normalisation
        if not adapter.shares_encoder:
            answers[index][own] = over_clips(partial(_to_device, adapter, model.device), reader, own, batch)
        meant = {name: to_predictions(card, torch.from_numpy(part)).numpy() for name, part in answers[index].items()}
        distance = None
        if adapter.domain is not None and own in embeddings:
            distance = adapter.domain.measure(embeddings[own].mean(axis=0))
        other = next((values.mean(axis=0) for name, values in meant.items() if name != own), None)
        predictions.append(
            Prediction(card, meant[own], onsets, reader.duration, distance, other, still=stills.get(index))
        )
    made = {name: embeddings[name] for name in normalisations}
    return Embeddings(made, onsets, reader.duration, reader.dropped), predictions


def _head_for(adapter: AdaptedModel, normalisation: str) -> nn.Module | None:
    """The adapter's head for features of the plain encoder under a normalisation, if it has one."""
    if adapter.card.normalisation == normalisation:
        return adapter.head if adapter.shares_encoder else None
    return adapter.twin


@torch.inference_mode()
def _answers_to_the_mean_image(
    model: Model, adapters: Sequence[AdaptedModel], reader: ClipReader
) -> dict[int, np.ndarray]:
    """What adapters answer when each volume is the run's mean image, by their index; one clip through each encoder.

    Only of adapters whose normalisation keeps the mean image: of a z-score of each voxel over time nothing is left.
    """
    keeping = {i: a for i, a in enumerate(adapters) if a.card.normalisation == KEEPS_THE_MEAN_IMAGE}
    if not keeping:
        return {}
    clip = reader.mean_image_clip(KEEPS_THE_MEAN_IMAGE)[None].to(model.device)
    features = model.encode(clip) if any(a.shares_encoder for a in keeping.values()) else None
    return {
        index: to_predictions(
            adapter.card, adapter.head(features) if adapter.shares_encoder else adapter(clip)
        )[0].cpu().numpy()
        for index, adapter in keeping.items()
    }  # fmt: skip


def _share(model: Model, heads: Sequence[nn.Module], clips: torch.Tensor) -> torch.Tensor:
    features = model.encode(clips.to(model.device))
    return torch.cat([pool(features), *(head(features) for head in heads)], dim=1)


def _to_device(adapter: AdaptedModel, device: torch.device, clips: torch.Tensor) -> torch.Tensor:
    return adapter(clips.to(device))
