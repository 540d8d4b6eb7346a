"""What is done when a run ends: removal of what earlier invocations left of it, log and report of its participant."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.bids.query import BoldRun
from bids_app.bids.writer import remove_leftovers
from bids_app.outputs.publish import remove_earlier
from bids_app.outputs.schema import (
    FAILED,
    OK,
    AttributionSidecar,
    CoverageSidecar,
    EmbeddingsSidecar,
    PredictionSidecar,
    QualitySidecar,
    RunOutcome,
)
from bids_app.reports.participant import build_participant_report
from bids_app.terminal import VERBOSE
from bids_app.workflow.bids_prov import write_records
from bids_app.workflow.context import RunContext
from bids_app.workflow.engine import as_neurostorm_error
from bids_app.workflow.log import InvocationLog, Message
from bids_app.workflow.provenance import log_folder, new_run_id, write_log

LOGGER = logging.getLogger(__name__)
NOT_STARTED = "The run was not started, because another run failed (--stop-on-first-crash)."


@dataclass(frozen=True)
class Notices:
    """What the user must know about a run that has ended.

    Attributes
    ----------
    warnings : tuple of str
        Reasons for the verdict on the scan, worst first, those for the verdicts on its predictions, and the further
        warnings of preprocessing.
    other : tuple of str
        The same without those of withheld predictions.
    withheld : tuple of tuple
        Adapters whose prediction is withheld, each with the first reason.
    """

    warnings: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    withheld: tuple[tuple[str, str], ...] = ()


def failed(stem: str, step: str, reason: str, hint: str, code: int) -> RunOutcome:
    """Make the outcome of a failed run."""
    return RunOutcome(stem=stem, status=FAILED, step=step, reason=reason, hint=hint, exit_code=code)


class Ends:
    """Outcomes of the runs of an invocation; logs and reports are written as runs end.

    An error of writing does not stop the other runs: `repeat_failed_writing` tries once more at the end, and raises it.

    Attributes
    ----------
    run_id : str
        Name of the log folders of the invocation.
    started : float
        s since 1970.
    participants : dict
        Names of the runs by participant.
    notices : dict of str to Notices
        By run.
    """

    def __init__(self, runs: Sequence[BoldRun], context: RunContext, log: InvocationLog) -> None:
        self.run_id, self.started = new_run_id(), time.time()
        self.participants: dict[str, list[str]] = {}
        for run in runs:
            self.participants.setdefault(run.participant, []).append(run.stem)
        self.notices: dict[str, Notices] = {}
        self._runs = {run.stem: run for run in runs}
        self._participant_of = {run.stem: run.participant for run in runs}
        self._context = context
        self._log = log
        self._messages: dict[str, Sequence[Message]] = {}
        self._ended: dict[str, RunOutcome] = {}
        self._not_written: dict[str, None] = {}

    @property
    def outcomes(self) -> list[RunOutcome]:
        """Outcomes in the order of the runs."""
        return [self._ended[stem] for stem in self._participant_of if stem in self._ended]

    def has_ended(self, stem: str) -> bool:
        """Return whether a run has ended."""
        return stem in self._ended

    def is_ok(self, stem: str) -> bool:
        """Return whether a run has ended well, with its log and report written."""
        return stem in self._ended and self._ended[stem].status == OK and stem not in self._not_written

    def end(self, outcome: RunOutcome, messages: Sequence[Message] = ()) -> None:
        """Record the end of a run, with the messages of its steps."""
        self._ended[outcome.stem] = outcome
        self._messages[outcome.stem] = messages
        log_outcome(outcome)
        try:
            self._write(outcome.stem)
        except Exception as error:  # of the disk, usually: other runs may be on another disk, or the disk is freed
            LOGGER.debug("The log or report of %s could not be written.", outcome.stem, exc_info=True)
            LOGGER.warning("%s: the log or report could not be written (%s).", outcome.stem, error)
            self._not_written[outcome.stem] = None

    def not_started(self, runs: Sequence[BoldRun]) -> None:
        """Record runs that were not started, because another one failed."""
        for run in runs:
            self.end(failed(run.stem, "", NOT_STARTED, "Repeat the command; finished steps are kept.", 75))

    def repeat_failed_writing(self) -> None:
        """Write the logs and reports that could not be written before.

        Raises
        ------
        NeurostormError
            The disk is still full or not writable.
        """
        for stem in tuple(self._not_written):
            try:
                self._write(stem)
            except Exception as error:
                known = as_neurostorm_error(error)
                if known is None:
                    raise
                raise known from error
            del self._not_written[stem]

    def _write(self, stem: str) -> None:
        """Remove what earlier invocations left of a run, and write the log and report of its participant."""
        out_dir, participant = self._context.settings.out_dir, self._participant_of[stem]
        removed = remove_earlier(out_dir, stem)
        if removed:
            LOGGER.info(
                "%s: %d files of an earlier run, which this one does not make, were removed", stem, len(removed)
            )
            self._ended[stem] = replace(self._ended[stem], removed=removed)
        wanted = self._context.settings.model
        n_clips = wanted.attribution_clips if wanted.attribution else 0
        notices = self.notices[stem] = read_notices(self._ended[stem], out_dir, n_clips)
        self._ended[stem] = replace(self._ended[stem], warnings=notices.warnings or None)
        own = self.participants[participant]
        unfinished = [other for other in own if other not in self._ended]
        if not unfinished:
            remove_leftovers(out_dir / f"sub-{participant}")
        outcomes = [self._ended[other] for other in own if other in self._ended]
        context = self._context
        write_records(self._runs[stem], self._ended[stem], self.run_id, context)
        write_log(context.settings, self.run_id, participant, outcomes, context.model.hashes, self.started, unfinished)
        messages = dict.fromkeys(message for other in own for message in self._messages.get(other, ()))
        self._log.write(log_folder(out_dir, participant, self.run_id), participant, messages)
        build_participant_report(out_dir, participant, context.settings.sessions_per_report)
        if not unfinished:
            self._log.forget(participant)
            for other in own:
                self._messages.pop(other, None)


def log_outcome(outcome: RunOutcome) -> None:
    """Write the outcome of a run to the log of its participant."""
    seconds = sum(cost["seconds"] for cost in outcome.steps.values())
    text = f"failed at {outcome.step}: {outcome.reason}\n{outcome.hint}" if outcome.status != OK else "finished"
    LOGGER.log(
        VERBOSE, "%s: %s; %d files, steps of %.0f s in total", outcome.stem, text, len(outcome.outputs), seconds,
        extra={"run": outcome.stem},
    )  # fmt: skip


def read_notices(outcome: RunOutcome, out_dir: Path, attribution_clips: int = 0) -> Notices:
    """Read the verdicts on a scan and its predictions, and the further warnings of its steps, from its sidecars.

    Parameters
    ----------
    outcome : RunOutcome
    out_dir : pathlib.Path
    attribution_clips : int
        Number of clips that were to be attributed; 0: none.
    """
    few_clips: dict[str, None] = {}
    no_series: dict[str, None] = {}
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    withheld: list[tuple[str, str]] = []
    of_predictions: list[tuple[str, str, bool]] = []
    for name in outcome.outputs:
        if name.endswith("_embeddings.json"):
            verdict = EmbeddingsSidecar.read(out_dir / name).verdict
            reasons = verdict.reasons if verdict else ()
        elif name.endswith("_desc-quality_metrics.json"):
            warnings = QualitySidecar.read(out_dir / name).warnings or ()
        elif name.endswith("_stat-coverage_bold.json"):
            no_series |= dict.fromkeys(CoverageSidecar.read(out_dir / name).warnings or ())
        elif name.endswith("_attribution.json"):
            n_clips = len(AttributionSidecar.read(out_dir / name).clips or ())
            if n_clips < attribution_clips:
                few_clips[f"--attribution-clips {attribution_clips}: the run has only {n_clips}, which were used."] = (
                    None
                )
        elif name.endswith(("_predictions.json", "_vectors.json")):
            sidecar = PredictionSidecar.read(out_dir / name)
            adapter, own = sidecar.adapter.name or "", sidecar.verdict.reasons if sidecar.verdict else ()
            of_predictions += [(f"prediction of {adapter}: {reason}", reason, sidecar.withheld) for reason in own]
            if sidecar.withheld:
                withheld.append((adapter, next(iter(own), "")))
    own_reasons = [(line, is_withheld) for line, reason, is_withheld in of_predictions if reason not in reasons]
    unknown = dict.fromkeys([*warnings, *no_series])
    further = (*(w for w in unknown if not any(w in reason for reason in reasons)), *few_clips)
    return Notices(
        (*reasons, *(line for line, _ in own_reasons), *further),
        (*reasons, *(line for line, is_withheld in own_reasons if not is_withheld), *further),
        tuple(withheld),
    )
