"""The participant level: one graph of steps for all runs that were asked for; it reads top to bottom as the method.

Each step is a function of another room (`graph.py` says how it becomes a node of nipype). One run that fails takes no
other with it, and what is done is written at once.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app import attributions, outputs, steps
from bids_app.adapters.verdict import REFUSE
from bids_app.bids.derivatives import remove_leftovers
from bids_app.bids.description import check_output_folder, describe_outputs
from bids_app.bids.locks import Locks, is_anybody_in, lock_files
from bids_app.bids.participants import read_ages
from bids_app.bids.query import BoldRun, find_runs
from bids_app.bids.sidecars import read_json
from bids_app.bids.takeover import input_datasets
from bids_app.catalog import templates
from bids_app.catalog.atlases import find_atlas
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import adapter_paths, find_model, weights_path
from bids_app.checks import check_private, preflight
from bids_app.errors import EXIT_OK, CannotCreateError, InputOutputError, NoInputError, TemporaryError
from bids_app.graph import Graph, Step, file_stamp, remove_caches
from bids_app.memory import step_gb, with_memory_checked
from bids_app.methods import describe_method
from bids_app.plan import print_plan
from bids_app.preprocess.anatomy import normalise_t1w
from bids_app.preprocess.derivatives import take_over
from bids_app.preprocess.distortion import SYN, correction_of
from bids_app.preprocess.motion import correct_motion
from bids_app.preprocess.run import collect_run
from bids_app.reports.methods import write_methods
from bids_app.reports.participant import build_participant_report
from bids_app.runlog import FAILED, OK, Outcome, exit_code, hash_inputs, new_run_id, write_log
from bids_app.settings import Settings, own_scratch

LOGGER = logging.getLogger(__name__)
MOST_SAID = 8
"""Failures and withheld answers that are shown at the end, so that all fits on a screen."""


def run_participants(settings: Settings) -> int:
    """Run the participant level as asked for.

    Returns
    -------
    int
        0 when every run is done, else the exit code of the first that is not.

    Raises
    ------
    NeurostormError
        Nothing could be started.
    """
    if settings.check:
        return print_plan(settings)
    if settings.reports_only:
        return remake_reports(settings)
    preflight(settings)
    check_output_folder(settings.out_dir)
    runs = find_runs(settings.bids_dir, settings.query)
    make_folders(settings)
    describe_outputs(settings.out_dir, input_datasets(settings.bids_dir, settings.query.derivatives))
    steps_done, demonstration = describe_method(settings, runs)
    write_methods(settings.out_dir, steps_done, demonstration=demonstration)
    if settings.boilerplate_only:
        return EXIT_OK
    return work_on(runs, settings)


def work_on(wanted: Sequence[BoldRun], settings: Settings) -> int:
    """Work on the participants that no other process works on.

    Raises
    ------
    TemporaryError
        All of them are held by others.
    """
    busy: dict[str, TemporaryError] = {}
    with Locks() as locks:
        for participant in dict.fromkeys(run.participant for run in wanted):
            try:
                locks.take(*lock_files(participant, settings.out_dir, settings.work_dir))
            except TemporaryError as error:
                busy[participant] = error
        runs = [run for run in wanted if run.participant not in busy]
        if not runs:
            raise next(iter(busy.values()))
        code = work_on_free([with_memory_checked(run, settings) for run in runs], settings)
    if settings.clean_workdir and code == EXIT_OK and not is_anybody_in(settings.work_dir):
        remove_caches(settings.work_dir)
    for held in busy.values():
        print(f"neurostorm: left out: {held.message}\n  {held.hint}", file=sys.stderr)
        code = code or held.exit_code
    return code


def work_on_free(runs: Sequence[BoldRun], settings: Settings) -> int:
    """Run the graph, then write each participant's log and report."""
    participants = list(dict.fromkeys(run.participant for run in runs))
    LOGGER.info("%d BOLD runs of %d participants; scratch is %s", len(runs), len(participants), settings.work_dir)
    started = time.time()
    run_id = new_run_id()
    crash_dir = settings.work_dir / f"crash-{run_id}"
    crash_dir.mkdir()
    shared = what_runs_share(settings)
    outcomes = run_graph(runs, shared, crash_dir)
    for folder in (settings.out_dir, settings.out_dir / "logs", settings.work_dir):
        remove_leftovers(folder, deep=False)
    for outcome in outcomes.values():
        for adapter, _ in withheld(outcome, settings.out_dir):
            outputs.withdraw(settings.out_dir, outcome.stem, adapter)
    for participant in participants:
        own = [outcomes[run.stem] for run in runs if run.participant == participant]
        remove_leftovers(settings.out_dir / f"sub-{participant}")
        write_log(settings, run_id, participant, own, shared.model.hashes, started)
        build_participant_report(settings.out_dir, participant)
    shutil.rmtree(crash_dir, ignore_errors=True)
    tell(list(outcomes.values()), settings, time.time() - started)
    return exit_code(list(outcomes.values()))


