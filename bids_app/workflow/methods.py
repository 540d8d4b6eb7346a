"""Which steps an invocation takes, in the terms of the methods text (`bids_app/outputs/methods.yml`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bids_app.adapters.calibration import ISOTONIC, TEMPERATURE, Calibration
from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, AdapterCard
from bids_app.adapters.predict import KEEPS_THE_MEAN_IMAGE, LEVEL
from bids_app.bids.fieldmaps import PAIR, PHASE_DIFFERENCE, TWO_PHASES
from bids_app.bids.query import BoldRun
from bids_app.catalog import templates
from bids_app.catalog.atlases import find_atlas
from bids_app.catalog.models import find_model, weights_path
from bids_app.model.checkpoint import read_checkpoint, weights_sha256
from bids_app.outputs.boilerplate import Step
from bids_app.preprocess.ingest.derivatives import way_in_words
from bids_app.preprocess.io.headers import SLICE_TIMING
from bids_app.preprocess.sdc.estimate import METHODS, SYN, correction_of
from bids_app.settings import Settings
from bids_app.workflow.adapters import chosen_adapters

TEMPLATE_CITATIONS = {"MNI152NLin6Asym": "mni6", "MNI152NLin2009aSym": "mni2009"}


DERIVATIVE_CITATIONS = {"fmriprep": "fmriprep", "hcp": "hcp", "xcp_d": "xcpd", "xcp-d": "xcpd"}
"""References of pipelines, by how their names begin."""


def describe_method(settings: Settings, runs: Sequence[BoldRun]) -> tuple[list[Step], str]:
    """The steps that are taken, with what their sentences name.

    Returns
    -------
    tuple
        The steps, and the name of the demonstration model if it is one.
    """
    wanted = settings.preprocess
    name = templates.available()[0]
    template = {"template": name, "template_cite": TEMPLATE_CITATIONS[name]}
    fixed = wanted.dummy_scans is not None
    steps = [Step("query"), Step("seed", {"seed": wanted.random_seed})]
    rule = f"dropped (the first {wanted.dummy_scans})" if fixed else "found by their signal and dropped"
    steps += [*derived_steps(runs), Step("dummy_scans", {"rule": rule})]
    raw = [run for run in runs if run.derived is None]
    if raw:
        steps += raw_steps(raw, settings, template)
    steps.append(Step("quality"))
    if templates.catalog()[name]["source"] == "nilearn":
        steps.append(Step("template_nilearn", {"template": name, "accuracy": templates.space(name).accuracy}))
    if wanted.output_spaces:
        steps.append(Step("output_spaces", {"spaces": " and ".join(wanted.output_spaces)}))
    entry = find_model(settings.model.model)
    checkpoint = read_checkpoint(weights_path(entry))
    facts = {"model": entry.name, "weights_sha256": weights_sha256(checkpoint.encoder)}
    steps += [Step("model", facts), Step("embeddings", {"normalisations": "both normalisations"}), Step("halves")]
    for adapter in chosen_adapters(settings):
        steps += describe_adapter_steps(adapter.card, adapter.false_alarms, settings.model.on_out_of_domain)
    if settings.model.attribution:
        atlas = find_atlas(settings.model.atlas)
        steps.append(Step(settings.model.attribution, {"atlas": atlas.title or atlas.name}))
    return steps, entry.name if checkpoint.demonstration else ""


def describe_adapter_steps(card: AdapterCard, false_alarms: float | None, on_out_of_domain: str) -> list[Step]:
    """What an adapter answers, and what is done to tell how far its answers can be trusted.

    Parameters
    ----------
    card : AdapterCard
    false_alarms : float, optional
        Share of scans like its cohort's that count as far from it; None: that is not measured.
    on_out_of_domain : str
        ``warn`` or ``refuse``.
    """
    facts: dict[str, Any] = {"adapter": card.name, "target": card.target, "cohort": cohort_in_words(card.cohort)}
    steps = [Step("adapter", facts)]
    if card.research_only:
        steps.append(Step("research_only", facts))
    rule = {"warn": "warned of", "refuse": "refused"}[on_out_of_domain]
    steps += [Step("verdict", {"out_of_domain": rule}), Step("clips_uncertainty")]
    if false_alarms is not None:
        steps.append(Step("domain", facts | {"share": f"{100 * (1 - false_alarms):.1f} %"}))
    steps += describe_calibration(card)
    if card.twin:
        steps.append(Step("twin", facts | {"other": card.twin["normalisation"]}))
    if card.normalisation == KEEPS_THE_MEAN_IMAGE:
        steps.append(Step("mean_image", facts))
    return steps


def describe_calibration(card: AdapterCard) -> list[Step]:
    """How an adapter's probabilities were calibrated, and what its intervals or sets promise."""
    if card.task == EMBEDDING:
        return []
    if not card.calibration:
        return [Step("not_calibrated", {"adapter": card.name})]
    made = Calibration.from_dict(card.calibration)
    facts = {"adapter": card.name, "scans": made.n_scans, "source": f" ({made.source})" if made.source else ""}
    steps = [Step(made.method, facts)] if made.method in (TEMPERATURE, ISOTONIC) else []
    if made.limits:
        is_classes = card.task == CLASSIFICATION
        promise = {
            "kind": "Sets of labels" if is_classes else "Intervals",
            "level": f"{100 * LEVEL:.0f} %",
            "by_class": ", and second ones within each class [@mondrian]" if is_classes else "",
        }
        steps.append(Step("intervals", facts | promise))
    return steps


