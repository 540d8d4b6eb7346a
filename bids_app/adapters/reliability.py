"""How sure an answer is, and what it rests on, as sidecars tell it: spread over clips, promised intervals and sets, the
other view, the mean image alone, and the two halves of a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bids_app.adapters.calibration import effective_sample_size, standard_error
from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, REGRESSION
from bids_app.adapters.predict import KEEPS_THE_MEAN_IMAGE, LEVEL, Embeddings, Prediction

LEAST_SIGNAL = 0.05
"""Below which an answer says too little for a share of it: of a probability beyond chance, or standard deviations."""
NOT_KEPT = "Under this normalisation the mean image is 0 everywhere, so the whole answer comes from the dynamics."


def describe_uncertainty(prediction: Prediction) -> dict[str, Any]:
    """Spread over clips, and the promises of the adapter's calibration; see `bids_app.adapters.calibration`."""
    values = _scores(prediction)
    error = standard_error(values)
    found: dict[str, Any] = {
        "EffectiveClips": round(effective_sample_size(values), 2),
        "StandardError": None if math.isnan(error) else error,
        "Level": LEVEL,
    }
    made, labels = prediction.calibration, prediction.card.labels
    if prediction.card.task == REGRESSION:
        found["Interval"] = None if prediction.interval is None else list(prediction.interval)
    elif prediction.card.task == CLASSIFICATION:
        for key, by_class in (("LabelSet", False), ("LabelSetByClass", True)):
            promised = made.label_set(prediction.told, labels, LEVEL, by_class) if made else None
            found[key] = None if promised is None else list(promised)
    return found | {
        "Calibration": made.method if made else "none",
        "CalibrationScans": made.n_scans if made else 0,
        "CalibrationSource": made.source if made else "",
    }


def describe_views(prediction: Prediction) -> dict[str, Any]:
    """The answer from the other normalisation, and from the mean image alone; none of them is calibrated."""
    card = prediction.card
    found: dict[str, Any] = {"Normalisation": card.normalisation, "Own": _told(prediction, prediction.answer)}
    found["Other"] = None
    if prediction.other is not None:
        found["Other"] = {"Normalisation": card.twin["normalisation"], **_told(prediction, prediction.other)}
    found["MeanImageOnly"] = None if prediction.still is None else _told(prediction, prediction.still)
    found["FromMeanImage"] = share_of_the_mean_image(prediction)
    if card.normalisation != KEEPS_THE_MEAN_IMAGE:
        found["Note"] = NOT_KEPT
    return found


def share_of_the_mean_image(prediction: Prediction) -> float | None:
    """How much of the answer stays when each volume is the run's mean image, from 0 to 1.

    Of a classification: by how much the probability of the run's label is above chance (1 / K) with the mean image
    alone, as a share of the same with the dynamics. Of a regression: the distance from the mean of the training cohort,
    likewise. Of vectors: their cosine. None where there is nothing to share out.
    """
    if prediction.still is None:
        return None
    card, answer, still = prediction.card, prediction.answer, prediction.still
    if card.task == EMBEDDING:
        return float(np.clip(_cosine(answer, still), 0, 1))
    if card.task == REGRESSION:
        whole, part = (float(values[0] - card.value_mean) / card.value_std for values in (answer, still))
    else:
        label, chance = prediction.place, 1 / len(card.labels)
        whole, part = float(answer[label] - chance), float(still[label] - chance)
    return None if abs(whole) < LEAST_SIGNAL else float(np.clip(part / whole, 0, 1))


def describe_halves(prediction: Prediction) -> dict[str, Any] | None:
    """The answers from the odd and from the even clips, uncalibrated, and by how much they differ; None for one clip.

    ``Difference`` is of the values, or of the probabilities of the run's label; of vectors it is 1 less their cosine.
    """
    if len(prediction.clips) < 2:
        return None
    odd, even = halves(prediction.clips)
    if prediction.card.task == EMBEDDING:
        difference = 1 - _cosine(odd, even)
    else:
        difference = float(abs(odd[prediction.place] - even[prediction.place]))
    return {"Odd": _told(prediction, odd), "Even": _told(prediction, even), "Difference": difference}


def describe_embedding_halves(embeddings: Embeddings) -> dict[str, Any]:
    """By normalisation: correlation of the mean embeddings of odd and even clips, and what it says of the whole run.

    ``SpearmanBrown`` is 2 r / (1 + r). Embeddings of any two scans resemble each other, so values near 1 are common:
    the group level, which knows other scans, tells more.
    """
    found: dict[str, Any] = {}
    for name, values in embeddings.values.items():
        if len(values) < 2:
            found[name] = None
            continue
        r = float(np.corrcoef(*halves(values))[0, 1])
        whole = 2 * r / (1 + r) if r > -1 else math.nan
        found[name] = {"Correlation": r, "SpearmanBrown": whole, "Clips": [(len(values) + 1) // 2, len(values) // 2]}
    return found


def halves(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (K,) of the odd clips (the first, third, ...) and of the even ones, of (n_clips, K)."""
    return clips[0::2].mean(axis=0), clips[1::2].mean(axis=0)


def _scores(prediction: Prediction) -> np.ndarray:
    """One number a clip (n_clips,): the value, the probability of the run's label, or the cosine with the answer."""
    if prediction.card.task == EMBEDDING:
        return np.array([_cosine(clip, prediction.answer) for clip in prediction.clips])
    return prediction.clips[:, prediction.place].astype(float)


def _told(prediction: Prediction, values: np.ndarray) -> dict[str, Any]:
    """An answer (K,) as sidecars tell it; of vectors nothing, since they stand in the table."""
    card = prediction.card
    if card.task == REGRESSION:
        return {"Answer": f"{float(values[0]):.4g} {card.unit}".strip(), "Value": float(values[0])}
    if card.task == EMBEDDING:
        return {"Cosine": _cosine(values, prediction.answer)}
    probabilities = {label: round(float(p), 6) for label, p in zip(card.labels, values, strict=True)}
    return {"Answer": prediction.label(values), "Probabilities": probabilities}


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
