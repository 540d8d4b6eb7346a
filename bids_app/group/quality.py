"""Sections of the group's page about quality: measures that stand out, and whether answers follow motion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.writer import write_tsv
from bids_app.group.cohort import Cohort
from bids_app.group.predictions import Answer, answers_of
from bids_app.group.reading import RunRecord
from bids_app.group.statistics import Estimate, false_discovery_rate, mean_by, rank_correlation, robust_z
from bids_app.reports.contents import judge, spec
from bids_app.reports.figures.group_charts import Distribution, Pairs, plot_distributions, plot_pairs
from bids_app.reports.group import BAD, FIGURES, GOOD, WARN, Cell, Picture, Remark, Section, Table, report_url

OUTLIERS = "group_outliers.tsv"
FEWEST_FOR_MOTION = 20
"""Participants from whom a correlation that matters would be seen."""
FEWEST = 8
"""Runs from which outliers are looked for."""


@dataclass(frozen=True)
class Screening:
    """What stands out in the quality of runs.

    Attributes
    ----------
    runs : list of RunRecord, N
    names : list of str, K
        Of the measures.
    values, z, away : np.ndarray, (N, K)
        Measures; robust z; and how far each lies to the side that is worse.
    out, beyond : np.ndarray of bool, (N, K)
        Whether it stands out; whether it lies beyond a limit of the participant reports.
    """

    runs: list[RunRecord]
    names: list[str]
    values: np.ndarray
    z: np.ndarray
    away: np.ndarray
    out: np.ndarray
    beyond: np.ndarray

    @property
    def order(self) -> list[int]:
        """Runs that stand out: those in most measures first, then the farthest."""
        n_out = self.out.sum(axis=1)
        farthest = np.where(self.out, self.away, 0).max(axis=1, initial=0)
        return [int(i) for i in np.lexsort((-farthest, -n_out)) if n_out[i]]

    def told(self, run: int) -> list[str]:
        """Measures in which a run stands out, with their values, the farthest first."""
        order = np.argsort(-self.away[run])
        return [_measure(self.names[j], self.values[run, j]) for j in order if self.out[run, j]]


def screen(cohort: Cohort) -> Screening:
    """Look for outliers, on the side that is worse, and for what lies beyond limits."""
    worse, least = spec()["group"]["worse"], spec()["group"]["robust_z"]
    runs = [run for run in cohort.runs if run.quality]
    names = [name for name in worse if any(name in run.quality for run in runs)]
    values = np.array([[run.quality.get(name, np.nan) for name in names] for run in runs], float)
    values = values.reshape(len(runs), len(names))
    z = np.stack([robust_z(column) for column in values.T], axis=1) if values.size else values
    side = np.array([{"high": 1, "low": -1, "both": 0}[worse[name]] for name in names])
    away = np.where(side == 0, np.abs(z), z * side)
    out = (away > least) & (len(runs) >= FEWEST)
    beyond = np.array([[judge(name, v) == "warn" for name, v in zip(names, row, strict=True)] for row in values], bool)
    return Screening(runs, names, values, z, away, out, beyond.reshape(values.shape))


def quality_section(cohort: Cohort, out_dir: Path) -> Section:
    """Distributions of the quality measures, and the runs that stand out."""
    section = Section("quality", "Quality")
    found = screen(cohort)
    if not found.names:
        section.paragraphs.append("No run has quality measures.")
        return section
    order, n_runs, least = found.order, len(found.runs), spec()["group"]["robust_z"]
    few = f"With fewer than {FEWEST} runs none can be said to stand out."
    many = (
        f"{len(order):,} of {n_runs:,} runs stand out in at least one measure: by more than {least} robust standard "
        "deviations from the median, on the side that is worse."
    )
    n_beyond = int(found.beyond.any(axis=1).sum())
    section.paragraphs.append(
        f"{many if n_runs >= FEWEST else few} {n_beyond:,} {'run lies' if n_beyond == 1 else 'runs lie'} beyond a "
        "limit of the participant reports."
    )
    section.pictures += _distributions(found, out_dir)
    _write_outliers(found, out_dir / OUTLIERS)
    rows = [
        (
            Cell(found.runs[i].stem, report_url(found.runs[i].participant)),
            Cell(str(found.out[i].sum())),
            Cell(f"{found.away[i][found.out[i]].max():.1f}"),
            Cell(", ".join(found.told(i))),
        )
        for i in order
    ]
    headings = ("Run", "Measures", "Largest robust z", "What they are")
    section.tables.append(Table("Runs that stand out", headings, rows, OUTLIERS))
    if order:
        worst = "; ".join(f"{found.runs[i].stem} ({', '.join(found.told(i)[:3])})" for i in order[:3])
        text = f"{_count(len(order), 'run')} of odd quality, first of all {worst}."
        section.remarks.append(Remark(WARN, text))
    elif n_runs >= FEWEST:
        section.remarks.append(Remark(GOOD, "No run stands out in its quality."))
    return section


def motion_section(cohort: Cohort, out_dir: Path) -> Section:
    """Whether answers go with head motion: over participants, each counted once."""
    section = Section("motion", "Motion and answers")
    settings = spec()["group"]
    motion = np.array([run.quality.get("fd_mean", np.nan) for run in cohort.runs])
    people = [run.participant for run in cohort.runs]
    pairs: list[tuple[Answer, np.ndarray, np.ndarray, Estimate]] = []
    for answer in answers_of(cohort):
        both = np.isfinite(motion) & np.isfinite(answer.values)
        _, x = mean_by(np.where(both, motion, np.nan), people)
        _, y = mean_by(np.where(both, answer.values, np.nan), people)
        pairs.append((answer, x, y, rank_correlation(x, y)))
    pairs = [pair for pair in pairs if np.isfinite(pair[3].value)]
    if not pairs:
        section.paragraphs.append("Too few participants have both an answer and a mean framewise displacement.")
        return section
    adjusted = false_discovery_rate([pair[3].p for pair in pairs])
    follows = [
        q < settings["alpha"] and abs(pair[3].value) >= settings["motion_r"]
        for pair, q in zip(pairs, adjusted, strict=True)
    ]
    section.paragraphs.append(
        "Spearman's correlation of each answer with the mean framewise displacement, over participants (their runs "
        f"averaged). p is corrected for {_count(len(pairs), 'test')} (Benjamini and Hochberg)."
    )
    section.pictures.append(_motion_figure(pairs, out_dir))
    section.tables.append(
        Table(
            "Correlation with motion",
            ("Answer", "r", "95 % interval", "Participants", "Corrected p", "Verdict"),
            [
                (
                    Cell(answer.title),
                    Cell(f"{r.value:.2f}"),
                    Cell(f"{r.low:.2f} to {r.high:.2f}", value=r.low),
                    Cell(str(r.n)),
                    Cell(p_text(q), value=float(q)),
                    Cell("follows motion", level=WARN) if warned else Cell("no sign of it", level=GOOD),
                )
                for (answer, _, _, r), q, warned in zip(pairs, adjusted, follows, strict=True)
            ],
        )
    )
    for (answer, _, _, r), warned in zip(pairs, follows, strict=True):
        if warned:
            text = f"{answer.title} follows head motion: r = {r.value:.2f} ({r.low:.2f} to {r.high:.2f})."
            section.remarks.append(Remark(BAD if abs(r.value) >= 0.3 else WARN, text))
    if not any(follows):
        n = max(r.n for *_, r in pairs)
        few = "" if n >= FEWEST_FOR_MOTION else "; so few cannot show it"
        level = GOOD if n >= FEWEST_FOR_MOTION else WARN
        text = f"No answer is seen to follow head motion in {_count(n, 'participant')}{few}."
        section.remarks.append(Remark(level, text))
    return section


def p_text(p: float) -> str:
    """A p value in words."""
    return "n/a" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def title_of(measure: str) -> str:
    """A quality measure's name with its unit, as the table has it."""
    entry = spec()["quality"].get(measure, {})
    unit = "" if entry.get("factor") else entry.get("unit", "")
    return f"{entry.get('label', measure)}{f' ({unit})' if unit else ''}"