def run_graph(runs: Sequence[BoldRun], shared: Shared, crash_dir: Path) -> dict[str, Outcome]:
    """Build the graph, run it, and tell how each run ended."""
    settings = shared.settings
    graph = Graph("neurostorm", settings.work_dir, settings.resources)
    anatomies: dict[Path, Anatomy] = {}
    sound = [run for run in runs if run.problem is None]
    published = {run.stem: add_run(graph, run, anatomies, shared) for run in sound}
    hashed = {run.stem: add_hashes(graph, run, shared) for run in sound}
    if published:
        graph.run(crash_dir=crash_dir, stop_on_first_crash=settings.stop_on_first_crash)
    outcomes = {run.stem: outcome_of(run, graph, published.get(run.stem), hashed.get(run.stem)) for run in runs}
    if settings.clean_workdir and exit_code(list(outcomes.values())) == EXIT_OK:
        graph.remove()
    return outcomes


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
    adapters = () if wanted.embeddings_only else adapter_paths(entry, wanted.adapters)
    files = (weights_path(entry), *adapters)
    stamp = ";".join(file_stamp(path) for path in files)
    return ChosenModel(wanted.model, tuple(adapters), stamp, {str(path): file_sha256(path) for path in files})


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
        on_gpu=steps.choose_device(wanted.device).startswith("cuda"),
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
        steps.put_on_grid,
        preprocessed=preprocessed,
        threads=all_threads,
        n_procs=all_threads,
        memory_gb=step_gb(run),
    )
    encoded = graph.step(
        f"{name}_encode",
        steps.encode,
        grid=grid,
        model=model.name,
        adapters=model.adapters,
        stamp=model.stamp,
        memory_gb=2,
        **shared.computing,
    )
    judged = graph.step(
        f"{name}_judge",
        steps.judge,
        encoded=encoded,
        preprocessed=preprocessed,
        grid=grid,
        age=shared.ages.get(run.participant),
        on_out_of_domain=settings.model.on_out_of_domain,
    )

    preprocessing = graph.step(
        f"{name}_outputs",
        outputs.run_outputs,
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
        outputs.model_outputs,
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
            outputs.run_figures,
            preprocessed=preprocessed,
            grid=grid,
            encoded=judged,
            entities=run.entities,
            fd_spike_mm=wanted.fd_spike_threshold,
        )
    return graph.step(
        f"{name}_publish",
        outputs.publish,
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
        attributions.attribute_run,
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
        steps.examine,
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
            steps.unwarp,
            series=series,
            motion=motion,
            metadata=run.metadata,
            method=method,
            fieldmap=run.fieldmap,
            seed=seed,
            stamp="".join(map(file_stamp, run.fieldmap.files)) if run.fieldmap else "",
            anatomy=aligned_t1w if method == SYN else None,
        )
    reference = graph.step(f"{name}_mask", steps.mask_run, series=series, motion=motion)
    alignment = graph.step(
        f"{name}_align",
        steps.align,
        reference=reference,
        template=shared.template,
        seed=seed,
        anatomy=aligned_t1w,
        memory_gb=2,
    )
    confounds = graph.step(
        f"{name}_confounds",
        steps.confounds,
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
        steps.examine_taken,
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
            steps.prepare_anatomy,
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
            outputs.anatomy_outputs,
            anatomy=aligned,
            datasets=shared.datasets,
            memory_gb=2,
        )
        anatomies[run.t1w] = Anatomy(aligned, tree)
    return anatomies[run.t1w]


