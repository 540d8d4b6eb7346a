"""Sections of the group report: summary, status of runs, predictions and verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bids_app.group.cohort import Cohort
from bids_app.group.predictions import Comparison, compare_with_phenotypes, number
from bids_app.group.reading import MISSING, UNREADABLE, Card, RunRecord
from bids_app.outputs.schema import FAILED, LEVELS, OK, REFUSE, WARN, differing_options
from bids_app.reports import group as page
from bids_app.reports.contents import spec
from bids_app.reports.group import BAD, GOOD, Cell, Remark, Section, Table, report_url
from bids_app.reports.index import VERDICT_COLOURS
from bids_app.terminal import count_of, first_of

STATUS_LEVELS = {FAILED: BAD, UNREADABLE: BAD, MISSING: page.WARN}
FAILURES = tuple(STATUS_LEVELS)
UNKNOWN = "not recorded"
"""Configuration of outputs of versions that did not record it."""


def format_lead(cohort: Cohort) -> str:
    """Return the first sentence: number of participants, runs and sessions, and status counts."""
    counts = Counter(run.status for run in cohort.runs)
    sessions = len({run.entities["ses"] for run in cohort.runs if "ses" in run.entities})
    statuses = (f"{counts[name]:,} {name}" for name in (OK, *FAILURES) if counts[name] or name == OK)
    over = f" in {sessions} sessions" if sessions > 1 else ""
    participants, runs = count_of(len(cohort.participants), "participant"), count_of(len(cohort.runs), "BOLD run")
    return f"{participants} with {runs}{over}: {', '.join(statuses)}."


def collect_counts(cohort: Cohort) -> list[tuple[str, Cell]]:
    """Return the counts at the top of the page."""
    statuses = Counter(run.status for run in cohort.runs)
    verdicts = Counter(run.worst_verdict for run in cohort.runs)
    found = [("Participants", Cell(f"{len(cohort.participants):,}")), ("Runs", Cell(f"{len(cohort.runs):,}"))]
    for status in FAILURES:
        level = STATUS_LEVELS[status] if statuses[status] else ""
        found.append((status.capitalize(), Cell(f"{statuses[status]:,}", "#runs", level)))
    if any(verdicts[name] for name in LEVELS):
        for title, verdict, colour in (("Refused", REFUSE, BAD), ("Warnings", WARN, page.WARN)):
            n = verdicts[verdict]
            found.append((title, Cell(f"{n:,}", f"#wall&is-verdict={verdict}", colour if n else "")))
    else:
        found.append(("Verdicts", Cell("none")))
    return found


def runs_section(cohort: Cohort) -> Section:
    """Build the section on failed, unreadable and missing runs, with reason and hint."""
    section = Section("runs", "Status")
    add_configurations(section, cohort)
    bad = sorted((run for run in cohort.runs if run.status != OK), key=lambda run: _rank(run.status))
    if not bad and not cohort.faults:
        section.paragraphs.append("All runs were processed, and all outputs are readable.")
        section.remarks.append(Remark(GOOD, "All runs were processed."))
        return section
    for status in FAILURES:
        these = [run for run in bad if run.status == status]
        if these:
            section.remarks.append(Remark(STATUS_LEVELS[status], _sentence(status, these)))
    if cohort.faults:
        shown = first_of(cohort.faults, 5, "; ")
        section.paragraphs.append(f"The following logs and folders could not be read: {shown}.")
        section.remarks.append(Remark(page.WARN, f"{count_of(len(cohort.faults), 'log')} could not be read."))
    section.tables.append(
        Table(
            "Failed and missing runs",
            ("Run", "Status", "Reason", "What to do"),
            [
                (
                    Cell(run.stem, "" if run.status == MISSING else report_url(run.participant)),
                    Cell(run.status, level=STATUS_LEVELS.get(run.status, BAD)),
                    Cell(shortened(run.reason)),
                    Cell(shortened(run.hint)),
                )
                for run in bad
            ],
            "group_runs.tsv",
        )
    )
    return section


def add_configurations(section: Section, cohort: Cohort) -> None:
    """Add a warning and a table if the outputs were made with several configurations, or are partly not used."""
    left_out = [run for run in cohort.runs if run.n_not_used]
    if left_out:
        section.remarks.append(
            Remark(
                page.WARN,
                f"{count_of(len(left_out), 'run')} with tables of an earlier invocation, which are not used; see "
                "n_not_used in group_runs.tsv.",
            )
        )
    runs = Counter(" ".join(sorted(run.configurations)) or UNKNOWN for run in cohort.runs if run.quality or run.vectors)
    if len(runs) < 2:
        return
    options = {name: cohort.configurations.get(name, {}) for name in runs}
    differing = differing_options(options.values())
    section.remarks.append(
        Remark(
            page.WARN,
            f"Outputs were made with {len(runs)} configurations or versions, and may not be comparable"
            + (f": they differ in {', '.join(differing)}." if differing else "."),
        )
    )
    section.tables.append(
        Table(
            "Configurations",
            ("Configuration", "Runs", *differing),
            [
                (
                    Cell(name),
                    Cell(f"{n:,}", value=n),
                    *(Cell(shortened(options[name].get(option, "n/a"), 24)) for option in differing),
                )
                for name, n in runs.most_common()
            ],
            "group_runs.tsv",
        )
    )


def predictions_section(cohort: Cohort) -> Section:
    """Build the section on the predictions of each adapter, and runs with the verdict refuse or warn."""
    section = Section("predictions", "Predictions")
    adapters = sorted({name for run in cohort.runs for name in run.predictions})
    if not adapters:
        section.paragraphs.append("The outputs contain embeddings but no predictions.")
    else:
        section.tables.append(
            Table(
                "Adapters",
                ("Adapter", "Target", "Runs", "Predictions", "Pass", "Warn", "Refuse", "No verdict"),
                [_adapter_row(cohort, name) for name in adapters],
            )
        )
    comparisons = compare_with_phenotypes(cohort)
    if comparisons:
        section.tables.append(_phenotypes_table(comparisons))
    flagged = [run for run in cohort.runs if run.worst_verdict in (WARN, REFUSE)]
    flagged.sort(key=lambda run: (-LEVELS.index(run.worst_verdict), -len(failed_checks(run))))
    if flagged:
        section.paragraphs.append(f"Most frequently failed checks (number of runs): {_most_frequent(flagged)}.")
        section.tables.append(
            Table(
                "Runs with verdict refuse or warn",
                ("Run", "Verdict", "Failed checks"),
                [
                    (
                        Cell(run.stem, report_url(run.participant)),
                        Cell(run.worst_verdict, level=VERDICT_COLOURS[run.worst_verdict]),
                        Cell(", ".join(failed_checks(run))),
                    )
                    for run in flagged
                ],
                "group_runs.tsv",
            )
        )
        n_refused = sum(run.worst_verdict == REFUSE for run in flagged)
        if n_refused:
            refused = Counter(name for run in flagged if run.worst_verdict == REFUSE for name in failed_checks(run))
            reason = f"; most frequent failed check: {refused.most_common(1)[0][0]}" if refused else ""
            section.remarks.append(Remark(BAD, f"Predictions withheld for {count_of(n_refused, 'run')}{reason}."))
        if len(flagged) > n_refused:
            n_warned = count_of(len(flagged) - n_refused, "run")
            most_frequent = _most_frequent([run for run in flagged if run.worst_verdict == WARN])
            section.remarks.append(Remark(page.WARN, f"{n_warned} with warnings; most frequent: {most_frequent}."))
    elif not any(run.worst_verdict for run in cohort.runs):
        section.paragraphs.append("The outputs contain no verdicts (created by an earlier version).")
    return section


def shortened(text: str, max_length: int = 240) -> str:
    """Truncate a text for a table cell."""
    return text if len(text) <= max_length else text[: max_length - 1].rstrip() + "…"


def _phenotypes_table(compared: Sequence[Comparison]) -> Table:
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
        "Mean absolute error",
        "Participants",
    )
    return Table("Agreement of predictions with participants.tsv", headings, rows)


def _adapter_row(cohort: Cohort, adapter: str) -> list[Cell]:
    rows = [run.predictions[adapter] for run in cohort.runs if adapter in run.predictions]
    card = cohort.cards.get(adapter, Card())
    verdicts = Counter(row.get("verdict", "") for row in rows)
    labels = Counter(row["label"] for row in rows if row.get("label", "n/a") != "n/a")
    values = np.array([number(row.get("value")) for row in rows])
    values = values[np.isfinite(values)]
    summary = ", ".join(f"{name}: {n}" for name, n in labels.most_common(6))
    if len(values):
        unit = f" {card.unit}" if card.unit else ""
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        summary = f"median {middle:.3g}, 5th to 95th percentile {low:.3g} to {high:.3g}{unit}"
    return [
        Cell(adapter, f"phenotype/neurostorm_{adapter}.tsv"),
        Cell(card.target),
        Cell(str(len(rows))),
        Cell(summary or "none"),
        *(Cell(str(verdicts[name])) for name in LEVELS),
        Cell(str(len(rows) - sum(verdicts[name] for name in LEVELS))),
    ]


def failed_checks(run: RunRecord) -> list[str]:
    """Return the labels of the failed checks of a run and of its predictions."""
    return [spec()["checks"].get(name, name) for name in run.all_reasons]


def _most_frequent(runs: Sequence[RunRecord]) -> str:
    """Return the labels of the checks that most runs fail, with the number of runs."""
    counts = Counter(name for run in runs for name in failed_checks(run))
    return ", ".join(f"{name} ({n})" for name, n in counts.most_common(5))


def _sentence(status: str, runs: Sequence[RunRecord]) -> str:
    what = {FAILED: "failed", UNREADABLE: "partly unreadable", MISSING: "missing"}[status]
    verb = "" if status == FAILED else "is " if len(runs) == 1 else "are "
    text = f"{count_of(len(runs), 'run')} {verb}{what}"
    if len(runs) == 1:
        return f"{text}, {runs[0].stem}: {shortened(runs[0].reason, 160).rstrip('.')}."
    hint, n = Counter(run.hint for run in runs).most_common(1)[0]
    scope = "" if n == len(runs) else f" ({n} of them)"
    return f"{text}. What to do{scope}: {hint}" if hint else f"{text}."


def _rank(status: str) -> int:
    return FAILURES.index(status) if status in FAILURES else 0
