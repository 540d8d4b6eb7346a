"""Section of the group report on test-retest reliability of predictions and split-half reliability of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.group.cohort import Cohort
from bids_app.group.predictions import PredictedVariable, collect_predictions
from bids_app.group.statistics import Estimate, Reliability, intraclass
from bids_app.reports.figures.group_charts import Pairs, plot_pairs
from bids_app.reports.group import FIGURES, WARN, Cell, Figure, Remark, Section, Table

MIN_PARTICIPANTS = 5
"""Minimum participants with two sessions for test-retest reliability."""


def reliability_section(cohort: Cohort) -> Section:
    """Build the section on test-retest reliability of predictions and split-half reliability of embeddings."""
    section = Section("reliability", "Reliability")
    _split_halves(section, cohort)
    found = [
        (f"{variable.title}{f', {task}' if task else ''}", table, intraclass(table))
        for variable in collect_predictions(cohort)
        for task, table in session_tables(cohort, variable).items()
    ]
    found = [entry for entry in found if len(entry[1]) >= MIN_PARTICIPANTS and np.isfinite(entry[2].agreement.value)]
    if not found:
        section.paragraphs.append(
            f"Test-retest reliability requires predictions from two sessions of {MIN_PARTICIPANTS} participants."
        )
        return section
    section.paragraphs.append(
        "Intraclass correlations of predictions across sessions: ICC(2,1) for absolute agreement, where mean "
        "differences between sessions count as error, and ICC(3,1) for consistency, where they do not. Computed by "
        "task from the first sessions of each participant; runs of a session are averaged."
    )
    section.figures.append(_figure(found))
    section.tables.append(
        Table(
            "Test-retest reliability of predictions",
            ("Prediction", "ICC(2,1)", "95 % CI", "ICC(3,1)", "95 % CI", "Participants", "Sessions"),
            [(Cell(title), *_icc_cells(icc)) for title, _, icc in found],
        )
    )
    for title, _, icc in found:
        if icc.agreement.value < 0.5:
            section.remarks.append(
                Remark(WARN, f"{title}: poor test-retest reliability, ICC(2,1) = {_interval(icc.agreement)}.")
            )
    return section


def session_tables(cohort: Cohort, variable: PredictedVariable) -> dict[str, np.ndarray]:
    """Arrange a prediction by participant and session, (N, K), for each task.

    K is the largest number of sessions that at least half of the participants with two or more sessions have; the
    first K sessions are used, in natural order.
    """
    cells: dict[str, dict[str, dict[str, list[float]]]] = {}
    for run, value in zip(cohort.runs, variable.values, strict=True):
        if np.isfinite(value):
            of_task = cells.setdefault(run.entities.get("task", ""), {}).setdefault(run.participant, {})
            of_task.setdefault(run.entities.get("ses", ""), []).append(float(value))
    tables = {}
    for task, people in cells.items():
        counts = np.array([len(sessions) for sessions in people.values() if len(sessions) > 1])
        if len(counts):
            k = int(np.quantile(counts, 0.5, method="lower"))
            tables[task] = np.array(
                [
                    [float(np.mean(sessions[name])) for name in sorted(sessions, key=natural_key)[:k]]
                    for sessions in people.values()
                    if len(sessions) >= k
                ]
            )
    return tables


def _split_halves(section: Section, cohort: Cohort) -> None:
    """Add a table of split-half correlations, if the sidecars have them."""
    rows = []
    for kind in dict.fromkeys(kind for run in cohort.runs for kind in run.vectors):
        values = [run.vectors[kind].split_half for run in cohort.runs if kind in run.vectors]
        known = np.array([value for value in values if value is not None and np.isfinite(value)])
        if len(known):
            low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
            cells = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", str(len(known))]
            rows.append([Cell(", ".join(kind)), *map(Cell, cells)])
    if rows:
        section.paragraphs.append(
            "Split-half reliability: correlation between the embeddings of odd and even clips of a run, with "
            "Spearman-Brown correction. Embeddings share a large common component, so values near 1 are usual; see "
            "Re-identification for a more specific measure."
        )
        headings = ("Embeddings", "Median", "5th to 95th percentile", "Runs")
        section.tables.append(Table("Split-half reliability of embeddings", headings, rows))


def _icc_cells(icc: Reliability) -> list[Cell]:
    cells = []
    for estimate in (icc.agreement, icc.consistency):
        cells.append(Cell(f"{estimate.value:.2f}"))
        cells.append(Cell(f"{estimate.low:.2f} to {estimate.high:.2f}", value=estimate.low))
    return [*cells, Cell(str(icc.agreement.n)), Cell(str(icc.n_sessions))]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _figure(found: Sequence[tuple[str, np.ndarray, Reliability]]) -> Figure:
    panels = [
        Pairs(
            title, table[:, 0], table[:, 1], ("first session", "second session"),
            f"ICC(2,1) = {icc.agreement.value:.2f}, n = {len(table)}", "identity",
        )
        for title, table, icc in found[:6]
    ]  # fmt: skip
    return Figure(
        f"{FIGURES}/retest.svg",
        "Test-retest reliability of predictions",
        "Each point is a participant; the dashed line is identity.",
        "Scatter plots of predictions in the first and second session: " + "; ".join(p.title for p in panels) + ".",
        partial(plot_pairs, panels, title="Test-retest reliability of predictions"),
    )
