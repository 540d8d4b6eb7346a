"""Embeddings and predictions of a run on the model grid, computed in batches of clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_app.adapters.calibration import Calibration, Certainty, Promise
from bids_app.adapters.domain import Distance
from bids_app.adapters.file import (
    CLASSIFICATION,
    EMBEDDING,
    OUTPUTS,
    REGRESSION,
    AdaptedModel,
    AdapterCard,
    to_predictions,
)
from bids_app.adapters.reconstruction import Reconstruction
from bids_app.adapters.verdict import REFUSE, Verdict
from bids_app.clips import NORMALISATIONS, ClipReader
from bids_app.errors import BadDataError
from bids_app.model.api import Model
from bids_app.model.heads import pool
from bids_app.model.streaming import apply_in_batches, starting_batch

MEAN = "mean"
LEVEL = 0.9
"""Coverage of the reported prediction intervals and label sets."""
KEEPS_THE_MEAN_IMAGE = "global"
"""The normalisation that preserves the mean image."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a run.

    Attributes
    ----------
    values : dict of str to numpy.ndarray, (n_clips, C)
        Embeddings of all clips, by normalisation.
    onsets : numpy.ndarray, (n_clips,)
        Onset of each clip in the original run, s.
    duration : float
        Duration of a clip, s.
    dropped : float
        Remainder at the end of the run that is shorter than a clip, s.
    """

    values: dict[str, np.ndarray]
    onsets: np.ndarray
    duration: float
    dropped: float = 0.0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table: for each normalisation the mean over clips, then each clip."""
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
    """An adapter's prediction for a run.

    Attributes
    ----------
    card : AdapterCard
    clips : numpy.ndarray, (n_clips, n_labels), (n_clips, 1) or (n_clips, dimensions)
        Probabilities, value in the card's unit, or embedding vector, of each clip.
    onsets, duration
        As in `Embeddings`.
    distances : dict of str to Distance
        Distances of the run from the adapter's cohort, by `bids_app.adapters.file.DOMAINS`; without those for which
        the adapter has no reference statistics.
    other : numpy.ndarray, optional
        Prediction of the adapter's second head from the run under the other normalisation; as ``values``.
    mean_image_only : numpy.ndarray, optional
        Mean-image baseline: prediction from the run's mean image alone, as ``values``; None if the normalisation
        removes the mean image.
    verdict : Verdict, optional
        Verdict on the prediction; None before it was judged.
    site : str, optional
        Site of the scan in ``participants.tsv``; None if unknown.
    range_evidence : float
        Weight of the prediction, 0 to 1, by the ranges of the adapter's cohort, see `bids_app.adapters.cohort_ranges`.
    outputs : numpy.ndarray, optional
        Raw outputs of the head for each clip, (n_clips, O); required if the card averages outputs.
    """

    card: AdapterCard
    clips: np.ndarray
    onsets: np.ndarray
    duration: float
    distances: Mapping[str, Distance] = field(default_factory=dict)
    other: np.ndarray | None = None
    mean_image_only: np.ndarray | None = None
    verdict: Verdict | None = None
    site: str | None = None
    range_evidence: float = 1.0
    outputs: np.ndarray | None = None
    values: np.ndarray = field(init=False)
    """Average over clips before calibration, (n_labels,), (1,) or (dimensions,)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.average())

    def average(self, chosen: slice = slice(None)) -> np.ndarray:
        """Average clips: their predictions, or, if the card says so, their outputs, which then give one prediction."""
        if self.card.clip_average != OUTPUTS:
            return self.clips[chosen].mean(axis=0)
        if self.outputs is None:
            raise ValueError(f"{self.card.name}: the outputs of the clips are required.")
        mean = torch.from_numpy(self.outputs[chosen].mean(axis=0, keepdims=True))
        return to_predictions(self.card, mean)[0].numpy()

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the adapter; None if it was not calibrated."""
        return Calibration.from_dict(self.card.calibration) if self.card.calibration else None

    @property
    def promise(self) -> Promise | None:
        """Calibrated limits for the site of the scan; None if the adapter was not calibrated."""
        return self.calibration.promise(self.site) if self.calibration else None

    @property
    def certainty(self) -> Certainty | None:
        """Certainty of the top class, whatever the `evidence`; None without calibration or for other tasks."""
        if self.promise is None or self.card.task != CLASSIFICATION:
            return None
        return self.promise.certainty(self.calibrated)

    @property
    def calibrated(self) -> np.ndarray:
        """Probabilities of a classification after calibration, (n_labels,); other predictions as they are."""
        if self.card.task != CLASSIFICATION or self.calibration is None:
            return self.values
        return self.calibration.probabilities(self.values[None])[0]

    @property
    def evidence(self) -> float:
        """Weight of the prediction, 0 to 1; below 1 beyond the limit of a distance or a range of the cohort."""
        return min([self.range_evidence, *(distance.evidence for distance in self.distances.values())])

    @property
    def reported(self) -> np.ndarray:
        """The reported prediction: ``values``; of a classification, calibrated probabilities.

        Probabilities of an out-of-distribution run are averaged with the proportions of the labels in the training
        cohort, weighted by `evidence`.
        """
        weight = self.evidence
        if self.card.task != CLASSIFICATION or weight == 1:
            return self.calibrated
        return weight * self.calibrated + (1 - weight) * label_shares(self.card)

    @property
    def level(self) -> float:
        """Coverage of the reported interval or label set: `LEVEL`.

        If no label is probable enough at this level, that of the next level whose label set is not empty. If there is
        none, the certainty is below its minimum, and the set is empty.
        """
        levels = self.promise.levels if self.promise else ()
        return next((level for level in levels if level >= LEVEL and self.label_set(level)), LEVEL)

    def label_set(self, level: float, by_class: bool = False) -> tuple[str, ...] | None:
        """Return the conformal label set; None if no coverage is promised, or for other tasks.

        Beyond the limit of a distance, the calibration scans tell nothing: no label is excluded. Beyond a range, the
        set grows to all labels with falling `range_evidence`.
        """
        if self.promise is None or self.card.task != CLASSIFICATION:
            return None
        weight = 0.0 if any(distance.is_far for distance in self.distances.values()) else self.range_evidence
        if not weight:
            return self.card.labels
        return self.promise.label_set(self.reported, self.card.labels, level, by_class, weight)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Prediction interval with coverage `LEVEL`; None if no coverage is promised, or for other tasks.

        That of an out-of-distribution run widens, with falling `evidence`, to two standard deviations around the mean
        of the training cohort.
        """
        if self.promise is None or self.card.task != REGRESSION:
            return None
        found = self.promise.interval(float(self.values[0]), LEVEL)
        if found is None or self.evidence == 1:
            return found
        lower, upper = found
        low, high = (self.card.value_mean + side * 2 * self.card.value_std for side in (-1, 1))
        rest = 1 - self.evidence
        return min(lower, lower + rest * (low - lower)), max(upper, upper + rest * (high - upper))

    @property
    def is_refused(self) -> bool:
        """True if the verdict is ``refuse``, so that the prediction is withheld."""
        return self.verdict is not None and self.verdict.level == REFUSE

    @property
    def label_index(self) -> int:
        """Index of the run's label; 0 for a regression."""
        return int(self.reported.argmax())

    def label(self, values: np.ndarray) -> str:
        """Return the most probable label."""
        return self.card.labels[int(values.argmax())]

    @property
    def agreement(self) -> float | None:
        """Share of clips with the label of the run; None without labels."""
        if self.card.task != CLASSIFICATION:
            return None
        return float((self.clips.argmax(axis=1) == self.label_index).mean())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table: the run, then each clip; withheld predictions are empty."""
        total = self.duration * len(self.clips)
        yield {
            "clip": MEAN,
            "onset": float(self.onsets[0]),
            "duration": total,
            **self._cells(self.reported),
            **self._run_cells(),
        }
        for index, values in enumerate(self.clips):
            yield {
                "clip": index,
                "onset": float(self.onsets[index]),
                "duration": self.duration,
                **self._cells(values),
            }

    def _run_cells(self) -> dict[str, Any]:
        """Return the cells of the interval and the verdict, if any."""
        found: dict[str, Any] = dict(zip(("lower", "upper"), self.interval or (), strict=False))
        if self.is_refused:
            found = dict.fromkeys(found)
        return found | ({"verdict": self.verdict.level} if self.verdict is not None else {})

    def _cells(self, values: np.ndarray) -> dict[str, Any]:
        cells = self._prediction_cells(values)
        return dict.fromkeys(cells) if self.is_refused else cells

    def _prediction_cells(self, values: np.ndarray) -> dict[str, Any]:
        if self.card.task == REGRESSION:
            return {"value": float(values[0])}
        if self.card.task == EMBEDDING:
            return _columns(values)
        probabilities = {f"p_{label}": float(p) for label, p in zip(self.card.labels, values, strict=True)}
        return {"label": self.label(values), **probabilities}


def label_shares(card: AdapterCard) -> np.ndarray:
    """Return the proportions of an adapter's labels in its training cohort, (K,); equal ones if they are unknown."""
    counts = card.cohort.get("scans_of_each")
    listed = [counts.get(label) for label in card.labels] if isinstance(counts, Mapping) else []
    known = bool(listed) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in listed)
    shares = np.array(listed if known else [1] * len(card.labels), np.float64)
    return shares / shares.sum()


