"""The method: which steps lead from a run to its outputs, and what each needs; it reads top to bottom.

Each step is a function of another room (`graph.py` says how it becomes a node of nipype).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.datasets import input_datasets
from bids_app.bids.participants import read_ages
from bids_app.bids.query import BoldRun
from bids_app.catalog import templates
from bids_app.catalog.atlases import find_atlas
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import find_model, weights_path
from bids_app.outputs import anatomical, functional, predictions
from bids_app.outputs import attribution as attributions
from bids_app.outputs.publish import publish
from bids_app.preprocess.anatomical import normalise_t1w
from bids_app.preprocess.hmc import correct_motion
from bids_app.preprocess.ingest.derivatives import take_over
from bids_app.preprocess.run import collect_run
from bids_app.preprocess.sdc.estimate import SYN, correction_of
from bids_app.settings import Settings
from bids_app.workflow import nodes
from bids_app.workflow.adapters import chosen_adapters
from bids_app.workflow.engine import Graph, Step, file_stamp
from bids_app.workflow.memory import step_gb
from bids_app.workflow.provenance import hash_inputs


@dataclass(frozen=True)
class ChosenModel:
    """The model and adapters to apply, found on this machine."""

    name: str
    adapters: tuple[Path, ...]
    stamp: str
    hashes: dict[str, str]
    """The sha256 of each file, by its path."""


def choose_model(settings: Settings) -> ChosenModel:
    """Find the weights and the adapters that were asked for."""
    wanted = settings.model
    entry = find_model(wanted.model)
    weights, adapters = weights_path(entry), chosen_adapters(settings)
    stamp = ";".join((file_stamp(weights), *(adapter.stamp for adapter in adapters)))
    hashes = {str(weights): file_sha256(weights)} | {str(adapter.path): adapter.sha256 for adapter in adapters}
    return ChosenModel(wanted.model, tuple(adapter.path for adapter in adapters), stamp, hashes)


@dataclass(frozen=True)
class Shared:
    """What is the same for all runs, and found once: files are opened and hashed for it."""

    settings: Settings
    model: ChosenModel
    template: str
    datasets: dict[str, Path]
    """Those that are read, by their names in ``DatasetLinks``."""
    atlas_stamp: str
    on_gpu: bool
    ages: dict[str, float]
    """Of the participants that ``participants.tsv`` tells of, years."""

    @property
    def computing(self) -> dict[str, Any]:
        """Where a step computes with the model, and with what."""
        n_procs = self.settings.resources.n_procs
        return {
            "device": self.settings.model.device,
            "threads": n_procs,
            "n_procs": 1 if self.on_gpu else n_procs,
            "gpu": self.on_gpu,
        }


def what_runs_share(settings: Settings) -> Shared:
    """Find it."""
    wanted = settings.model
    datasets = input_datasets(settings.bids_dir, settings.query.derivatives)
    return Shared(
        settings=settings,
        model=choose_model(settings),
        template=templates.available()[0],
        datasets=datasets,
        ages=read_ages(datasets.values()),
        atlas_stamp=file_stamp(find_atlas(wanted.atlas).path) if wanted.attribution else "",
        on_gpu=nodes.choose_device(wanted.device).startswith("cuda"),
    )


@dataclass(frozen=True)
class Anatomy:
    """The steps of a T1w image that others need."""

    aligned: Step
    published: Step


def add_run(graph: Graph, run: BoldRun, anatomies: dict[Path, Anatomy], shared: Shared) -> Step:
    """Add the steps of one run, and those of its T1w image if they are not there yet; return the last."""
    settings, model = shared.settings, shared.model
    wanted, threads, all_threads = settings.preprocess, settings.resources.omp_threads, settings.resources.n_procs
    name = node_name(run.stem)
    anatomy = add_anatomy(graph, run, anatomies, shared)
    preprocessed = from_derivatives(graph, run, settings) if run.derived else from_raw(graph, run, anatomy, shared)
    grid = graph.step(
        f"{name}_grid",
        nodes.put_on_grid,
        preprocessed=preprocessed,
        threads=all_threads,
        n_procs=all_threads,
        memory_gb=step_gb(run),
    )
    encoded = graph.step(
        f"{name}_encode",
        nodes.encode,
        grid=grid,
        model=model.name,
        adapters=model.adapters,
        stamp=model.stamp,
        memory_gb=2,
        **shared.computing,
    )
    judged = graph.step(
        f"{name}_judge",
        nodes.judge,
        encoded=encoded,
        preprocessed=preprocessed,
        grid=grid,
        age=shared.ages.get(run.participant),
        on_out_of_domain=settings.model.on_out_of_domain,
    )

    preprocessing = graph.step(
        f"{name}_outputs",
        functional.run_outputs,
        preprocessed=preprocessed,
        grid=grid,
        entities=run.entities,
        datasets=shared.datasets,
        notes=run.notes,
        output_spaces=wanted.output_spaces,
        threads=threads,
    )
    tables = graph.step(
        f"{name}_tables",
        predictions.model_outputs,
        encoded=judged,
        preprocessed=preprocessed,
        entities=run.entities,
        datasets=shared.datasets,
    )
    attribution = None
    if settings.model.attribution:
        attribution = add_attribution(graph, run, grid, judged, preprocessed, shared)
    figures = None
    if not settings.model.embeddings_only:
        figures = graph.step(
            f"{name}_figures",
            functional.run_figures,
            preprocessed=preprocessed,
            grid=grid,
            encoded=judged,
            entities=run.entities,
            fd_spike_mm=wanted.fd_spike_threshold,
        )
    return graph.step(
        f"{name}_publish",
        publish,
        target=settings.out_dir,
        preprocessing=preprocessing,
        model=tables,
        attribution=attribution,
        figures=figures,
        anatomy=anatomy.published if anatomy else None,
        always=True,
    )


def add_hashes(graph: Graph, run: BoldRun, shared: Shared) -> Step:
    """Add the step that hashes what a run is made from."""
    fieldmap = run.fieldmap.files if run.fieldmap else ()
    beside = run.derived.companions if run.derived else ()
    files = tuple(filter(None, (run.bold, run.events, run.t1w, *run.t1w_repeats, *fieldmap, *beside)))
    return graph.step(
        f"{node_name(run.stem)}_hashes",
        hash_inputs,
        files=files,
        datasets=shared.datasets,
        stamp="".join(map(file_stamp, files)),
        n_procs=1,
        memory_gb=0.5,
    )


def add_attribution(graph: Graph, run: BoldRun, grid: Step, encoded: Step, preprocessed: Step, shared: Shared) -> Step:
    """Add the steps that say which regions the answers depend on; return the last."""
    name, wanted, model = node_name(run.stem), shared.settings.model, shared.model
    attributed = graph.step(
        f"{name}_attribute",
        nodes.attribute_run,
        grid=grid,
        encoded=encoded,
        model=model.name,
        adapters=model.adapters,
        method=wanted.attribution,
        atlas=wanted.atlas,
        stamp=model.stamp + shared.atlas_stamp,
        memory_gb=3,
        **shared.computing,
    )
    return graph.step(
        f"{name}_attribution",
        attributions.attribution_outputs,
        attributed=attributed,
        encoded=encoded,
        preprocessed=preprocessed,
        entities=run.entities,
        datasets=shared.datasets,
    )


def from_raw(graph: Graph, run: BoldRun, anatomy: Anatomy | None, shared: Shared) -> Step:
    """Add the steps from a raw run to a `PreprocessedRun`; return the last."""
    wanted, threads = shared.settings.preprocess, shared.settings.resources.omp_threads
    seed = wanted.random_seed
    name = node_name(run.stem)
    aligned_t1w = anatomy.aligned if anatomy else None
    series = graph.step(
        f"{name}_examine",
        nodes.examine,
        bold=run.bold,
        metadata=run.metadata,
        events=run.events,
        dummy_scans=wanted.dummy_scans,
        ignore=wanted.ignore,
        stamp=file_stamp(run.bold) + file_stamp(run.events),
    )
    motion = graph.step(f"{name}_motion", correct_motion, series=series, threads=threads, memory_gb=step_gb(run))
    method, told = correction_of(run, wanted)
    if method:
        motion = graph.step(
            f"{name}_sdc",
            nodes.unwarp,
            series=series,
            motion=motion,
            metadata=run.metadata,
            method=method,
            fieldmap=run.fieldmap,
            seed=seed,
            stamp="".join(map(file_stamp, run.fieldmap.files)) if run.fieldmap else "",
            anatomy=aligned_t1w if method == SYN else None,
        )
    reference = graph.step(f"{name}_mask", nodes.mask_run, series=series, motion=motion)
    alignment = graph.step(
        f"{name}_align",
        nodes.align,
        reference=reference,
        template=shared.template,
        seed=seed,
        anatomy=aligned_t1w,
        memory_gb=2,
    )
    confounds = graph.step(
        f"{name}_confounds",
        nodes.confounds,
        series=series,
        motion=motion,
        alignment=alignment,
        fd_spike_mm=wanted.fd_spike_threshold,
        threads=threads,
        memory_gb=step_gb(run),
    )
    return graph.step(
        f"{name}_collect",
        collect_run,
        series=series,
        motion=motion,
        reference=reference,
        alignment=alignment,
        confounds=confounds,
        seed=seed,
        notes=(told,),
        anatomy=aligned_t1w,
    )


def from_derivatives(graph: Graph, run: BoldRun, settings: Settings) -> Step:
    """Add the steps that take a run over from derivatives; return the last."""
    assert run.derived is not None
    name = node_name(run.stem)
    files = (run.bold, *run.derived.companions)
    series = graph.step(
        f"{name}_examine",
        nodes.examine_taken,
        derived=run.derived,
        metadata=run.metadata,
        events=run.events,
        dummy_scans=settings.preprocess.dummy_scans,
        stamp="".join(map(file_stamp, (*files, run.events))),
    )
    return graph.step(f"{name}_takeover", take_over, series=series, derived=run.derived, memory_gb=2)


def add_anatomy(graph: Graph, run: BoldRun, anatomies: dict[Path, Anatomy], shared: Shared) -> Anatomy | None:
    """Add the steps of a run's T1w image, once for all runs that share it; None when there is no T1w image."""
    seed = shared.settings.preprocess.random_seed
    if run.t1w is None:
        return None
    if run.t1w not in anatomies:
        name = node_name(run.t1w.name.partition(".")[0])
        prepared = graph.step(
            f"{name}_prepare",
            nodes.prepare_anatomy,
            t1w=run.t1w,
            repeats=run.t1w_repeats,
            seed=seed,
            stamp="".join(map(file_stamp, (run.t1w, *run.t1w_repeats))),
            memory_gb=2,
        )
        aligned = graph.step(
            f"{name}_normalise",
            normalise_t1w,
            prepared=prepared,
            template=shared.template,
            seed=seed,
            memory_gb=2,
        )
        tree = graph.step(
            f"{name}_outputs",
            anatomical.anatomy_outputs,
            anatomy=aligned,
            datasets=shared.datasets,
            memory_gb=2,
        )
        anatomies[run.t1w] = Anatomy(aligned, tree)
    return anatomies[run.t1w]


def node_name(stem: str) -> str:
    """A BIDS name as nipype wants it: different names stay different, since BIDS labels hold no underscore."""
    return re.sub(r"[^0-9A-Za-z]", lambda match: "_" if match[0] in "_-" else f"x{ord(match[0]):x}", stem)
