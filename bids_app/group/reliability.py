"""The section of the group's page about reliability: answers over sessions, and embeddings over the halves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.group.cohort import Cohort
from bids_app.group.predictions import Answer, answers_of
from bids_app.group.statistics import Estimate, Reliability, intraclass
from bids_app.reports.figures.group_charts import Pairs, plot_pairs
from bids_app.reports.group import FIGURES, WARN, Cell, Picture, Remark, Section, Table

FEWEST = 5
"""Participants with two sessions, from which reliability is told."""


def reliability_section(cohort: Cohort, out_dir: Path) -> Section:
    """Test-retest reliability of the answers, and split-half reliability of the embeddings."""
    section = Section("reliability", "Reliability")
    _split_halves(section, cohort)
    found = [
        (f"{answer.title}{f', {task}' if task else ''}", answer, table, intraclass(table))
        for answer in answers_of(cohort)
        for task, table in tables_of_sessions(cohort, answer).items()
    ]
    found = [entry for entry in found if len(entry[2]) >= FEWEST and np.isfinite(entry[3].agreement.value)]
    if not found:
        section.paragraphs.append(
            f"Test-retest reliability needs answers of two sessions of {FEWEST} participants; there are fewer."
        )
        return section
    section.paragraphs.append(
        "ICC(2,1) is the share of the variance that lies between participants, where differences between sessions "
        "count as error; in ICC(3,1) what a session adds for everybody does not count. Each participant's first "
        "sessions were taken, a task at a time, runs of a session averaged."
    )
    section.pictures.append(_figure(found, out_dir))
    section.tables.append(
        Table(
            "Answers over sessions",
            ("Answer", "ICC(2,1)", "95 % interval", "ICC(3,1)", "95 % interval", "Participants", "Sessions"),
            [(Cell(title), *_icc_cells(icc)) for title, _, _, icc in found],
        )
    )
    for title, _, _, icc in found:
        if icc.agreement.value < 0.5:
            section.remarks.append(
                Remark(WARN, f"{title}: poorly reliable over sessions, ICC(2,1) = {_interval(icc.agreement)}.")
            )
    return section


def tables_of_sessions(cohort: Cohort, answer: Answer) -> dict[str, np.ndarray]:
    """An answer by participant and session, (N, K), of each task.

    K is the largest number of sessions that at least half of the participants with two sessions have; each gives the
    first K, in natural order.
    """
    cells: dict[str, dict[str, dict[str, list[float]]]] = {}
    for run, value in zip(cohort.runs, answer.values, strict=True):
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
    """A table of the halves' correlations, where sidecars tell them."""
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
            "Split-half: the correlation of a run's embeddings from odd and from even clips, stepped up to the whole "
            "run (Spearman-Brown). All brains have much in common, so values near 1 are usual; the section on identity "
            "tells more."
        )
        headings = ("Embeddings", "Median over runs", "5 to 95 %", "Runs")
        section.tables.append(Table("Embeddings over the halves of a run", headings, rows))


def _icc_cells(icc: Reliability) -> list[Cell]:
    cells = []
    for estimate in (icc.agreement, icc.consistency):
        cells.append(Cell(f"{estimate.value:.2f}"))
        cells.append(Cell(f"{estimate.low:.2f} to {estimate.high:.2f}", value=estimate.low))
    return [*cells, Cell(str(icc.agreement.n)), Cell(str(icc.n_sessions))]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _figure(found: Sequence[tuple[str, Answer, np.ndarray, Reliability]], out_dir: Path) -> Picture:
    panels = [
        Pairs(
            title, table[:, 0], table[:, 1], ("first session", "second session"),
            f"ICC(2,1) = {icc.agreement.value:.2f}, n = {len(table)}", "identity",
        )
        for title, _, table, icc in found[:6]
    ]  # fmt: skip
    plot_pairs(panels, out_dir / FIGURES / "retest.svg", title="Answers of two sessions")
    return Picture(
        f"{FIGURES}/retest.svg",
        "Answers of two sessions",
        "A dot is a participant; on the dashed line both sessions give the same answer.",
        "Scatter plots of answers of the first and the second session: " + "; ".join(p.title for p in panels) + ".",
    )
