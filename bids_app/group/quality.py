"""Sections of the group report on image quality metrics, outliers, and the effect of head motion on predictions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.writer import write_columns, write_json
from bids_app.group.cohort import Cohort
from bids_app.group.predictions import PredictedVariable, collect_predictions
from bids_app.group.reading import RunRecord
from bids_app.group.statistics import Estimate, false_discovery_rate, mean_by, rank_correlation, robust_z
from bids_app.reports.contents import spec
from bids_app.reports.figures.group_charts import Distribution, Pairs, plot_distributions, plot_pairs
from bids_app.reports.group import BAD, FIGURES, GOOD, WARN, Cell, Figure, Remark, Section, Table, report_url
from bids_app.terminal import count_of

OUTLIERS = "group_outliers.tsv"
OUTLIER_COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "run": {"Description": "Name of the run, without suffix"},
    "measure": {"Description": "Image quality metric"},
    "value": {"Description": "Value of the run"},
    "robust_z": {"Description": "Deviation from the median, in robust standard deviations"},
    "outlier": {"Description": "Outlier among the runs", "Levels": {"yes": "Outlier", "no": "Not an outlier"}},
    "beyond_limit": {
        "Description": "Beyond the limit of the participant report",
        "Levels": {"yes": "Beyond the limit", "no": "Within the limit, or without a limit"},
    },
}
"""Data dictionary of `OUTLIERS`."""
MIN_PARTICIPANTS_MOTION = 20
"""Minimum participants to detect a relevant correlation with head motion."""
MIN_RUNS = 8
"""Minimum runs for outlier detection."""


@dataclass(frozen=True)
class Screening:
    """Outliers among the image quality metrics of runs.

    Attributes
    ----------
    runs : list of RunRecord, N
    names : list of str, K
        Names of the metrics.
    values, z, deviation : np.ndarray, (N, K)
        Metrics; robust z-scores; robust z-scores in the direction of worse values.
    out, beyond : np.ndarray of bool, (N, K)
        Outliers; values outside the limits of the participant reports.
    """

    runs: list[RunRecord]
    names: list[str]
    values: np.ndarray
    z: np.ndarray
    deviation: np.ndarray
    out: np.ndarray
    beyond: np.ndarray

    @property
    def order(self) -> list[int]:
        """Outlier runs, sorted by number of metrics, then by largest deviation."""
        n_out = self.out.sum(axis=1)
        farthest = np.where(self.out, self.deviation, 0).max(axis=1, initial=0)
        return [int(i) for i in np.lexsort((-farthest, -n_out)) if n_out[i]]

    def outlying_metrics(self, run: int) -> list[str]:
        """Return the outlying metrics of a run with their values, largest deviation first."""
        order = np.argsort(-self.deviation[run])
        return [_measure(self.names[j], self.values[run, j]) for j in order if self.out[run, j]]


def screen(cohort: Cohort) -> Screening:
    """Find outliers in the direction of worse values, and values outside the limits."""
    worse, threshold = spec()["group"]["worse"], spec()["group"]["robust_z"]
    runs = [run for run in cohort.runs if run.quality]
    names = [name for name in worse if any(name in run.quality for run in runs)]
    values = np.array([[run.quality.get(name, np.nan) for name in names] for run in runs], float)
    values = values.reshape(len(runs), len(names))
    z = np.stack([robust_z(column) for column in values.T], axis=1) if values.size else values
    side = np.array([{"high": 1, "low": -1, "both": 0}[worse[name]] for name in names])
    deviation = np.where(side == 0, np.abs(z), z * side)
    away = np.abs(values - np.nanmedian(values, axis=0)) if values.size else values
    large = away >= np.array([spec()["group"]["floor"][name] for name in names])
    out = (deviation > threshold) & large & (len(runs) >= MIN_RUNS)
    limits = [spec()["quality"].get(name, {}) for name in names]
    lowest = np.array([each.get("minimum", -np.inf) for each in limits])
    highest = np.array([each.get("maximum", np.inf) for each in limits])
    beyond = (values < lowest) | (values > highest)  # a missing value is beyond no limit
    return Screening(runs, names, values, z, deviation, out, beyond)


def quality_section(cohort: Cohort, out_dir: Path) -> Section:
    """Build the section on the distributions of image quality metrics and outlier runs."""
    section = Section("quality", "Image quality")
    found = screen(cohort)
    if not found.names:
        section.paragraphs.append("No run has image quality metrics.")
        return section
    order, n_runs, threshold = found.order, len(found.runs), spec()["group"]["robust_z"]
    few = f"Outlier detection requires at least {MIN_RUNS} runs."
    many = (
        f"{len(order):,} of {n_runs:,} runs are outliers in at least one metric: more than {threshold} robust standard "
        "deviations from the median, in the direction of worse quality, and far enough to matter in practice."
    )
    n_beyond = int(found.beyond.any(axis=1).sum())
    exceed = f"{count_of(n_beyond, 'run')} exceed{'s' if n_beyond == 1 else ''} a limit of the participant reports."
    section.paragraphs.append(f"{many if n_runs >= MIN_RUNS else few} {exceed}")
    section.figures += _distributions(found)
    _write_outliers(found, out_dir / OUTLIERS)
    rows = [
        (
            Cell(found.runs[i].stem, report_url(found.runs[i].participant)),
            Cell(str(found.out[i].sum())),
            Cell(f"{found.deviation[i][found.out[i]].max():.1f}"),
            Cell(", ".join(found.outlying_metrics(i))),
        )
        for i in order
    ]
    headings = ("Run", "Outlying metrics", "Largest robust z", "Values")
    section.tables.append(Table("Outlier runs", headings, rows, OUTLIERS))
    if order:
        worst = "; ".join(f"{found.runs[i].stem} ({', '.join(found.outlying_metrics(i)[:3])})" for i in order[:3])
        text = f"{count_of(len(order), 'outlier run')}; largest deviations: {worst}."
        section.remarks.append(Remark(WARN, text))
    elif n_runs >= MIN_RUNS:
        section.remarks.append(Remark(GOOD, "No outliers in image quality."))
    return section


def motion_section(cohort: Cohort) -> Section:
    """Build the section on correlations of predictions with head motion, over participants."""
    section = Section("motion", "Head motion")
    settings = spec()["group"]
    motion = np.array([run.quality.get("fd_mean", np.nan) for run in cohort.runs])
    people = [run.participant for run in cohort.runs]
    pairs: list[tuple[PredictedVariable, np.ndarray, np.ndarray, Estimate]] = []
    for variable in collect_predictions(cohort):
        both = np.isfinite(motion) & np.isfinite(variable.values)
        _, x = mean_by(np.where(both, motion, np.nan), people)
        _, y = mean_by(np.where(both, variable.values, np.nan), people)
        pairs.append((variable, x, y, rank_correlation(x, y)))
    pairs = [pair for pair in pairs if np.isfinite(pair[3].value)]
    if not pairs:
        section.paragraphs.append("Too few participants have both a prediction and a mean framewise displacement.")
        return section
    adjusted = false_discovery_rate([pair[3].p for pair in pairs])
    correlated = [
        q < settings["alpha"] and abs(pair[3].value) >= settings["motion_r"]
        for pair, q in zip(pairs, adjusted, strict=True)
    ]
    section.paragraphs.append(
        "Spearman correlation of each prediction with the mean framewise displacement over participants (runs "
        f"averaged). p values are FDR-corrected for {count_of(len(pairs), 'test')} (Benjamini-Hochberg)."
    )
    section.figures.append(_motion_figure(pairs))
    section.tables.append(
        Table(
            "Correlation with head motion",
            ("Prediction", "r", "95 % CI", "Participants", "p (FDR)", "Result"),
            [
                (
                    Cell(variable.title),
                    Cell(f"{r.value:.2f}"),
                    Cell(f"{r.low:.2f} to {r.high:.2f}", value=r.low),
                    Cell(str(r.n)),
                    Cell(p_text(q), value=float(q)),
                    Cell("correlated", level=WARN) if warned else Cell("no evidence", level=GOOD),
                )
                for (variable, _, _, r), q, warned in zip(pairs, adjusted, correlated, strict=True)
            ],
        )
    )
    for (variable, _, _, r), warned in zip(pairs, correlated, strict=True):
        if warned:
            text = f"{variable.title} correlates with head motion: r = {r.value:.2f} ({r.low:.2f} to {r.high:.2f})."
            section.remarks.append(Remark(BAD if abs(r.value) >= 0.3 else WARN, text))
    if not any(correlated):
        n = max(r.n for *_, r in pairs)
        few = "" if n >= MIN_PARTICIPANTS_MOTION else "; the sample is too small to detect one"
        level = GOOD if n >= MIN_PARTICIPANTS_MOTION else WARN
        text = f"No correlation of predictions with head motion found in {count_of(n, 'participant')}{few}."
        section.remarks.append(Remark(level, text))
    return section


def p_text(p: float) -> str:
    """Format a p value."""
    return "n/a" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def metric_title(metric: str) -> str:
    """Return the label of an image quality metric with its unit."""
    entry = spec()["quality"].get(metric, {})
    unit = "" if entry.get("factor") else entry.get("unit", "")
    return f"{entry.get('label', metric)}{f' ({unit})' if unit else ''}"


def _measure(name: str, value: float) -> str:
    entry = spec()["quality"].get(name, {})
    shown = f"{value * entry.get('factor', 1):.4g} {entry.get('unit', '')}".strip()
    return f"{entry.get('label', name)} {shown}"


def _write_outliers(found: Screening, path: Path) -> None:
    """Write one row per outlier or value outside the limits."""
    indices = list(zip(*np.nonzero(found.out | found.beyond), strict=True))
    yes = {True: "yes", False: "no"}
    columns: dict[str, list[Any]] = {
        "participant_id": [found.runs[i].participant for i, _ in indices],
        "run": [found.runs[i].stem for i, _ in indices],
        "measure": [found.names[j] for _, j in indices],
        "value": [float(found.values[index]) for index in indices],
        "robust_z": [round(float(found.z[index]), 2) for index in indices],
        "outlier": [yes[bool(found.out[index])] for index in indices],
        "beyond_limit": [yes[bool(found.beyond[index])] for index in indices],
    }
    write_columns(path, columns)
    write_json(path.with_suffix(".json"), OUTLIER_COLUMNS)


def _distributions(found: Screening) -> list[Figure]:
    """Return the figure of the metrics that vary over runs, if any."""
    measures = []
    for name, values, out in zip(found.names, found.values.T, found.out.T, strict=True):
        entry = spec()["quality"].get(name, {})
        if np.nanmin(values) < np.nanmax(values):
            limits = tuple(entry[key] for key in ("minimum", "maximum") if key in entry)
            measures.append(Distribution(metric_title(name), values, out, limits))
    if not measures:
        return []
    return [
        Figure(
            f"{FIGURES}/quality.svg",
            "Distributions of image quality metrics",
            "Dashed lines are the limits of the participant reports; markers below a histogram are outlier runs. "
            "Metrics with the same value for all runs are omitted.",
            f"Histograms of {len(measures)} image quality metrics of {len(found.runs)} runs.",
            partial(plot_distributions, measures),
        )
    ]


def _motion_figure(pairs: list[tuple[PredictedVariable, np.ndarray, np.ndarray, Estimate]]) -> Figure:
    strongest = sorted(pairs, key=lambda pair: -abs(pair[3].value))[:6]
    panels = [
        Pairs(variable.title, x, y, ("mean FD (mm)", variable.axis), f"r = {r.value:.2f}, n = {r.n}", "trend")
        for variable, x, y, r in strongest
    ]
    return Figure(
        f"{FIGURES}/motion.svg",
        "Head motion and predictions",
        "Each point is a participant; the line connects binned medians. A trend indicates that the prediction "
        "depends on head motion.",
        "Scatter plots of predictions against mean framewise displacement: " + "; ".join(p.title for p in panels) + ".",
        partial(plot_pairs, panels, title="Head motion and predictions"),
    )
