"""What the group's page says first, how runs ended, and what was answered with which verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bids_app.group.cohort import Cohort
from bids_app.group.predictions import Comparison, beside_traits, number
from bids_app.group.reading import MISSING, UNREADABLE, Card, RunRecord
from bids_app.outputs.schema import FAILED, LEVELS, OK, REFUSE, WARN
from bids_app.reports import group as page
from bids_app.reports.group import BAD, GOOD, Cell, Remark, Section, Table, report_url

COLOURS = {"pass": GOOD, "warn": page.WARN, "refuse": BAD}
LEVELS_OF_ENDS = {FAILED: BAD, UNREADABLE: BAD, MISSING: page.WARN}
ENDED_BADLY = tuple(LEVELS_OF_ENDS)


def lead_of(cohort: Cohort) -> str:
    """The first sentence: who and how many, and how it went."""
    ended = Counter(run.status for run in cohort.runs)
    sessions = len({run.entities["ses"] for run in cohort.runs if "ses" in run.entities})
    told = ", ".join(f"{ended[status]:,} {status}" for status in (OK, *ENDED_BADLY) if ended[status] or status == OK)
    over = f" in {sessions} sessions" if sessions > 1 else ""
    return (
        f"{_count(len(cohort.participants), 'participant')} with {_count(len(cohort.runs), 'BOLD run')}{over}: {told}."
    )


def counts_of(cohort: Cohort) -> list[tuple[str, Cell]]:
    """The numbers of the first screen."""
    ended = Counter(run.status for run in cohort.runs)
    judged = Counter(run.worst_verdict for run in cohort.runs)
    found = [("Participants", Cell(f"{len(cohort.participants):,}")), ("Runs", Cell(f"{len(cohort.runs):,}"))]
    for status in ENDED_BADLY:
        found.append(
            (status.capitalize(), Cell(f"{ended[status]:,}", "#runs", LEVELS_OF_ENDS[status] if ended[status] else ""))
        )
    if any(judged[name] for name in LEVELS):
        found.append(("Refused", Cell(f"{judged[REFUSE]:,}", "#answers", BAD if judged[REFUSE] else "")))
        found.append(("Warned", Cell(f"{judged[WARN]:,}", "#answers", page.WARN if judged[WARN] else "")))
    else:
        found.append(("Verdicts", Cell("none")))
    return found


def runs_section(cohort: Cohort) -> Section:
    """Runs that failed, cannot be read, or are missing, with the reason and what to do."""
    section = Section("runs", "Runs")
    bad = sorted((run for run in cohort.runs if run.status != OK), key=lambda run: _rank(run.status))
    if not bad and not cohort.faults:
        section.paragraphs.append("Every run is done, and all of its outputs can be read.")
        section.remarks.append(Remark(GOOD, "Every run is done."))
        return section
    for status in ENDED_BADLY:
        these = [run for run in bad if run.status == status]
        if these:
            section.remarks.append(Remark(LEVELS_OF_ENDS[status], _sentence(status, these)))
    if cohort.faults:
        shown = "; ".join(cohort.faults[:5]) + (f" and {len(cohort.faults) - 5} more" if len(cohort.faults) > 5 else "")
        section.paragraphs.append(f"These files of no run in particular could not be read: {shown}.")
        section.remarks.append(Remark(page.WARN, f"{_count(len(cohort.faults), 'log')} could not be read."))
    section.tables.append(
        Table(
            "Runs that are not done",
            ("Run", "How it ended", "Reason", "What to do"),
            [
                (
                    Cell(run.stem, "" if run.status == MISSING else report_url(run.participant)),
                    Cell(run.status, level=LEVELS_OF_ENDS.get(run.status, BAD)),
                    Cell(shortened(run.reason)),
                    Cell(shortened(run.hint)),
                )
                for run in bad
            ],
            "group_runs.tsv",
        )
    )
    return section


def answers_section(cohort: Cohort) -> Section:
    """Answers and verdicts of each adapter, and the runs that were refused or warned of."""
    section = Section("answers", "Answers and verdicts")
    adapters = sorted({name for run in cohort.runs for name in run.predictions})
    if not adapters:
        section.paragraphs.append("These outputs hold embeddings and no predictions.")
    else:
        section.tables.append(
            Table(
                "Adapters",
                ("Adapter", "Target", "Runs", "Answers", "Pass", "Warn", "Refuse", "Not judged"),
                [_adapter_row(cohort, name) for name in adapters],
            )
        )
    compared = beside_traits(cohort)
    if compared:
        section.tables.append(_traits_table(compared))
    judged = [run for run in cohort.runs if run.worst_verdict in (WARN, REFUSE)]
    judged.sort(key=lambda run: (-LEVELS.index(run.worst_verdict), -len(_reasons(run))))
    if judged:
        reasons = Counter(name for run in judged for name in _reasons(run))
        told = ", ".join(f"{name} ({n})" for name, n in reasons.most_common(5))
        text = f"Checks that most often did not pass, with the number of runs: {told}."
        section.paragraphs.append(text)
        section.tables.append(
            Table(
                "Runs refused or warned of",
                ("Run", "Verdict", "Checks that did not pass"),
                [
                    (
                        Cell(run.stem, report_url(run.participant)),
                        Cell(run.worst_verdict, level=COLOURS[run.worst_verdict]),
                        Cell(", ".join(_reasons(run))),
                    )
                    for run in judged
                ],
                "group_runs.tsv",
            )
        )
        n_refused = sum(run.worst_verdict == REFUSE for run in judged)
        if n_refused:
            refused = Counter(name for run in judged if run.worst_verdict == REFUSE for name in _reasons(run))
            most = f", most often for {refused.most_common(1)[0][0]}" if refused else ""
            section.remarks.append(Remark(BAD, f"Answers are withheld for {_count(n_refused, 'run')}{most}."))
        if len(judged) > n_refused:
            section.remarks.append(
                Remark(page.WARN, f"{_count(len(judged) - n_refused, 'run')} with a warning; mostly {told}.")
            )
    elif not any(run.worst_verdict for run in cohort.runs):
        section.paragraphs.append("No verdicts are in these outputs; runs of this version and later have them.")
    return section


def shortened(text: str, most: int = 240) -> str:
    """A text that fits into a cell."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _traits_table(compared: Sequence[Comparison]) -> Table:
    rows = [
        (
            Cell(c.adapter),
            Cell(c.column),
            Cell(c.measure),
            Cell(f"{c.estimate.value:.2f}"),
            Cell(f"{c.estimate.low:.2f} to {c.estimate.high:.2f}", value=c.estimate.low),
            Cell("" if np.isnan(c.error) else f"{c.error:.3g}"),
            Cell(str(c.estimate.n)),
        )
        for c in compared
    ]
    headings = (
        "Adapter",
        "Column",
        "Measure",
        "Agreement",
        "95 % interval",
        "Mean absolute difference",
        "Participants",
    )
    return Table("Answers beside participants.tsv", headings, rows)