def outcome_of(run: BoldRun, graph: Graph, published: Step | None, hashed: Step | None) -> Outcome:
    """How a run ended."""
    if published is None or hashed is None:
        problem = run.problem
        assert problem is not None
        return Outcome(run.stem, FAILED, "query", problem.message, problem.hint, problem.exit_code)
    costs = graph.costs(published)
    inputs = {} if graph.error_of(hashed) else graph.result_of(hashed)
    error = graph.error_of(published)
    if error:
        return Outcome(
            run.stem,
            FAILED,
            error.step,
            error.message,
            error.hint,
            error.exit_code,
            trace=error.trace,
            steps=costs,
            inputs=inputs,
        )
    return Outcome(run.stem, OK, steps=costs, outputs=graph.result_of(published), inputs=inputs)


def tell(outcomes: Sequence[Outcome], settings: Settings, seconds: float) -> None:
    """Say how it went: what failed and what to do, and where to look."""
    failed = [outcome for outcome in outcomes if outcome.status != OK]
    said = [f"{outcome.stem} failed: {outcome.reason}\n  {outcome.hint}" for outcome in failed]
    for outcome in outcomes:
        for adapter, reason in withheld(outcome, settings.out_dir):
            said.append(f"{outcome.stem}: the answer of {adapter} is withheld. {reason}")
    most = len(said) if settings.verbosity else MOST_SAID
    for text in said[:most]:
        print(f"neurostorm: {text}", file=sys.stderr)
    if len(said) > most:
        print(f"neurostorm: and {len(said) - most} more (-v shows all; so do the reports).", file=sys.stderr)
    LOGGER.info(
        "%d of %d runs done in %.0f s. Reports: %s", len(outcomes) - len(failed), len(outcomes), seconds,
        settings.out_dir / "sub-*.html",
    )  # fmt: skip


def withheld(outcome: Outcome, out_dir: Path) -> list[tuple[str, str]]:
    """Adapters whose answer about a run was refused, each with the first reason."""
    found = []
    for name in outcome.outputs:
        if name.endswith(("_predictions.json", "_vectors.json")):
            content = read_json(out_dir / name)
            verdict = content.get("Verdict") or {}
            if verdict.get("Level") == REFUSE:
                reasons = [check["Message"] for check in verdict["Checks"] if check["Level"] == REFUSE]
                found.append((str(content["Adapter"]), reasons[0]))
    return found


def remake_reports(settings: Settings) -> int:
    """Make the reports again from the derivatives (``--reports-only``)."""
    wanted = settings.query.participants
    found = sorted(path.name.removeprefix("sub-") for path in settings.out_dir.glob("sub-*") if path.is_dir())
    missing = [label for label in wanted if label not in found]
    if missing or not found:
        raise NoInputError(
            f"{settings.out_dir}: no outputs of {', '.join(f'sub-{label}' for label in missing) or 'any participant'}.",
            "Run the participant level first.",
        )
    for label in wanted or found:
        LOGGER.info("%s", build_participant_report(settings.out_dir, label))
    return EXIT_OK


def make_folders(settings: Settings) -> None:
    """Make the output and scratch folders."""
    try:
        if settings.work_dir.is_relative_to(own_scratch()):
            own_scratch().mkdir(mode=0o700, exist_ok=True)  # among the temporary files of all users
        check_private(settings.work_dir)  # again: somebody may have been there in between
    except OSError as error:
        raise CannotCreateError(f"{own_scratch()}: {error.strerror}.", "Give --work-dir.") from error
    for folder in (settings.out_dir, settings.work_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise CannotCreateError(
                f"{folder}: {error.strerror}.", "Choose another place, or ask for access."
            ) from error
        except OSError as error:
            raise InputOutputError(f"{folder}: {error.strerror}.", "Check the disk and its quota.") from error


def node_name(stem: str) -> str:
    """A BIDS name as nipype wants it: different names stay different, since BIDS labels hold no underscore."""
    return re.sub(r"[^0-9A-Za-z]", lambda match: "_" if match[0] in "_-" else f"x{ord(match[0]):x}", stem)
