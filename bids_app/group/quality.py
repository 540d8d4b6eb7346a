"""Sections of the group's page about quality: measures that stand out, and whether answers follow motion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.derivatives import write_tsv
from bids_app.group.answers import Answer, answers_of
from bids_app.group.cohort import Cohort
from bids_app.group.statistics import Estimate, false_discovery_rate, mean_by, rank_correlation, robust_z
from bids_app.reports.contents import judge, spec
from bids_app.reports.group import BAD, FIGURES, GOOD, WARN, Cell, Picture, Remark, Section, Table, report_url
from bids_app.reports.group_charts import Distribution, Pairs, plot_distributions, plot_pairs

OUTLIERS = "group_outliers.tsv"
FEWEST = 8
"""Runs from which outliers are looked for."""


def quality_section(cohort: Cohort, out_dir: Path) -> Section:
    """Distributions of the quality measures, and the runs that stand out."""
    section = Section("quality", "Quality")
    runs = [run for run in cohort.runs if run.quality]
    settings = spec()["group"]
    names = [name for name in settings["worse"] if any(name in run.quality for run in runs)]
    if not names:
        section.paragraphs.append("No run has quality measures.")
        return section
    values = np.array([[run.quality.get(name, np.nan) for name in names] for run in runs], float)
    z = np.stack([robust_z(column) for column in values.T], axis=1)
    side = np.array([{"high": 1, "low": -1, "both": 0}[settings["worse"][name]] for name in names])
    away = np.where(side == 0, np.abs(z), z * side)
    enough = len(runs) >= FEWEST
    out = (away > settings["robust_z"]) & enough
    beyond = np.array([[judge(name, v) == "warn" for name, v in zip(names, row, strict=True)] for row in values])

    section.pictures.append(_distributions(names, values, out, out_dir))
    rows = [(i, j) for i, j in zip(*np.nonzero(out | beyond), strict=True)]
    columns: dict[str, list[Any]] = {
        "participant_id": [runs[i].participant for i, _ in rows],
        "run": [runs[i].stem for i, _ in rows],
        "measure": [names[j] for _, j in rows],
        "value": [values[i, j] for i, j in rows],
        "robust_z": [round(float(z[i, j]), 2) for i, j in rows],
        "outlier": ["yes" if out[i, j] else "no" for i, j in rows],
        "beyond_limit": ["yes" if beyond[i, j] else "no" for i, j in rows],
    }
    write_tsv(out_dir / OUTLIERS, columns)
    n_out = out.sum(axis=1)
    order = [i for i in np.lexsort((-away.max(axis=1, initial=0, where=out), -n_out)) if n_out[i]]
    section.paragraphs.append(
        f"{len(order)} of {len(runs)} runs stand out in at least one measure: by more than {settings['robust_z']} "
        f"robust standard deviations from the median, on the side that is worse. {int(beyond.any(axis=1).sum())} runs "
        "lie beyond a limit of the participant reports."
        if enough
        else f"With fewer than {FEWEST} runs none can be said to stand out."
    )
    section.tables.append(
        Table(
            "Runs that stand out",
            ("Run", "Measures", "Largest robust z", "What they are"),
            [
                (
                    Cell(runs[i].stem, report_url(runs[i].participant)),
                    Cell(str(n_out[i])),
                    Cell(f"{away[i][out[i]].max():.1f}"),
                    Cell(", ".join(_measure(names[j], values[i, j]) for j in _worst_first(away[i], out[i]))),
                )
                for i in order
            ],
            OUTLIERS,
        )
    )
    for i in order[:3]:
        what = ", ".join(_measure(names[j], values[i, j]) for j in _worst_first(away[i], out[i])[:3])
        text = f"{runs[i].stem} stands out in {_count(n_out[i], 'measure')}: {what}."
        section.remarks.append(Remark(WARN, text, report_url(runs[i].participant)))
    if enough and not order:
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
        section.remarks.append(Remark(GOOD, "No answer is seen to follow head motion."))
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
    shown = f"{value * entry.get('factor', 1):.3g} {entry.get('unit', '')}".strip()
    return f"{entry.get('label', name)} {shown}"


def _worst_first(away: np.ndarray, out: np.ndarray) -> list[int]:
    return [int(j) for j in np.argsort(-away) if out[j]]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def _distributions(names: list[str], values: np.ndarray, out: np.ndarray, out_dir: Path) -> Picture:
    entries = [spec()["quality"].get(name, {}) for name in names]
    measures = [
        Distribution(title_of(name), values[:, j], out[:, j], tuple(e[k] for k in ("least", "most") if k in e))
        for j, (name, e) in enumerate(zip(names, entries, strict=True))
    ]
    plot_distributions(measures, out_dir / FIGURES / "quality.svg")
    return Picture(
        f"{FIGURES}/quality.svg",
        "Quality measures over runs",
        "Dashed lines are the limits of the participant reports; marks below a histogram are runs that stand out.",
        f"Histograms of {len(names)} quality measures of {len(values)} runs.",
    )


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
        "A dot is a participant; the line is fitted by least squares. A sloping line says that the answer is partly "
        "about motion.",
        "Scatter plots of answers against mean framewise displacement: " + "; ".join(p.title for p in panels) + ".",
    )
