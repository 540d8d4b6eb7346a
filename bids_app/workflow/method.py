"""The processing graph, in order: T1w image, BOLD run, model, outputs.

The order of steps is defined only here. Each step is a plain function with its line of ``--check`` and its sentences of
the methods text. `engine.py` runs the graph with nipype; tests and benchmarks run it in their own process
(`bids_app.workflow.in_process`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.query import BoldRun
from bids_app.bids.sidecars import SCANNER_KEYS, is_simulated
from bids_app.bids.writer import dataset_uri
from bids_app.outputs import anatomical, functional, predictions, regions
from bids_app.outputs import attribution as attribution_outputs
from bids_app.outputs.boilerplate import Sentence
from bids_app.outputs.publish import Publication, publish
from bids_app.outputs.schema import MODEL, PREPROCESSING
from bids_app.preprocess.hmc import correct_motion
from bids_app.preprocess.ingest.derivatives import ingest_run
from bids_app.preprocess.preprocessed import OnGrid
from bids_app.preprocess.sdc.choice import SYN, correction_of
from bids_app.workflow import encoding, nodes, sentences
from bids_app.workflow.bids_prov import activity_ids
from bids_app.workflow.brainmarks import encode_with_brainmarks
from bids_app.workflow.configuration import configuration_hash, number_options
from bids_app.workflow.context import RunContext
from bids_app.workflow.graph import Graph, Step, file_stamp
from bids_app.workflow.memory import step_gb
from bids_app.workflow.provenance import hash_inputs


@dataclass(frozen=True)
class AnatomySteps:
    """Steps of a T1w image that other steps depend on."""

    prepared: Step
    normalised: Step
    outputs: Step


@dataclass(frozen=True)
class RunSteps:
    """Steps of a run whose results are used elsewhere."""

    preprocessed: Step
    """Returns a `PreprocessedRun`."""
    grid: Step
    """Returns the run on the model grid."""
    published: tuple[Step, Step]
    """Last steps: return the names of the files in the output folder, of preprocessing and of the model."""
    hashes: Step
    """Returns the checksums of the input files."""

    @property
    def last(self) -> tuple[Step, ...]:
        """Steps that no other step needs."""
        return (*self.published, self.hashes)


def add_run(graph: Graph, run: BoldRun, context: RunContext) -> RunSteps:
    """Add all steps of a run, and of its T1w image if the graph does not have them yet."""
    anatomy = add_anatomy(graph, run, context) if run.t1w else None
    if run.derived:
        preprocessed = add_derivatives(graph, run, context)
        grid = add_grid(graph, run, nodes.resample_derivative, {"preprocessed": preprocessed}, context)
    else:
        preprocessed, alignment = add_raw(graph, run, anatomy, context)
        grid = add_grid(graph, run, nodes.resample, alignment, context)
    predicted = add_model(graph, run, preprocessed, grid, context)
    published = add_outputs(graph, run, anatomy, preprocessed, grid, predicted, context)
    return RunSteps(preprocessed, grid, published, add_hashes(graph, run, context))


def add_anatomy(graph: Graph, run: BoldRun, context: RunContext) -> AnatomySteps:
    """Add the steps of the T1w image of a run, once for all runs that share it."""
    assert run.t1w is not None
    name = node_name(run.t1w.name.partition(".")[0])
    if f"{name}_outputs" in graph.steps:
        return AnatomySteps(*(graph.steps[f"{name}_{kind}"] for kind in ("prepare", "normalise", "outputs")))
    wanted = context.settings.preprocess
    seed = wanted.random_seed
    prepared = graph.step(
        f"{name}_prepare",
        nodes.prepare_anatomy,
        does="T1w: average repeated images, extract the brain (deepbet), remove the bias field (N4)",
        sentences=(Sentence("t1w_prepare"),),
        t1w=run.t1w,
        repeats=run.t1w_repeats,
        seed=seed,
        threads=context.settings.resources.omp_threads,
        required=wanted.fail_without_t1w,
        stamp="".join(map(file_stamp, (run.t1w, *run.t1w_repeats))),
        memory_gb=2,
    )
    normalised = graph.step(
        f"{name}_normalise",
        nodes.normalise_anatomy,
        does=f"T1w: register to {context.template} (rigid, affine, diffeomorphic), segment tissues",
        sentences=(
            Sentence("t1w_template", context.template_values),
            *((Sentence("t1w_lesion"),) if run.lesion else ()),
            *context.template_sentences,
        ),
        prepared=prepared,
        template=context.template,
        lesion=run.lesion,
        stamp=file_stamp(run.lesion),
        seed=seed,
        required=wanted.fail_without_t1w,
        memory_gb=2,
        **context.device,
    )
    outputs = graph.step(
        f"{name}_outputs",
        anatomical.anatomy_outputs,
        anatomy=normalised,
        datasets=context.datasets,
        output_spaces=wanted.output_spaces,
        memory_gb=2,
    )
    return AnatomySteps(prepared, normalised, outputs)


def add_raw(
    graph: Graph, run: BoldRun, anatomy: AnatomySteps | None, context: RunContext
) -> tuple[Step, dict[str, Step]]:
    """Add the steps from a raw run to a `PreprocessedRun`.

    Returns
    -------
    tuple
        The last step, and the steps whose results `nodes.resample` needs, by argument. The latter do not include the
        confounds, so that other confounds repeat neither resampling nor encoding.
    """
    wanted, threads = context.settings.preprocess, context.settings.resources.omp_threads
    seed = wanted.random_seed
    name = node_name(run.stem)
    t1w = anatomy.normalised if anatomy else None
    method, choice = correction_of(run, wanted)
    series = graph.step(
        f"{name}_examine",
        nodes.examine,
        does="BOLD: check header and sidecar, find non-steady-state volumes, read slice times",
        sentences=(sentences.dummy_scans(wanted.dummy_scans), *sentences.slice_timing(run, wanted.ignore)),
        bold=run.bold,
        metadata=run.metadata,
        events=run.events,
        dummy_scans=wanted.dummy_scans,
        ignore=wanted.ignore,
        stamp=file_stamp(run.bold) + file_stamp(run.events),
    )
    motion = graph.step(
        f"{name}_hmc",
        correct_motion,
        does="BOLD: estimate head motion (rigid, two passes)",
        sentences=(Sentence("motion"),),
        series=series,
        threads=threads,
        memory_gb=step_gb(run),
        **context.device,
    )
    if run.sbref:
        motion = graph.step(
            f"{name}_sbref",
            nodes.sbref,
            does="BOLD: use the SBRef as reference image, aligned with the run",
            sentences=(Sentence("sbref"),),
            motion=motion,
            sbref=run.sbref,
            run_name=run.bold.name,
            stamp=file_stamp(run.sbref),
        )
    if run.echoes:
        series, motion = add_echoes(graph, run, series, motion, context)
    if method:
        motion = graph.step(
            f"{name}_sdc",
            nodes.correct_distortion,
            does="BOLD: correct susceptibility distortion",
            sentences=sentences.distortion(method),
            series=series,
            motion=motion,
            metadata=run.metadata,
            method=method,
            fieldmap=run.fieldmap,
            seed=seed,
            stamp="".join(map(file_stamp, run.fieldmap.files)) if run.fieldmap else "",
            anatomy=t1w if method == SYN else None,
        )
    reference = graph.step(
        f"{name}_mask",
        nodes.mask_run,
        does="BOLD: mask the brain in the reference image",
        sentences=(Sentence("bold_mask"),),
        series=series,
        motion=motion,
    )
    start = None
    if anatomy:
        start = graph.step(
            f"{name}_search",
            nodes.search_alignment,
            reference=reference,
            prepared=anatomy.prepared,
            seed=seed,
        )
    to_template = Sentence("bold_template", context.template_values)
    alignment = graph.step(
        f"{name}_align",
        nodes.align,
        does="BOLD: register to the T1w (rigid, boundary-based)"
        if t1w
        else f"BOLD: register to {context.template} directly (no T1w)",
        sentences=(Sentence("bold_t1w") if t1w else to_template, *context.template_sentences),
        reference=reference,
        template=context.template,
        seed=seed,
        required=wanted.fail_without_t1w,
        anatomy=t1w,
        start=start,
        memory_gb=2,
    )
    confounds = graph.step(
        f"{name}_confounds",
        nodes.confounds,
        does="BOLD: confounds and image quality metrics",
        sentences=(
            Sentence("confounds", {"fd_spike_mm": f"{wanted.fd_spike_threshold:g}"}),
            Sentence("quality"),
        ),
        series=series,
        motion=motion,
        alignment=alignment,
        fd_spike_mm=wanted.fd_spike_threshold,
        threads=threads,
        memory_gb=step_gb(run),
    )
    collected = graph.step(
        f"{name}_collect",
        nodes.collect,
        series=series,
        motion=motion,
        reference=reference,
        alignment=alignment,
        confounds=confounds,
        seed=seed,
        notes=(choice,),
        corrects_distortion=bool(method),
        echoes=run.echoes[1:],
        anatomy=t1w,
        short=True,
    )
    return collected, {"series": series, "motion": motion, "alignment": alignment}


def add_echoes(graph: Graph, run: BoldRun, first: Step, motion: Step, context: RunContext) -> tuple[Step, Step]:
    """Add the steps that combine the echoes of a run; return those of the combined series and its motion."""
    name, wanted = node_name(run.stem), context.settings.preprocess
    combined = graph.step(
        f"{name}_combine",
        nodes.combine,
        does=f"BOLD: combine {len(run.echoes)} echoes by T2*",
        sentences=(Sentence("multi_echo", {"n_echoes": str(len(run.echoes))}),),
        first=first,
        others=run.echoes[1:],
        echo_times=run.echo_times,
        metadata=run.metadata,
        motion=motion,
        ignore=wanted.ignore,
        threads=context.settings.resources.omp_threads,
        stamp="".join(map(file_stamp, run.echoes)),
        memory_gb=step_gb(run),
    )
    return (
        graph.step(f"{name}_series", nodes.combined_series, combined=combined, short=True),
        graph.step(f"{name}_motion", nodes.combined_motion, combined=combined, short=True),
    )


def add_derivatives(graph: Graph, run: BoldRun, context: RunContext) -> Step:
    """Add the steps from a run of other derivatives to a `PreprocessedRun`; return the last."""
    assert run.derived is not None
    name, dummy_scans = node_name(run.stem), context.settings.preprocess.dummy_scans
    files = (run.bold, *run.derived.companions, run.events)
    series = graph.step(
        f"{name}_examine",
        nodes.examine_derivative,
        does="BOLD: check the preprocessed series, its brain mask and confounds",
        sentences=(sentences.dummy_scans(dummy_scans),),
        derived=run.derived,
        metadata=run.metadata,
        events=run.events,
        dummy_scans=dummy_scans,
        stamp="".join(map(file_stamp, files)),
    )
    return graph.step(
        f"{name}_ingest",
        ingest_run,
        does=f"BOLD: ingest from {run.derived.pipeline}, check the orientation, compute image quality metrics",
        sentences=(sentences.derivatives(run.derived), Sentence("quality"), *context.template_sentences),
        series=series,
        derived=run.derived,
        memory_gb=2,
    )


def add_grid(
    graph: Graph, run: BoldRun, resample: Callable[..., OnGrid], needed: Mapping[str, Any], context: RunContext
) -> Step:
    """Add the single interpolation from the original volumes to the model grid, from the results that it needs."""
    return graph.step(
        f"{node_name(run.stem)}_grid",
        resample,
        does="BOLD: resample to the model grid (2 mm, 96 x 96 x 96) in one interpolation",
        sentences=() if run.derived else (Sentence("resample"),),
        threads=context.settings.resources.n_procs,
        memory_gb=step_gb(run),
        **context.device,
        **needed,
    )


def add_model(graph: Graph, run: BoldRun, preprocessed: Step, grid: Step, context: RunContext) -> Step:
    """Add the encoder, the adapters and the verdicts on scan and predictions; return the last step."""
    name, model = node_name(run.stem), context.model
    if model.wrapper is not None:
        encoded = graph.step(
            f"{name}_encode",
            encode_with_brainmarks,
            does=f"Model: embed the run at its own repetition time ({model.name})",
            sentences=model.sentences,
            grid=grid,
            preprocessed=preprocessed,
            wrapper=model.wrapper,
            stamp=model.stamp,
            memory_gb=step_gb(run),
            **context.computing,
        )
    else:
        encoded = graph.step(
            f"{name}_encode",
            encoding.encode,
            does="Model: embed clips of the encoder's length at 0.8 s, apply the adapters",
            sentences=model.sentences,
            grid=grid,
            model=model.name,
            adapters=model.adapters,
            stamp=model.stamp,
            memory_gb=2,
            **context.computing,
        )
    return graph.step(
        f"{name}_judge",
        nodes.judge,
        does="Model: verdict on the scan and on each prediction",
        encoded=encoded,
        preprocessed=preprocessed,
        grid=grid,
        age=context.ages.get(run.participant),
        site=context.sites.get(run.participant),
        simulated=is_simulated(run.metadata),
        on_out_of_domain=context.settings.model.on_out_of_domain,
        short=True,
    )


def add_attribution(
    graph: Graph, run: BoldRun, preprocessed: Step, grid: Step, predicted: Step, context: RunContext
) -> Step:
    """Add the steps that attribute predictions to regions; return the last."""
    name, wanted, model = node_name(run.stem), context.settings.model, context.model
    attributed = graph.step(
        f"{name}_attribute",
        nodes.attribute_run,
        does=f"Attribution: contribution of each region of {wanted.atlas} ({wanted.attribution})",
        sentences=context.attribution_sentences,
        grid=grid,
        encoded=predicted,
        model=model.name,
        adapters=model.adapters,
        method=wanted.attribution,
        control=wanted.attribution_control,
        n_clips=wanted.attribution_clips,
        seed=context.settings.preprocess.random_seed,
        atlas=wanted.atlas,
        stamp=model.stamp + context.atlas_stamp,
        memory_gb=3,
        **context.computing,
    )
    return graph.step(
        f"{name}_attribution",
        attribution_outputs.attribution_outputs,
        attributed=attributed,
        encoded=predicted,
        preprocessed=preprocessed,
        grid=grid,
        entities=run.entities,
        datasets=context.datasets,
    )


def add_regions(graph: Graph, run: BoldRun, preprocessed: Step, grid: Step, context: RunContext) -> Step:
    """Add the step that writes tables by region of atlases; it does not depend on the model."""
    settings, atlases = context.settings, context.region_atlases
    named = " and ".join(atlas.name for atlas in atlases)
    return graph.step(
        f"{node_name(run.stem)}_regions",
        regions.region_outputs,
        does=f"Outputs: mean series and correlations of the regions of {named}",
        sentences=sentences.timeseries(atlases, settings.preprocess.denoise),
        grid=grid,
        preprocessed=preprocessed,
        atlases=atlases,
        denoise=settings.preprocess.denoise,
        figures=not settings.model.embeddings_only,
        entities=run.entities,
        datasets=context.datasets,
        stamp="".join(file_stamp(atlas.path) for atlas in atlases),
    )


def add_outputs(
    graph: Graph,
    run: BoldRun,
    anatomy: AnatomySteps | None,
    preprocessed: Step,
    grid: Step,
    predicted: Step,
    context: RunContext,
) -> tuple[Step, Step]:
    """Add the steps that write derivatives and figures and copy them to the output folder.

    The outputs of preprocessing are published by a separate step, so that they do not depend on the model.
    """
    name, settings = node_name(run.stem), context.settings
    wanted = settings.preprocess
    preprocessing = graph.step(
        f"{name}_outputs",
        functional.run_outputs,
        does="Outputs: confounds, masks, references, transforms, image quality metrics",
        sentences=sentences.output_spaces(wanted.output_spaces, wanted.denoise),
        preprocessed=preprocessed,
        grid=grid,
        entities=run.entities,
        datasets=context.datasets,
        notes=run.notes,
        output_spaces=wanted.output_spaces,
        denoise=wanted.denoise,
        threads=settings.resources.omp_threads,
    )
    tables = graph.step(
        f"{name}_tables",
        predictions.model_outputs,
        does="Outputs: embeddings and predictions",
        encoded=predicted,
        preprocessed=preprocessed,
        entities=run.entities,
        datasets=context.datasets,
        short=True,
    )
    attribution = None
    if settings.model.attribution:
        attribution = add_attribution(graph, run, preprocessed, grid, predicted, context)
    figures = None
    if not settings.model.embeddings_only:
        figures = graph.step(
            f"{name}_figures",
            functional.run_figures,
            does="Outputs: figures of the report",
            preprocessed=preprocessed,
            grid=grid,
            encoded=predicted,
            entities=run.entities,
            fd_spike_mm=wanted.fd_spike_threshold,
        )
    clips = None
    if wanted.output_clips:
        clips = graph.step(
            f"{name}_clips",
            nodes.clip_outputs,
            does=f"Outputs: clips for training ({' and '.join(wanted.output_clips)} normalisation)",
            grid=grid,
            preprocessed=preprocessed,
            entities=run.entities,
            metadata={key: run.metadata[key] for key in SCANNER_KEYS if key in run.metadata},
            source=dataset_uri(run.bold, context.datasets),
            normalisations=wanted.output_clips,
            memory_gb=2,
        )
    tables_by_region = add_regions(graph, run, preprocessed, grid, context) if wanted.timeseries else None
    options = number_options(run, context)
    trees = {
        "anatomy": anatomy.outputs if anatomy else None,
        "preprocessing": preprocessing,
        "clips": clips,
        "regions": tables_by_region,
        "model": tables,
        "attribution": attribution,
    }
    publication = Publication(
        run.stem,
        graph.invocation,
        configuration_hash(options),
        options,
        preprocessed.stamp,
        activity_ids(trees) if settings.provenance else {},
    )
    return (
        graph.step(
            f"{name}_publish",
            publish,
            target=settings.out_dir,
            part=PREPROCESSING,
            publication=publication,
            preprocessing=preprocessing,
            clips=clips,
            regions=tables_by_region,
            anatomy=anatomy.outputs if anatomy else None,
            always=True,
            short=True,
        ),
        graph.step(
            f"{name}_publish_model",
            publish,
            target=settings.out_dir,
            part=MODEL,
            publication=publication,
            model=tables,
            attribution=attribution,
            figures=figures,
            always=True,
            short=True,
        ),
    )


def add_hashes(graph: Graph, run: BoldRun, context: RunContext) -> Step:
    """Add the step that hashes the input files of a run."""
    fieldmap = run.fieldmap.files if run.fieldmap else ()
    companions = run.derived.companions if run.derived else ()
    inputs = (
        *(run.echoes or (run.bold,)),
        *run.sidecars,
        run.sbref,
        run.events,
        run.t1w,
        *run.t1w_repeats,
        run.lesion,
        *fieldmap,
        *companions,
    )
    files: tuple[Path, ...] = tuple(filter(None, inputs))
    return graph.step(
        f"{node_name(run.stem)}_hashes",
        hash_inputs,
        files=files,
        datasets=context.datasets,
        stamp="".join(map(file_stamp, files)),
        n_procs=1,
        memory_gb=0.5,
    )


def methods_sentences(runs: Sequence[BoldRun], context: RunContext) -> list[Sentence]:
    """Return the sentences of the methods text for all runs, in order, each once."""
    unique: list[Sentence] = list(sentences.invocation(context.settings.preprocess.random_seed))
    for run in runs:
        if run.problem is None:
            graph = Graph(stamped=False)  # one per run, since there may be thousands
            add_run(graph, run, context)
            for sentence in (sentence for step in graph.steps.values() for sentence in step.sentences):
                if sentence not in unique:
                    unique.append(sentence)
    return unique


def plan_of(run: BoldRun, context: RunContext) -> list[str]:
    """Return the processing steps of a run, one line each, for ``--check``."""
    graph = Graph(stamped=False)
    add_run(graph, run, context)
    return [step.does for step in graph.steps.values() if step.does]


def node_name(stem: str) -> str:
    """Convert a BIDS name to a nipype node name; names stay unique, since BIDS labels contain no underscore."""
    return re.sub(r"[^0-9A-Za-z]", lambda match: "_" if match[0] in "_-" else f"x{ord(match[0]):x}", stem)
