"""Facts for the cards of encoders and adapters, from the catalog and from their files if present."""

from __future__ import annotations

from typing import Any

from bids_app.adapters.calibration import Calibration
from bids_app.adapters.file import CLASSIFICATION, LORA, OUTPUTS, AdapterCard, load_adapter
from bids_app.catalog.cards import describe_model
from bids_app.catalog.models import Entry
from bids_app.errors import BadDataError
from bids_app.outputs.schema import AdapterFacts


def describe_adapter(card: AdapterCard) -> AdapterFacts:
    """Return the facts about an adapter for sidecars and cards."""
    return AdapterFacts(
        name=card.name,
        task=card.task,
        target=card.target,
        labels=card.labels,
        unit=card.unit,
        normalisation=card.normalisation,
        strategy=card.strategy,
        low_rank=low_rank_in_words(card),
        clip_average=clip_average_in_words(card),
        encoder_sha256=card.encoder_sha256,
        cohort=card.cohort,
        ranges={check: list(ends) for check, ends in card.ranges.items()},
        calibration=_describe_calibration(card),
        metrics=card.metrics,
        intended_use=card.intended_use,
        limits=card.limits,
        licence=card.licence,
        demonstration=card.demonstration,
        research_only=card.research_only,
    )


def clip_average_in_words(card: AdapterCard) -> str:
    """Say how the prediction of a run follows from its clips."""
    if card.clip_average != OUTPUTS:
        return "mean of the predictions over clips"
    what = "logit" if card.task == CLASSIFICATION else "output"
    return f"mean {what} over clips, as published"


def low_rank_in_words(card: AdapterCard) -> str | None:
    """Describe the low-rank updates of an adapter; None if it has none."""
    if card.strategy != LORA:
        return None
    return f"rank {card.rank}, alpha {card.lora_alpha:g}, of {', '.join(card.lora_targets)}"


def model_facts(entry: Entry) -> dict[str, Any]:
    """Return the facts for the card of a model, including those of its file, and of the head in it, if present."""
    if not entry.path.is_file():
        return describe_model(entry)
    from bids_app.catalog.fetch import file_sha256
    from bids_app.model.api import Model
    from bids_app.model.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(entry.path)
    model = Model(checkpoint)
    return (
        describe_model(entry, checkpoint.info)
        | _own_head_facts(entry)
        | {
            "Parameters": sum(p.numel() for p in model.encoder.parameters()),
            "Demonstration": checkpoint.demonstration,
            "EncoderSHA256": model.weights_sha256,
            "FileSHA256": file_sha256(entry.path),
        }
    )


def _own_head_facts(entry: Entry) -> dict[str, Any]:
    """Return the facts about the head in a model's file; of one that cannot be applied, the reason."""
    from bids_app.adapters.own_head import own_head

    try:
        adapter = own_head(entry)
    except BadDataError as error:
        return {"Limits": f"The head in the file cannot be applied: {error.message}"}
    if adapter is None:
        return {}
    facts = describe_adapter(adapter.card).to_json()
    return {
        name: value for name, value in facts.items() if name != "Adapter" and (value or name == "AdapterCalibration")
    }


def adapter_facts(entry: Entry) -> dict[str, Any]:
    """Return the facts for the card of an adapter, including those of its file if present."""
    known = {"Adapter": entry.name, "Description": entry.description, "License": entry.licence}
    if not entry.path.is_file():
        return known
    from bids_app.catalog.fetch import file_sha256

    from_file = describe_adapter(load_adapter(entry.path).card).to_json()
    return known | {key: value for key, value in from_file.items() if value or key not in known} | {
        "FileSHA256": file_sha256(entry.path)
    }  # fmt: skip


def _describe_calibration(card: AdapterCard) -> dict[str, Any]:
    """Describe the calibration of an adapter; empty if it is not calibrated."""
    if not card.calibration:
        return {}
    made = Calibration.from_dict(card.calibration)
    promise = made.promise_at_own_sites()
    return {
        "Method": made.method,
        "Participants": made.n_participants or "unknown",
        "Scans": made.n_scans,
        "Source": made.source or "not stated",
        "Participants by site": made.sites or "unknown",
        "Levels that are promised": [f"{100 * float(level):g} %" for level in promise.limits],
        "Coverage": promise.coverage,
    }
