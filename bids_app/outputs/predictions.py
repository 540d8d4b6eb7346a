"""Outputs of the model: tables of embeddings, predictions and vectors, and their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bids_app.adapters import verdict as verdicts
from bids_app.adapters.file import EMBEDDING, REGRESSION
from bids_app.adapters.predict import LEVEL, Encoded, Prediction
from bids_app.adapters.reconstruction import Reconstruction
from bids_app.bids.entities import as_label
from bids_app.bids.writer import write_tsv
from bids_app.outputs.cards import describe_adapter
from bids_app.outputs.names import RunName, name_run
from bids_app.outputs.reliability import describe_embedding_halves, describe_reliability
from bids_app.outputs.schema import (
    CheckRecord,
    EmbeddingsSidecar,
    PredictionSidecar,
    ReconstructionRecord,
    VerdictRecord,
)
from bids_app.preprocess.preprocessed import PreprocessedRun

EMBEDDINGS_COLUMNS: dict[str, Any] = {
    "normalisation": {
        "Description": "Normalisation of the run before it was cut into clips",
        "Levels": {
            "global": "One z-score over all voxels of the brain and all volumes",
            "voxel": "A z-score of each voxel over time",
        },
    },
    "clip": {"Description": "Number of the clip, or the mean over clips"},
    "onset": {"Description": "Start of the clip, relative to the first volume of the raw run", "Units": "s"},
    "duration": {"Description": "Length of the clip, or of all clips", "Units": "s"},
    "eNNNN": {"Description": "Features of the encoder, averaged over all tokens of a clip"},
}
"""Data dictionary of an embeddings table."""

VERDICT_COLUMN = {
    "Description": "Verdict on the prediction of the run; the checks are listed under Verdict",
    "Levels": {
        "pass": "All checks passed",
        "warn": "The prediction may be less accurate than stated in the card of the adapter",
        "refuse": "The prediction would not be valid and is withheld",
    },
}


MIN_PLOTTED_CLIPS = 3
"""Minimum clips for the figure of the embeddings: z-scores over two clips are always the same."""


def model_outputs(
    encoded: Encoded,
    preprocessed: PreprocessedRun,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    out_dir: Path,
) -> Path:
    """Write embeddings and predictions with their sidecars; return the folder of the tree."""
    names = name_run(out_dir / "tree", entities, datasets, [preprocessed.source])
    facts: dict[str, Any] = {
        **asdict(encoded.facts),
        "untrained": encoded.facts.untrained or None,
        "template": preprocessed.template,
        "slice_timing_corrected": preprocessed.slices is not None,
        "start_time": preprocessed.start_time,
    }
    table = names.path("embeddings", ".tsv", desc=as_label(encoded.facts.model))
    write_tsv(table, pd.DataFrame(encoded.embeddings.rows()))
    sidecar = EmbeddingsSidecar(
        **facts,
        verdict=describe_verdict(encoded.verdict),
        split_half=describe_embedding_halves(encoded.embeddings),
        reconstruction=describe_reconstruction(encoded.reconstruction),
        columns=EMBEDDINGS_COLUMNS | dict(encoded.columns or {}),
        seconds_dropped=encoded.embeddings.dropped,
        model_card=encoded.card or None,
    )
    names.sidecar(table, sidecar)
    for prediction in encoded.predictions:
        suffix = "vectors" if prediction.card.task == EMBEDDING else "predictions"
        table = names.path(suffix, ".tsv", desc=prediction.card.name)
        write_tsv(table, pd.DataFrame(prediction.rows()))
        names.sidecar(table, describe_prediction(prediction, facts))
    return names.tree


def describe_prediction(prediction: Prediction, facts: Mapping[str, Any]) -> PredictionSidecar:
    """Make the sidecar of a predictions table.

    Parameters
    ----------
    prediction : Prediction
    facts : mapping
        Fields that are the same in all sidecars of the run.
    """
    return PredictionSidecar(
        **{**facts, "demonstration": prediction.card.demonstration},
        adapter=describe_adapter(prediction.card),
        verdict=describe_verdict(prediction.verdict),
        columns=prediction_columns(prediction),
        reliability=None if prediction.is_refused else describe_reliability(prediction),
        disclaimer="A research result, not a medical device: not a statement about a person.",
    )


def prediction_columns(prediction: Prediction) -> dict[str, Any]:
    """Make the data dictionary of a predictions table, with all of its columns."""
    card = prediction.card
    found: dict[str, Any] = {
        "clip": {"Description": "Number of the clip; mean: the prediction of the run"},
        "onset": EMBEDDINGS_COLUMNS["onset"],
        "duration": EMBEDDINGS_COLUMNS["duration"],
    }
    if card.task == REGRESSION:
        found["value"] = {"Description": f"Predicted value of {card.target}", "Units": card.unit or "n/a"}
    elif card.task == EMBEDDING:
        found["eNNNN"] = {"Description": "Features of the vector of the adapter"}
    else:
        found["label"] = {"Description": f"Most probable class of {card.target}"}
        found |= {f"p_{label}": {"Description": f"Probability of {label}"} for label in card.labels}
    found |= {"verdict": VERDICT_COLUMN} if prediction.verdict else {}
    if prediction.interval is not None:
        about = f"limit of the interval that contains the true value in {LEVEL:.0%} of scans like the calibration scans"
        for name in ("lower", "upper"):
            found[name] = {"Description": f"{name.capitalize()} {about}", "Units": prediction.card.unit or "n/a"}
    return found


def describe_reconstruction(found: Reconstruction | None) -> ReconstructionRecord | None:
    """Convert a reconstruction for the sidecar."""
    if found is None:
        return None
    return ReconstructionRecord(
        error=found.error,
        dynamics=found.dynamics,
        clips=found.clips or None,
        mask=found.mask or None,
        reason=found.reason or None,
    )


def describe_verdict(found: verdicts.Verdict | None) -> VerdictRecord | None:
    """Convert a verdict for the sidecar; values of checks are rounded to four decimals."""
    if found is None:
        return None
    checks = (
        CheckRecord(
            name=check.name,
            level=check.level,
            value=round(check.value, 4) if isinstance(check.value, float) else check.value,
            limits=check.limits,
            message=check.message,
            reference=check.reference or None,
        )
        for check in found.checks
    )
    return VerdictRecord(level=found.level, checks=tuple(checks), not_known=dict(found.unknown))


def plot_model_outputs(encoded: Encoded, names: RunName) -> None:
    """Plot the embeddings and the predictions of each adapter."""
    from bids_app.reports.figures.charts import plot_embeddings, plot_predictions

    table = pd.DataFrame(encoded.embeddings.rows())
    if table["clip"].nunique() > MIN_PLOTTED_CLIPS:  # the mean is a row too
        plot_embeddings(table, names.figure("embeddings"), title=f"Embeddings of {names.stem}")
    for prediction in (p for p in encoded.predictions if p.card.task != EMBEDDING and not p.is_refused):
        path = names.figure(f"{prediction.card.name}predictions")
        title = f"{prediction.card.name} predicted from {names.stem}"
        plot_predictions(pd.DataFrame(prediction.rows()), path, title=title, unit=prediction.card.unit)