def _columns(values: np.ndarray) -> dict[str, float]:
    return {f"e{i:04d}": float(value) for i, value in enumerate(values)}


def read_ahead(clips: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Iterate over clips, each of which is read while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, clips, None)
        while (clip := following.result()) is not None:
            following = pool.submit(next, clips, None)
            yield clip


@torch.inference_mode()
def apply_to_clips(
    apply: Callable[[torch.Tensor], torch.Tensor], reader: ClipReader, normalisation: str, batch: int = 1
) -> np.ndarray:
    """Apply a function to every clip of a run, a batch at a time.

    Parameters
    ----------
    apply : callable
        (B, 1, 96, 96, 96, T) to (B, K).
    reader : ClipReader
    normalisation : str
        An entry of `bids_app.clips.NORMALISATIONS`.
    batch : int
        Initial batch size; halved if the device runs out of memory.

    Returns
    -------
    numpy.ndarray of float32, (n_clips, K)
    """
    outputs = apply_in_batches(apply, read_ahead(reader.clips(normalisation)), batch)
    return np.concatenate([part.float().cpu().numpy() for part in outputs])


@dataclass(frozen=True)
class ModelFacts:
    """The model and device that encoded a run."""

    model: str
    weights_sha256: str | None
    """None for an encoder without weights."""
    demonstration: bool
    """True if the encoder or any adapter is for demonstration only."""
    device: str
    scan_backend: str | None
    """None for an encoder of Brainmarks."""
    threads: int
    untrained: bool = False
    """True if weights are random."""


