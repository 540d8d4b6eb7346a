"""Reliability of a prediction for its sidecar: spread over clips, calibrated intervals and label sets, the other
normalisation, the mean-image baseline, and split-half agreement."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bids_app.adapters.calibration import effective_sample_size, standard_error
from bids_app.adapters.file import EMBEDDING, REGRESSION
from bids_app.adapters.predict import KEEPS_THE_MEAN_IMAGE, Embeddings, Prediction
from bids_app.outputs.schema import (
    HalfCorrelation,
    Halves,
    PromisedInterval,
    PromisedLabels,
    Reliability,
    Uncertainty,
    View,
    Views,
)

MIN_SIGNAL = 0.05
"""Minimum prediction for a mean-image share: probability above chance, or standard deviations from the mean."""
NOT_KEPT = "Under this normalisation the mean image is 0 everywhere: the prediction is based on the dynamics only."


def describe_reliability(prediction: Prediction) -> Reliability:
    """Describe the reliability of a prediction that is not withheld."""
    return Reliability(
        agreement=prediction.agreement,
        uncertainty=describe_uncertainty(prediction),
        views=describe_views(prediction),
        split_half=describe_halves(prediction),
    )


def describe_uncertainty(prediction: Prediction) -> Uncertainty:
    """Describe the spread over clips and the calibrated interval or sets; see `bids_app.adapters.calibration`."""
    values = _clip_values(prediction)
    error = standard_error(values)
    made = prediction.calibration
    return Uncertainty(
        effective_clips=round(effective_sample_size(values), 2),
        standard_error=None if math.isnan(error) else error,
        level=prediction.level,
        promise=_promise(prediction),
        method=made.method if made else "none",
        coverage=_coverage(prediction),
        participants=made.n_participants if made else 0,
        scans=made.n_scans if made else 0,
        source=made.source if made else "",
    )


def _coverage(prediction: Prediction) -> str | None:
    """Return whom the coverage holds for; None without a calibration."""
    if prediction.promise is None:
        return None
    if prediction.promise.limits and prediction.evidence < 1:
        return (
            "Coverage unknown here: the scan is out of distribution for this adapter "
            f"(weight of its prediction {prediction.evidence:.2g}; the rest is that of the training cohort)."
        )
    return prediction.promise.coverage


def describe_views(prediction: Prediction) -> Views:
    """Describe the uncalibrated predictions: own and other normalisation, and the mean image alone."""
    card = prediction.card
    other = None
    if prediction.other is not None:
        other = replace(_view(prediction, prediction.other), normalisation=card.twin["normalisation"])
    return Views(
        normalisation=card.normalisation,
        own=_view(prediction, prediction.values),
        other=other,
        mean_image_only=None if prediction.mean_image_only is None else _view(prediction, prediction.mean_image_only),
        from_mean_image=mean_image_share(prediction),
        note=None if card.normalisation == KEEPS_THE_MEAN_IMAGE else NOT_KEPT,
    )


def mean_image_share(prediction: Prediction) -> float | None:
    """Compute the share of a prediction that the mean image alone explains, from 0 to 1.

    Classification: probability of the label above chance (1 / K) with the mean image alone, divided by that with the
    full clips. Regression: the same with the distance from the mean of the training cohort. Vectors: cosine
    similarity. None if the prediction is below `MIN_SIGNAL`, or there is no mean-image baseline.
    """
    if prediction.mean_image_only is None:
        return None
    card, answer, still = prediction.card, prediction.values, prediction.mean_image_only
    if card.task == EMBEDDING:
        return float(np.clip(_cosine(answer, still), 0, 1))
    if card.task == REGRESSION:
        whole, part = (float(values[0] - card.value_mean) / card.value_std for values in (answer, still))
    else:
        label, chance = prediction.label_index, 1 / len(card.labels)
        whole, part = float(answer[label] - chance), float(still[label] - chance)
    return None if abs(whole) < MIN_SIGNAL else float(np.clip(part / whole, 0, 1))


def describe_halves(prediction: Prediction) -> Halves | None:
    """Compare the uncalibrated predictions from odd and even clips; None for one clip.

    The difference is that of the values or of the probabilities of the label; for vectors, 1 minus their cosine.
    """
    if len(prediction.clips) < 2:
        return None
    odd, even = prediction.average(slice(0, None, 2)), prediction.average(slice(1, None, 2))
    if prediction.card.task == EMBEDDING:
        difference = 1 - _cosine(odd, even)
    else:
        difference = float(abs(odd[prediction.label_index] - even[prediction.label_index]))
    return Halves(odd=_view(prediction, odd), even=_view(prediction, even), difference=difference)


def describe_embedding_halves(embeddings: Embeddings) -> dict[str, HalfCorrelation | None]:
    """Correlate the mean embeddings of odd and even clips, by normalisation.

    The Spearman-Brown estimate for the whole run is 2 r / (1 + r). Embeddings of any two scans are similar, so values
    near 1 are common; the group level also compares with other scans.
    """
    found: dict[str, HalfCorrelation | None] = {}
    for name, values in embeddings.values.items():
        if len(values) < 2:
            found[name] = None
            continue
        r = float(np.corrcoef(*halves(values))[0, 1])
        whole = 2 * r / (1 + r) if r > -1 else math.nan
        n_clips = ((len(values) + 1) // 2, len(values) // 2)
        found[name] = HalfCorrelation(correlation=r, spearman_brown=whole, clips=n_clips)
    return found


def halves(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the odd clips (first, third, ...) and the even clips of (n_clips, K); two arrays (K,)."""
    return clips[0::2].mean(axis=0), clips[1::2].mean(axis=0)


def _clip_values(prediction: Prediction) -> np.ndarray:
    """Return one number per clip (n_clips,): value, probability of the label, or cosine with the mean vector."""
    if prediction.card.task == EMBEDDING:
        return np.array([_cosine(clip, prediction.values) for clip in prediction.clips])
    return prediction.clips[:, prediction.label_index].astype(float)


def _promise(prediction: Prediction) -> PromisedInterval | PromisedLabels | None:
    """Return the calibrated interval or label sets; None for vectors."""
    task, made = prediction.card.task, prediction.promise
    if task == REGRESSION:
        return PromisedInterval(interval=prediction.interval)
    if task == EMBEDDING:
        return None
    if made is None:
        return PromisedLabels()
    over_all, by_class = (prediction.label_set(prediction.level, by_class) for by_class in (False, True))
    return PromisedLabels(label_set=over_all, by_class=by_class)


def _view(prediction: Prediction, values: np.ndarray) -> View:
    """Convert a prediction (K,) for the sidecar; vectors are in the table, so only their cosine."""
    card = prediction.card
    if card.task == REGRESSION:
        return View(answer=f"{float(values[0]):.4g} {card.unit}".strip(), value=float(values[0]))
    if card.task == EMBEDDING:
        return View(cosine=_cosine(values, prediction.values))
    probabilities = {label: round(float(p), 6) for label, p in zip(card.labels, values, strict=True)}
    return View(answer=prediction.label(values), probabilities=probabilities)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
