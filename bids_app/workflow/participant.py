"""Participant level: selects runs, runs the graph of `method.py`, and writes logs and reports.

A failed run does not stop the others; the outputs of each run are written as soon as it is done.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bids_app import __version__
from bids_app.bids.description import check_output_folder, describe_outputs
from bids_app.bids.descriptions import write_descriptions
from bids_app.bids.query import BoldRun, find_runs
from bids_app.bids.writer import remove_leftovers
from bids_app.errors import EXIT_OK, CannotCreateError, InputOutputError, NoInputError, TemporaryError, UsageError
from bids_app.outputs.boilerplate import write_methods
from bids_app.outputs.schema import OK, RunOutcome
from bids_app.reports.index import INDEX
from bids_app.reports.participant import build_participant_report
from bids_app.settings import Settings, own_scratch
from bids_app.terminal import VERBOSE, indented
from bids_app.workflow import sockets
from bids_app.workflow.context import SLOW_SCAN, RunContext, read_context
from bids_app.workflow.disk import check_disk
from bids_app.workflow.ends import Ends, Notices, failed
from bids_app.workflow.engine import Engine, crash_folders, folder_size, remove_caches, remove_empty
from bids_app.workflow.graph import Graph
from bids_app.workflow.locks import Locks, is_in_use, lock_files
from bids_app.workflow.log import InvocationLog
from bids_app.workflow.memory import add_memory_problem
from bids_app.workflow.method import RunSteps, add_run, methods_sentences
from bids_app.workflow.plan import print_plan
from bids_app.workflow.preflight import check_fit, preflight
from bids_app.workflow.progress import Groups
from bids_app.workflow.provenance import exit_code
from bids_app.workflow.scratch import RESULTS, make_private

LOGGER = logging.getLogger(__name__)
BATCH_RUNS, BATCH_RUNS_OF_CLUSTER = 100, 1000
"""Minimum number of runs in one graph, which nipype builds in a time that grows with the square of its size."""
MAX_MESSAGES = 8
"""Maximum number of failures, withheld predictions and warnings in the final summary."""
FILE = re.compile(r"\bsub-[0-9A-Za-z]+(?:_[a-z]+-[0-9A-Za-z]+)*")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
"""What may differ between messages of the same reason: names of files, numbers."""


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
    if settings.exclude_failed:
        raise UsageError("--exclude-failed is an option of the group level.", "Omit it at the participant level.")
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
    context = read_context(settings, len(runs))
    describe_outputs(settings.out_dir, context.datasets)
    write_descriptions(settings.out_dir, context.model.labels)
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
                LOGGER.warning("sub-%s is skipped: %s", participant, error.message)
        runs = [run for run in wanted if run.participant not in busy]
        if not runs:
            raise next(iter(busy.values()))
        sockets.remove_abandoned()
        left = crash_folders(settings.work_dir)  # before the locks are read: an owner of a new folder holds one
        if locks.are_alone(settings.work_dir):
            remove_empty(left)
        check_fit(settings)
        code = process_runs([add_memory_problem(run, settings) for run in runs], context)
    if settings.clean_workdir and code == EXIT_OK and not is_in_use(settings.work_dir):
        remove_caches(settings.work_dir)
    for held in busy.values():
        print(f"neurostorm: skipped: {held.message}\n  {held.hint}", file=sys.stderr)
        code = code or held.exit_code
    return code


def process_runs(runs: Sequence[BoldRun], context: RunContext) -> int:
    """Process runs in batches of participants; each run is published, and its log is written, when it ends."""
    settings = context.settings
    with InvocationLog() as log:
        LOGGER.log(VERBOSE, "neurostorm %s: %s", __version__, shlex.join(sys.argv))
        ends = Ends(runs, context, log)
        announce(len(runs), len(ends.participants), settings.work_dir)
        if context.scan_is_slow:
            LOGGER.warning("%s", SLOW_SCAN)
        crash_dir = settings.work_dir / f"crash-{ends.run_id}"
        crash_dir.mkdir()
        size = BATCH_RUNS if settings.resources.plugin is None else BATCH_RUNS_OF_CLUSTER
        try:
            for number, batch in enumerate(batches(runs, size)):
                process_batch(batch, context, ends, crash_dir / str(number))
            ends.repeat_failed_writing()
        finally:
            remove_empty([crash_dir])
    for folder in (settings.out_dir, settings.out_dir / "logs", settings.work_dir):
        remove_leftovers(folder, deep=False)
    shutil.rmtree(crash_dir, ignore_errors=True)
    print_summary(ends.outcomes, ends.notices, settings, time.time() - ends.started)
    if not (settings.clean_workdir and exit_code(ends.outcomes) == EXIT_OK):
        announce_scratch(settings.work_dir)
    return exit_code(ends.outcomes)


def batches(runs: Sequence[BoldRun], size: int) -> Iterator[list[BoldRun]]:
    """Split runs into batches of at least ``size``, with all runs of a participant in one batch."""
    of_participant: dict[str, list[BoldRun]] = {}
    for run in runs:
        of_participant.setdefault(run.participant, []).append(run)
    batch: list[BoldRun] = []
    for own in of_participant.values():
        batch += own
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def process_batch(runs: Sequence[BoldRun], context: RunContext, ends: Ends, crash_dir: Path) -> None:
    """Run the graph of a batch of runs."""
    settings = context.settings
    if settings.stop_on_first_crash and exit_code(ends.outcomes) != EXIT_OK:
        ends.not_started(runs)
        return
    graph = Graph(invocation=ends.run_id)
    steps = {run.stem: add_run(graph, run, context) for run in runs if run.problem is None}
    engine = Engine(graph, settings.work_dir, settings.resources)

    def end(stem: str) -> None:
        ends.end(outcome_of(stem, engine, steps[stem]), engine.messages_of(*steps[stem].last))
        if settings.clean_workdir and ends.is_ok(stem):
            left = [steps[run.stem] for run in runs if run.stem in steps and not ends.is_ok(run.stem)]
            engine.remove(steps[stem].last, keep=[step for run_steps in left for step in run_steps.last])

    for run in runs:
        if run.problem is not None:
            ends.end(failed(run.stem, "query", run.problem.message, run.problem.hint, run.problem.exit_code))
    if steps:
        crash_dir.mkdir()
        groups = Groups(graph, {stem: own.last for stem, own in steps.items()}, end)
        engine.run(crash_dir=crash_dir, stop_on_first_crash=settings.stop_on_first_crash, groups=groups)
    for stem in steps:
        if not ends.has_ended(stem):
            end(stem)


def outcome_of(stem: str, engine: Engine, steps: RunSteps) -> RunOutcome:
    """Return the outcome of a run."""
    errors = [engine.error_of(step) for step in steps.published]
    published = (step for step, error in zip(steps.published, errors, strict=True) if error is None)
    found = RunOutcome(
        stem=stem,
        exit_code=EXIT_OK,
        steps=engine.costs(*steps.published),
        outputs=tuple(name for step in published for name in engine.result_of(step)),
        inputs={} if engine.error_of(steps.hashes) else engine.result_of(steps.hashes),
    )
    error = next(filter(None, errors), None)
    if error is None:
        return found
    ended = failed(stem, error.step, error.message, error.hint, error.exit_code)
    return replace(ended, trace=error.trace, steps=found.steps, outputs=found.outputs, inputs=found.inputs)


def announce(n_runs: int, n_participants: int, work_dir: Path) -> None:
    """Log the number of runs, and the scratch folder with what is in it."""
    earlier = (work_dir / RESULTS).is_dir() and any((work_dir / RESULTS).iterdir())
    LOGGER.info(
        "%d BOLD runs of %d participants. Scratch folder: %s (%s).", n_runs, n_participants, work_dir,
        "has results of an earlier run: finished steps are reused" if earlier else "empty",
    )  # fmt: skip


def announce_scratch(work_dir: Path) -> None:
    """Log what is left in the scratch folder, and how to remove it."""
    size, complete = folder_size(work_dir)
    if size:
        LOGGER.info(
            "%s%.0f MB stay in the scratch folder, for reuse by later runs. To delete them: rm -r %s (or give "
            "--clean-workdir next time).",
            "" if complete else "More than ", size / 1e6, shlex.quote(str(work_dir)),
        )  # fmt: skip


def print_summary(
    outcomes: Sequence[RunOutcome], notices: Mapping[str, Notices], settings: Settings, seconds: float
) -> None:
    """Print failed runs with their hints, withheld predictions and warnings by run, and the path of the reports."""
    failures = [outcome for outcome in outcomes if outcome.status != OK]
    messages = [f"{outcome.stem} failed: {outcome.reason}\n{outcome.hint}" for outcome in failures]
    withheld = [
        (stem, f"the prediction of {name} is withheld. {reason}")
        for stem, found in notices.items()
        for name, reason in found.withheld
    ]
    own = [(o.stem, warning) for o in outcomes for warning in notices.get(o.stem, Notices()).other]
    messages += group_by_reason(withheld, bool(settings.verbosity)) + group_by_reason(own, bool(settings.verbosity))
    n_shown = len(messages) if settings.verbosity else MAX_MESSAGES
    for text in messages[:n_shown]:
        print(indented(f"neurostorm: {text}"), file=sys.stderr)
    if len(messages) > n_shown:
        print(f"neurostorm: {len(messages) - n_shown} more messages (see the reports, or use -v).", file=sys.stderr)
    LOGGER.info(
        "%d of %d runs finished in %.0f s. Reports: %s", len(outcomes) - len(failures), len(outcomes), seconds,
        settings.out_dir / INDEX,
    )  # fmt: skip


def group_by_reason(messages: Sequence[tuple[str, str]], separately: bool = False) -> list[str]:
    """Return one line for the messages of several runs that differ only in numbers and names of files.

    Parameters
    ----------
    messages : sequence of (str, str)
        Name of a run, and its message.
    separately : bool
        Return one line for each message instead.
    """
    groups: dict[str, dict[str, str]] = {}
    for number, (stem, text) in enumerate(messages):
        reason = str(number) if separately else NUMBER.sub("0", FILE.sub("", text))
        groups.setdefault(reason, {}).setdefault(stem, text)
    lines = []
    for group in groups.values():
        stem, text = next(iter(group.items()))
        line = text if text.startswith(stem) else f"{stem}: {text}"
        lines.append(f"{len(group)} runs, such as {line}" if len(group) > 1 else line)
    return lines


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
        LOGGER.info("%s", build_participant_report(settings.out_dir, label, settings.sessions_per_report))
    return EXIT_OK


def make_folders(settings: Settings) -> None:
    """Create the output and scratch folders."""
    try:
        if settings.work_dir.is_relative_to(own_scratch()):
            own_scratch().mkdir(mode=0o700, exist_ok=True)  # in the temporary folder of all users
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
    make_private(settings.work_dir)  # checks again, as another user may have created a folder meanwhile