@dataclass(frozen=True)
class Encoded:
    """Embeddings and predictions of a run, with the model that made them."""

    embeddings: Embeddings
    predictions: tuple[Prediction, ...]
    facts: ModelFacts
    verdict: Verdict | None = None
    """Verdict on the scan, independent of adapters; each prediction has its own. None before it was judged."""
    card: dict[str, Any] | None = None
    """Contents of the model card, see `bids_app.catalog.cards`."""
    reconstruction: Reconstruction | None = None
    """Reconstruction of hidden patches; None before it was measured."""
    verdict_facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the verdict that replace those of the scan, see `bids_app.adapters.verdict`."""
    columns: Mapping[str, Any] | None = None
    """Data dictionary of the embeddings that replaces entries of that of our own encoders."""


def encode_run(
    model: Model,
    adapters: Sequence[AdaptedModel],
    reader: ClipReader,
    normalisations: Sequence[str],
    signal: Mapping[str, float] | None = None,
) -> tuple[Embeddings, list[Prediction]]:
    """Encode a run and predict with all adapters; adapters without own encoder weights share the features.

    Parameters
    ----------
    model : Model
    adapters : sequence of AdaptedModel
    reader : ClipReader
    normalisations : sequence of str
        Normalisations of the embeddings.
    signal : mapping of str to float, optional
        Measures of the run's signal, see `bids_app.preprocess.brain_signal`.
    """
    onsets = np.array([reader.onset(i) for i in range(reader.n_clips)])
    batch = starting_batch(model.config, model.device)
    embeddings: dict[str, np.ndarray] = {}
    outputs: dict[int, dict[str, np.ndarray]] = {index: {} for index in range(len(adapters))}
    for normalisation in NORMALISATIONS:
        sharing = {i: head for i, a in enumerate(adapters) if (head := _head_for(a, normalisation)) is not None}
        if normalisation in normalisations or sharing:
            columns = apply_to_clips(
                partial(_encode_and_apply_heads, model, list(sharing.values())), reader, normalisation, batch
            )
            sizes = [model.config.n_features, *(adapters[index].card.n_outputs for index in sharing)]
            embeddings[normalisation], *parts = np.split(columns, np.cumsum(sizes)[:-1], axis=1)
            _check_finite(embeddings[normalisation], f"{model.path}: the embeddings")
            for index, part in zip(sharing, parts, strict=True):
                outputs[index][normalisation] = part
    baselines = _predict_from_mean_image(model, adapters, reader)
    predictions = []
    for index, adapter in enumerate(adapters):
        card, own = adapter.card, adapter.card.normalisation
        if not adapter.shares_encoder:
            outputs[index][own] = apply_to_clips(partial(_to_device, adapter, model.device), reader, own, batch)
        clips = {name: to_predictions(card, torch.from_numpy(part)).numpy() for name, part in outputs[index].items()}
        for values in (*outputs[index].values(), *clips.values()):
            _check_finite(values, f"{adapter.where}: the predictions")
        distances = _measure_distances(adapter, embeddings.get(own), signal or {})
        other = next((values.mean(axis=0) for name, values in clips.items() if name != own), None)
        predictions.append(
            Prediction(
                card,
                clips[own],
                onsets,
                reader.duration,
                distances,
                other,
                mean_image_only=baselines.get(index),
                outputs=outputs[index][own],
            )
        )
    requested = {name: embeddings[name] for name in normalisations}
    return Embeddings(requested, onsets, reader.duration, reader.dropped), predictions


def _measure_distances(
    adapter: AdaptedModel, embeddings: np.ndarray | None, signal: Mapping[str, float]
) -> dict[str, Distance]:
    """Measure the distances of a run from an adapter's cohort, as far as both are known; embeddings (n_clips, C)."""
    found: dict[str, np.ndarray] = {}
    if embeddings is not None:
        found = {"embedding": embeddings.mean(axis=0), "clips": embeddings}
    if all(name in signal for name in adapter.card.signal):
        found["signal"] = np.array([signal[name] for name in adapter.card.signal])
    return {name: domain.measure(found[name]) for name, domain in adapter.domains.items() if name in found}