def _measure(name: str, value: float) -> str:
    entry = spec()["quality"].get(name, {})
    shown = f"{value * entry.get('factor', 1):.4g} {entry.get('unit', '')}".strip()
    return f"{entry.get('label', name)} {shown}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _write_outliers(found: Screening, path: Path) -> None:
    """A row a value that stands out or lies beyond a limit."""
    places = list(zip(*np.nonzero(found.out | found.beyond), strict=True))
    yes = {True: "yes", False: "no"}
    columns: dict[str, list[Any]] = {
        "participant_id": [found.runs[i].participant for i, _ in places],
        "run": [found.runs[i].stem for i, _ in places],
        "measure": [found.names[j] for _, j in places],
        "value": [found.values[place] for place in places],
        "robust_z": [round(float(found.z[place]), 2) for place in places],
        "outlier": [yes[bool(found.out[place])] for place in places],
        "beyond_limit": [yes[bool(found.beyond[place])] for place in places],
    }
    write_tsv(path, columns)


def _distributions(found: Screening, out_dir: Path) -> list[Picture]:
    """The picture of the measures that vary, if any does."""
    measures = []
    for name, values, out in zip(found.names, found.values.T, found.out.T, strict=True):
        entry = spec()["quality"].get(name, {})
        if np.nanmin(values) < np.nanmax(values):
            limits = tuple(entry[key] for key in ("least", "most") if key in entry)
            measures.append(Distribution(title_of(name), values, out, limits))
    if not measures:
        return []
    plot_distributions(measures, out_dir / FIGURES / "quality.svg")
    return [
        Picture(
            f"{FIGURES}/quality.svg",
            "Quality measures over runs",
            "Dashed lines are the limits of the participant reports; marks below a histogram are runs that stand out. "
            "Measures that are the same for all runs are left out.",
            f"Histograms of {len(measures)} quality measures of {len(found.runs)} runs.",
        )
    ]


def _motion_figure(pairs: list[tuple[Answer, np.ndarray, np.ndarray, Estimate]], out_dir: Path) -> Picture:
    strongest = sorted(pairs, key=lambda pair: -abs(pair[3].value))[:6]
    panels = [
        Pairs(answer.title, x, y, ("mean FD (mm)", answer.axis), f"r = {r.value:.2f}, n = {r.n}", "trend")
        for answer, x, y, r in strongest
    ]
    plot_pairs(panels, out_dir / FIGURES / "motion.svg", title="Motion and answers")
    return Picture(
        f"{FIGURES}/motion.svg",
        "Motion and answers",
        "A dot is a participant; the line joins medians, from those who moved least to those who moved most. Where it "
        "rises or falls, the answer is partly about motion.",
        "Scatter plots of answers against mean framewise displacement: " + "; ".join(p.title for p in panels) + ".",
    )
