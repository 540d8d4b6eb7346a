"""Participant level: selects runs, runs the graph of `method.py`, and writes logs and reports.

A failed run does not stop the others; the outputs of each run are written as soon as it is done.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bids_app.bids.description import check_output_folder, describe_outputs
from bids_app.bids.query import BoldRun, find_runs
from bids_app.bids.writer import remove_leftovers
from bids_app.errors import EXIT_OK, CannotCreateError, InputOutputError, NoInputError, TemporaryError
from bids_app.outputs.boilerplate import write_methods
from bids_app.outputs.publish import remove_withheld
from bids_app.outputs.schema import FAILED, OK, PredictionSidecar, RunOutcome
from bids_app.reports.participant import build_participant_report
from bids_app.settings import Settings, own_scratch
from bids_app.workflow.context import RunContext, read_context
from bids_app.workflow.disk import check_disk
from bids_app.workflow.engine import Engine, remove_caches
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.locks import Locks, is_in_use, lock_files
from bids_app.workflow.memory import add_memory_problem
from bids_app.workflow.method import RunSteps, add_run, methods_sentences
from bids_app.workflow.plan import print_plan
from bids_app.workflow.preflight import check_private, preflight
from bids_app.workflow.progress import Groups
from bids_app.workflow.provenance import exit_code, new_run_id, write_log

LOGGER = logging.getLogger(__name__)
MAX_MESSAGES = 8
"""Maximum number of failures and withheld predictions in the final summary."""


def run_participants(settings: Settings) -> int:
    """Run the participant level.

    Returns
    -------
    int
        0 if all runs succeeded, else the exit code of the first failed run.

    Raises
    ------
    NeurostormError
        Nothing was started.
    """
    if settings.check:
        return print_plan(settings)
    if settings.reports_only:
        return rebuild_reports(settings)
    preflight(settings)
    check_output_folder(settings.out_dir)
    runs = find_runs(settings.bids_dir, settings.query)
    if not settings.boilerplate_only:
        check_disk(runs, settings)
    make_folders(settings)
    context = read_context(settings)
    describe_outputs(settings.out_dir, context.datasets)
    demonstration = context.model.name if context.model.is_demonstration else ""
    write_methods(settings.out_dir, methods_sentences(runs, context), demonstration=demonstration)
    if settings.boilerplate_only:
        return EXIT_OK
    return process_participants(runs, context)


def process_participants(wanted: Sequence[BoldRun], context: RunContext) -> int:
    """Process all participants that are not locked by another process.

    Raises
    ------
    TemporaryError
        All participants are locked.
    """
    settings = context.settings
    busy: dict[str, TemporaryError] = {}
    with Locks() as locks:
        for participant in dict.fromkeys(run.participant for run in wanted):
            try:
                locks.acquire(*lock_files(participant, settings.out_dir, settings.work_dir))
            except TemporaryError as error:
                busy[participant] = error
        runs = [run for run in wanted if run.participant not in busy]
        if not runs:
            raise next(iter(busy.values()))
        code = process_runs([add_memory_problem(run, settings) for run in runs], context)
    if settings.clean_workdir and code == EXIT_OK and not is_in_use(settings.work_dir):
        remove_caches(settings.work_dir)
    for held in busy.values():
        print(f"neurostorm: skipped: {held.message}\n  {held.hint}", file=sys.stderr)
        code = code or held.exit_code
    return code


def process_runs(runs: Sequence[BoldRun], context: RunContext) -> int:
    """Run the graph; write the log and report of each participant as soon as its runs have ended."""
    settings = context.settings
    of_participant: dict[str, list[BoldRun]] = {}
    for run in runs:
        of_participant.setdefault(run.participant, []).append(run)
    LOGGER.info(
        "%d BOLD runs of %d participants; scratch folder: %s", len(runs), len(of_participant), settings.work_dir
    )
    started, run_id = time.time(), new_run_id()
    crash_dir = settings.work_dir / f"crash-{run_id}"
    crash_dir.mkdir()
    graph = Graph(invocation=run_id)
    steps = {run.stem: add_run(graph, run, context) for run in runs if run.problem is None}
    engine = Engine(graph, settings.work_dir, settings.resources)
    finished: dict[str, list[RunOutcome]] = {}
    withheld: dict[str, list[tuple[str, str]]] = {}

    def last_steps(participant: str) -> tuple[Step, ...]:
        return tuple(step for run in of_participant[participant] if run.stem in steps for step in steps[run.stem].last)

    def finish(participant: str) -> None:
        outcomes = [outcome_of(run, engine, steps.get(run.stem)) for run in of_participant[participant]]
        withheld.update(finish_participant(participant, outcomes, context, run_id, started))
        if settings.clean_workdir and exit_code(outcomes) == EXIT_OK:
            engine.remove(last_steps(participant))
        finished[participant] = outcomes

    if steps:
        groups = Groups(graph, {participant: last_steps(participant) for participant in of_participant}, finish)
        engine.run(crash_dir=crash_dir, stop_on_first_crash=settings.stop_on_first_crash, groups=groups)
    for participant in of_participant:
        if participant not in finished:
            finish(participant)
    for folder in (settings.out_dir, settings.out_dir / "logs", settings.work_dir):
        remove_leftovers(folder, deep=False)
    shutil.rmtree(crash_dir, ignore_errors=True)
    outcomes = [outcome for participant in of_participant for outcome in finished[participant]]
    print_summary(outcomes, withheld, settings, time.time() - started)
    return exit_code(outcomes)


def finish_participant(
    participant: str, outcomes: Sequence[RunOutcome], context: RunContext, run_id: str, started: float
) -> dict[str, list[tuple[str, str]]]:
    """Write the log and report of a participant; delete earlier outputs of withheld predictions, and return these."""
    out_dir = context.settings.out_dir
    withheld = {outcome.stem: withheld_predictions(outcome, out_dir) for outcome in outcomes}
    for stem, predictions in withheld.items():
        for adapter, _ in predictions:
            remove_withheld(out_dir, stem, adapter)
    remove_leftovers(out_dir / f"sub-{participant}")
    write_log(context.settings, run_id, participant, outcomes, context.model.hashes, started)
    build_participant_report(out_dir, participant)
    return withheld


def outcome_of(run: BoldRun, engine: Engine, steps: RunSteps | None) -> RunOutcome:
    """Return the outcome of a run."""
    if steps is None:
        problem = run.problem
        assert problem is not None
        return failed(run.stem, "query", problem.message, problem.hint, problem.exit_code)
    errors = [engine.error_of(step) for step in steps.published]
    published = (step for step, error in zip(steps.published, errors, strict=True) if error is None)
    found = RunOutcome(
        stem=run.stem,
        exit_code=EXIT_OK,
        steps=engine.costs(*steps.published),
        outputs=tuple(name for step in published for name in engine.result_of(step)),
        inputs={} if engine.error_of(steps.hashes) else engine.result_of(steps.hashes),
    )
    error = next(filter(None, errors), None)
    if error is None:
        return found
    ended = failed(run.stem, error.step, error.message, error.hint, error.exit_code)
    return replace(ended, trace=error.trace, steps=found.steps, outputs=found.outputs, inputs=found.inputs)


def failed(stem: str, step: str, reason: str, hint: str, code: int) -> RunOutcome:
    """Make the outcome of a failed run."""
    return RunOutcome(stem=stem, status=FAILED, step=step, reason=reason, hint=hint, exit_code=code)


def print_summary(
    outcomes: Sequence[RunOutcome], withheld: Mapping[str, list[tuple[str, str]]], settings: Settings, seconds: float
) -> None:
    """Print failed runs with their hints, withheld predictions by run, and the path of the reports."""
    failures = [outcome for outcome in outcomes if outcome.status != OK]
    messages = [f"{outcome.stem} failed: {outcome.reason}\n  {outcome.hint}" for outcome in failures]
    for stem, predictions in withheld.items():
        messages += [f"{stem}: the prediction of {name} is withheld. {reason}" for name, reason in predictions]
    n_shown = len(messages) if settings.verbosity else MAX_MESSAGES
    for text in messages[:n_shown]:
        print(f"neurostorm: {text}", file=sys.stderr)
    if len(messages) > n_shown:
        print(f"neurostorm: {len(messages) - n_shown} more messages (see the reports, or use -v).", file=sys.stderr)
    LOGGER.info(
        "%d of %d runs finished in %.0f s. Reports: %s", len(outcomes) - len(failures), len(outcomes), seconds,
        settings.out_dir / "sub-*.html",
    )  # fmt: skip


def withheld_predictions(outcome: RunOutcome, out_dir: Path) -> list[tuple[str, str]]:
    """Return the adapters whose prediction of a run was withheld, each with the first reason."""
    found = []
    for name in outcome.outputs:
        if name.endswith(("_predictions.json", "_vectors.json")):
            sidecar = PredictionSidecar.read(out_dir / name)
            if sidecar.verdict is not None and sidecar.withheld:
                found.append((sidecar.adapter.name or "", next(iter(sidecar.verdict.reasons), "")))
    return found


def rebuild_reports(settings: Settings) -> int:
    """Rebuild the reports from the derivatives (``--reports-only``)."""
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
    """Create the output and scratch folders."""
    try:
        if settings.work_dir.is_relative_to(own_scratch()):
            own_scratch().mkdir(mode=0o700, exist_ok=True)  # in the temporary folder of all users
        check_private(settings.work_dir)  # again, as another user may have created it meanwhile
    except OSError as error:
        raise CannotCreateError(f"{own_scratch()}: {error.strerror}.", "Give --work-dir.") from error
    for folder in (settings.out_dir, settings.work_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise CannotCreateError(
                f"{folder}: {error.strerror}.", "Choose another folder, or ask for write access."
            ) from error
        except OSError as error:
            raise InputOutputError(f"{folder}: {error.strerror}.", "Check the disk and its quota.") from error