def cohort_in_words(cohort: Mapping[str, Any]) -> str:
    """Whom an adapter learned from, as a methods text says it."""
    counts = [f"{cohort[name]} {name}" for name in ("participants", "scans") if name in cohort]
    named = [str(cohort["description"])] if "description" in cohort else []
    return ", ".join(named + counts) or "a cohort that its card does not describe"


def derived_steps(runs: Sequence[BoldRun]) -> list[Step]:
    """What is said of the runs that are taken over, for each pipeline and space."""
    taken = dict.fromkeys((run.derived.pipeline, run.derived.space) for run in runs if run.derived)
    steps = []
    for pipeline, space in taken:
        keys = [key for start, key in DERIVATIVE_CITATIONS.items() if pipeline.lower().startswith(start)]
        cite = f" [@{keys[0]}]" if keys else ""
        steps.append(Step("derivatives", {"pipeline": pipeline, "cite": cite, "way": way_in_words(space)}))
    return steps


def raw_steps(runs: Sequence[BoldRun], settings: Settings, template: dict[str, str]) -> list[Step]:
    """What is done with the runs that are preprocessed from raw data."""
    wanted = settings.preprocess
    steps = [Step("motion")]
    if any(run.t1w for run in runs):
        steps += [Step("t1w_prepare"), Step("t1w_template", template)]
    if SLICE_TIMING not in wanted.ignore and any(run.metadata.get("SliceTiming") for run in runs):
        steps.append(Step("slice_timing"))
    steps += describe_distortion(settings, runs)
    steps.append(Step("bold_mask"))
    if any(run.t1w for run in runs):
        steps.append(Step("bold_t1w"))
    if any(run.t1w is None for run in runs):
        steps.append(Step("bold_template", template))
    return [*steps, Step("confounds", {"fd_spike_mm": f"{wanted.fd_spike_threshold:g}"}), Step("resample")]


def describe_distortion(settings: Settings, runs: Sequence[BoldRun]) -> list[Step]:
    """What is done about distortion, in any of the runs."""
    chosen = {correction_of(run, settings.preprocess)[0] for run in runs if run.derived is None} - {""}
    measured = sorted(METHODS[method] for method in chosen - {SYN})
    steps = [Step("distortion", {"methods": " or ".join(measured)})] if measured else []
    if PAIR in chosen:
        steps.append(Step("distortion_pair"))
    if {PHASE_DIFFERENCE, TWO_PHASES} & chosen:
        steps.append(Step("distortion_phases"))
    return steps + ([Step("distortion_syn")] if SYN in chosen else [])
