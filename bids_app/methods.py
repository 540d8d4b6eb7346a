"""Which steps an invocation takes, in the terms of the methods text (`bids_app/reports/methods.yml`)."""

from __future__ import annotations

from collections.abc import Sequence

from bids_app.adapters.file import load_adapter
from bids_app.bids.query import BoldRun
from bids_app.catalog import templates
from bids_app.catalog.models import adapter_paths, find_model, weights_path
from bids_app.model.checkpoint import read_checkpoint, weights_sha256
from bids_app.preprocess.images import SLICE_TIMING
from bids_app.reports.methods import Step
from bids_app.settings import Settings

TEMPLATE_CITATIONS = {"MNI152NLin6Asym": "mni6", "MNI152NLin2009aSym": "mni2009"}


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
    steps = [Step("query")]
    if any(run.t1w for run in runs):
        steps += [Step("t1w_prepare"), Step("t1w_template", template)]
    rule = f"dropped (the first {wanted.dummy_scans})" if fixed else "found by their signal and dropped"
    steps += [Step("dummy_scans", {"rule": rule}), Step("motion")]
    if SLICE_TIMING not in wanted.ignore and any(run.metadata.get("SliceTiming") for run in runs):
        steps.append(Step("slice_timing"))
    steps.append(Step("bold_mask"))
    if any(run.t1w for run in runs):
        steps.append(Step("bold_t1w"))
    if any(run.t1w is None for run in runs):
        steps.append(Step("bold_template", template))
    steps += [Step("confounds", {"fd_spike_mm": f"{wanted.fd_spike_threshold:g}"}), Step("resample")]
    if templates.catalog()[name]["source"] == "nilearn":
        steps.append(Step("template_nilearn", {"template": name, "accuracy": templates.space(name).accuracy}))
    if wanted.output_spaces:
        steps.append(Step("output_spaces", {"spaces": " and ".join(wanted.output_spaces)}))
    entry = find_model(settings.model.model)
    checkpoint = read_checkpoint(weights_path(entry))
    facts = {"model": entry.name, "weights_sha256": weights_sha256(checkpoint.encoder)}
    steps += [Step("model", facts), Step("embeddings", {"normalisations": "both normalisations"})]
    if not settings.model.embeddings_only:
        for path in adapter_paths(entry, settings.model.adapters):
            card = load_adapter(path).card
            cohort = str(card.cohort.get("description", "a cohort that its card does not describe"))
            steps.append(Step("adapter", {"target": card.target, "adapter": card.name, "cohort": cohort}))
    return steps, entry.name if checkpoint.demonstration else ""