def _check_finite(values: np.ndarray, what: str) -> None:
    """Raise a `BadDataError` if the values of clips (n_clips, K), or their mean, are too large for a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = np.isfinite(values).all() and np.isfinite(values.mean(axis=0)).all()
    if not is_finite:
        raise BadDataError(
            f"{what} are infinite or NaN.", "The weights are damaged or were trained wrongly: use another file."
        )


def _head_for(adapter: AdaptedModel, normalisation: str) -> nn.Module | None:
    """Return the adapter's head for features of the unadapted encoder under a normalisation, if any."""
    if adapter.card.normalisation == normalisation:
        return adapter.head if adapter.shares_encoder else None
    return adapter.twin


@torch.inference_mode()
def _predict_from_mean_image(
    model: Model, adapters: Sequence[AdaptedModel], reader: ClipReader
) -> dict[int, np.ndarray]:
    """Compute the mean-image baselines by adapter index: predictions from a clip of constant mean volumes.

    Adapters whose normalisation removes the mean image (z-scores over time) are omitted.
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


def _encode_and_apply_heads(model: Model, heads: Sequence[nn.Module], clips: torch.Tensor) -> torch.Tensor:
    features = model.encode(clips.to(model.device))
    return torch.cat([pool(features), *(head(features) for head in heads)], dim=1)


def _to_device(adapter: AdaptedModel, device: torch.device, clips: torch.Tensor) -> torch.Tensor:
    return adapter(clips.to(device))
