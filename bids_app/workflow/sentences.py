"""Sentences of the methods text (`bids_app/outputs/methods.yml`) with their values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bids_app.adapters.calibration import ISOTONIC, TEMPERATURE, Calibration
from bids_app.adapters.file import CLASSIFICATION, EMBEDDING, AdapterCard
from bids_app.adapters.predict import KEEPS_THE_MEAN_IMAGE, LEVEL
from bids_app.bids.derivatives import DerivedRun
from bids_app.bids.fieldmaps import PAIR, PHASE_DIFFERENCE, TWO_PHASES
from bids_app.bids.query import BoldRun
from bids_app.catalog import templates
from bids_app.catalog.atlases import Atlas
from bids_app.clips import MODEL_TR
from bids_app.model.brainmarks import WrapperFacts
from bids_app.outputs.boilerplate import Sentence
from bids_app.outputs.cards import clip_average_in_words
from bids_app.preprocess.brainmarks_samples import IN_WORDS
from bids_app.preprocess.ingest.derivatives import describe_transform
from bids_app.preprocess.io.headers import SLICE_TIMING
from bids_app.preprocess.regions import MIN_COVERAGE
from bids_app.preprocess.sdc.choice import METHODS, SYN
from bids_app.settings import FUNC_SPACE, T1W_SPACE

TEMPLATE_CITATIONS = {"MNI152NLin6Asym": "mni6", "MNI152NLin2009aSym": "mni2009"}
SPACES_IN_WORDS = {FUNC_SPACE: "its own space", T1W_SPACE: "the space of the T1w image at 2 mm"}
DERIVATIVE_CITATIONS = {"fmriprep": "fmriprep", "hcp": "hcp", "xcp_d": "xcpd", "xcp-d": "xcpd", "uk biobank": "ukb"}
"""Citation keys of pipelines, by the start of their names."""


def invocation(seed: int) -> tuple[Sentence, ...]:
    """Return the sentences of every invocation."""
    return Sentence("query"), Sentence("seed", {"seed": seed})


def dummy_scans(n_dummy: int | None) -> Sentence:
    """Describe the handling of non-steady-state volumes; ``n_dummy`` is the value of ``--dummy-scans``."""
    rule = f"dropped (the first {n_dummy})" if n_dummy is not None else "detected from their signal and dropped"
    return Sentence("dummy_scans", {"rule": rule})


def slice_timing(run: BoldRun, ignored: Collection[str]) -> tuple[Sentence, ...]:
    """Describe slice-timing correction, if it is applied."""
    applies = SLICE_TIMING not in ignored and run.metadata.get("SliceTiming")
    return (Sentence("slice_timing"),) if applies else ()


def distortion(method: str) -> tuple[Sentence, ...]:
    """Describe susceptibility distortion correction by a method of `bids_app.preprocess.sdc`."""
    if method == SYN:
        return (Sentence("distortion_syn"),)
    found = [Sentence("distortion", {"methods": METHODS[method]})]
    if method == PAIR:
        found.append(Sentence("distortion_pair"))
    if method in (PHASE_DIFFERENCE, TWO_PHASES):
        found.append(Sentence("distortion_phases"))
    return tuple(found)


def derivatives(run: DerivedRun) -> Sentence:
    """Describe the ingestion of a run that another pipeline preprocessed."""
    keys = [key for start, key in DERIVATIVE_CITATIONS.items() if run.pipeline.lower().startswith(start)]
    cite = f" [@{keys[0]}]" if keys else ""
    way = describe_transform(run.space)
    if run.warp:
        way += f" (resampled from the space of the scan by {run.warp.name})"
    return Sentence("derivatives", {"pipeline": run.pipeline, "cite": cite, "way": way})


def template_values(name: str) -> dict[str, str]:
    """Return the values of the sentences about a template."""
    return {"template": name, "template_cite": TEMPLATE_CITATIONS[name]}


def substitute_template(name: str) -> tuple[Sentence, ...]:
    """Describe a template that substitutes the template of the model."""
    if templates.catalog()[name]["source"] != "nilearn":
        return ()
    return (Sentence("template_nilearn", {"template": name, "accuracy": templates.space(name).accuracy}),)


def output_spaces(spaces: Sequence[str], strategy: str | None) -> tuple[Sentence, ...]:
    """Describe the preprocessed series in output spaces, and their denoising by a strategy of nilearn."""
    if not spaces:
        return ()
    named = [SPACES_IN_WORDS.get(name, f"{name} at 2 mm") for name in spaces]
    found = (Sentence("output_spaces", {"spaces": " and ".join(named)}),)
    return found if strategy is None else (*found, Sentence("denoise", {"strategy": strategy}))


def timeseries(atlases: Sequence[Atlas], strategy: str | None) -> tuple[Sentence, ...]:
    """Describe the mean series of the regions of atlases, and their denoising by a strategy of nilearn."""
    named = " and ".join(atlas.title or atlas.name for atlas in atlases)
    found = (Sentence("timeseries", {"atlases": named, "min_coverage": f"{100 * MIN_COVERAGE:.0f} %"}),)
    if strategy is None:
        return (*found, Sentence("timeseries_plain"))
    return (*found, Sentence("timeseries_denoised", {"strategy": strategy}))


def encoder(name: str, sha256: str, clip_volumes: int) -> tuple[Sentence, ...]:
    """Describe the encoder, with the hash of its weights and the volumes of its clips."""
    return (
        Sentence(
            "model",
            {
                "model": name,
                "weights_sha256": sha256,
                "clip_volumes": clip_volumes,
                "clip_seconds": clip_volumes * MODEL_TR,
            },
        ),
        Sentence("embeddings", {"normalisations": "both normalisations"}),
        Sentence("halves"),
    )


def brainmarks(wrapper: WrapperFacts) -> tuple[Sentence, ...]:
    """Describe an encoder of Brainmarks, its input, and that its weights are random if they are."""
    weights = f"SHA-256 of the weights {wrapper.weights_sha256}" if wrapper.weights_sha256 else "without weights"
    facts = {"model": wrapper.name, "version": wrapper.version, "weights": weights, "inputs": IN_WORDS[wrapper.space]}
    found = (Sentence("brainmarks", facts),)
    return (*found, Sentence("untrained", facts)) if wrapper.is_untrained else found


def adapter(card: AdapterCard, false_alarms: float | None, on_out_of_domain: str) -> tuple[Sentence, ...]:
    """Describe an adapter, its verdict rules and its calibration.

    Parameters
    ----------
    card : AdapterCard
    false_alarms : float, optional
        Fraction of in-distribution scans that are classified as out-of-distribution; None: no reference statistics.
    on_out_of_domain : str
        ``warn`` or ``refuse``.
    """
    facts: dict[str, Any] = {
        "adapter": card.name,
        "target": card.target,
        "cohort": describe_cohort(card.cohort),
        "average": clip_average_in_words(card),
    }
    found = [Sentence("adapter", facts)]
    if card.research_only:
        found.append(Sentence("research_only", facts))
    rule = {"warn": "flagged with a warning", "refuse": "refused"}[on_out_of_domain]
    found += [Sentence("verdict", {"out_of_domain": rule}), Sentence("clips_uncertainty")]
    if false_alarms is not None:
        found.append(Sentence("domain", facts | {"share": f"{100 * (1 - false_alarms):.1f} %"}))
    found += calibration(card)
    if card.twin:
        found.append(Sentence("twin", facts | {"other": card.twin["normalisation"]}))
    if card.normalisation == KEEPS_THE_MEAN_IMAGE:
        found.append(Sentence("mean_image", facts))
    return tuple(found)


def calibration(card: AdapterCard) -> list[Sentence]:
    """Describe the calibration of an adapter, and the coverage of its intervals or label sets."""
    if card.task == EMBEDDING:
        return []
    if not card.calibration:
        return [Sentence("not_calibrated", {"adapter": card.name})]
    made = Calibration.from_dict(card.calibration)
    people = f" of {made.n_participants} participants" if made.n_participants else ""
    facts = {
        "adapter": card.name,
        "scans": f"{made.n_scans} scans{people}",
        "source": f" ({made.source})" if made.source else "",
        "coverage": made.promise_at_own_sites().coverage,
    }
    found = [Sentence(made.method, facts)] if made.method in (TEMPERATURE, ISOTONIC) else []
    if not made.promise_at_own_sites().limits:
        return [*found, Sentence("no_coverage", facts)]
    is_classes = card.task == CLASSIFICATION
    promise = {
        "kind": "Sets of labels" if is_classes else "Intervals",
        "level": f"{100 * LEVEL:.0f} %",
        "by_class": ", and a second set calibrated within each class [@mondrian]" if is_classes else "",
    }
    return [*found, Sentence("intervals", facts | promise)]


def describe_cohort(cohort: Mapping[str, Any]) -> str:
    """Describe the training cohort of an adapter."""
    counts = [f"{cohort[name]} {name}" for name in ("participants", "scans") if name in cohort]
    named = [str(cohort["description"])] if "description" in cohort else []
    return ", ".join(named + counts) or "a cohort that is not described in its card"