def _adapter_row(cohort: Cohort, adapter: str) -> list[Cell]:
    rows = [run.predictions[adapter] for run in cohort.runs if adapter in run.predictions]
    card = cohort.cards.get(adapter, Card())
    verdicts = Counter(row.get("verdict", "") for row in rows)
    labels = Counter(row["label"] for row in rows if row.get("label", "n/a") != "n/a")
    values = np.array([number(row.get("value")) for row in rows])
    values = values[np.isfinite(values)]
    answers = ", ".join(f"{name} {n}" for name, n in labels.most_common(6))
    if len(values):
        unit = f" {card.unit}" if card.unit else ""
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        answers = f"median {middle:.3g}, 5 to 95 % {low:.3g} to {high:.3g}{unit}"
    return [
        Cell(adapter, f"phenotype/neurostorm_{adapter}.tsv"),
        Cell(card.target),
        Cell(str(len(rows))),
        Cell(answers or "none"),
        *(Cell(str(verdicts[name])) for name in LEVELS),
        Cell(str(len(rows) - sum(verdicts[name] for name in LEVELS))),
    ]


def _reasons(run: RunRecord) -> list[str]:
    """Checks that did not pass, of the run and of its answers."""
    names = [*run.reasons, *(run.predictions[a].get("verdict_reasons", "") for a in run.predictions)]
    return list(dict.fromkeys(part for name in names for part in name.split(", ") if part))


def _sentence(status: str, runs: Sequence[RunRecord]) -> str:
    what = {FAILED: "failed", UNREADABLE: "cannot be read as a whole", MISSING: "missing"}[status]
    verb = "" if status in (UNREADABLE, FAILED) else "is " if len(runs) == 1 else "are "
    text = f"{_count(len(runs), 'run')} {verb}{what}"
    if len(runs) == 1:
        return f"{text}, {runs[0].stem}: {shortened(runs[0].reason, 160).rstrip('.')}."
    hint, n = Counter(run.hint for run in runs).most_common(1)[0]
    return f"{text}; {'for all of them' if n == len(runs) else f'for {n} of them'}: {hint}" if hint else f"{text}."


def _rank(status: str) -> int:
    return ENDED_BADLY.index(status) if status in ENDED_BADLY else 0


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"
