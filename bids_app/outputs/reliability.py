"""How sure an answer is, and what it rests on, as sidecars tell it: spread over clips, promised intervals and sets, the
other view, the mean image alone, and the two halves of a run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bids_app.adapters.calibration import effective_sample_size, standard_error
from bids_app.adapters.file import EMBEDDING, REGRESSION
from bids_app.adapters.predict import KEEPS_THE_MEAN_IMAGE, LEVEL, Embeddings, Prediction
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
"""Below which an answer says too little for a share of it: of a probability beyond chance, or standard deviations."""
NOT_KEPT = "Under this normalisation the mean image is 0 everywhere, so the whole answer comes from the dynamics."


def describe_reliability(prediction: Prediction) -> Reliability:
    """All that is said of how far an answer, which is not withheld, can be relied on."""
    return Reliability(
        agreement=prediction.agreement,
        uncertainty=describe_uncertainty(prediction),
        views=describe_views(prediction),
        split_half=describe_halves(prediction),
    )


def describe_uncertainty(prediction: Prediction) -> Uncertainty:
    """Spread over clips, and the promises of the adapter's calibration; see `bids_app.adapters.calibration`."""
    values = _scores(prediction)
    error = standard_error(values)
    made = prediction.calibration
    return Uncertainty(
        effective_clips=round(effective_sample_size(values), 2),
        standard_error=None if math.isnan(error) else error,
        level=LEVEL,
        promise=_promise(prediction),
        method=made.method if made else "none",
        scans=made.n_scans if made else 0,
        source=made.source if made else "",
    )


def describe_views(prediction: Prediction) -> Views:
    """The answer from the other normalisation, and from the mean image alone; none of them is calibrated."""
    card = prediction.card
    other = None
    if prediction.other is not None:
        other = replace(_view(prediction, prediction.other), normalisation=card.twin["normalisation"])
    return Views(
        normalisation=card.normalisation,
        own=_view(prediction, prediction.values),
        other=other,
        mean_image_only=None if prediction.mean_image_only is None else _view(prediction, prediction.mean_image_only),
        from_mean_image=share_of_the_mean_image(prediction),
        note=None if card.normalisation == KEEPS_THE_MEAN_IMAGE else NOT_KEPT,
    )


def share_of_the_mean_image(prediction: Prediction) -> float | None:
    """How much of the answer stays when each volume is the run's mean image, from 0 to 1.

    Of a classification: by how much the probability of the run's label is above chance (1 / K) with the mean image
    alone, as a share of the same with the dynamics. Of a regression: the distance from the mean of the training cohort,
    likewise. Of vectors: their cosine. None where there is nothing to share out.
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
    """The answers from the odd and from the even clips, uncalibrated, and by how much they differ; None for one clip.

    The difference is of the values, or of the probabilities of the run's label; of vectors it is 1 less their cosine.
    """
    if len(prediction.clips) < 2:
        return None
    odd, even = halves(prediction.clips)
    if prediction.card.task == EMBEDDING:
        difference = 1 - _cosine(odd, even)
    else:
        difference = float(abs(odd[prediction.label_index] - even[prediction.label_index]))
    return Halves(odd=_view(prediction, odd), even=_view(prediction, even), difference=difference)


def describe_embedding_halves(embeddings: Embeddings) -> dict[str, HalfCorrelation | None]:
    """By normalisation: correlation of the mean embeddings of odd and even clips, and what it says of the whole run.

    The latter (Spearman-Brown) is 2 r / (1 + r). Embeddings of any two scans resemble each other, so values near 1 are
    common: the group level, which knows other scans, tells more.
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
    """Means (K,) of the odd clips (the first, third, ...) and of the even ones, of (n_clips, K)."""
    return clips[0::2].mean(axis=0), clips[1::2].mean(axis=0)


def _scores(prediction: Prediction) -> np.ndarray:
    """One number a clip (n_clips,): the value, the probability of the run's label, or the cosine with the answer."""
    if prediction.card.task == EMBEDDING:
        return np.array([_cosine(clip, prediction.values) for clip in prediction.clips])
    return prediction.clips[:, prediction.label_index].astype(float)


def _promise(prediction: Prediction) -> PromisedInterval | PromisedLabels | None:
    """What the adapter's calibration promises of an answer; of vectors nothing."""
    task, made = prediction.card.task, prediction.calibration
    if task == REGRESSION:
        return PromisedInterval(interval=prediction.interval)
    if task == EMBEDDING:
        return None
    if made is None:
        return PromisedLabels()
    sets = (made.label_set(prediction.reported, prediction.card.labels, LEVEL, by_class) for by_class in (False, True))
    over_all, by_class = (None if labels is None else tuple(labels) for labels in sets)
    return PromisedLabels(label_set=over_all, by_class=by_class)


def _view(prediction: Prediction, values: np.ndarray) -> View:
    """An answer (K,) as sidecars hold it; of vectors only the cosine, since they stand in the table."""
    card = prediction.card
    if card.task == REGRESSION:
        return View(answer=f"{float(values[0]):.4g} {card.unit}".strip(), value=float(values[0]))
    if card.task == EMBEDDING:
        return View(cosine=_cosine(values, prediction.values))
    probabilities = {label: round(float(p), 6) for label, p in zip(card.labels, values, strict=True)}
    return View(answer=prediction.label(values), probabilities=probabilities)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
